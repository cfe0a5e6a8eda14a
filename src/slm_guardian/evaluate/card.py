"""The model card, generated from the manifests of a run: nothing in it is typed by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from slm_guardian.guardian import MODES


def render(
    manifest: Mapping[str, Any], metrics: Mapping[str, Any] | None, answered: Mapping[str, Any] | None
) -> str:
    """Markdown of guardian.json, metrics.json (or None) and the answers' numbers (or None)."""
    parts = [_head(manifest), provenance(manifest)]
    if metrics:
        parts.append(_metrics(metrics))
    if answered:
        low, high = answered["fallback"]["ci95"]
        parts.append(
            f"## Answers\n\nOf {answered['n']} harmful dev queries {answered['fallback']['rate']:.1%} "
            f"[{low:.1%}, {high:.1%}] fell back to the policy's own text; {sum(answered['shown_with_fault'].values())} "
            "were shown with a fault."
        )
    parts.append(_LIMITS)
    return "\n\n".join(parts) + "\n"


def provenance(manifest: Mapping[str, Any]) -> str:
    """Data, training and calibration, as guardian.json holds them."""
    return "\n\n".join((_data(manifest), _training(manifest), _calibration(manifest)))


_LIMITS = """## Limits

- Korean and English only; other languages are judged, but nothing was measured there.
- Trained on synthetic queries of one author model and on public sets with noisy labels; one reader.
- A 22 M parameter model: it misses harm that needs knowledge of the world, and its answers are short and general.
- The thresholds were chosen on the dev split that is reported on here; expect other data to differ.
- It judges one query at a time, without the dialogue before it."""


def _head(manifest: Mapping[str, Any]) -> str:
    policies = ", ".join(f"{name} {version}" for name, version in manifest.get("policies", {}).items())
    return (
        f"# Model card: {manifest.get('name', 'guardian')}\n\n"
        f"Family: {manifest.get('family')} LM. Policies: {policies}. Categories: "
        f"{', '.join(manifest.get('categories', []))}.\n\nBase: all-MiniLM-L6-v2 (Apache-2.0), given Korean by "
        "vocabulary extension and alignment. sha256 of model.onnx: "
        f"`{manifest.get('sha256', '-')}`."
    )


def _data(manifest: Mapping[str, Any]) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    unsafe = 0
    corpora = {corpus["file"]: corpus for stage in _safety(manifest) for corpus in stage["corpora"]}
    for corpus in corpora.values():
        unsafe += corpus["unsafe"]
        for source in corpus["sources"]:
            counts[(_family(source["source"]), str(source["licence"] or "CC0"))] += source["rows"]
    lines = ["## Training data of the safety stage", "", "| source | licence | rows |", "|---|---|---|"]
    lines += [f"| {source} | {licence} | {n:,} |" for (source, licence), n in sorted(counts.items())]
    lines += [f"| all | | {sum(counts.values()):,} ({unsafe:,} unsafe) |", ""]
    lines.append(
        "Public sources are capped in every epoch, at half weight; no text of theirs is in this project."
    )
    return "\n".join(lines)


def _safety(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The safety stages: one, or those of all runs that were averaged."""
    return [stage for name, stage in manifest.get("stages", {}).items() if name.split(":")[0] == "safety"]


def _family(source: str | None) -> str:
    """seed/pairs_ko2 -> seed; translations keep their mark."""
    name = str(source or "-")
    head = name.split("/")[0]
    return f"{head} (translated)" if name.endswith("/translated") else head


def _training(manifest: Mapping[str, Any]) -> str:
    lines = [
        "## Training",
        "",
        "| stage | steps | batch | lr | embeddings' lr | λ | seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, stage in manifest.get("stages", {}).items():
        keys = ("steps", "batch_size", "lr", "embedding_lr", "lam", "seed")
        lines.append(f"| {name} | " + " | ".join(str(stage.get(key, "-")) for key in keys) + " |")
    rejected: Counter[str] = Counter()
    for stage in _safety(manifest):
        rejected |= Counter(stage.get("rejected_responses", {}))
    lines += [
        "",
        "Responses never trained on: "
        + (", ".join(f"{k}: {v}" for k, v in rejected.items()) or "none")
        + ".",
    ]
    taught = [
        f"{name} {s['taught']:,} rows" for name, s in manifest.get("stages", {}).items() if "taught" in s
    ]
    if taught:
        lines += ["", "Teachers, other guards' P(harm) beside the labels: " + ", ".join(taught) + "."]
    return "\n".join(lines)


def _calibration(manifest: Mapping[str, Any]) -> str:
    values = manifest.get("calibration")
    if not values:
        return "## Calibration\n\n-"
    thresholds = _limits(values["thresholds"])
    modes = "".join(
        f" {mode.capitalize()} mode: {_limits(values[mode])}." for mode in MODES if mode in values
    )
    return (
        f"## Calibration\n\nTemperature {values['temperature']}, thresholds {thresholds}: the lowest at which the "
        f"FPR is at most {values['dev_fpr']:.1%} on the safe dev rows (n of dev {values['n_dev']:,}) and "
        f"{values['pool_fpr']:.1%} on each benign set ({values['n_pool']:,} queries). "
        f"ECE on dev {values['ece']}.{modes}"
    )


def _limits(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _metrics(metrics: Mapping[str, Any]) -> str:
    lines = [
        "## Measured",
        "",
        "| data | n | AUROC | weighted F1 | unsafe recall | FPR |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in metrics["data"].items():
        ci = m["ci95"]
        cells = (
            _with(m["auroc"], ci.get("auroc")),
            _with(m["weighted"]["f1"], ci.get("weighted_f1")),
            _with(m["unsafe"]["recall"], ci.get("unsafe_recall")),
            _with(m["fpr"], ci.get("fpr")),
        )
        lines.append(f"| {name} | {m['n']:,} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Brackets: 95 % intervals (bootstrap over pairs; Wilson for rates)."])


def _with(value: float | None, interval: Any) -> str:
    if value is None:
        return "-"
    if not interval or interval[0] is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
