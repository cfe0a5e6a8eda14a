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
_NUMBER = re.compile(r"(?<![\d.\-])\d[\d\-]{1,}\d(?![\d\-])|\b[a-z0-9][a-z0-9.\-]*\.(?:com|org|net|gov|edu|kr|uk|io|info)\b[\w/\-]*")
_DIGITS = re.compile(r"\d")


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
        for kind, ids in (("group", [g.id for g in self.groups]), ("category", [c.id for c in self.categories])):
            if repeated := {i for i in ids if ids.count(i) > 1}:
                raise ValueError(f"{kind} id used twice: {', '.join(sorted(repeated))}")
        for category in self.categories:
            if category.group not in {g.id for g in self.groups}:
                raise ValueError(f"category {category.id}: unknown group {category.group}")
            slots = {slot for text in category.fallback for slot in _SLOT.findall(text)}
            if unknown := (slots | set(category.facts)) - set(self.facts):
                raise ValueError(f"category {category.id}: unknown fact {', '.join(sorted(unknown))}")
        return self

    @classmethod
    def load(cls, name: str | Path) -> Policy:
        """Load a pack by name (`ko`, `en`) or a YAML file. Raises PolicyError with file, line and key."""
        path = find(name)
        values = _resolve(path, [])
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "policy"
            line = _line(path, first["loc"])
            raise PolicyError(f"{path}:{line}: {key}: {first['msg'].removeprefix('Value error, ')}") from None

    @cached_property
    def by_id(self) -> dict[str, Category]:
        """Categories by id."""
        return {category.id: category for category in self.categories}

    def fill(self, text: str) -> str:
        """Replace `{slots}` by this policy's facts. Raises KeyError for a fact that it lacks."""
        return _SLOT.sub(lambda match: self.facts[match[1]], text)

    def to_slots(self, text: str) -> str:
        """Replace known help lines and links by `{slots}`, with the institution's name if it stands before."""
        for number, (key, name) in self._numbers.items():
            words = r"\s*".join(map(re.escape, name.split()))
            before = rf"(?:{words}\s*(?:번호)?\s*(?:인|은|는|:)?\s*\(?)?" if words else r"\(?"
            before += r"(?:\S*(?:전화|상담|센터)\s+)?"  # another name of the same line
            pattern = rf"{before}(?<![\d.\-]){re.escape(number)}(?![\d\-])\)?"
            text = re.sub(pattern, lambda m, k=key: _balanced(m[0], k), text)
        return text

    def foreign_numbers(self, text: str) -> list[str]:
        """Phone-like numbers and links that are not facts of this policy (texts in slot form have none)."""
        listed = " ".join(self.facts.values())
        return [n for n in _NUMBER.findall(text) if n not in listed]

    @cached_property
    def _numbers(self) -> dict[str, tuple[str, str]]:
        """Number or link -> (fact key, institution's name before it); longest first."""
        found = {}
        for key, text in self.facts.items():
            for number in _NUMBER.findall(text):
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


def find(name: str | Path, beside: Path | None = None) -> Path:
    """Path of a shipped pack or of a file (also relative to the policy that extends it)."""
    if str(name) in shipped():
        return Path(str(files("slm_guardian").joinpath(f"policies/{name}.yaml")))
    for path in (Path(name), *([beside.parent / name] if beside else [])):
        if os.path.isfile(path):  # Path.is_file raises for a name that is too long
            return path
    raise PolicyError(f"no policy '{name}': use one of {', '.join(shipped())} or the path of a YAML file")


def _resolve(path: Path, seen: list[Path]) -> dict[str, Any]:
    """The file's values over those of the policies that it extends."""
    if path.resolve() in seen:
        raise PolicyError(f"{path}:{_line(path, ('extends',))}: extends: the policies extend each other in a circle")
    values = _read(path)
    parent = values.get("extends")
    if not isinstance(parent, str):
        return values
    base = _resolve(find(parent, beside=path), [*seen, path.resolve()])
    return _merged(base, values)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise PolicyError(f"{path}:{line}: not readable as YAML: check the indentation and quotes") from None
    if not isinstance(values, dict):
        raise PolicyError(f"{path}:1: a policy is a mapping of keys (id, version, categories, ...)")
    return values


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = base | own
    merged["facts"] = (base.get("facts") or {}) | (own.get("facts") or {})
    for key in ("groups", "categories"):
        merged[key] = _merged_by_id(base.get(key) or [], own.get(key) or [])
    return merged


def _merged_by_id(base: list[Any], own: list[Any]) -> list[Any]:
    if not all(isinstance(item, dict) and "id" in item for item in own):
        return own  # the schema names the fault
    ids = [item["id"] for item in own]
    if len(ids) != len(set(ids)):
        return own
    overrides = {item["id"]: item for item in own}
    kept = [item | overrides.pop(item["id"], {}) for item in base]
    return [*kept, *overrides.values()]


def _line(path: Path, location: tuple[str | int, ...]) -> int:
    """Line of the deepest key of `location` that stands in the file itself."""
    node = yaml.compose(path.read_text(encoding="utf-8"))
    line = 1
    for key in location:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == key]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line
