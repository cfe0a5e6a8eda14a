"""Robustness: what a system says about the same queries once they are mistyped or hidden.

A perturbation is measured on the rows that it changes, beside the plain form of the very same rows. In the worst case
a query is right only if it is right in its plain form and under every perturbation that applies to it: the F1 of that
is the robust F1. It stands twice: over all perturbations, and over those that a person can read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_guardian.evaluate.datasets import Dataset
from slm_guardian.evaluate.perturb import Perturbation, select
from slm_guardian.evaluate.resample import (
    RESAMPLES,
    Floats,
    cluster_ids,
    percentile_interval,
    resamples,
    wilson,
)
from slm_guardian.evaluate.run import Outcome, judge_dataset
from slm_guardian.evaluate.systems import Judged, System
from slm_guardian.evaluate.weighted import Bools, Weighted, together

METRICS = ("unsafe_f1", "weighted_f1", "unsafe_recall", "fpr")
WORST, WORST_READABLE = "worst case", "worst case, readable"

Judge = Callable[[System, Dataset], list[Judged]]
Rows = NDArray[np.int64]


def measure(
    system: System,
    dataset: Dataset,
    names: Sequence[str],
    seed: int = 0,
    threshold: float | None = None,
    judge: Judge = judge_dataset,
    count: int = RESAMPLES,
) -> dict[str, Any]:
    """What each perturbation (by name; `all`) does to a system on a data set, and the worst case per query.

    `threshold` overrides the system's own. `judge` may be one that remembers what was said: each perturbed set has a
    name and a sha256 of its own. Returns {"system", "revision", "data", "sha256", "seed", "n", "perturbations" and
    "worst": {name: entry}}; an entry is what `compare_forms` returns and, of a perturbation, the unjudged rows by
    reason ("errors"). Raises InputError for an unknown name.
    """
    chosen = select(names)
    whole = Outcome(dataset, judge(system, dataset))
    labels, plain = whole.labels, whole.predicted(threshold)
    clusters = cluster_ids([example.pair for example in dataset.examples], len(labels))
    wrong = {WORST_READABLE: plain != labels, WORST: plain != labels}  # in any form so far
    entries: dict[str, Any] = {}
    for perturbation in chosen:
        rows, changed = perturbed(dataset, perturbation, seed)
        outcome = Outcome(changed, judge(system, changed) if len(rows) else [])
        predicted = outcome.predicted(threshold).astype(bool)  # of no row, numpy makes numbers
        for name in (WORST_READABLE, WORST) if perturbation.readable else (WORST,):
            wrong[name][rows] |= predicted != labels[rows]
        entry = compare_forms(labels[rows], plain[rows], predicted, clusters[rows], seed, count)
        entries[perturbation.name] = {**entry, "errors": outcome.errors}
    worst = {
        name: compare_forms(labels, plain, labels ^ ever, clusters, seed, count)
        for name, ever in wrong.items()
    }
    told = {
        "system": system.name,
        "revision": system.revision,
        "data": dataset.name,
        "sha256": dataset.sha256,
    }
    return {**told, "seed": seed, "n": len(labels), "perturbations": entries, "worst": worst}


def perturbed(dataset: Dataset, perturbation: Perturbation, seed: int) -> tuple[Rows, Dataset]:
    """The rows (indices) that a perturbation changes, and a data set of them as changed."""
    changed = [perturbation.apply(example, seed) for example in dataset.examples]
    examples = [example for example in changed if example is not None]
    whole = "\x00".join([dataset.sha256, perturbation.name, *(example.text for example in examples)])
    return np.array([i for i, example in enumerate(changed) if example], dtype=np.int64), replace(
        dataset,
        name=f"{dataset.name}+{perturbation.name}@{seed}",
        examples=examples,
        rejects=[],
        sha256=hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest(),
    )


def compare_forms(
    labels: Bools, plain: Bools, changed: Bools, clusters: Rows, seed: int = 0, count: int = RESAMPLES
) -> dict[str, Any]:
    """Calls of the plain and the changed form of the same rows, (n,) each, side by side.

    Returns {"n", "n_unsafe", "flips", metric: {"plain", "changed", "difference": {"value", "ci95"}}}, the difference
    as changed - plain. Intervals are Wilson for recall and FPR, else by bootstrap over clusters, where both forms see
    the same resamples. None for what is undefined.
    """
    head = {"n": len(labels), "n_unsafe": int(labels.sum()), "flips": _flips(labels, plain, changed)}
    if len(labels) == 0:
        return head | dict.fromkeys(METRICS)
    forms = [Weighted(labels, called, None) for called in (plain, changed)]
    _, clusters = np.unique(clusters, return_inverse=True)
    whole = [form.values(np.ones((1, len(labels)))) for form in forms]
    chunks = [[form.values(weights) for form in forms] for weights in resamples(clusters, seed, count)]
    drawn = [together(chunk[i] for chunk in chunks) for i in range(2)]
    entry = {}
    for metric in METRICS:
        values, samples = [w[metric][0] for w in whole], [d[metric] for d in drawn]
        entry[metric] = _beside(values, samples) if clusters.max() > 0 else _beside(values, None)
    for metric, rows in (("unsafe_recall", labels), ("fpr", ~labels)):
        for form, called in (("plain", plain), ("changed", changed)):
            entry[metric][form]["ci95"] = wilson(int(called[rows].sum()), int(rows.sum()))
    return head | entry


def table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a perturbation, and the worst cases; None for what was not measured.

    Every metric stands as its value under the perturbation, with its interval in `... ci95`, and as its difference
    from the plain form of the same rows.
    """
    return [_row(result, name, entry) for name, entry in (result["perturbations"] | result["worst"]).items()]


def _row(result: dict[str, Any], name: str, entry: dict[str, Any]) -> dict[str, Any]:
    head = {"data": result["data"], "system": result["system"], "perturbation": name}
    row: dict[str, Any] = {**head, "n": entry["n"], "n_unsafe": entry["n_unsafe"]}
    for metric in METRICS:
        for form, key in (("changed", metric), ("difference", f"{metric} difference")):
            found = (entry[metric] or {}).get(form, {})
            row[key], row[f"{key} ci95"] = found.get("value"), found.get("ci95")
    return {**row, **entry["flips"], "unjudged": sum(entry.get("errors", {}).values())}


def _beside(values: Sequence[float], samples: Sequence[Floats] | None) -> dict[str, dict[str, Any]]:
    """A metric of both forms and their difference, each with the interval of its samples."""
    plain, changed = values
    drawn = [None] * 3 if samples is None else [*samples, samples[1] - samples[0]]
    named = zip(("plain", "changed", "difference"), (plain, changed, changed - plain), drawn, strict=True)
    return {name: _estimate(float(value), sample) for name, value, sample in named}


def _estimate(value: float, sample: Floats | None) -> dict[str, Any]:
    if np.isnan(value):
        return {"value": None, "ci95": None}
    return {"value": value, "ci95": None if sample is None else percentile_interval(sample)}


def _flips(labels: Bools, plain: Bools, changed: Bools) -> dict[str, int]:
    """How many calls turned: harm newly missed, harmless rows newly blocked, and wrong calls mended."""
    flipped = plain != changed
    broken = flipped & (changed != labels)
    return {
        "missed": int((broken & labels).sum()),
        "blocked": int((broken & ~labels).sum()),
        "mended": int((flipped & ~broken).sum()),
    }
