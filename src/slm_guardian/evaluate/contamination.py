"""Test rows that stand in training data, or nearly so: how many there are, and what systems score without them.

Texts are compared as `guardian generate` compares them (spelling without disguises, near-equal by letters); labels do
not count. A harmless twin that differs by one word from a harmful training row is near it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_guardian.evaluate.datasets import Dataset
from slm_guardian.evaluate.run import Outcome, measure_outcome
from slm_guardian.example import expand, file_sha256, read_examples

NEAR, EXACT = "near", "exact"


class TrainingData:
    """The texts of training files, to look test rows up in."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Read files (paths or globs; .jsonl, .csv, .txt, .gz, too). Raises DataError for one that cannot be used.

        Raises GuardianError without the extra `generate`.
        """
        from slm_guardian.generate.duplicates import Duplicates

        self._texts = Duplicates()
        self.files: dict[str, str] = {}
        for path in expand(patterns):
            self.files[str(path)] = file_sha256(path)
            for row in read_examples(path)[0]:
                self._texts.add(row.text)

    def __len__(self) -> int:
        return len(self._texts)

    def found(self, text: str) -> str | None:
        """`exact` for a text that is there, `near` for one that nearly is, else None."""
        if self._texts.find_exact(text) is not None:
            return EXACT
        return NEAR if self._texts.find(text) is not None else None


def overlap(
    dataset: Dataset, outcomes: Mapping[str, Outcome], training: TrainingData, seed: int, count: int
) -> dict[str, Any]:
    """How many rows of a data set stand in the training data, and each system's metrics on the others.

    Returns {"training_rows", "exact", "near", "share", "clean": {system: entry of metrics.json}}; no entry where
    nothing is left.
    """
    found = [training.found(example.text) for example in dataset.examples]
    clean = np.flatnonzero([kind is None for kind in found])
    return {
        "training_rows": len(training),
        EXACT: found.count(EXACT),
        NEAR: found.count(NEAR),
        "share": 1 - len(clean) / len(found),
        "clean": {
            name: measure_outcome(_part(outcome, clean), None, seed, count)
            for name, outcome in outcomes.items()
            if len(clean)
        },
    }


def _part(outcome: Outcome, rows: NDArray[np.int64]) -> Outcome:
    """An outcome of some rows of its data set alone."""
    examples, judged = outcome.dataset.examples, outcome.judged
    return Outcome(replace(outcome.dataset, examples=[examples[i] for i in rows]), [judged[i] for i in rows])
