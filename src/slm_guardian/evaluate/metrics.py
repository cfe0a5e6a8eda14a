"""Metrics of a guard that says P(harm): pure numpy, from labels and scores to one entry of metrics.json.

Labels are True for unsafe; a row is called unsafe when its score is at or above the threshold. What a set
cannot tell (recall without an unsafe row, AUROC with one class) is None. The precision of a class that has
rows but was never predicted is 0, as in the published tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm_guardian.evaluate.resample import Floats, cluster_ids, percentile_interval, resamples, wilson

Bools = NDArray[np.bool_]

NO_CATEGORY = "-"
_BINS = 15


def measure(
    labels: Bools,
    scores: Floats,
    threshold: float | Floats,
    pairs: Sequence[str | None] | None = None,
    kinds: Sequence[str | None] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of one data set, as written to metrics.json.

    `labels` and `scores` have shape (n,); `threshold` is one number or one a row (a guardian's threshold
    depends on the query's language), of which the median is reported. `pairs` holds a cluster id a row for
    the bootstrap, `kinds` a group a row for `by_kind`; None stands for a row without one. Raises ValueError
    when the shapes differ, when there is no row, or when a score is not finite.
    """
    labels, scores = _checked(labels, scores)
    predicted = scores >= threshold
    tp, fp, fn, tn = (int(cell) for cell in _confusions(labels, predicted, np.ones((1, len(labels))))[0])
    classes = {"safe": _class_scores(tn, fn, fp), "unsafe": _class_scores(tp, fp, fn)}
    return {
        "n": len(labels),
        "n_unsafe": tp + fn,
        **classes,
        "weighted": _weighted(classes, {"safe": tn + fp, "unsafe": tp + fn}),
        "macro_f1": _macro_f1(classes),
        "fpr": _rate(fp, fp + tn),
        "auroc": auroc(labels, scores),
        "auprc": average_precision(labels, scores),
        "recall_at_fpr_1": recall_at_fpr(labels, scores, 0.01),
        "recall_at_fpr_5": recall_at_fpr(labels, scores, 0.05),
        "ece": ece(labels, scores),
        "threshold": float(np.median(threshold)),
        "by_kind": _by_kind(labels, predicted, kinds),
        "ci95": {
            **_bootstrap(labels, scores, predicted, cluster_ids(pairs, len(labels)), seed),
            "fpr": wilson(fp, fp + tn),
            "unsafe_recall": wilson(tp, tp + fn),
        },
    }


def auroc(labels: Bools, scores: Floats) -> float | None:
    """Chance that an unsafe row scores above a safe one, ties counting half; None with one class."""
    labels, scores = _checked(labels, scores)
    return _number(_aurocs(labels, scores, np.ones((1, len(labels))))[0])


def average_precision(labels: Bools, scores: Floats) -> float | None:
    """Area under the precision-recall curve as a step sum (as scikit-learn does); None with one class."""
    if _one_class(labels):
        return None
    tp, fp, _ = roc_counts(labels, scores)
    gained = np.diff(tp)
    precision = tp[1:] / (tp[1:] + fp[1:])
    return float((gained * precision).sum() / tp[-1])


def roc_counts(labels: Bools, scores: Floats) -> tuple[Floats, Floats, Floats]:
    """(true positives, false positives, threshold), each (k + 1,) for k distinct scores.

    Runs from "nothing is unsafe" (threshold inf) down to "everything is"; equal scores are one step.
    """
    labels, scores = _checked(labels, scores)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of each run of ties
    tp = np.cumsum(labels[order], dtype=np.float64)[last]
    fp = last + 1.0 - tp
    return np.append([0.0], tp), np.append([0.0], fp), np.append([np.inf], ranked[last])


def recall_at_fpr(labels: Bools, scores: Floats, fpr: float) -> float | None:
    """Highest recall of unsafe rows at a false-positive rate of at most `fpr`; None with one class."""
    if _one_class(labels):
        return None
    tp, fp, _ = roc_counts(labels, scores)
    return float(tp[fp / fp[-1] <= fpr].max() / tp[-1])


def threshold_at_fpr(labels: Bools, scores: Floats, fpr: float) -> float | None:
    """Lowest threshold whose false-positive rate is at most `fpr` (inf if none); None without safe rows."""
    _, fp, thresholds = roc_counts(labels, scores)
    return None if fp[-1] == 0 else float(thresholds[fp / fp[-1] <= fpr][-1])


def f1_at_fpr(labels: Bools, scores: Floats, fpr: float) -> float | None:
    """Weighted F1 at the threshold that gives this false-positive rate on the set; None with one class.

    For comparing systems at equal strictness, whatever their own thresholds. The threshold is read off the
    same rows: not an operating result.
    """
    threshold = threshold_at_fpr(labels, scores, fpr)
    if threshold is None or _one_class(labels):
        return None
    labels, scores = _checked(labels, scores)
    return float(_f1s(_confusions(labels, scores >= threshold, np.ones((1, len(labels)))))[0, 1])


def reliability(labels: Bools, scores: Floats, bins: int = _BINS) -> tuple[Floats, Floats, Floats]:
    """(mean score, share of unsafe rows, rows) of each non-empty bin of equal width over 0..1."""
    labels, scores = _checked(labels, scores)
    place = np.clip((scores * bins).astype(int), 0, bins - 1)
    rows = np.bincount(place, minlength=bins)
    used = rows > 0
    mean = np.bincount(place, weights=scores, minlength=bins)[used] / rows[used]
    unsafe = np.bincount(place, weights=labels, minlength=bins)[used] / rows[used]
    return mean, unsafe, rows[used].astype(np.float64)


def ece(labels: Bools, scores: Floats) -> float:
    """Expected calibration error of P(harm): mean gap between score and share of unsafe rows, 15 bins."""
    mean, unsafe, rows = reliability(labels, scores)
    return float((np.abs(mean - unsafe) * rows).sum() / rows.sum())


def paired_bootstrap(
    labels: Bools,
    scores_a: Floats,
    threshold_a: float,
    scores_b: Floats,
    threshold_b: float,
    pairs: Sequence[str | None] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Difference a - b of two systems on the same rows, with a 95% interval: both see the same resamples.

    Returns {"weighted_f1" and "auroc": {"a", "b", "difference", "ci95"}}; None where undefined.
    """
    labels, scores_a = _checked(labels, scores_a)
    labels, scores_b = _checked(labels, scores_b)
    systems = [(scores_a, scores_a >= threshold_a), (scores_b, scores_b >= threshold_b)]

    def values(weights: Floats) -> Floats:
        """(2 metrics, 2 systems, resamples)"""
        f1 = [_f1s(_confusions(labels, predicted, weights))[:, 1] for _, predicted in systems]
        return np.stack([f1, [_aurocs(labels, scores, weights) for scores, _ in systems]])

    clusters = cluster_ids(pairs, len(labels))
    found = values(np.ones((1, len(labels))))[:, :, 0]
    drawn = np.concatenate([values(weights) for weights in resamples(clusters, seed)], axis=2)
    return {
        name: {
            "a": _number(found[i, 0]),
            "b": _number(found[i, 1]),
            "difference": _number(found[i, 0] - found[i, 1]),
            "ci95": percentile_interval(drawn[i, 0] - drawn[i, 1]) if clusters.max() > 0 else None,
        }
        for i, name in enumerate(("weighted_f1", "auroc"))
    }


def category_metrics(
    labels: Bools, actual: Sequence[str | None], predicted: Sequence[str | None]
) -> dict[str, Any] | None:
    """Category accuracy on unsafe rows of known category, and the confusion {actual: {predicted: n}}.

    A row without a predicted category counts as wrong, under "-". None when there is no such row, or when
    the system names no category at all.
    """
    rows = [
        (a, p) for unsafe, a, p in zip(labels, actual, predicted, strict=True) if unsafe and a is not None
    ]
    if not rows or all(p is None for _, p in rows):
        return None
    counts = Counter((a, p or NO_CATEGORY) for a, p in rows)
    confusion: dict[str, dict[str, int]] = {}
    for (a, p), n in sorted(counts.items()):
        confusion.setdefault(a, {})[p] = n
    return {"n": len(rows), "accuracy": sum(a == p for a, p in rows) / len(rows), "confusion": confusion}


def _checked(labels: Bools, scores: Floats) -> tuple[Bools, Floats]:
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape or labels.size == 0:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two equal, non-empty rows")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    return labels, scores


def _one_class(labels: Bools) -> bool:
    return bool(np.all(labels) or not np.any(labels))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _class_scores(hits: int, false_alarms: int, misses: int) -> dict[str, float | None]:
    if hits + misses == 0:
        return {"precision": None, "recall": None, "f1": None}
    return {
        "precision": hits / max(1, hits + false_alarms),
        "recall": hits / (hits + misses),
        "f1": 2 * hits / (2 * hits + false_alarms + misses),
    }


def _weighted(classes: dict[str, dict[str, float | None]], rows: dict[str, int]) -> dict[str, float]:
    """Mean over the classes, weighted by their rows (a class without rows weighs nothing)."""
    total = sum(rows.values())
    parts = ("precision", "recall", "f1")
    return {part: sum((classes[c][part] or 0.0) * n for c, n in rows.items()) / total for part in parts}


def _macro_f1(classes: dict[str, dict[str, float | None]]) -> float | None:
    safe, unsafe = classes["safe"]["f1"], classes["unsafe"]["f1"]
    return None if safe is None or unsafe is None else (safe + unsafe) / 2


def _by_kind(
    labels: Bools, predicted: Bools, kinds: Sequence[str | None] | None
) -> dict[str, dict[str, Any]]:
    if kinds is None:
        return {}
    if len(kinds) != len(labels):
        raise ValueError(f"{len(kinds)} kinds for {len(labels)} rows")
    column = np.array(kinds, dtype=object)
    names = sorted({kind for kind in kinds if kind is not None})
    return {name: _one_kind(labels[column == name], predicted[column == name]) for name in names}


def _one_kind(labels: Bools, predicted: Bools) -> dict[str, Any]:
    n, n_unsafe = len(labels), int(labels.sum())
    return {
        "n": n,
        "n_unsafe": n_unsafe,
        "recall": _rate(int((labels & predicted).sum()), n_unsafe),
        "fpr": _rate(int((~labels & predicted).sum()), n - n_unsafe),
        "accuracy": float((labels == predicted).mean()),
    }


def _bootstrap(
    labels: Bools, scores: Floats, predicted: Bools, clusters: NDArray[np.int64], seed: int
) -> dict[str, list[float] | None]:
    names = ("unsafe_f1", "weighted_f1", "auroc")
    if clusters.max() == 0:
        return dict.fromkeys(names)  # one cluster: every resample is the same, which is no interval
    drawn = [
        np.column_stack([_f1s(_confusions(labels, predicted, weights)), _aurocs(labels, scores, weights)])
        for weights in resamples(clusters, seed)
    ]
    return dict(zip(names, map(percentile_interval, np.concatenate(drawn).T), strict=True))


def _confusions(labels: Bools, predicted: Bools, weights: Floats) -> Floats:
    """(tp, fp, fn, tn) of each resample: weights (b, n) -> (b, 4)."""
    cells = [labels & predicted, ~labels & predicted, labels & ~predicted, ~labels & ~predicted]
    return weights @ np.stack(cells, axis=1).astype(np.float64)


def _f1s(confusions: Floats) -> Floats:
    """(unsafe F1, weighted F1) of each resample: (b, 4) -> (b, 2). Unsafe F1 is NaN without unsafe rows."""
    tp, fp, fn, tn = confusions.T
    unsafe = np.divide(2 * tp, 2 * tp + fp + fn, out=np.full_like(tp, np.nan), where=tp + fn > 0)
    safe = np.divide(2 * tn, 2 * tn + fp + fn, out=np.zeros_like(tn), where=tn + fp > 0)
    weighted = (np.nan_to_num(unsafe) * (tp + fn) + safe * (tn + fp)) / confusions.sum(axis=1)
    return np.stack([unsafe, weighted], axis=1)


def _aurocs(labels: Bools, scores: Floats, weights: Floats) -> Floats:
    """AUROC of each resample: weights (b, n) -> (b,); NaN where a resample holds one class only."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.append(0, np.flatnonzero(ranked[1:] != ranked[:-1]) + 1)  # first row of each run of ties
    weights = weights[:, order]
    unsafe = np.add.reduceat(weights * labels[order], starts, axis=1)  # (b, distinct scores)
    safe = np.add.reduceat(weights, starts, axis=1) - unsafe
    safe_below = np.cumsum(safe, axis=1) - safe
    wins = (unsafe * (safe_below + safe / 2)).sum(axis=1)
    duels = unsafe.sum(axis=1) * safe.sum(axis=1)
    return np.divide(wins, duels, out=np.full_like(wins, np.nan), where=duels > 0)
