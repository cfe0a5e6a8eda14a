"""Which labels to doubt: what models that did not see a row say of it.

Each row is judged by models trained on the other folds. *Wrong*: they are as sure of the other label as they are, on
average, of rows that bear it (confident learning: Northcutt et al. 2021, 1911.00068); it misses many and seldom errs.
*Controversial*: a model trained on mostly safe rows and one trained on mostly unsafe rows disagree (Qwen3Guard,
2510.14276): a strict reader calls it unsafe, a loose one safe. Doubted rows keep their label and get a lower weight;
nothing is dropped.

The models are TF-IDF ones, quick enough for any corpus; they know words, not the world, so their doubts are hints.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slm_guardian.errors import DataError
from slm_guardian.evaluate.baseline import TfidfBaseline
from slm_guardian.example import Example
from slm_guardian.train.data import WEIGHT

WEIGHTS = {"agreed": 1.0, "controversial": 0.5, "wrong": 0.25}
TIER, HEAVY = "label_tier", 3  # column of a row; how often the rows of a heavy label are repeated


@dataclass(frozen=True)
class Doubt:
    """What models of other folds said of a row: P(harm) plain, of the loose and of the strict one, and the tier."""

    harm: float
    loose: float
    strict: float
    tier: str


def check_labels(examples: Sequence[Example], folds: int = 5, seed: int = 0) -> list[Doubt]:
    """Judge every row by the models of the other folds; rows of a pair stay in one fold. Raises DataError."""
    if folds < 2 or len({e.label for e in examples}) < 2:
        raise DataError("checking labels needs rows of both labels and at least two folds")
    where = _folds(examples, folds, seed)
    said = np.zeros((len(examples), 3))
    for fold in range(folds):
        train = [e for e, f in zip(examples, where, strict=True) if f != fold]
        held = [i for i, f in enumerate(where) if f == fold]
        for column, heavy in enumerate((None, "safe", "unsafe")):
            rows = train + [e for e in train if e.label == heavy] * (HEAVY - 1)
            said[held, column] = TfidfBaseline.fit(rows, seed).harm([examples[i].text for i in held])
    unsafe = np.array([e.label == "unsafe" for e in examples])
    limits = said[unsafe, 0].mean(), (1 - said[~unsafe, 0]).mean()
    return [
        Doubt(harm, loose, strict, _tier((harm, loose, strict), bad, limits))
        for (harm, loose, strict), bad in zip(said.tolist(), unsafe, strict=True)
    ]


def weighted(examples: Sequence[Example], doubts: Sequence[Doubt]) -> list[Example]:
    """The rows with their tier and the weight that training gives them."""
    return [
        replace(e, extra={**e.extra, TIER: d.tier, WEIGHT: WEIGHTS[d.tier]})
        for e, d in zip(examples, doubts, strict=True)
    ]


def report(examples: Sequence[Example], doubts: Sequence[Doubt], top: int = 20) -> str:
    """Counts by source and category, and the ids of the rows most in doubt, as Markdown; no text of a row."""
    pairs = list(zip(examples, doubts, strict=True))
    lines = [f"# Labels in doubt\n\n{len(pairs):,} rows.\n"]
    for title in ("source", "label", "category"):
        counts = Counter((getattr(e, title) or "-", d.tier) for e, d in pairs)
        lines.append(f"\n| {title} | rows | controversial | wrong |\n|---|---|---|---|")
        for name in sorted({name for name, _ in counts}):
            total = sum(counts[name, tier] for tier in WEIGHTS)
            doubted = (counts[name, tier] for tier in ("controversial", "wrong"))
            lines.append(
                f"| {name} | {total:,} | {' | '.join(f'{n:,} ({n / total:.1%})' for n in doubted)} |"
            )
    wrong = [(e, d) for e, d in pairs if d.tier == "wrong"]
    worst = sorted(wrong, key=lambda pair: -abs(pair[1].harm - (pair[0].label == "unsafe")))
    lines += [f"\nMost in doubt of {len(worst):,} 'wrong' ones:\n", "| id | label | P(harm) |\n|---|---|---|"]
    lines += [f"| {e.id} | {e.label} | {d.harm:.3f} |" for e, d in worst[:top]]
    return "\n".join(lines) + "\n"


def _folds(examples: Sequence[Example], folds: int, seed: int) -> list[int]:
    groups = sorted({e.pair or e.id for e in examples})
    random.Random(seed).shuffle(groups)
    place = {group: i % folds for i, group in enumerate(groups)}
    return [place[e.pair or e.id] for e in examples]


def _tier(said: Sequence[float], unsafe: bool, limits: tuple[float, float]) -> str:
    harm, loose, strict = said
    other = harm < 0.5 and 1 - harm >= limits[1] if unsafe else harm >= 0.5 and harm >= limits[0]
    if other:
        return "wrong"
    return "controversial" if (loose >= 0.5) != (strict >= 0.5) else "agreed"
