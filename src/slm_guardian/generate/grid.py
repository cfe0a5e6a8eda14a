"""The grid that generated queries are spread over, so that their diversity is designed and can be counted.

A cell says who asks, in which register, length and frame, with what spelling noise and about which sub-topic. Values
are dealt from shuffled decks: none comes again before all others of its axis have come (persona and topic sampling as
in 2406.20094 and 2406.08464, but balanced and visible).
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from slm_guardian.errors import DataError
from slm_guardian.example import Example

AXES = ("persona", "register", "length", "frame", "noise")
EVERYDAY = "everyday"


@dataclass(frozen=True)
class Cell:
    """One place of the grid: the names of its values. `category` is None for everyday queries."""

    lang: str
    category: str | None
    topic: str
    persona: str
    register: str
    length: str
    frame: str
    noise: str
    texts: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """What an LLM reads for each axis; an axis without a text is told by its name."""

    def describe(self, axis: str) -> str:
        """The text of one axis (persona, register, length, frame, noise or topic) for a prompt."""
        return self.texts.get(axis, getattr(self, axis))

    def to_dict(self) -> dict[str, str | None]:
        """Names only, for provenance."""
        fields = [f.name for f in dataclasses.fields(self) if f.name != "texts"]
        return {name: getattr(self, name) for name in fields}


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("a value stands there twice")
    return values


_Axis = Annotated[dict[str, str], Field(min_length=1)]
_Topics = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Grid(BaseModel):
    """The axes of one language. Build one with `Grid.load`; it remembers which values were dealt."""

    model_config = ConfigDict(extra="forbid")

    lang: str
    personas: _Axis
    registers: _Axis
    lengths: _Axis
    frames: _Axis
    noises: _Axis
    any_topic: str
    topics: dict[str, _Topics]
    everyday: _Topics
    _decks: dict[str, list[str]] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, lang: str, path: str | os.PathLike[str] | None = None) -> Grid:
        """The shipped grid of a language (`ko`, `en`, `id`), or a YAML file of the same form.

        Raises DataError naming file and key.
        """
        if path is None:
            shipped = files("slm_guardian.generate").joinpath(f"grid/{lang}.yaml")
            if not shipped.is_file():
                raise DataError(
                    f"no grid for language '{lang}': give the path of a YAML file like grid/en.yaml"
                )
            path = Path(str(shipped))
        try:
            grid = cls.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "grid"
            raise DataError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
        except (yaml.YAMLError, ValueError, RecursionError, OSError):
            raise DataError(f"{path}: not readable as YAML: check the path, indentation and quotes") from None
        if grid.lang != lang:
            raise DataError(f"{path}: lang: this grid is for '{grid.lang}', not for '{lang}'")
        return grid

    def topics_of(self, category: str | None) -> Sequence[str]:
        """Sub-topics of a category; the everyday ones for None, `any_topic` for a category without its own."""
        return self.everyday if category is None else self.topics.get(category, [self.any_topic])

    def axis(self, name: str) -> Mapping[str, str]:
        """Names and texts of the values of one axis: persona, register, length, frame or noise."""
        return getattr(self, f"{name}s")

    def sample(self, rng: random.Random, category: str | None) -> Cell:
        """The next cell of a category. Each value of an axis comes once before any of them comes again."""
        topic = self._deal(rng, f"topic/{category or EVERYDAY}", self.topics_of(category))
        names = {axis: self._deal(rng, axis, list(self.axis(axis))) for axis in AXES}
        texts = {axis: self.axis(axis)[name] for axis, name in names.items()}
        return Cell(lang=self.lang, category=category, topic=topic, texts=texts, **names)

    def _deal(self, rng: random.Random, name: str, values: Sequence[str]) -> str:
        deck = self._decks.setdefault(name, [])
        if not deck:
            deck += rng.sample(values, len(values))
        return deck.pop()


@dataclass(frozen=True)
class Coverage:
    """How rows are spread over a grid."""

    rows: int
    """Rows of the grid's language that come from a cell."""
    without_cell: int
    """Other rows of the language."""
    shares: dict[str, dict[str, float]]
    """Axis -> value -> share of `rows` (0..1); values without rows are there with 0."""
    topics: dict[str, dict[str, int]]
    """Category -> sub-topic -> number of rows; the category of everyday rows is `everyday`."""

    @property
    def filled(self) -> float:
        """Share of the category x sub-topic cells that have rows."""
        counts = [count for topics in self.topics.values() for count in topics.values()]
        return sum(count > 0 for count in counts) / len(counts)

    def table(self) -> list[dict[str, str | int | float]]:
        """Flat rows for a report: each axis' values with their share, then each category with its filled topics."""
        lines: list[dict[str, str | int | float]] = [
            {"axis": axis, "value": value, "share": share}
            for axis, values in self.shares.items()
            for value, share in values.items()
        ]
        for category, topics in self.topics.items():
            filled = sum(count > 0 for count in topics.values())
            lines.append({"axis": "topic", "value": category, "share": filled / len(topics)})
        return lines


def coverage(rows: Iterable[Example], grid: Grid) -> Coverage:
    """How the rows of the grid's language are spread over it, by the `cell` that their provenance names."""
    own = [row for row in rows if row.lang == grid.lang]
    cells = [row.extra["cell"] for row in own if isinstance(row.extra.get("cell"), dict)]
    shares = {}
    for axis in AXES:
        counts = Counter(cell.get(axis) for cell in cells)
        shares[axis] = {value: counts[value] / max(len(cells), 1) for value in grid.axis(axis)}
    found = Counter((cell.get("category") or EVERYDAY, cell.get("topic")) for cell in cells)
    topics = {
        category: {topic: found[category, topic] for topic in values}
        for category, values in {**grid.topics, EVERYDAY: grid.everyday}.items()
    }
    return Coverage(len(cells), len(own) - len(cells), shares, topics)
