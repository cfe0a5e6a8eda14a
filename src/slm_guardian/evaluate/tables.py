"""The poster's two tables (safe, unsafe and weighted precision / recall / F1) as rows, Markdown, CSV and LaTeX.

Published rows stand in the same tables, marked: their test data is another copy, so that no test compares them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

CLASSES = ("safe", "unsafe", "weighted")
PARTS = ("precision", "recall", "f1")
CLASS_METRICS = tuple(f"{name}_{part}" for name in CLASSES for part in PARTS)
METRICS = (
    *CLASS_METRICS,
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "accuracy",
    "fpr",
    "auroc",
    "auprc",
    "recall_at_fpr_1",
    "recall_at_fpr_5",
    "ece",
)
HEADLINES = {
    "weighted_f1": "weighted F1",
    "unsafe_f1": "unsafe F1",
    "unsafe_recall": "unsafe recall",
    "fpr": "FPR",
    "auroc": "AUROC",
}
PUBLISHED = "as published, other test copy"
_MARK = "†"


@dataclass(frozen=True)
class Row:
    """One system in a table; None is what was not measured."""

    system: str
    parameters: str
    values: Mapping[str, float | None]
    intervals: Mapping[str, Sequence[float] | None]
    threshold: str
    n: int | None = None
    unjudged: int | None = None
    published: bool = False
    note: str = ""
    clean: Row | None = None
    """The same without the rows that stand in training data; None where that was not looked at."""


@dataclass(frozen=True)
class Table:
    """One data set's table."""

    data: str
    title: str
    n: int
    n_unsafe: int
    rows: list[Row]
    contaminated: int | None = None
    """How many rows stand in training data, or nearly; None where none was given."""


def build(result: Mapping[str, Any], published: bool = False) -> list[Table]:
    """A table for each data set of a comparison, with the paper's rows where it has them and `published` is set."""
    about = {row["name"]: row for row in result["systems"]}
    tables = []
    for name, entry in result["data"].items():
        overlap = entry["contamination"]
        clean = overlap["clean"] if overlap else {}
        rows = [_measured(about[name], found, clean.get(name)) for name, found in entry["systems"].items()]
        rows += _published(entry["published"]) if published and entry["published"] else []
        contaminated = overlap["exact"] + overlap["near"] if overlap else None
        tables.append(Table(name, entry["title"], entry["n"], entry["n_unsafe"], rows, contaminated))
    return tables


def flat(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of an entry of metrics.json under the names of its intervals (`safe_f1`, `fpr` ...)."""
    parts = {f"{name}_{part}": entry[name][part] for name in CLASSES for part in PARTS}
    return parts | {name: entry[name] for name in METRICS if name in entry}


def to_markdown(tables: Iterable[Table]) -> str:
    """All tables, as the poster prints them, with the 95% interval of each F1, FPR and AUROC in brackets."""
    head = ["system", "parameters", "n", *(f"{name} P / R / F1" for name in CLASSES)]
    head += ["FPR", "AUROC", "threshold", "unjudged"]
    parts = []
    for table in tables:
        lines = [head, ["---"] * len(head), *map(_markdown_row, table.rows)]
        count = f"{table.n:,} rows, {table.n_unsafe:,} unsafe"
        parts.append(f"## {_plain(table.data)}\n\n{_plain(table.title)}: {count}.\n")
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
        parts += [f"{_plain(row.system)} {_MARK}: {row.note}.\n" for row in table.rows if row.note]
        parts.append(_markdown_clean(table))
    notes = 'In brackets: 95% intervals. "-": not measured. Unjudged rows count as unsafe.'
    return "\n".join([*parts, f"{notes} {_MARK} {PUBLISHED}.", ""])


def to_csv(tables: Iterable[Table]) -> str:
    """One line a data set and system, every metric with the ends of its interval; empty where not measured.

    Columns that begin with `clean_` are without the rows that stand in training data.
    """
    metrics = [*METRICS, *(f"clean_{metric}" for metric in HEADLINES)]
    names = [name for metric in metrics for name in (metric, f"{metric}_low", f"{metric}_high")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "data",
            "system",
            "parameters",
            "n",
            "n_unsafe",
            "unjudged",
            "threshold",
            "source",
            "contaminated",
            *names,
        ]
    )
    for table in tables:
        for row in table.rows:
            numbers = [number for metric in METRICS for number in _with_ends(row, metric)]
            numbers += [number for metric in HEADLINES for number in _with_ends(row.clean, metric)]
            unsafe = None if row.published else table.n_unsafe
            source = PUBLISHED if row.published else "measured"
            head = [
                table.data,
                row.system,
                row.parameters,
                row.n,
                unsafe,
                row.unjudged,
                row.threshold,
                source,
                None if row.published else table.contaminated,
            ]
            writer.writerow(["" if cell is None else cell for cell in [*head, *numbers]])
    return text.getvalue()


def to_latex(tables: Iterable[Table]) -> str:
    """A booktabs table for each data set; needs \\usepackage{booktabs}."""
    return "\n".join(_latex(table) for table in tables)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, "-" for what was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def _measured(about: Mapping[str, Any], entry: Mapping[str, Any], clean: Mapping[str, Any] | None) -> Row:
    size = about["parameters"]
    return Row(
        system=about["name"],
        parameters="-" if size is None else short_count(size),
        values=flat(entry),
        intervals=entry["ci95"],
        threshold=entry.get("policy", "-"),
        n=entry["n"],
        unjudged=entry["unjudged"],
        clean=_measured(about, clean, None) if clean else None,
    )


def _published(benchmark: str) -> list[Row]:
    """The paper's rows for one of its two tables."""
    text = files("slm_guardian").joinpath("evaluate/published.csv").read_text("utf-8")
    return [
        Row(
            system=line["system"],
            parameters="-" if line["parameters"] == "unknown" else line["parameters"],
            values={name: float(line[name]) for name in CLASS_METRICS},
            intervals={},
            threshold="-",
            published=True,
            note=line["note"],
        )
        for line in csv.DictReader(io.StringIO(text))
        if line["benchmark"] == benchmark
    ]


def short_count(size: float) -> str:
    """22M, 7B: a number of parameters as people write it."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g}{unit}"
    return str(int(size))


def _markdown_row(row: Row) -> list[str]:
    cells = [_plain(row.system) + (f" {_MARK}" if row.published else ""), row.parameters]
    cells.append("-" if row.n is None else f"{row.n:,}")
    for name in CLASSES:
        shown = [_shown(row, f"{name}_{part}") for part in PARTS]
        cells.append(" / ".join(shown) + _interval(row, f"{name}_f1"))
    cells += [_shown(row, name) + _interval(row, name) for name in ("fpr", "auroc")]
    return [*cells, _plain(row.threshold), "-" if row.unjudged is None else str(row.unjudged)]


def _shown(row: Row, name: str) -> str:
    return number(row.values.get(name), 2 if row.published else 3)


def _interval(row: Row, name: str) -> str:
    ends = row.intervals.get(name)
    return f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""


def _markdown_clean(table: Table) -> str:
    """How many rows stand in training data, and the headline metrics with and without them."""
    if not table.contaminated:
        known = "-" if table.contaminated is None else "0"
        return f"Rows that stand in the training data, or nearly: {known}.\n"
    lines = [["system", "n", *(f"{label}, all / without" for label in HEADLINES.values())]]
    lines.append(["---"] * len(lines[0]))
    for row in table.rows:
        if row.clean:
            both = [f"{_shown(row, m)} / {_shown(row.clean, m)}{_interval(row.clean, m)}" for m in HEADLINES]
            lines.append([_plain(row.system), f"{table.n:,} / {row.clean.n:,}", *both])
    told = f"{table.contaminated:,} of {table.n:,} ({table.contaminated / table.n:.1%})"
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"Rows that stand in the training data, or nearly: {told}. With and without them:\n\n{rows}\n"


def _with_ends(row: Row | None, name: str) -> tuple[float | None, float | None, float | None]:
    if row is None:
        return None, None, None
    low, high = row.intervals.get(name) or (None, None)
    return row.values.get(name), low, high


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _caption(table: Table) -> str:
    known = "-" if table.contaminated is None else f"{table.contaminated:,}"
    count = f"{table.n:,} rows, {table.n_unsafe:,} unsafe, {known} in training data"
    return rf"{_escaped(table.title)} ({count}). $^\dagger${PUBLISHED}."


def _latex(table: Table) -> str:
    columns = "@{}l" + "r" * 12 + "@{}"
    groups = " & ".join(rf"\multicolumn{{3}}{{c}}{{{name.capitalize()}}}" for name in CLASSES)
    heads = " & ".join(["P & R & F1"] * 3)
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{_caption(table)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf"Model & {groups} & FPR & AUROC & Unjudged \\",
        rf" & {heads} & & & \\",
        r"\midrule",
        *map(_latex_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(row: Row) -> str:
    size = "" if row.parameters == "-" else f" ({row.parameters})"
    name = _escaped(row.system + size) + (r"$^\dagger$" if row.published else "")
    cells = [_shown(row, metric) + _latex_ends(row, metric) for metric in (*CLASS_METRICS, "fpr", "auroc")]
    return " & ".join([name, *cells, "-" if row.unjudged is None else str(row.unjudged)]) + r" \\"


def _latex_ends(row: Row, name: str) -> str:
    """The interval of a headline metric, small; the others are in the CSV file."""
    ends = row.intervals.get(name) if name.endswith("_f1") or name in ("fpr", "auroc") else None
    return rf"\,{{\tiny[{ends[0]:.2f}, {ends[1]:.2f}]}}" if ends else ""


def _escaped(text: str) -> str:
    known = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(known.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
