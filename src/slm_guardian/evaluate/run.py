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
from typing import Any, Protocol

import numpy as np

from slm_guardian.errors import GuardianError, InputError
from slm_guardian.evaluate.datasets import Dataset
from slm_guardian.evaluate.metrics import Bools, category_metrics, measure
from slm_guardian.evaluate.resample import Floats
from slm_guardian.example import file_sha256, write_json, write_jsonl

_BATCH = 64  # texts per call of the system
_LONG = 500  # rows from which progress is shown


@dataclass(frozen=True)
class Judged:
    """What a system says about one text. `harm` is P(harm), None when it could not judge (see `error`).

    `threshold` is the system's own for this text, where it has one.
    """

    harm: float | None
    category: str | None = None
    error: str | None = None
    threshold: float | None = None


class System(Protocol):
    """Anything that can be evaluated."""

    @property
    def name(self) -> str: ...

    def judge(self, texts: list[str]) -> list[Judged]:
        """Judge a batch, in order, one answer a text."""
        ...


class GuardianSystem:
    """A Guardian as a system; answers are not generated."""

    def __init__(self, guardian: Any, name: str) -> None:
        self._guardian = guardian
        self.name = name

    @classmethod
    def load(cls, model: str | None, policy: str | None, threshold: float | None) -> GuardianSystem:
        """Load a guardian by path or name; None takes the shipped model or policy."""
        from slm_guardian.guardian import Guardian

        return cls(Guardian.load(model=model, policy=policy, threshold=threshold), name=model or "default")

    def judge(self, texts: list[str]) -> list[Judged]:
        """Judge a batch, in order."""
        verdicts = self._guardian.check(texts, respond=False)
        return [Judged(v.harm, v.category, v.error, v.threshold) for v in verdicts]


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
    def scores(self) -> Floats:
        """P(harm), (n,); 1 where the system could not judge (fail closed)."""
        return np.array([1.0 if row.harm is None else row.harm for row in self.judged])

    def thresholds(self, threshold: float | None) -> Floats:
        """The threshold of each row, (n,): the given one, else the system's own, else 0.5."""
        own = [0.5 if row.threshold is None else row.threshold for row in self.judged]
        return np.array(own if threshold is None else [threshold] * len(own))


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
    metrics = {"model": system.name, "data": entries}
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


def measure_outcome(outcome: Outcome, threshold: float | None, seed: int = 0) -> dict[str, Any]:
    """One entry of metrics.json: `measure`'s metrics, the unjudged rows and the category accuracy."""
    examples = outcome.dataset.examples
    entry = measure(
        outcome.labels,
        outcome.scores,
        outcome.thresholds(threshold),
        pairs=[example.pair for example in examples],
        kinds=[_plain(example.kind) for example in examples],
        seed=seed,
    )
    actual = [_plain(example.category) for example in examples]
    predicted = [_plain(row.category) for row in outcome.judged]
    unjudged = sum(row.harm is None for row in outcome.judged)
    return {**entry, "unjudged": unjudged, "category": category_metrics(outcome.labels, actual, predicted)}


def load_system(model: str | None, policy: str | None = None, threshold: float | None = None) -> Any:
    """A system with its own `threshold`: `tfidf:PATH` is a saved baseline, anything else a guardian."""
    from slm_guardian.evaluate.baseline import TfidfBaseline

    if model and model.startswith("tfidf:"):
        return TfidfBaseline.load(model.removeprefix("tfidf:"))
    return GuardianSystem.load(model, policy, threshold)


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
    """A score that is no probability is no judgement."""
    if row.harm is None:
        return Judged(None, None, row.error or "not judged")
    if not (math.isfinite(row.harm) and 0 <= row.harm <= 1):
        return Judged(None, None, row.error or "the score is not a probability")
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
    curves = {o.dataset.name: (o.labels, o.scores) for o in outcomes}
    limit = float(np.median(np.concatenate([o.thresholds(threshold) for o in outcomes])))
    drawn = draw(curves, limit, out / "figures.svg")
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
        "unjudged": dict(Counter(row.error for row in outcome.judged if row.harm is None)),
    }


def _predictions(
    outcomes: list[Outcome], threshold: float | None, with_text: bool
) -> Iterator[dict[str, Any]]:
    for outcome in outcomes:
        limits = outcome.thresholds(threshold)
        rows = zip(outcome.dataset.examples, outcome.judged, outcome.scores, limits, strict=True)
        for example, row, score, limit in rows:
            yield {
                "id": example.id,
                "dataset": outcome.dataset.name,
                "label": example.label,
                "harm": row.harm,
                "predicted": "unsafe" if score >= limit else "safe",
                "category": row.category,
                **({"error": row.error} if row.harm is None else {}),
                **({"text": example.text} if with_text else {}),
            }
