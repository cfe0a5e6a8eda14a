"""Calibration: a temperature for P(harm), and a threshold per policy chosen by its false-positive rate.

Thresholds come from benign queries, not from F1: a guard that blocks harmless people is switched off.

Rows on which readers disagree (the tier `controversial` of `guardian labels`) give two more thresholds, for modes as
in Qwen3Guard (2510.14276): the strict reader calls them unsafe and allows twice the false-positive rates, the loose
one calls them safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_guardian.errors import DataError
from slm_guardian.evaluate.metrics import ece
from slm_guardian.example import Example, file_sha256, write_json
from slm_guardian.guardian import Guardian
from slm_guardian.policy import Policy
from slm_guardian.text import language
from slm_guardian.train.label_check import TIER
from slm_guardian.train.stages import read_manifest


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T that minimises the log loss of sigmoid(logits / T) (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    signs = np.where(labels, 1.0, -1.0)
    loss = lambda log_t: np.logaddexp(0, -signs * logits / np.exp(log_t)).mean()  # noqa: E731
    best: Any = minimize_scalar(loss, bounds=(-2, 2), method="bounded")
    return float(np.exp(best.x))


def calibrate(
    model: Path,
    dev: Sequence[Example],
    dev_fpr: float,
    pools: Sequence[Sequence[Example]],
    fpr: float,
    files: Sequence[Path],
    policies: Sequence[Policy] = (),
) -> dict[str, Any]:
    """Fit temperature and thresholds of a model directory and write them into its guardian.json.

    `dev` holds labelled queries with `lang`, each of `pools` benign queries. A language's threshold allows
    `dev_fpr` on its safe dev rows and `fpr` on its rows of every pool. Dev rows with tiers give strict and loose ones.
    """
    manifest = read_manifest(model)
    manifest.pop("calibration", None)
    write_json(model / "guardian.json", manifest)
    guardian = Guardian.load(model, policies or None, threshold=0.5)
    labels = np.array([e.label == "unsafe" for e in dev])
    if labels.all() or not labels.any():
        raise DataError("calibration needs safe and unsafe rows: pass --dev FILE with both labels")
    logits = _logits(guardian, dev)
    temperature = fit_temperature(logits, labels)
    harm = _sigmoid(logits / temperature)
    limits: dict[str, dict[str, float]] = {}
    for lang, policy in guardian.policies.items():
        here = np.array([e.lang == lang for e in dev])
        own = (
            [e for e in pool if (e.lang or language(e.text, list(guardian.policies))) == lang]
            for pool in pools
        )
        benign = [_sigmoid(_logits(guardian, pool) / temperature) for pool in own]
        for mode, (safe, rate) in _readings(dev, labels).items():
            allowed = [_limit(harm[here & safe], rate * dev_fpr)]
            allowed += [_limit(scores, rate * fpr) for scores in benign]
            limits.setdefault(mode, {})[policy.id] = round(float(max(allowed)), 4)
    calibration = {
        "temperature": round(temperature, 4),
        **limits,
        "dev_fpr": dev_fpr,
        "pool_fpr": fpr,
        "n_dev": len(dev),
        "n_pool": sum(map(len, pools)),
        "ece": round(float(ece(labels, harm) or 0.0), 4),
        "files": {path.name: file_sha256(path) for path in files},
    }
    write_json(model / "guardian.json", manifest | {"calibration": calibration})
    return calibration


def _readings(dev: Sequence[Example], unsafe: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Which rows are safe in each mode, and how many times the false-positive rates it allows."""
    tiers = np.array([str(e.extra.get(TIER)) for e in dev])
    disputed = tiers == "controversial"
    plain = {"thresholds": (~unsafe, 1.0)}
    if not disputed.any():
        return plain
    return plain | {"strict": (~unsafe & ~disputed, 2.0), "loose": (~unsafe | disputed, 1.0)}


def _logits(guardian: Guardian, examples: Sequence[Example]) -> np.ndarray:
    """Harm logits as `check` sees them: the highest over views and windows."""
    verdicts = guardian.check([e.text for e in examples], respond=False)
    harm = np.clip([1.0 if v.harm is None else v.harm for v in verdicts], 1e-6, 1 - 1e-6)
    return np.log(harm / (1 - harm))


def _limit(harm: np.ndarray, fpr: float) -> float:
    """The lowest threshold, in steps of 0.0001, at which at most `fpr` of benign scores count as harmful."""
    if not len(harm):
        return 0.0
    first_safe = np.sort(harm)[::-1][min(int(fpr * len(harm)), len(harm) - 1)]
    return min(1.0, (np.floor(first_safe * 1e4) + 1) / 1e4)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
