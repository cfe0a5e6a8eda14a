"""Policy: what counts as harmful, how each category is answered, and the facts that an answer may state.

A policy is a YAML file. Shipped packs are known by name (`ko`, `en`); `extends` names a pack or a file and
overrides it key by key, groups and categories by their id.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slm_guardian.errors import PolicyError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is 8 x faster

Action = Literal["answer", "block", "flag", "allow"]
_SLOT = re.compile(r"\{([a-z0-9_.]+)\}")
_NUMBER = re.compile(
    r"(?<![\d.\-])\d[\d\-]{1,}\d(?![\d\-])"
    r"|\b[a-z0-9][a-z0-9.\-]*\.(?:com|org|net|gov|edu|kr|uk|id|io|info)\b[\w/\-]*",
    re.IGNORECASE,
)
_SPACED_NUMBER = re.compile(r"\b\d{3}(?: \d{3})+\b")  # 116 123 is one number, not two
_Location = tuple[str | int, ...]
_LISTS = {"group": "groups", "category": "categories"}
# A number that counts something is no help line: 120개, 988 people.
_QUANTITY = (
    r"(?!\s*(?:개|명|년|월|일|원|살|세|시간|분|주|회|만|억|가지|%|(?:percent|people|years|days|hours|times|"
    r"persen|orang|tahun|hari|jam|kali|ribu|juta)\b))"
)


class _Inconsistent(ValueError):
    """Two parts of a policy contradict each other; `location` is the key at fault."""

    def __init__(self, message: str, *location: str) -> None:
        super().__init__(message)
        self.location: _Location = location


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Group(_Strict):
    """A group of categories, for reports."""

    id: str
    name: str


class Category(_Strict):
    """One kind of harmful query, and how to answer it."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    group: str
    name: str
    covers: list[str]
    excludes: list[str] = []
    harmful: list[str] = []
    safe: list[str] = []
    rules: list[str] = []
    guidance: str = ""
    facts: list[str] = []
    fallback: list[str] = Field(min_length=1)
    action: Action = "answer"
    threshold: float | None = Field(default=None, ge=0, le=1)


class Policy(_Strict):
    """A whole policy. Build one with `Policy.load`."""

    id: str
    version: str
    language: str
    culture: str = ""
    extends: str | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    facts: dict[str, str] = {}
    groups: list[Group]
    categories: list[Category] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        group_ids, category_ids = [g.id for g in self.groups], [c.id for c in self.categories]
        for kind, ids in (("group", group_ids), ("category", category_ids)):
            if repeated := {i for i in ids if ids.count(i) > 1}:
                message = f"{kind} id used twice: {', '.join(sorted(repeated))}"
                raise _Inconsistent(message, _LISTS[kind], min(repeated), "id")
        for category in self.categories:
            if category.group not in group_ids:
                message = f"category {category.id}: unknown group {category.group}"
                raise _Inconsistent(message, "categories", category.id, "group")
            slots = {slot for text in category.fallback for slot in _SLOT.findall(text)}
            for key, used in (("fallback", slots), ("facts", set(category.facts))):
                if unknown := used - set(self.facts):
                    message = f"category {category.id}: unknown fact {', '.join(sorted(unknown))}"
                    raise _Inconsistent(message, "categories", category.id, key)
        return self

    @classmethod
    def load(cls, name: str | Path) -> Policy:
        """Load a pack by name (`ko`, `en`, `id`) or a YAML file. Raises PolicyError with file, line and key."""
        path = find(name)
        values, chain = _resolve(path, [])
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            fault = first.get("ctx", {}).get("error")
            location = fault.location if isinstance(fault, _Inconsistent) else _by_id(values, first["loc"])
            key = ".".join(map(str, location)) or "policy"
            place = _place(chain, location)
            raise PolicyError(f"{place}: {key}: {first['msg'].removeprefix('Value error, ')}") from None

    @cached_property
    def by_id(self) -> dict[str, Category]:
        """Categories by id."""
        return {category.id: category for category in self.categories}

    def fill(self, text: str) -> str:
        """Replace `{slots}` by this policy's facts. Raises KeyError for a fact that it lacks."""
        return _SLOT.sub(lambda match: self.facts[match[1]], text)

    def to_slots(self, text: str) -> str:
        """Replace known help lines and links by `{slots}`, with the institution's name before them."""
        for number, (key, name) in self._numbers.items():
            words = r"\s*".join(map(re.escape, name.split()))
            before = rf"(?:(?:the\s)?{words}\s*(?:번호)?\s*(?:인|은|는|:)?\s*\(?)?" if words else r"\(?"
            before += r"(?:\S*(?:전화|상담|센터)\s+)?"  # another name of the same line
            pattern = rf"{before}(?<![\d.\-]){re.escape(number)}(?![\d\-]){_QUANTITY}\)?"
            rest = self.facts[key].partition(number)[2].strip(" ()")
            if name == "" and rest.isascii() and rest:  # the 988 Suicide & Crisis Lifeline
                pattern = rf"(?:\bthe\s)?{pattern}(?:\s{re.escape(rest)}|\s[A-Z]\w+line\b)?"
            elif rest:  # SEJIWA 119 ekstensi 8
                pattern += rf"(?:\s?{re.escape(rest)})?"
            text = re.sub(pattern, lambda m, k=key: _balanced(m[0], k), text)
        return text

    def foreign_numbers(self, text: str) -> list[str]:
        """Phone-like numbers and links that are not facts of this policy (texts in slot form have none)."""
        listed = {n.lower() for fact in self.facts.values() for n in (fact, *_NUMBER.findall(fact))}
        return [n for n in _NUMBER.findall(text) if n.lower() not in listed]

    @cached_property
    def _numbers(self) -> dict[str, tuple[str, str]]:
        """Number or link -> (fact key, institution's name before it); longest first."""
        found = {}
        for key, text in self.facts.items():
            for number in _SPACED_NUMBER.findall(text) or _NUMBER.findall(text):
                name = text.split(number)[0].strip(" (").removeprefix("the ").strip()
                found.setdefault(number, (key, name))
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _balanced(matched: str, key: str) -> str:
    """The slot, keeping a bracket that was opened or closed outside of what it replaces."""
    opened, closed = matched.count("("), matched.count(")")
    return "(" * (opened > closed) + "{" + key + "}" + ")" * (closed > opened)


def shipped() -> list[str]:
    """Names of the packs inside the package."""
    folder = files("slm_guardian").joinpath("policies")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def sources(name: str | Path) -> list[Path]:
    """The files that a policy is made of: its own and those that it extends. Raises PolicyError."""
    return _resolve(find(name), [])[1]


def find(name: str | Path, beside: Path | None = None) -> Path:
    """Path of a shipped pack or of a file (also relative to the policy that extends it)."""
    if str(name) in shipped():
        return Path(str(files("slm_guardian").joinpath(f"policies/{name}.yaml")))
    for path in (Path(name), *([beside.parent / name] if beside else [])):
        if os.path.isfile(path):  # Path.is_file raises for a name that is too long
            return path
    raise PolicyError(f"no policy '{name}': use one of {', '.join(shipped())} or the path of a YAML file")


def _resolve(path: Path, seen: list[Path]) -> tuple[dict[str, Any], list[Path]]:
    """The file's values over those of the policies that it extends; this file and those, in this order."""
    if path.resolve() in seen:
        place = _place([path], ("extends",))
        raise PolicyError(f"{place}: extends: the policies extend each other in a circle")
    values = _read(path)
    parent = values.get("extends")
    if not isinstance(parent, str):
        return values, [path]
    base, chain = _resolve(find(parent, beside=path), [*seen, path.resolve()])
    return _merged(base, values), [path, *chain]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise PolicyError(f"{path}:{line}: not readable as YAML: check the indentation and quotes") from None
    if not isinstance(values, dict):
        raise PolicyError(f"{path}:1: a policy is a mapping of keys (id, version, categories, ...)")
    if not isinstance(values.get("facts") or {}, dict):
        raise PolicyError(f"{_place([path], ('facts',))}: facts: must be a mapping of names to texts")
    for key in _LISTS.values():
        items = values.get(key) or []
        if not isinstance(items, list) or not all(map(_has_id, items)):
            raise PolicyError(f"{_place([path], (key,))}: {key}: must be a list of entries, each with its id")
    return values


def _has_id(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("id"), str)


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = base | own
    merged["facts"] = (base.get("facts") or {}) | (own.get("facts") or {})
    for key in ("groups", "categories"):
        merged[key] = _merged_by_id(base.get(key) or [], own.get(key) or [])
    return merged


def _merged_by_id(base: list[Any], own: list[Any]) -> list[Any]:
    ids = [item["id"] for item in own]
    if len(ids) != len(set(ids)):
        return own  # the schema names the fault
    overrides = {item["id"]: item for item in own}
    kept = [item | overrides.pop(item["id"], {}) for item in base]
    return [*kept, *overrides.values()]


def _by_id(values: dict[str, Any], location: _Location) -> _Location:
    """The location with a group's or category's id for its number, which merging may have changed."""
    match location:
        case ("groups" | "categories" as key, int(number), *rest):
            return (key, values[key][number]["id"], *rest)
    return location


def _place(chain: list[Path], location: _Location) -> str:
    """`file:line` of the deepest key of `location`, in the first of the files that holds most of it."""
    _, line, path = max(((*_line(path, location), path) for path in chain), key=lambda found: found[0])
    return f"{path}:{line}"


def _line(path: Path, location: _Location) -> tuple[int, int]:
    """How many keys of `location` the file holds, and the line of the last of them."""
    node = yaml.compose(path.read_text(encoding="utf-8"))
    depth, line = 0, 1
    for key in location:
        found = _child(node, key)
        if not found:
            break
        depth, line, node = depth + 1, found[0].start_mark.line + 1, found[1]
    return depth, line


def _child(node: yaml.Node | None, key: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that marks the place of `key` (the last one, where it is repeated), and its value."""
    if isinstance(node, yaml.MappingNode):
        found = [(name, value) for name, value in node.value if name.value == str(key)]
    elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        found = [(item, item) for item in node.value[key : key + 1]]
    elif isinstance(node, yaml.SequenceNode):
        ids = [(item, _child(item, "id")) for item in node.value]
        found = [(item, item) for item, marked in ids if marked and marked[1].value == key]
    else:
        found = []
    return found[-1] if found else None
