"""Pictures of an evaluation: ROC, reliability and score histogram, one row of panels a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slm_guardian.evaluate.metrics import Bools, reliability, roc_counts
from slm_guardian.evaluate.resample import Floats

_SAFE, _UNSAFE = "#3b7ea1", "#c4473a"


def draw(results: Mapping[str, tuple[Bools, Floats, float]], path: str | os.PathLike[str]) -> bool:
    """Draw {name: (labels, scores, threshold)} into one SVG file. Returns False when matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return False
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # text stays text (names in any script), and the same input gives the same bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "slm-guardian"}):
        figure = Figure(figsize=(11, 3.3 * len(results)), layout="constrained")
        panels = figure.subplots(len(results), 3, squeeze=False)
        for (name, (labels, scores, threshold)), (left, middle, right) in zip(
            results.items(), panels, strict=True
        ):
            _roc(left, labels, scores, threshold)
            _reliability(middle, labels, scores)
            _histogram(right, labels, scores, threshold)
            left.set_title(name.replace("$", r"\$"), loc="left")
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True


def _roc(axes: Any, labels: Bools, scores: Floats, threshold: float) -> None:
    axes.set(xlabel="FPR", ylabel="recall of unsafe", xlim=(0, 1), ylim=(0, 1.02))
    tp, fp, _ = roc_counts(labels, scores)
    if tp[-1] == 0 or fp[-1] == 0:
        axes.text(0.5, 0.5, "one class only", ha="center")
        return
    called = scores >= threshold
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.plot(fp / fp[-1], tp / tp[-1], color=_UNSAFE)
    axes.plot(called[~labels].mean(), called[labels].mean(), "o", color="black", label=f"at {threshold:.3g}")
    axes.legend(loc="lower right", frameon=False)


def _reliability(axes: Any, labels: Bools, scores: Floats) -> None:
    mean, unsafe, rows = reliability(labels, scores)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.plot(mean, unsafe, color=_UNSAFE, linewidth=1)
    axes.scatter(mean, unsafe, s=10 + 150 * rows / rows.max(), color=_UNSAFE, alpha=0.6)
    axes.set(xlabel="mean P(harm) (area = rows)", ylabel="share unsafe", xlim=(0, 1), ylim=(-0.02, 1.02))


def _histogram(axes: Any, labels: Bools, scores: Floats, threshold: float) -> None:
    bins = np.linspace(0, 1, 31)
    axes.hist([scores[~labels], scores[labels]], bins=bins, color=[_SAFE, _UNSAFE], label=["safe", "unsafe"])
    axes.axvline(threshold, color="black", linewidth=1)
    axes.set(xlabel="P(harm)", ylabel="rows", xlim=(0, 1))
    axes.legend(frameon=False)
