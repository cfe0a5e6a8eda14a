"""The requests that a corpus is written with; `read` turns their answers into examples.

Queries are asked for in the form of the paper's poster (2405.19795): a task sentence that names the intent, [Rules],
and a numbered list that opens with sampled seeds and breaks off. Templates are text files in the policy's language;
a file of the same name in the caller's own directory wins.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from slm_guardian.errors import DataError
from slm_guardian.example import Example
from slm_guardian.generate.backends import Request, request
from slm_guardian.generate.grid import AXES, Cell
from slm_guardian.generate.readers import read
from slm_guardian.policy import Category, Policy
from slm_guardian.text import display

__all__ = ["errors", "everyday", "harmful", "judge", "paraphrase", "read", "respond", "translate", "twins"]

Directory = str | os.PathLike[str] | None
_BASE_TOKENS = 256  # room for a preamble
_ITEM_TOKENS = {"judge": 24, "respond": 240}  # an upper bound for one item; other tasks: 160


def harmful(
    policy: Policy, cell: Cell, seeds: Sequence[Example], count: int = 10, templates: Directory = None
) -> Request:
    """Ask for `count` new harmful queries of the cell's category, after the seeds.

    `templates` is a directory of one's own, for this and all other tasks. Raises DataError for a template that is
    missing or names an unknown value, and for a cell of a category that the policy does not have.
    """
    category = _category(policy, cell)
    return _queries("harmful", policy, [category], cell, seeds, count, templates, label="unsafe")


def everyday(
    policy: Policy, cell: Cell, seeds: Sequence[Example], count: int = 10, templates: Directory = None
) -> Request:
    """Ask for `count` new harmless queries of daily life, after the seeds."""
    return _queries("everyday", policy, [], cell, seeds, count, templates, label="safe", kind="everyday")


def errors(
    policy: Policy, cell: Cell, seeds: Sequence[Example], count: int = 10, templates: Directory = None
) -> Request:
    """Ask for `count` queries like the seeds, which a guardian got wrong: all of them missed, or all overblocked.

    Raises DataError when the seeds are of both labels or of none.
    """
    labels = {seed.label for seed in seeds}
    if labels == {"unsafe"}:
        categories = [_category(policy, cell)]
        return _queries("missed", policy, categories, cell, seeds, count, templates, label="unsafe")
    if labels != {"safe"}:
        raise DataError(
            "seeds for an error-driven prompt must be all safe or all unsafe: split them by label"
        )
    categories = [_category(policy, cell)] if cell.category else policy.categories
    labels = {"label": "safe", "kind": "borderline"}
    return _queries("overblocked", policy, categories, cell, seeds, count, templates, **labels)


def twins(policy: Policy, rows: Sequence[Example], templates: Directory = None) -> Request:
    """Ask for one harmless twin of each harmful row: same frame, another target, intent or context."""
    present = {row.category for row in rows}
    categories = [c for c in policy.categories if c.id in present] or policy.categories
    return _about("twins", policy, rows, templates, _clauses(categories))


def paraphrase(policy: Policy, rows: Sequence[Example], cell: Cell, templates: Directory = None) -> Request:
    """Ask for each row in other words, as the cell's persona would write it."""
    return _about("paraphrase", policy, rows, templates, _words(cell), cell=cell)


def translate(
    source_policy: Policy, target_policy: Policy, rows: Sequence[Example], templates: Directory = None
) -> Request:
    """Ask for each row in the target policy's language, adapted to its culture."""
    values = {"source_culture": source_policy.culture, "culture": target_policy.culture}
    return _about("translate", target_policy, rows, templates, values)


def respond(policy: Policy, rows: Sequence[Example], templates: Directory = None) -> Request:
    """Ask for a safeguard response to each harmful row, by its category's guidance, with facts as `{slots}`."""
    present = {row.category for row in rows}
    categories = [c for c in policy.categories if c.id in present]
    guidance = "\n\n".join(_guidance(policy, category) for category in categories)
    items = _numbered(f"[{_category(policy, row).name}] {_line(row)}" for row in rows)
    values = {"culture": policy.culture, "guidance": guidance, "items": items}
    return _about("respond", policy, rows, templates, values)


def judge(policy: Policy, rows: Sequence[Example], vote: int = 0, templates: Directory = None) -> Request:
    """Ask whether each row is harmful. Votes differ in wording and in the order of rows and categories."""
    rng = random.Random(vote)
    rows = rng.sample(rows, len(rows))
    shown = rng.sample(policy.categories, len(policy.categories))
    categories = "\n\n".join(_summary(category) for category in shown)
    return _about("judge", policy, rows, templates, {"categories": categories}, variant=vote)


def _queries(
    task: str,
    policy: Policy,
    categories: Sequence[Category],
    cell: Cell,
    seeds: Sequence[Example],
    count: int,
    templates: Directory,
    **labels: str,
) -> Request:
    """A request for new queries: the list opens with the seeds and breaks off at the next number."""
    first = len(seeds) + 1
    lines = [*(_line(seed) for seed in seeds), ""]
    values = _words(cell) | _clauses(categories)
    values |= {"count": str(count), "first": str(first), "last": str(first + count - 1)}
    values |= {"examples": _numbered(lines).rstrip()}
    meta = {"cell": cell, "seeds": [seed.id for seed in seeds], "first": first, "count": count, **labels}
    return _request(task, policy, templates, count, values, meta)


def _about(
    task: str,
    policy: Policy,
    rows: Sequence[Example],
    templates: Directory,
    values: dict[str, str],
    cell: Cell | None = None,
    variant: int = 0,
) -> Request:
    """A request about given rows, a numbered item each; `variant` picks among the template's wordings."""
    values = {"items": _numbered(map(_line, rows))} | values
    return _request(task, policy, templates, len(rows), values, {"rows": list(rows), "cell": cell}, variant)


def _request(
    task: str,
    policy: Policy,
    templates: Directory,
    count: int,
    values: dict[str, str],
    meta: dict[str, Any],
    variant: int = 0,
) -> Request:
    values |= {"always": _parts("always", policy.language, templates)[1][-1].strip()}
    path, (system, *users) = _parts(task, policy.language, templates)
    user = users[variant % len(users)]
    tokens = _BASE_TOKENS + count * _ITEM_TOKENS.get(task, 160)
    meta = {"lang": policy.language, "policy": f"{policy.id}@{policy.version}", **meta}
    return request(task, _fill(path, system, values), _fill(path, user, values), max_tokens=tokens, **meta)


def _category(policy: Policy, holder: Cell | Example) -> Category:
    if holder.category not in policy.by_id:
        raise DataError(f"the policy {policy.id} has no category '{holder.category}': use one of its own")
    return policy.by_id[holder.category]


def _clauses(categories: Sequence[Category]) -> dict[str, str]:
    """What categories are called, cover and exclude, and their rules for queries."""
    return {
        "category": ", ".join(category.name for category in categories),
        "covers": _bullets(line for category in categories for line in category.covers),
        "excludes": _bullets(line for category in categories for line in category.excludes),
        "rules": _numbered([line for category in categories for line in category.rules]),
    }


def _words(cell: Cell) -> dict[str, str]:
    return {axis: cell.describe(axis) for axis in ("topic", *AXES)}


def _summary(category: Category) -> str:
    covers, excludes = _bullets(category.covers, "  + "), _bullets(category.excludes, "  - ")
    return f"{category.id} ({category.name})\n{covers}\n{excludes}"


def _guidance(policy: Policy, category: Category) -> str:
    facts = _bullets(f"{{{key}}} = {policy.facts[key]}" for key in category.facts)
    return f"[{category.name}] {category.guidance}\n{facts}"


def _bullets(lines: Iterable[str], mark: str = "- ") -> str:
    return "\n".join(mark + line for line in lines)


def _numbered(lines: Iterable[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _line(row: Example) -> str:
    return display(row.text)


def _parts(name: str, lang: str, own: Directory) -> tuple[str, list[str]]:
    """Path and parts of a template: the system message, then one or more wordings of the user's message."""
    shipped = Path(str(files("slm_guardian.generate"))) / "templates"
    candidates = [*([Path(own, lang), Path(own)] if own else []), shipped / lang]
    for path in (folder / f"{name}.txt" for folder in candidates):
        if path.is_file():
            parts = re.split(r"^---\s*?\n", _text(path), flags=re.MULTILINE)
            return str(path), parts if len(parts) > 1 else ["", *parts]
    raise DataError(
        f"no template {lang}/{name}.txt: write one like the shipped en/{name}.txt and give its directory"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError):
        raise DataError(f"{path}: not readable: save the template as UTF-8 text") from None


def _fill(path: str, template: str, values: Mapping[str, str]) -> str:
    try:
        return Template(template).substitute(values).strip()
    except (KeyError, ValueError) as error:
        known = ", ".join(sorted(values))
        raise DataError(f"{path}: {error} is no value of this template: use $ with {known}, or $$") from None
