"""Guardian: the object that users hold. It judges queries by a policy and answers the harmful ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, overload

import numpy as np

from slm_guardian import answers
from slm_guardian.approved import Approved
from slm_guardian.engines import Engine, Unanswered, is_address, load_engine
from slm_guardian.errors import InputError, ModelError, PolicyError
from slm_guardian.policy import Action, Category, Policy
from slm_guardian.text import language, views, windows

MAX_ANSWER = 96  # tokens
MAX_TEXT = 2_000_000  # characters; more is refused, never cut
_BANNED = np.float32(-1e9)
_UNREADABLE = "nothing to read: the text is empty, invisible or in another encoding"
MODES = ("strict", "loose")  # thresholds that calibration makes of rows on which readers disagree
NO_NUMBER = "the model gave no number: export it again"


@dataclass(frozen=True)
class Verdict:
    """What the guardian says about one text.

    `harm` is the calibrated P(harm), None when it could not judge (see `error`; the label is then unsafe:
    the guardian fails closed). `action` is what the policy wants done: `pass`, `answer`, `block` or `flag`;
    `threshold` is the P(harm) from which this text counts as harmful. `scores` shares `harm` out among the
    policy's categories, by the model's odds for each.
    """

    text: str
    label: str
    harm: float | None
    category: str | None
    group: str | None
    response: str | None
    policy: str
    model: str
    action: Action | str = "pass"
    threshold: float | None = None
    error: str | None = None
    scores: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that `guardian check --json` prints."""
        keys = ("text", "label", "harm", "category", "group", "response", "policy", "model")
        row = {key: getattr(self, key) for key in keys}
        return row | ({"error": self.error} if self.error else {})


class Guardian:
    """A model with its policies. Build one with `Guardian.load()`.

    >>> guardian = Guardian.load()                                     # doctest: +SKIP
    >>> guardian.check("my phone died, how do I bring it back to life?").label    # doctest: +SKIP
    'safe'
    """

    def __init__(
        self,
        engine: Engine,
        policies: Sequence[Policy],
        manifest: Mapping[str, Any],
        name: str,
        threshold: float | str | None,
        approved: Approved | None = None,
    ) -> None:
        self._threshold = _threshold(threshold, manifest)
        if len({policy.language for policy in policies}) < len(policies):
            raise PolicyError(
                "two policies for one language: load one, and the other by with_policies, which shares the model"
            )
        self.engine, self.name = engine, name
        self.policies = {policy.language: policy for policy in policies}
        self._default = policies[0]
        self._manifest, self._approved = manifest, approved
        self._temperature = float(manifest.get("calibration", {}).get("temperature", 1.0))
        self._casing = manifest.get("casing", {})
        for policy in policies:
            self._check_fit(policy)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        policy: str | Path | Policy | Sequence[Policy] | None = None,
        threshold: float | str | None = None,
        threads: int | None = None,
    ) -> Guardian:
        """Load a guardian: the shipped one, a model directory, or one that a server runs.

        A server (vLLM, llama-server) is given as `http://HOST:PORT/v1?model=NAME&tokenizer=DIR`, where DIR is
        the exported directory: its guardian.json and tokenizer.json are read. Several policies serve each its
        language; without `policy` the shipped packs do. `threshold` is a P(harm) that overrides all others, or one
        of MODES: `strict` finds more harm, `loose` stops fewer people.
        Raises InputError, ModelError or PolicyError with what to do.
        """
        directory, engine = _loaded(model, threads)
        if isinstance(policy, (str, Path)):
            policy = Policy.load(policy)
        policies = (
            [policy] if isinstance(policy, Policy) else policy or [Policy.load(n) for n in ("ko", "en")]
        )
        manifest = _manifest(directory)
        name = manifest.get("name") or directory.name
        return cls(engine, policies, manifest, name, threshold, Approved.load(directory))

    def with_policies(self, policies: Sequence[Policy], threshold: float | str | None = None) -> Guardian:
        """A guardian by other policies that shares this one's model. Raises PolicyError."""
        return Guardian(self.engine, policies, self._manifest, self.name, threshold, self._approved)

    @property
    def threshold(self) -> float:
        """P(harm) from which the default policy's categories without a threshold of their own are unsafe."""
        return self._base_threshold(self._default)

    @property
    def revision(self) -> str:
        """What verdicts depend on, as a hash: the manifest (an export puts its weights' hash there) and policies."""
        known = [self._manifest, *(policy.model_dump(mode="json") for policy in self.policies.values())]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    @overload
    def check(  # pyright: ignore[reportOverlappingOverload]  # a str is a sequence of str, too
        self, texts: str, respond: bool = True, force: bool = False
    ) -> Verdict: ...
    @overload
    def check(self, texts: Sequence[str], respond: bool = True, force: bool = False) -> list[Verdict]: ...

    def check(
        self, texts: str | Sequence[str], respond: bool = True, force: bool = False
    ) -> Verdict | list[Verdict]:
        """Judge one text or many, in order.

        `respond` also writes the answers of harmful ones; `force` treats every text as harmful and so gets
        a safeguard answer for it without retraining (its `harm` stays what the model says).
        """
        if isinstance(texts, str):
            return self._check([texts], respond, force)[0]
        return self._check(list(texts), respond, force)

    def respond(self, text: str, category: str | None = None) -> str:
        """A safeguard answer to a text, whatever its label; `category` overrides the model's choice."""
        return "".join(self.stream(text, category))

    def stream(self, text: str, category: str | None = None) -> Iterator[str]:
        """The answer, sentence by sentence: each is checked before it is given out.

        If the first sentence fails its check, or the server fails, the policy's fallback comes instead; later
        that ends the answer.
        Raises PolicyError for an unknown category.
        """
        policy = self.policy_for(text)
        part, chosen = self._chosen(text, policy, category)
        shown = ""
        with suppress(Unanswered):
            for sentence in self._sentences(part, policy, chosen):
                if answers.fault(shown + sentence, text, policy, chosen):
                    break
                yield (" " if shown else "") + self._final(sentence.strip(), policy)
                shown += sentence
        if not shown:
            yield answers.fallback(policy, chosen, text)

    def draft(self, text: str, category: str) -> tuple[str, str | None]:
        """The model's whole answer in slot form, unchecked, and the fault that would keep it unshown."""
        policy = self.policy_for(text)
        part, chosen = self._chosen(text, policy, category)
        written = "".join(self._sentences(part, policy, chosen))
        return written, answers.fault(written, text, policy, chosen)

    def limit(self, policy: Policy, category: Category) -> float:
        """P(harm) from which a query of this category counts as harmful."""
        if isinstance(self._threshold, float) or category.threshold is None:
            return self._base_threshold(policy)
        return category.threshold

    def policy_for(self, text: str) -> Policy:
        """The policy of the language that the text begins in, else the first one."""
        return self.policies.get(language(text[:1000], list(self.policies)), self._default)

    def _check(self, texts: list[str], respond: bool, force: bool) -> list[Verdict]:
        parts = [
            (i, part) for i, text in enumerate(texts) if not _unjudgeable(text) for part in self._parts(text)
        ]
        policies = [self.policy_for(texts[i]).id for i, _ in parts]
        logits, reason = self._logits([part for _, part in parts], policies)
        best: dict[int, np.ndarray] = {}
        for (i, _), row in zip(parts, logits, strict=True):
            if i not in best or row[0] > best[i][0] or not np.isfinite(row[0]):
                best[i] = row
        verdicts = [self._verdict(text, best.get(i), force, reason) for i, text in enumerate(texts)]
        return [self._answered(v) if respond else v for v in verdicts]

    def _parts(self, text: str) -> list[list[int]]:
        """What is judged of a text: all of both views, in windows. Empty if the model can read nothing."""
        layout = self.engine.layout
        parts = [layout.judge(part) for view in views(text) for part in windows(view)]
        readable = [part for part in parts if len(part) > layout.around + 2]
        known = any(token != layout.unknown for part in readable for token in part[:-2])
        return readable if known or not any(map(str.isalpha, text[:1000])) else []

    def _logits(self, sequences: list[list[int]], policies: list[str]) -> tuple[np.ndarray, str]:
        """Harm logit, then category logits, for each sequence: (sequences, 1 + categories).

        Each runs with the adapter of its policy. Where there is no number there is NaN, for the reason given.
        """
        layout = self.engine.layout
        tokens = [layout.safe, layout.harm, *(layout.piece_id(c) or 0 for c in self._known)]
        logits, reason = np.zeros((len(sequences), len(tokens) - 1), np.float32), NO_NUMBER
        engines = {policy: self.engine.adapted(policy) for policy in set(policies)}
        for engine in set(engines.values()):
            rows = [i for i, policy in enumerate(policies) if engines[policy] is engine]
            try:
                scores = engine.scores([sequences[i] for i in rows], tokens)
            except Unanswered as error:
                scores, reason = error.scores, str(error)
            logits[rows] = np.concatenate([scores[:, 0, 1:2] - scores[:, 0, 0:1], scores[:, 1, 2:]], 1)
        return logits, reason

    def _verdict(self, text: str, logits: np.ndarray | None, force: bool, reason: str) -> Verdict:
        policy = self.policy_for(text) if isinstance(text, str) else self._default
        known: dict[str, Any] = {"text": text, "policy": policy.id, "model": self.name}
        if logits is None or not np.isfinite(logits).all():
            error = _unjudgeable(text) or (_UNREADABLE if logits is None else reason)
            return Verdict(
                label="unsafe",
                harm=None,
                category=None,
                group=None,
                response=None,
                action="block",
                error=error,
                **known,
            )
        harm = 1 / (1 + math.exp(-float(np.clip(logits[0] / self._temperature, -30, 30))))
        category = policy.by_id[self._best(logits, policy)]
        known |= {"harm": round(harm, 6), "response": None, "threshold": self.limit(policy, category)}
        known["scores"] = self._scores(harm, logits, policy)
        harmful = harm >= known["threshold"] and category.action != "allow"
        if not (harmful or force):
            return Verdict(label="safe", category=None, group=None, **known)
        action = "answer" if force else category.action
        return Verdict(label="unsafe", category=category.id, group=category.group, action=action, **known)

    def _scores(self, harm: float, logits: np.ndarray, policy: Policy) -> dict[str, float]:
        """P(harm) times the share of each of the policy's categories."""
        usable = [i for i, name in enumerate(self._known) if name in policy.by_id]
        odds = np.exp(logits[1:][usable] - logits[1:][usable].max())
        return {self._known[i]: harm * float(s) for i, s in zip(usable, odds / odds.sum(), strict=True)}

    def _answered(self, verdict: Verdict) -> Verdict:
        if verdict.action != "answer" or verdict.category is None:
            return verdict
        return replace(verdict, response=self.respond(verdict.text, verdict.category))

    def _sentences(self, part: list[int], policy: Policy, category: Category) -> Iterator[str]:
        """The answer in slot form, sentence by sentence: the approved one that fits, else what the model writes."""
        if self._approved and self._approved.has(category.id, policy.language):
            meaning = self.engine.meaning(part)
            yield from answers.sentences(self._approved.choose(meaning, category.id, policy.language))
        else:
            yield from self._written(part, policy, category)

    def _written(self, part: list[int], policy: Policy, category: Category) -> Iterator[str]:
        """What the model writes, given out whenever a sentence is complete."""
        layout = self.engine.layout
        ids: list[int] = []
        given = 0
        prompt = layout.answer_prompt(part, category.id)
        engine = self.engine.adapted(policy.id)
        for token in engine.write(prompt, len(prompt) - 4, self._banned(policy, category), MAX_ANSWER):
            ids.append(token)
            done = answers.sentences(layout.response_text(ids))
            while len(done) > given + 1:  # a sentence is complete once the next one has begun
                yield done[given]
                given += 1
        yield from answers.sentences(layout.response_text(ids))[given:]

    def _final(self, sentence: str, policy: Policy) -> str:
        filled = policy.fill(answers.recase(sentence, self._casing))
        # A sentence may begin with a fact, whose text is not changed but for its article.
        return "T" + filled[1:] if filled.startswith("the ") else filled

    def _banned(self, policy: Policy, category: Category) -> np.ndarray:
        """Bans what an answer of this category must not hold: marks, other facts, pieces of no answer."""
        layout = self.engine.layout
        used = self._manifest.get("answer_tokens")
        banned = np.full(layout.size, _BANNED if used else 0, np.float32)
        banned[[*(used or []), layout.end]] = 0
        banned[layout.never] = _BANNED
        allowed = [layout.piece_id(f) for f in category.facts if f in policy.facts]
        banned[[i for i in allowed if i is not None]] = 0
        return banned

    def _chosen(self, text: str, policy: Policy, category: str | None) -> tuple[list[int], Category]:
        """The part of a text that an answer is for, the most harmful one, and its category unless given."""
        parts = self._parts(text) or [self.engine.layout.judge("")]
        if len(parts) == 1 and category is not None:
            worst = 0
        else:
            logits, reason = self._logits(parts, [policy.id] * len(parts))
            if np.isnan(logits).any():
                raise Unanswered(reason, logits)
            worst = int(logits[:, 0].argmax())
            category = category or self._best(logits[worst], policy)
        if category not in policy.by_id:
            raise PolicyError(f"policy {policy.id} has no category {category}: see `guardian policy show`")
        return parts[worst], policy.by_id[category]

    def _best(self, logits: np.ndarray, policy: Policy) -> str:
        usable = [i for i, name in enumerate(self._known) if name in policy.by_id]
        return self._known[max(usable, key=lambda i: logits[1 + i])]

    def _base_threshold(self, policy: Policy) -> float:
        if isinstance(self._threshold, float):
            return self._threshold
        calibrated = (
            self._manifest.get("calibration", {}).get(self._threshold or "thresholds", {}).get(policy.id)
        )
        return next((t for t in (calibrated, policy.threshold) if t is not None), 0.5)

    @property
    def _known(self) -> list[str]:
        return list(self._manifest["categories"])

    def _check_fit(self, policy: Policy) -> None:
        missing = [c for c in policy.by_id if c not in self._known or self.engine.layout.piece_id(c) is None]
        if missing:
            raise PolicyError(
                f"policy {policy.id} has the category {missing[0]}, which model {self.name} was not "
                "trained on: train a model with this policy, or remove the category"
            )


def as_threshold(value: str | float | None) -> float | str | None:
    """A threshold as it is typed: a number or one of MODES. Raises InputError."""
    if value is None or value in MODES:
        return value
    with suppress(ValueError):
        if 0 <= float(value) <= 1:
            return float(value)
    raise InputError(f"the threshold (--threshold) is a number from 0 to 1, {' or '.join(MODES)}: give one")


def _threshold(value: float | str | None, manifest: Mapping[str, Any]) -> float | str | None:
    checked = as_threshold(value)
    if isinstance(checked, str) and checked not in manifest.get("calibration", {}):
        raise InputError(
            f"the model has no {checked} threshold: calibrate it with rows of `guardian labels` as --dev"
        )
    return checked


def _loaded(model: str | Path | None, threads: int | None) -> tuple[Path, Engine]:
    """The directory with the manifest of a guardian, and the engine that runs it."""
    if is_address(model):
        from slm_guardian.engines.http import HttpEngine

        engine = HttpEngine.load(str(model))
        return engine.directory, engine
    directory = Path(model) if model else Path(str(files("slm_guardian").joinpath("assets/mini")))
    return directory, load_engine(directory, threads)


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / "guardian.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        calibration = manifest.get("calibration", {})
        limits = [n for mode in ("thresholds", *MODES) for n in calibration.get(mode, {}).values()]
        numbers = [calibration.get("temperature", 1.0), *limits]
        if not list(manifest["categories"]) or not all(0 <= n < math.inf for n in numbers) or not numbers[0]:
            raise ValueError("no categories, or a number that is none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is missing or broken: export or train the model again") from error
    return manifest


def _unjudgeable(text: str) -> str | None:
    if not isinstance(text, str):
        return "not a text"
    if len(text) > MAX_TEXT:
        return f"longer than {MAX_TEXT:,} characters: send it in parts"
    return None
