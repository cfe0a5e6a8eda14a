"""What a change did: a system before and after on the same rows, category by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from slm_guardian.evaluate.datasets import Dataset
from slm_guardian.evaluate.resample import wilson
from slm_guardian.evaluate.run import Outcome, judge_dataset
from slm_guardian.evaluate.significance import holm, mcnemar
from slm_guardian.evaluate.systems import System
from slm_guardian.evaluate.weighted import Bools

ALL, SAFE = "all rows", "safe rows"


@dataclass(frozen=True)
class Effect:
    """Rows of one category (or the safe ones, or all) that were called rightly before and after.

    `better` and `worse` count the rows that changed; `p` is exact McNemar's, corrected by Holm over the categories.
    """

    group: str
    n: int
    before: float
    after: float
    better: int
    worse: int
    p: float
    ci95: list[float] | None

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def effects(before: System, after: System, dataset: Dataset) -> list[Effect]:
    """Judge labelled rows by both systems; all rows first, then the safe ones, then each category."""
    outcomes = [Outcome(dataset, judge_dataset(system, dataset)) for system in (before, after)]
    labels = outcomes[0].labels
    calls = [outcome.predicted(None) for outcome in outcomes]
    names = [(row.category or "unsafe") if row.label == "unsafe" else SAFE for row in dataset.examples]
    groups = {ALL: np.ones(len(names), bool)}
    groups |= {
        name: np.array([n == name for n in names])
        for name in sorted(set(names), key=lambda n: (n != SAFE, n))
    }
    found = [_effect(name, labels[rows], calls[0][rows], calls[1][rows]) for name, rows in groups.items()]
    return _corrected(found)


def _effect(name: str, labels: Bools, before: Bools, after: Bools) -> Effect:
    test = mcnemar(labels, after, before)
    right = [int((calls == labels).sum()) for calls in (before, after)]
    n = len(labels)
    return Effect(
        name,
        n,
        right[0] / n,
        right[1] / n,
        test["only_a_right"],
        test["only_b_right"],
        test["p"],
        wilson(right[1], n),
    )


def _corrected(found: Sequence[Effect]) -> list[Effect]:
    """Holm's correction over the groups that share no row; all rows together are one test by themselves."""
    parts = [effect for effect in found if effect.group != ALL]
    fixed = dict(zip((e.group for e in parts), holm([e.p for e in parts]), strict=True))
    return [replace(e, p=fixed.get(e.group, e.p)) for e in found]
