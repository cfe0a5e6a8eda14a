"""Rows for the two training stages: token ids, targets and weights, drawn anew each epoch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm_guardian.example import Example, Reject, file_sha256, read_examples
from slm_guardian.layout import Layout
from slm_guardian.policy import Policy
from slm_guardian.text import display, language
from slm_guardian.train.augment import perturb

MAX_QUERY = 160  # tokens; longer queries are judged in windows, so longer rows would never be seen whole
MAX_RESPONSE = 96
WEIGHT = "label_weight"  # column of a row: how far its label is to be trusted, 0 to 1
SOFT = "teacher_harm"  # and the teachers' P(harm)


@dataclass(frozen=True)
class Row:
    """One training sequence and its targets. `label` is None in the instruction stage."""

    ids: list[int]
    prefix: int  # query tokens, which see each other
    label: int | None = None  # 1 = unsafe
    category: int | None = None  # index into the policy's categories
    answer: int | None = None  # position from which tokens are predicted
    weight: float = 1.0
    soft: float | None = None  # P(harm) of the teachers


@dataclass
class Corpus:
    """Examples of one file with their share of an epoch; `cap` rows are drawn anew each epoch."""

    path: Path
    examples: list[Example]
    rejects: list[Reject]
    weight: float = 1.0
    cap: int | None = None

    @property
    def trusted(self) -> bool:
        """Whether the labels follow our policy: noisy public files are weighed down."""
        return self.weight >= 1

    def draw(self, rng: random.Random) -> list[Example]:
        """This epoch's rows."""
        if self.cap is None or len(self.examples) <= self.cap:
            return self.examples
        return rng.sample(self.examples, self.cap)

    def manifest(self) -> dict[str, Any]:
        """What a model card needs to know of this file."""
        counts = Counter((e.source, e.licence) for e in self.examples)
        sources = [
            {"source": s, "licence": licence, "rows": n}
            for (s, licence), n in sorted(counts.items(), key=str)
        ]
        reasons = Counter(r.reason for r in self.rejects)
        return {
            "file": self.path.name,
            "sha256": file_sha256(self.path) if self.path.is_file() else None,
            "rows": len(self.examples),
            "unsafe": sum(e.label == "unsafe" for e in self.examples),
            "weight": self.weight,
            "cap_per_epoch": self.cap,
            "rejects": dict(reasons),
            "sources": sources,
        }


def load_corpus(path: Path, weight: float = 1.0, cap: int | None = None) -> Corpus:
    """Read one file; rows without a label are rejects."""
    examples, rejects = read_examples(path)
    kept = [e for e in examples if e.label]
    rejects += [Reject(e.id, "no label") for e in examples if not e.label]
    return Corpus(path, kept, rejects, weight, cap)


@dataclass
class Encoder:
    """Turns examples into rows for one layout and one set of policies (by language)."""

    layout: Layout
    policies: dict[str, Policy]
    rejects: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.categories = [c.id for c in next(iter(self.policies.values())).categories]

    def safety(
        self, example: Example, weight: float = 1.0, text: str | None = None, answer: bool = True
    ) -> Row:
        """`query <|pred|> <|safe|>` or `query <|pred|> <|harm|> category <|expl|> response <|end|>`."""
        layout = self.layout
        query = layout.framed(display(text or example.text), MAX_QUERY)
        weight *= example.extra.get(WEIGHT, 1.0)
        soft = example.extra.get(SOFT)
        if example.label == "safe":
            return Row([*query, layout.pred], len(query), label=0, weight=weight, soft=soft)
        ids = [*query, layout.pred, layout.harm]
        known = example.category in self.categories
        category = self.categories.index(str(example.category)) if known else None
        response = self.response(example) if answer and known else None
        if response is None or category is None:
            return Row(ids, len(query), 1, category, weight=weight, soft=soft)
        start = len(ids) + 1
        ids += [layout.piece_id(self.categories[category]) or 0, layout.expl, *response, layout.end]
        return Row(ids, len(query), 1, category, start, weight, soft)

    def instruction(self, example: Example) -> Row | None:
        """`query <|expl|> answer <|end|>`: language without a verdict, for the first stage."""
        query = self.layout.framed(display(example.text), MAX_QUERY)
        answer = self.response(example)
        if len(query) == self.layout.around or answer is None:
            return None
        return Row([*query, self.layout.expl, *answer, self.layout.end], len(query), answer=len(query))

    def response(self, example: Example) -> list[int] | None:
        """Ids of the response in slot form, or None with the reason counted."""
        if not example.response:
            return None
        text, reason = clean_response(example, self.policies.get(example.lang or "", None))
        ids = None
        if text:
            try:
                ids = self.layout.response(text)
            except KeyError:
                reason = "a fact that the model lacks"
        if ids is not None and len(ids) > MAX_RESPONSE:
            ids, reason = None, "response too long"
        if ids is not None and self.layout.tokenizer.token_to_id("[UNK]") in ids:
            ids, reason = None, "response with unknown characters"
        if ids is None:
            self.rejects[reason] += 1
        return ids


def clean_response(example: Example, policy: Policy | None) -> tuple[str | None, str]:
    """The response in slot form, or None and why it is never trained on."""
    text = (
        display(example.response or "")
        .replace("—", ",")
        .replace("–", "-")
        .replace("“", '"')
        .replace("”", '"')
    )
    text = text.replace("’", "'").replace("‘", "'")
    if policy is None:
        return None, "no policy for the language"
    if language(text, (policy.language, "ko", "en")) != policy.language:
        return None, "response in another language"
    if not text.endswith((".", "!", "?", "요", "다")):
        return None, "unfinished response"
    slots = policy.to_slots(text)
    if policy.foreign_numbers(slots):
        return None, "a number or link that the policy does not list"
    return slots, ""


class Epochs:
    """Batches by step: every epoch draws, perturbs, shuffles and sorts rows anew, by seed and epoch alone.

    `tokens` makes batches of as many rows as fit into it with their padding, instead of `batch_size` rows; `packed`
    ones have none.
    """

    def __init__(
        self,
        draw: Callable[[random.Random], list[Row]],
        batch_size: int,
        seed: int,
        tokens: int | None = None,
        packed: bool = False,
    ) -> None:
        self.draw, self.batch_size, self.seed, self.tokens = draw, batch_size, seed, tokens
        self.packed = packed
        self._epoch = -1
        self._batches: list[list[Row]] = []
        self.steps_per_epoch = len(self._load(0))

    def __call__(self, step: int) -> list[Row]:
        """The batch of a step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batches = self._load(epoch)
        return batches[index % len(batches)]

    def _load(self, epoch: int) -> list[list[Row]]:
        if epoch != self._epoch:
            rng = random.Random(f"{self.seed}/{epoch}")
            rows = self.draw(rng)
            rng.shuffle(rows)
            # Rows of like length share a batch: half the padding, twice the speed.
            block = 24 * self.batch_size
            ordered = [
                row
                for start in range(0, len(rows), block)
                for row in sorted(rows[start : start + block], key=lambda r: len(r.ids))
            ]
            batches = list(self._batched(ordered))
            rng.shuffle(batches)
            self._epoch, self._batches = epoch, batches
        return self._batches

    def _batched(self, rows: list[Row]) -> Iterator[list[Row]]:
        if self.tokens is None:
            yield from (rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size))
            return
        batch, total, longest = [], 0, 0
        for row in rows:
            size = len(row.ids)
            total, longest = total + size, max(longest, size)
            if batch and (total if self.packed else longest * (len(batch) + 1)) > self.tokens:
                yield batch
                batch, total, longest = [], size, size
            batch.append(row)
        yield batch


def safety_rows(
    corpora: Sequence[Corpus], encoder: Encoder, perturbed: float, answered: float
) -> Callable[[random.Random], list[Row]]:
    """Draw of an epoch: a share `perturbed` of queries is disguised, `answered` of responses is trained on."""

    def draw(rng: random.Random) -> list[Row]:
        rows = []
        for corpus in corpora:
            for example in corpus.draw(rng):
                text = perturb(example.text, rng) if rng.random() < perturbed else None
                row = encoder.safety(example, corpus.weight, text, answer=rng.random() < answered)
                if row.prefix > encoder.layout.around:
                    rows.append(row)
        return rows

    return draw


def prefix_mask(rows: Sequence[Row], length: int) -> Tensor:
    """True where a token may look: (batch, length, length); bidirectional in the query, causal after it."""
    positions = torch.arange(length)
    causal = positions[None, :] <= positions[:, None]
    prefix = torch.tensor([row.prefix for row in rows])[:, None, None]
    within = (positions[None, None, :] < prefix) & (positions[None, :, None] < prefix)
    real = positions[None, None, :] < torch.tensor([len(row.ids) for row in rows])[:, None, None]
    return (causal[None] | within) & real


def padded(rows: Sequence[Row], fill: int) -> Tensor:
    """Ids, shape (batch, longest), filled up on the right."""
    length = max(len(row.ids) for row in rows)
    return torch.tensor([row.ids + [fill] * (length - len(row.ids)) for row in rows])
