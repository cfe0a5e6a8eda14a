"""Systems x data sets: judge, measure, test every pair, write the report.

Writes to one directory: compare.json (all numbers), tables.md, tables.csv and tables.tex (the poster's tables),
report.html, systems.json (what was asked), cache/ (what was answered) and, last, manifest.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from slm_guardian.errors import InputError
from slm_guardian.evaluate.cache import machine
from slm_guardian.evaluate.contamination import TrainingData, overlap
from slm_guardian.evaluate.datasets import Dataset
from slm_guardian.evaluate.fetch import read_lock
from slm_guardian.evaluate.judging import Judging, Run
from slm_guardian.evaluate.metrics import measure
from slm_guardian.evaluate.perturb import select
from slm_guardian.evaluate.run import Outcome, measure_outcome
from slm_guardian.evaluate.significance import Answers, compare_pairs
from slm_guardian.evaluate.tables import HEADLINES, build, flat, to_csv, to_latex, to_markdown
from slm_guardian.example import file_sha256, write_json

RESAMPLES = 2000


@dataclass(frozen=True)
class Options:
    """How to compare. `prices` are by system: "0.9" US dollars for 1,000 queries, or "1.2/h" of machine time.

    `cached` makes the report from remembered answers alone, `retry` asks again where a system failed before,
    `perturbations` names those to measure robustness under, `train` the files (paths or globs) of training data that
    test rows are looked up in; `command` is what the report says to run.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    prices: Mapping[str, str] = field(default_factory=dict)
    perturbations: Sequence[str] = ()
    train: Sequence[str] = ()
    cached: bool = False
    retry: bool = False
    command: str = ""


@dataclass(frozen=True)
class Comparison:
    """The content of compare.json, and what it was measured from: outcomes by (data set, system)."""

    result: dict[str, Any]
    outcomes: dict[tuple[str, str], Outcome]

    @property
    def stopped(self) -> dict[str, str]:
        """Why each system that did not finish did not."""
        return {row["name"]: row["stopped"] for row in self.result["systems"] if row["stopped"]}


def compare(
    specs: Sequence[str], datasets: Sequence[Dataset], out: Path, options: Options | None = None
) -> Comparison:
    """Judge all data sets with all systems, and measure. Answers are kept under `out`; see `Judging.run_all`.

    Raises InputError for a price that is none, or of a system that is not compared.
    """
    options = options or Options()
    select(options.perturbations)  # a wrong name is told before hours of judging
    prices = {name: _price(name, price) for name, price in options.prices.items()}
    training = TrainingData(options.train) if options.train else None
    datasets = [_ordered(dataset) for dataset in datasets]
    judging = Judging(
        out, options.cached, options.retry, options.perturbations, options.seed, options.resamples
    )
    runs = judging.run_all(specs, datasets)
    if unknown := prices.keys() - {name for run in runs for name in (run.name, run.spec)}:
        raise InputError(f"--price names {min(unknown)}, which is not compared: use a system's name")
    outcomes = {
        (dataset.name, run.name): Outcome(dataset, run.judged[dataset.name])
        for dataset in datasets
        for run in runs
        if dataset.name in run.judged
    }
    data = {dataset.name: _measured(dataset, runs, outcomes, training, options) for dataset in datasets}
    result = {
        "command": options.command,
        "version": version("slm-guardian"),
        "machine": machine(),
        "resamples": options.resamples,
        "seed": options.seed,
        "training": training.files if training else {},
        "systems": [_about(run, prices) for run in runs],
        "data": data,
        "overall": _overall(data, runs, outcomes, options) if len(data) > 1 else {},
    }
    return Comparison(result, outcomes)


def write(comparison: Comparison, out: Path, published: bool = False, texts: bool = True) -> None:
    """Write the report in every form: `published` puts the paper's rows beside ours, `texts` shows the worst errors."""
    from slm_guardian.evaluate.page import render

    result, tables = comparison.result, build(comparison.result, published)
    contents = {
        "tables.md": to_markdown(tables),
        "tables.csv": to_csv(tables),
        "tables.tex": to_latex(tables),
        "report.html": render(comparison, tables, texts),
    }
    write_json(out / "compare.json", result)
    for name, content in contents.items():
        (out / name).write_text(content, encoding="utf-8", errors="replace")
    manifest = {
        "stage": "compare",
        "command": result["command"],
        "seed": result["seed"],
        "inputs": {name: entry["sha256"] for name, entry in result["data"].items()} | result["training"],
        "outputs": {name: file_sha256(out / name) for name in ("compare.json", *contents)},
    }
    write_json(out / "manifest.json", manifest)


def _ordered(dataset: Dataset) -> Dataset:
    """Rows in the order of their ids: a shuffled file gives the same report to the last digit."""
    return replace(dataset, examples=sorted(dataset.examples, key=lambda row: row.id))


def _about(run: Run, prices: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """A system's row: what it is, how fast, what it costs."""
    price = prices.get(run.name) or prices.get(run.spec) or {}
    speed, cost = run.timing.get("per_second"), price.get("per_1000")
    if "per_hour" in price and speed:
        cost = price["per_hour"] * 1000 / (3600 * speed)
    about = {"name": run.name, "spec": run.spec, "revision": run.revision, "stopped": run.stopped}
    return {
        **about,
        "parameters": run.parameters,
        "memory_mb": run.memory_mb,
        "timing": run.timing,
        "cost_per_1000": cost,
    }


def _measured(
    dataset: Dataset,
    runs: Sequence[Run],
    outcomes: Mapping[tuple[str, str], Outcome],
    training: TrainingData | None,
    options: Options,
) -> dict[str, Any]:
    """One data set: where it is from, each system's metrics, every pair of systems."""
    found = {name: outcome for (data, name), outcome in outcomes.items() if data == dataset.name}
    entries = {
        name: {
            **measure_outcome(outcome, None, options.seed, options.resamples),
            "policy": _policy(outcome),
        }
        for name, outcome in found.items()
    }
    answers = [Answers(name, outcome.predicted(None), outcome.scores) for name, outcome in found.items()]
    labels = np.array([example.label == "unsafe" for example in dataset.examples])
    pairs = [example.pair for example in dataset.examples]
    return {
        **_origin(dataset),
        "n": len(labels),
        "n_unsafe": int(labels.sum()),
        "clusters": len(labels) - sum(pair is not None for pair in pairs) + len({p for p in pairs if p}),
        "rejects": dataset.reject_reasons,
        "systems": entries,
        "contamination": overlap(dataset, found, training, options.seed, options.resamples)
        if training
        else None,
        "pairs": compare_pairs(labels, answers, pairs, options.seed, options.resamples),
        "robustness": {
            run.name: run.robustness[dataset.name] for run in runs if dataset.name in run.robustness
        },
    }


def _origin(dataset: Dataset) -> dict[str, Any]:
    """Where a data set is from, and whether the file is the one that the registry knows (None: it knows none)."""
    source = dataset.source
    if source is None:
        return {"title": dataset.name, "sha256": dataset.sha256, "published": None}
    known = source.sha256.get(dataset.path.name)
    return {
        "title": source.title,
        "sha256": dataset.sha256,
        "published": source.published,
        "home": source.home,
        "licence": source.licence,
        "revision": lock.revision if (lock := read_lock(dataset.path)) else source.revision,
        "as_registered": None if known is None else known == dataset.sha256,
        "note": source.note,
    }


def _policy(outcome: Outcome) -> str:
    """The threshold policy of an outcome, in words."""
    if outcome.scores is None:
        return "hard labels"
    own = sorted({row.threshold for row in outcome.judged if row.threshold is not None})
    if not own:
        return "0.5"
    return f"its own, {own[0]:.3g}" if len(own) == 1 else f"its own, {own[0]:.3g} to {own[-1]:.3g}"


def _overall(
    data: Mapping[str, dict[str, Any]],
    runs: Sequence[Run],
    outcomes: Mapping[tuple[str, str], Outcome],
    options: Options,
) -> dict[str, Any]:
    """Each system that finished all data sets: the mean over the sets (macro) and all rows as one set (micro)."""
    found = {}
    for run in runs:
        entries = [entry["systems"].get(run.name) for entry in data.values()]
        if all(entries):
            theirs = [outcomes[name, run.name] for name in data]
            found[run.name] = {"macro": _macro(entries), "micro": _micro(theirs, options)}
    return found


def _macro(entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean of each metric over the data sets that have it, and over how many that is."""
    means = {}
    for name in HEADLINES:
        known = [value for entry in entries if (value := flat(entry)[name]) is not None]
        means[name] = {"mean": sum(known) / len(known) if known else None, "sets": len(known)}
    return means


def _micro(outcomes: Sequence[Outcome], options: Options) -> dict[str, Any]:
    scores = [outcome.scores for outcome in outcomes]
    return measure(
        np.concatenate([outcome.labels for outcome in outcomes]),
        np.concatenate(scores) if all(s is not None for s in scores) else None,  # type: ignore[arg-type]
        None,
        pairs=[
            example.pair and f"{outcome.dataset.name}/{example.pair}"
            for outcome in outcomes
            for example in outcome.dataset.examples
        ],
        seed=options.seed,
        predicted=np.concatenate([outcome.predicted(None) for outcome in outcomes]),
        count=options.resamples,
    )


def _price(name: str, price: str) -> dict[str, float]:
    """{"per_1000": dollars} or {"per_hour": dollars} of what was typed."""
    number, hour, rest = price.strip().lstrip("$").partition("/h")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf") or rest:
        raise InputError(f"the price of {name} is '{price}': give dollars for 1,000 queries, or dollars/h")
    return {"per_hour" if hour else "per_1000": value}
