"""Robustness as inline SVG, in the manner of the other charts: one row a perturbation, one mark a system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from slm_guardian.evaluate.charts import series

_LEFT, _TOP, _WIDTH = 132, 6, 300
_GAP, _MARK = 9, 9  # between rows, and for each system in a row
_TITLES = {"unsafe_recall": "Recall of unsafe", "fpr": "False-positive rate"}


def robustness_charts(results: Mapping[str, dict[str, Any]], numbers: Mapping[str, int]) -> dict[str, str]:
    """Recall and FPR under each perturbation and in the worst cases, by title; those that nobody has are left out.

    `results` are `robustness.measure`'s by system, `numbers` choose the systems' colours. A full dot with its interval
    is the perturbed form, the hollow dot beside it the plain form of the same rows.
    """
    drawn = {title: _chart(results, numbers, metric, title) for metric, title in _TITLES.items()}
    return {f"{title} under perturbation": svg for title, svg in drawn.items() if svg}


def _chart(results: Mapping[str, dict[str, Any]], numbers: Mapping[str, int], metric: str, title: str) -> str:
    entries = {name: result["perturbations"] | result["worst"] for name, result in results.items()}
    rows = list(next(iter(entries.values()), {}))
    height = _GAP + _MARK * len(entries)
    marks = [
        mark
        for i, row in enumerate(rows)
        for j, (name, known) in enumerate(entries.items())
        if (found := known[row][metric]) and found["changed"]["value"] is not None
        for mark in _marks(
            found, _TOP + i * height + (_GAP + _MARK) / 2 + j * _MARK, numbers[name], f"{name}, {row}"
        )
    ]
    if not marks:
        return ""
    bottom = _TOP + height * len(rows)
    told = (
        f'viewBox="0 0 {_LEFT + _WIDTH + 14} {bottom + 34}" role="img" aria-label="{title} by perturbation"'
    )
    return f"<svg {told}>{''.join([*_grid(rows, height, bottom), *marks])}</svg>"


def _grid(rows: list[str], height: int, bottom: int) -> Iterator[str]:
    """Names at the left, a line above each row, values below."""
    for tick in (0, 0.25, 0.5, 0.75, 1):
        yield f'<path class="grid" d="M{_at(tick):.1f} {_TOP}V{bottom}"/>'
        yield f'<text x="{_at(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>'
    for i, row in enumerate(rows):
        top = _TOP + i * height
        yield f'<path class="grid" d="M{_LEFT} {top}h{_WIDTH}"/>'
        name = escape(row.replace("_", " "))
        yield f'<text x="{_LEFT - 6}" y="{top + height / 2 + 4:.1f}" text-anchor="end">{name}</text>'


def _marks(found: Mapping[str, Any], y: float, number: int, name: str) -> Iterator[str]:
    """The interval, the plain form and the changed form of one system."""
    plain, changed = found["plain"]["value"], found["changed"]["value"]
    low, high = found["changed"]["ci95"]
    colour, told = series(number), f"<title>{escape(name)}: {changed:.3f}, plain {plain:.3f}</title>"
    yield f'<polyline class="{colour}" points="{_at(low):.1f},{y:.1f} {_at(high):.1f},{y:.1f}"/>'
    yield f'<circle class="{colour} hollow" cx="{_at(plain):.1f}" cy="{y:.1f}" r="3.5">{told}</circle>'
    yield f'<circle class="{colour}" cx="{_at(changed):.1f}" cy="{y:.1f}" r="3.5">{told}</circle>'


def _at(value: float) -> float:
    return _LEFT + _WIDTH * value
