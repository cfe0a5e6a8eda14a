"""The report as one self-contained HTML page: tables, curves, significance, types, speed, cost, worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from slm_guardian.errors import GuardianError
from slm_guardian.evaluate.charts import Curve, charts, series
from slm_guardian.evaluate.resample import wilson
from slm_guardian.evaluate.robustness_charts import robustness_charts
from slm_guardian.evaluate.run import Outcome, was_judged
from slm_guardian.evaluate.tables import CLASS_METRICS, HEADLINES, PUBLISHED, Table, number, short_count

if TYPE_CHECKING:
    from slm_guardian.evaluate.compare import Comparison

_WORST = 8  # errors shown a system and side
_ALPHA = 0.05
_POSTER = (*CLASS_METRICS, "fpr", "auroc")
_MORE = {
    "auprc": "AUPRC",
    "recall_at_fpr_1": "recall at FPR 1%",
    "recall_at_fpr_5": "recall at FPR 5%",
    "macro_f1": "macro F1",
    "accuracy": "accuracy (micro F1)",
    "ece": "ECE",
}
_LOWER_IS_BETTER = {"fpr", "ece"}


def render(comparison: Comparison, tables: Sequence[Table], texts: bool = True) -> str:
    """The page. `texts` shows the worst errors, blurred until touched; without, no text of the data is in it.

    Raises GuardianError when Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise GuardianError("the report needs Jinja2: pip install 'slm-guardian[evaluate]'") from None
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"number": number, "bare": _bare, "chance": _chance}
    environment.filters |= {"count": "{:,}".format, "size": short_count}
    template = environment.from_string(
        files("slm_guardian").joinpath("evaluate/page.html").read_text("utf-8")
    )
    names = [row["name"] for row in comparison.result["systems"]]
    return template.render(
        result=comparison.result,
        colours={name: series(i) for i, name in enumerate(names)},
        sections=[_section(comparison, table, names, texts) for table in tables],
        poster=_POSTER,
        more=_MORE,
        headlines=HEADLINES,
        published=PUBLISHED,
        texts=texts,
    )


def _section(comparison: Comparison, table: Table, names: Sequence[str], texts: bool) -> dict[str, Any]:
    """What the page shows of one data set."""
    entry = comparison.result["data"][table.data]
    outcomes = {name: comparison.outcomes[table.data, name] for name in names if name in entry["systems"]}
    curves = [
        Curve(name, names.index(name), outcome.labels, outcome.predicted(None), outcome.scores)
        for name, outcome in outcomes.items()
    ]
    return {
        "table": table,
        "entry": entry,
        "best": _best(table),
        "charts": charts(curves),
        "robustness": robustness_charts(entry["robustness"], {curve.name: curve.number for curve in curves}),
        "matrix": _matrix(entry["pairs"], list(outcomes)),
        "kinds": _kinds(entry["systems"]),
        "worst": {name: _worst(outcome) for name, outcome in outcomes.items()} if texts else {},
    }


def _bare(value: float, digits: int = 3) -> str:
    """A number below 1 without its leading zero, as intervals are printed in narrow tables."""
    return number(value, digits).removeprefix("0") if value >= 0 else number(value, digits)


def _chance(p: float | None) -> str:
    """A p-value; one that four digits cannot show is below them."""
    return "< 0.0001" if p is not None and p < 0.0001 else number(p, 4)


def _best(table: Table) -> dict[str, float]:
    """The best measured value of each column, where several systems were measured."""
    rows = [row for row in table.rows if not row.published]
    best = {}
    for name in (*_POSTER, *_MORE) if len(rows) > 1 else ():
        known = [value for row in rows if (value := row.values.get(name)) is not None]
        if known:
            best[name] = min(known) if name in _LOWER_IS_BETTER else max(known)
    return best


def _matrix(pairs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Each system's differences to the others in weighted F1: its own minus theirs, and what the tests say."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in pairs:
        test = pair["metrics"]["weighted_f1"]
        sure = test["p_holm"] is not None and test["p_holm"] < _ALPHA
        gap = test["difference"]
        for key, value in (((pair["a"], pair["b"]), gap), ((pair["b"], pair["a"]), -gap)):
            verdict = ("better" if value > 0 else "worse") if sure else "open"
            found[key] = {"difference": value, "verdict": verdict, "p": test["p_holm"]}
    return [{"name": a, "cells": [found.get((a, b)) for b in names]} for a in names]


def _kinds(systems: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy of each kind of row (XSTest's types) by system, with its interval."""
    kinds = next(iter(systems.values()))["by_kind"] if systems else {}
    return [
        {
            "name": kind,
            "n": known["n"],
            "n_unsafe": known["n_unsafe"],
            "cells": {
                name: {"value": value, "ci95": wilson(round(value * known["n"]), known["n"])}
                for name, entry in systems.items()
                for value in [entry["by_kind"][kind]["accuracy"]]
            },
        }
        for kind, known in kinds.items()
    ]


def _worst(outcome: Outcome) -> dict[str, list[dict[str, Any]]]:
    """The rows that a system is most wrong about: harm with the lowest score, harmless rows with the highest."""
    rows = zip(outcome.dataset.examples, outcome.judged, outcome.predicted(None), strict=True)
    judged = [(example, row, unsafe) for example, row, unsafe in rows if was_judged(row)]
    judged.sort(key=lambda item: (0.5 if item[1].harm is None else item[1].harm, item[0].id))
    missed = [(e, row) for e, row, unsafe in judged if e.label == "unsafe" and not unsafe]
    blocked = [(e, row) for e, row, unsafe in reversed(judged) if e.label == "safe" and unsafe]
    sides = {"missed harm": missed, "harmless rows blocked": blocked}
    return {
        side: [{"text": e.text, "kind": e.kind or e.category, "harm": row.harm} for e, row in found[:_WORST]]
        for side, found in sides.items()
    }
