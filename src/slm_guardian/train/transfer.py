"""Give an English encoder a new language: new pieces, then alignment on parallel text.

Each new piece starts as the mean of the English pieces it occurs with (Dice over sentence pairs); then the
mean-pooled sentence in the new language is pulled to the frozen teacher's vector of its English translation
(Reimers & Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual", with an in-batch
contrastive term). English is held in place by the same loss on the English side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from slm_guardian.errors import ModelError
from slm_guardian.layout import END, EXPL, HARM, PRED, SAFE, Layout
from slm_guardian.train.loop import LoopConfig, device, run

# Where the special tokens start: the base has no such pieces, but it has these words.
_STARTS = {PRED: "[CLS]", EXPL: "because", SAFE: "safe", HARM: "harmful", END: "[SEP]"}


@dataclass(frozen=True)
class Pair:
    """One sentence in the new language and its English translation."""

    new: str
    english: str


class Teacher:
    """The base itself: mean-pooled, normalised sentence vectors, with its own tokenizer."""

    def __init__(self, base: Path) -> None:
        from tokenizers import Tokenizer

        try:
            model: Any = BertModel.from_pretrained(base, add_pooling_layer=False, attn_implementation="eager")
            self.model = model.to(device()).eval()
            self.tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{base} is not a BERT directory: pass --base a Hugging Face directory"
            ) from error
        self.tokenizer.enable_truncation(128)
        self.tokenizer.no_padding()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
        """Unit vectors, shape (len(texts), hidden)."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            ids = [self.tokenizer.encode(texts[i]).ids for i in part]
            vectors[part] = F.normalize(pooled(self.model, ids), dim=-1).float().cpu().numpy()
        return vectors


def pooled(model: BertModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Mean of the last hidden states of each sequence, shape (batch, hidden)."""
    length = max(map(len, sequences))
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    ids, mask = ids.to(device()), mask.to(device())
    with torch.autocast(device().type, torch.bfloat16):
        hidden = model(ids, attention_mask=mask).last_hidden_state
    return (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def extended_model(base: Path, layout: Layout, pairs: Sequence[Pair]) -> BertForMaskedLM:
    """The base with the layout's vocabulary: known pieces copied, new ones from their Dice neighbours."""
    teacher = Teacher(base)
    old = teacher.model.get_input_embeddings().weight.detach().cpu().numpy()
    config = BertConfig.from_pretrained(base)
    vocabulary = layout.tokenizer.get_vocab()
    config.vocab_size, config.pad_token_id = len(vocabulary), layout.end
    config.architectures, config.tie_word_embeddings = ["BertForMaskedLM"], True
    # Measured on 2 cores: dropout masks and fused attention cost 46 % of a step. Augmentation regularises instead.
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config._attn_implementation = "eager"
    student: Any = BertForMaskedLM(config)
    student.bert.load_state_dict(teacher.model.state_dict() | _resized(teacher, len(vocabulary)), strict=True)
    embeddings = initial_embeddings(layout, teacher.tokenizer.get_vocab(), old, pairs)
    with torch.no_grad():
        student.get_input_embeddings().weight.copy_(torch.from_numpy(embeddings))
        student.cls.predictions.transform.dense.weight.copy_(torch.eye(config.hidden_size))
        student.cls.predictions.transform.dense.bias.zero_()
    student.tie_weights()
    return student.to(device())


def _resized(teacher: Teacher, size: int) -> dict[str, Tensor]:
    weight = teacher.model.get_input_embeddings().weight
    return {"embeddings.word_embeddings.weight": weight.new_zeros(size, weight.shape[1])}


def initial_embeddings(
    layout: Layout, known: dict[str, int], old: np.ndarray, pairs: Sequence[Pair], neighbours: int = 3
) -> np.ndarray:
    """Starting embeddings, shape (vocabulary, hidden): copied, or the Dice-weighted mean of neighbours."""
    vocabulary = layout.tokenizer.get_vocab()
    new = np.tile(old.mean(0), (len(vocabulary), 1)).astype(np.float32)
    for token, i in vocabulary.items():
        start = token if token in known else _STARTS.get(token, token)
        if start in known:
            new[i] = old[known[start]]
    for i, weights in _dice(layout, known, pairs, neighbours).items():
        new[i] = sum(w * new[j] for j, w in weights) / sum(w for _, w in weights)
    return new


def _dice(
    layout: Layout, known: dict[str, int], pairs: Sequence[Pair], neighbours: int
) -> dict[int, list[tuple[int, float]]]:
    """For each new piece the English pieces with the highest Dice coefficient over sentence pairs."""
    from scipy.sparse import csr_matrix

    vocabulary = layout.tokenizer.get_vocab()
    # A piece and its continuation form share their statistics: 계정 and ##계정 mean the same.
    stems = {t: i for i, t in enumerate(sorted({t.removeprefix("##") for t in vocabulary if t not in known}))}
    english = {i: t for t, i in vocabulary.items() if t in known and t.isalpha() and len(t) > 1}

    def incidence(rows: list[set[int]], width: int) -> csr_matrix:
        indices = [i for row in rows for i in sorted(row)]
        starts = np.cumsum([0, *map(len, rows)])
        return csr_matrix((np.ones(len(indices), np.float32), indices, starts), (len(rows), width))

    new_rows, english_rows = [], []
    for pair in pairs:
        tokens = layout.tokenizer.encode(pair.new, add_special_tokens=False).tokens
        new_rows.append({stems[s] for t in tokens if (s := t.removeprefix("##")) in stems})
        english_rows.append({i for i in layout.query(pair.english) if i in english})
    left, right = incidence(new_rows, len(stems)), incidence(english_rows, len(vocabulary))
    together = csr_matrix(left.T @ right)
    left_n, right_n = np.asarray(left.sum(0)).ravel(), np.asarray(right.sum(0)).ravel()
    best = [_top(together[i], left_n[i], right_n, neighbours) for i in range(len(stems))]
    return {
        i: b for t, i in vocabulary.items() if t not in known and (b := best[stems[t.removeprefix("##")]])
    }


def _top(row, count: float, totals: np.ndarray, neighbours: int) -> list[tuple[int, float]]:
    scores = 2 * row.data / (count + totals[row.indices])
    order = np.argsort(-scores, kind="stable")[:neighbours]
    return [(int(row.indices[k]), float(scores[k])) for k in order]


class Alignment:
    """The alignment loss over parallel text; also used beside the safety loss, so the crossing stays."""

    def __init__(
        self,
        model: BertForMaskedLM,
        layout: Layout,
        pairs: Sequence[Pair],
        targets: np.ndarray,
        seed: int = 0,
    ) -> None:
        self.model, self.layout, self.pairs = model, layout, pairs
        self.targets, self.seed = torch.from_numpy(targets), seed
        self._epoch: tuple[int, int] | None = None
        self._batches: list[list[int]] = []

    def __call__(self, step: int, batch_size: int = 128, temperature: float = 0.05) -> Tensor:
        """Loss of one batch: cosine distance + InfoNCE to the teacher's English vectors (both scalars)."""
        rows = self._rows(step, batch_size)
        target = self.targets[rows].to(device())
        new = F.normalize(pooled(self.model.bert, [self._ids(self.pairs[i].new) for i in rows]), dim=-1)
        few = rows[: batch_size // 4]
        english = pooled(self.model.bert, [self._ids(self.pairs[i].english) for i in few])
        logits = new @ target.T / temperature
        contrast = F.cross_entropy(logits, torch.arange(len(rows), device=logits.device))
        held = 1 - F.cosine_similarity(english, target[: len(few)]).mean()
        return 5 * (1 - (new * target).sum(-1).mean()) + contrast + 2 * held

    def _ids(self, text: str) -> list[int]:
        return self.layout.query(text)[:128] or [self.layout.end]

    def _rows(self, step: int, batch_size: int) -> list[int]:
        """Rows of a step: epochs without repeats, texts of like length together (less padding)."""
        epoch, index = divmod(step, max(1, len(self.pairs) // batch_size))
        if self._epoch != (epoch, batch_size):
            self._epoch, self._batches = (epoch, batch_size), self._shuffled(epoch, batch_size)
        batch = list(self._batches[index])
        random.Random(f"{self.seed}/{step}").shuffle(batch)
        return batch

    def _shuffled(self, epoch: int, batch_size: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.pairs)))
        rng.shuffle(order)
        block = 16 * batch_size
        order = [
            i for s in range(0, len(order), block) for i in sorted(order[s : s + block], key=self._length)
        ]
        batches = [order[s : s + batch_size] for s in range(0, len(order), batch_size)]
        full = [batch for batch in batches if len(batch) == batch_size] or batches
        rng.shuffle(full)
        return full

    def _length(self, i: int) -> int:
        return len(self.pairs[i].new)

    @torch.no_grad()
    def retrieval(self, rows: Sequence[int]) -> dict[str, float]:
        """Share of sentences whose own translation is nearest among `rows`, and the mean cosine."""
        vectors = F.normalize(pooled(self.model.bert, [self._ids(self.pairs[i].new) for i in rows]), dim=-1)
        scores = vectors.cpu() @ self.targets[list(rows)].T
        hits = scores.argmax(1) == torch.arange(len(rows))
        return {"retrieval": hits.float().mean().item(), "cosine": scores.diagonal().mean().item()}


def transfer(
    base: Path, layout: Layout, pairs: Sequence[Pair], held_out: Sequence[Pair], config: LoopConfig, out: Path
) -> BertForMaskedLM:
    """Extend `base` by the layout's vocabulary and align it; returns the trained prefix LM."""
    model = extended_model(base, layout, pairs)
    alignment = Alignment(model, layout, pairs, teacher_vectors(base, pairs, out), config.seed)
    check = Alignment(model, layout, held_out, Teacher(base).encode([p.english for p in held_out]))
    rows = range(len(held_out))
    run(model, lambda step: {"loss": alignment(step)}, config, out, lambda: check.retrieval(rows))
    return model


def teacher_vectors(base: Path, pairs: Sequence[Pair], cache: Path) -> np.ndarray:
    """The teacher's vectors of the English sides, computed once and kept in `cache`."""
    import hashlib

    key = hashlib.sha256("\n".join(p.english for p in pairs).encode()).hexdigest()[:12]
    path = cache / f"teacher-{key}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        vectors = Teacher(base).encode([p.english for p in pairs])
        with (cache / "teacher.partial").open("wb") as file:
            np.save(file, vectors.astype(np.float16))
        (cache / "teacher.partial").replace(path)
    return np.load(path).astype(np.float32)
