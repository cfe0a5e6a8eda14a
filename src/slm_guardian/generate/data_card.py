"""The data card of a generated corpus: counts, what was dropped and why, coverage, diversity, rows to read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from slm_guardian.example import Example
from slm_guardian.generate.grid import Coverage


def render(
    rows: Sequence[Example], counts: Mapping[str, Any], grids: Mapping[str, Coverage], seed: int = 0
) -> str:
    """Markdown for a corpus; `counts` as `store.total` gives them, `grids` the coverage of each language."""
    parts = [
        f"# Data card\n\n{len(rows):,} rows. " + _provenance(rows),
        "## Rows\n\n" + _cells(rows),
        "## From request to row\n\n" + _yield(counts),
        "## Diversity\n\n" + _diversity(rows),
        "## Grid coverage\n\n" + "\n\n".join(_coverage(lang, c) for lang, c in grids.items()),
        "## Three random rows of each cell\n\n" + _samples(rows, random.Random(seed)),
    ]
    return "\n\n".join(parts) + "\n"


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct-n (Li et al. 2016, 1510.03055): distinct word n-grams over all of them."""
    grams = [
        tuple(words[i : i + n]) for t in texts for words in [t.split()] for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(1, len(grams))


def self_overlap(texts: Sequence[str], seed: int = 0, sample: int = 500) -> float:
    """Mean over sampled rows of the highest Jaccard similarity of character 3-grams to another sampled row."""
    chosen = random.Random(seed).sample(list(texts), min(sample, len(texts)))
    grams = [{f"  {t} "[i : i + 3] for i in range(len(t) + 1)} for t in chosen]
    best = [
        max((len(a & b) / len(a | b) for j, b in enumerate(grams) if j != i), default=0.0)
        for i, a in enumerate(grams)
    ]
    return sum(best) / max(1, len(best))


def _provenance(rows: Sequence[Example]) -> str:
    models = Counter(f"{r.extra.get('backend')}/{r.extra.get('model', '-')}" for r in rows)
    policies = sorted({str(r.extra.get("policy")) for r in rows})
    return f"Written by {', '.join(models)}, under the policies {', '.join(policies)}."


def _cells(rows: Sequence[Example]) -> str:
    cells = Counter((r.category or "safe", r.lang or "-") for r in rows)
    langs = sorted({lang for _, lang in cells})
    lines = ["| category | " + " | ".join(langs) + " |", "|---" * (len(langs) + 1) + "|"]
    for name in sorted({name for name, _ in cells}):
        lines.append(f"| {name} | " + " | ".join(f"{cells[name, lang]:,}" for lang in langs) + " |")
    unsafe = sum(r.label == "unsafe" for r in rows)
    lines.append(
        f"\n{unsafe / max(1, len(rows)):.0%} unsafe, {sum(bool(r.response) for r in rows):,} with a response, "
    )
    return "\n".join(lines) + f"{sum(bool(r.pair) for r in rows):,} in a contrast pair."


def _yield(counts: Mapping[str, Any]) -> str:
    rows = max(1, counts["rows"])
    lines = [
        "| what | rows | share |",
        "|---|---|---|",
        f"| accepted | {counts['accepted']:,} | {counts['accepted'] / rows:.1%} |",
    ]
    lines += [f"| dropped: {reason} | {n:,} | {n / rows:.1%} |" for reason, n in counts["rejected"].items()]
    asked = ", ".join(f"{n:,} {what}" for what, n in counts["requests"].items())
    return "\n".join(lines) + f"\n\nRequests: {asked or 'none'}."


def _diversity(rows: Sequence[Example]) -> str:
    lines = [
        "| language | rows | distinct-1 | distinct-2 | distinct-3 | nearest other row |",
        "|---|---|---|---|---|---|",
    ]
    for lang in sorted({r.lang or "-" for r in rows}):
        texts = [r.text for r in rows if r.lang == lang]
        values = " | ".join(f"{distinct(texts, n):.3f}" for n in (1, 2, 3))
        lines.append(f"| {lang} | {len(texts):,} | {values} | {self_overlap(texts):.3f} |")
    return "\n".join(lines) + (
        "\n\nNearest other row: over 500 random rows, the mean of the highest character 3-gram Jaccard similarity."
    )


def _coverage(lang: str, coverage: Coverage) -> str:
    lines = [
        f"{lang}: {coverage.rows:,} rows from a cell, {coverage.without_cell:,} without; {coverage.filled:.0%} of the "
        "category x sub-topic cells have rows.",
        "",
        "| axis | values with their share of rows |",
        "|---|---|",
    ]
    for axis, shares in coverage.shares.items():
        cells = ", ".join(f"{value} {share:.0%}" for value, share in shares.items())
        lines.append(f"| {axis} | {cells} |")
    return "\n".join(lines)


def _samples(rows: Sequence[Example], rng: random.Random) -> str:
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row.category or "safe", row.lang or "-"), []).append(" ".join(row.text.split()))
    lines = []
    for (name, lang), texts in sorted(cells.items()):
        lines.append(f"**{name}, {lang}**\n")
        lines += [f"- {text}" for text in rng.sample(texts, min(3, len(texts)))]
        lines.append("")
    return "\n".join(lines).rstrip()
