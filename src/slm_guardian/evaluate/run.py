"""Evaluate a system on data sets: judge every row, measure, write the results and a report.

Writes metrics.json, predictions.jsonl, report.md, figures.svg and, last, manifest.json. A row that the
system could not judge fails closed: it counts as unsafe with score 1, and in `unjudged`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_guardian.errors import GuardianError, InputError
from slm_guardian.evaluate.datasets import Dataset
from slm_guardian.evaluate.metrics import Bools, category_metrics, measure
from slm_guardian.evaluate.resample import RESAMPLES, Floats
from slm_guardian.evaluate.systems import Judged, System
from slm_guardian.example import LABELS, file_sha256, write_json, write_jsonl

_BATCH = 64  # texts per call of the system
_LONG = 500  # rows from which progress is shown


@dataclass(frozen=True)
class Outcome:
    """A data set and what the system said about its rows, in the same order."""

    dataset: Dataset
    judged: list[Judged]

    @property
    def labels(self) -> Bools:
        """True where a row is unsafe, (n,)."""
        return np.array([example.label == "unsafe" for example in self.dataset.examples])

    @property
    def scores(self) -> Floats | None:
        """P(harm), (n,), 1 where the system could not judge (fail closed); None where it gives hard labels."""
        if any(row.label for row in self.judged):
            return None
        return np.array([1.0 if row.harm is None else row.harm for row in self.judged])

    def thresholds(self, threshold: float | None) -> Floats:
        """The threshold of each row, (n,): the given one, else the system's own, else 0.5."""
        own = [0.5 if row.threshold is None else row.threshold for row in self.judged]
        return np.array(own if threshold is None else [threshold] * len(own))

    def predicted(self, threshold: float | None) -> Bools:
        """True where a row is called unsafe, (n,): by its hard label, else by its score; unjudged rows are."""
        limits = self.thresholds(threshold)
        return np.array([called_unsafe(row, limit) for row, limit in zip(self.judged, limits, strict=True)])

    @property
    def errors(self) -> dict[str, int]:
        """How many rows were not judged, by reason."""
        return dict(Counter(row.error or "not judged" for row in self.judged if not was_judged(row)))


def was_judged(row: Judged) -> bool:
    """Whether the system gave a probability or a hard label."""
    return row.harm is not None or row.label is not None


def called_unsafe(row: Judged, threshold: float) -> bool:
    """Whether a row counts as unsafe: by its hard label, else by its score; an unjudged one does (fail closed)."""
    if row.label is not None:
        return row.label == "unsafe"
    return row.harm is None or row.harm >= threshold


def evaluate_system(
    system: System,
    datasets: Sequence[Dataset],
    threshold: float | None,
    out_dir: str | os.PathLike[str],
    with_text: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge all data sets, write the results to `out_dir` and return the content of metrics.json.

    `threshold` overrides the system's own. `with_text` adds the texts to predictions.jsonl. Raises
    InputError for a threshold outside 0..1.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"the threshold is {threshold}: give a number from 0 to 1")
    outcomes = [Outcome(dataset, judge_dataset(system, dataset)) for dataset in datasets]
    entries = {outcome.dataset.name: measure_outcome(outcome, threshold, seed) for outcome in outcomes}
    metrics = {"model": system.name, "revision": system.revision, "data": entries}
    _write(Path(out_dir), outcomes, metrics, threshold, with_text, seed)
    return metrics


def judge_dataset(system: System, dataset: Dataset) -> list[Judged]:
    """Judge every row of a data set in batches, showing progress on a terminal when it is long.

    Raises GuardianError when the system does not give one answer a text.
    """
    texts = [example.text for example in dataset.examples]
    judged: list[Judged] = []
    for batch in _batches(texts, dataset.name):
        answers = system.judge(batch)
        if len(answers) != len(batch):
            raise GuardianError(f"{system.name} gave {len(answers)} answers for {len(batch)} texts")
        judged += map(_checked, answers)
    return judged


def measure_outcome(
    outcome: Outcome, threshold: float | None, seed: int = 0, count: int = RESAMPLES
) -> dict[str, Any]:
    """One entry of metrics.json: `measure`'s metrics, the unjudged rows and the category accuracy."""
    examples, scores = outcome.dataset.examples, outcome.scores
    entry = measure(
        outcome.labels,
        scores,
        None if scores is None else outcome.thresholds(threshold),
        pairs=[example.pair for example in examples],
        kinds=[_plain(example.kind) for example in examples],
        seed=seed,
        predicted=outcome.predicted(threshold),
        count=count,
    )
    actual = [_plain(example.category) for example in examples]
    named = [_plain(row.category) for row in outcome.judged]
    errors = outcome.errors
    return {
        **entry,
        "unjudged": sum(errors.values()),
        "errors": errors,
        "category": category_metrics(outcome.labels, actual, named),
    }


def _batches(texts: list[str], name: str) -> Iterator[list[str]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=len(texts) < _LONG or not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=len(texts))
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            yield batch
            bar.advance(task, len(batch))


def _checked(row: Judged) -> Judged:
    """A score that is no probability is no judgement, and neither is a label that is not one of ours."""
    if row.label is not None and row.harm is None and row.error is None:
        return (
            row if row.label in LABELS else Judged(None, error="the label is not safe or unsafe", raw=row.raw)
        )
    if row.harm is None:
        return Judged(None, error=row.error or "not judged", threshold=row.threshold, raw=row.raw)
    if not (math.isfinite(row.harm) and 0 <= row.harm <= 1):
        return Judged(None, error=row.error or "the score is not a probability", raw=row.raw)
    return row


def _plain(value: object) -> str | None:
    """A label of a row as text that any file can hold: data may carry numbers or broken Unicode."""
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def _write(
    out: Path,
    outcomes: list[Outcome],
    metrics: dict[str, Any],
    threshold: float | None,
    with_text: bool,
    seed: int,
) -> None:
    from slm_guardian.evaluate.figures import draw
    from slm_guardian.evaluate.report import render

    names = ["metrics.json", "predictions.jsonl", "report.md"]
    write_json(out / "metrics.json", metrics)
    write_jsonl(out / "predictions.jsonl", _predictions(outcomes, threshold, with_text))
    curves = {  # policies have a threshold each: a set is drawn with that of most of its rows
        o.dataset.name: (o.labels, scores, float(np.median(o.thresholds(threshold))))
        for o in outcomes
        if (scores := o.scores) is not None
    }
    drawn = bool(curves) and draw(curves, out / "figures.svg")
    (out / "report.md").write_text(render(metrics, "figures.svg" if drawn else None), encoding="utf-8")
    names += ["figures.svg"] if drawn else []
    manifest = {
        "stage": "evaluate",
        "model": metrics["model"],
        "threshold": threshold,
        "seed": seed,
        "inputs": {outcome.dataset.name: _input(outcome) for outcome in outcomes},
        "outputs": {name: file_sha256(out / name) for name in names},
    }
    write_json(out / "manifest.json", manifest)


def _input(outcome: Outcome) -> dict[str, Any]:
    dataset = outcome.dataset
    return {
        "path": str(dataset.path),
        "sha256": dataset.sha256,
        "rows": len(dataset.examples),
        "rejects": dataset.reject_reasons,
        "unjudged": outcome.errors,
    }


def _predictions(
    outcomes: list[Outcome], threshold: float | None, with_text: bool
) -> Iterator[dict[str, Any]]:
    for outcome in outcomes:
        rows = zip(outcome.dataset.examples, outcome.judged, outcome.predicted(threshold), strict=True)
        for example, row, unsafe in rows:
            yield {
                "id": example.id,
                "dataset": outcome.dataset.name,
                "label": example.label,
                "harm": row.harm,
                "predicted": "unsafe" if unsafe else "safe",
                "category": row.category,
                **({"error": row.error} if row.error else {}),
                **({"text": example.text} if with_text else {}),
            }
