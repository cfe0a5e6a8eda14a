"""The registry of data sets: one small file each in sets/, which says where it comes from and how it is read.

No row of a benchmark is part of this project. A set is read from a file under the directory GUARDIAN_DATA or in the
cache of fetched sets, as its authors published it or with this project's columns (`text`, `label`, `category`, `kind`,
`pair`).
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict

from slm_guardian.errors import DataError
from slm_guardian.example import LABELS, Example, from_row, load_pyarrow, read_rows

DATA_ENV = "GUARDIAN_DATA"
FOLDERS = ("", "public/dev", "seed")
_OWN = (".jsonl", ".jsonl.gz", ".csv")
_SETS = files("slm_guardian").joinpath("evaluate/sets")
_Label = Literal["safe", "unsafe"]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Names = Annotated[list[str], BeforeValidator(_listed)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelRule(_Strict):
    """How safe and unsafe are read from a row, in one of three ways.

    `column`: its values by name, where an empty `safe` or `unsafe` list stands for all the other values.
    `any_of`: unsafe where one of these columns is true. `votes`: unsafe unless most of these columns, one a
    labeller, hold a value of `safe`.
    """

    column: str | None = None
    safe: _Names = []
    unsafe: _Names = []
    any_of: list[str] = []
    votes: list[str] = []

    def __str__(self) -> str:
        if self.any_of:
            return f"unsafe: any of {', '.join(self.any_of)}"
        safe, unsafe = (", ".join(values) or "the rest" for values in (self.safe, self.unsafe))
        if self.votes:
            return f"safe: most of {len(self.votes)} labellers say {safe}"
        return f"{self.column}: {safe} | {unsafe}"

    @property
    def columns(self) -> list[str]:
        """The columns that a file must have."""
        return [self.column] if self.column else self.votes

    def read(self, row: Mapping[str, Any]) -> str | None:
        """The label of a row, None where it has none. Raises ValueError for a value that is not in the lists."""
        if self.any_of:
            return "unsafe" if any(_plain(row.get(name)) in ("1", "true") for name in self.any_of) else "safe"
        if self.votes:
            votes = [vote for name in self.votes if (vote := _plain(row.get(name)))]
            safe = sum(vote in map(_plain, self.safe) for vote in votes)
            return None if not votes else "safe" if 2 * safe > len(votes) else "unsafe"
        value = _plain(row.get(self.column or ""))
        return self._named(value) if value else None

    def _named(self, value: str) -> str:
        lists = {"safe": self.safe, "unsafe": self.unsafe}
        named = [name for name, values in lists.items() if value in map(_plain, values)]
        named += [name for name, values in lists.items() if not values]
        if not named:
            raise ValueError("unknown label")
        return named[0]


class Categories(_Strict):
    """The column of the set's own category, and the category of our policy for those that have one there."""

    column: str
    map: dict[str, str]


class DataSource(_Strict):
    """One data set: `sets/NAME.yaml`."""

    name: str
    title: str
    languages: list[str]
    licence: str
    home: str
    """Where it is published: a repository of GitHub or a data set of the Hugging Face hub, as a URL."""
    fetch: _Names = []
    """Paths of its files there, one for each name that they are saved as; none where it cannot simply be got."""
    otherwise: str | None = None
    """What there is to get where `fetch` is empty."""
    gated: bool = False
    """Whether its home asks people to accept its terms first."""
    revision: str | None = None
    """Commit of its home that was looked at, None where unknown; reports give the hash of the file that was read."""
    files: list[str] = []
    """Names that the published file may have here, the first to save it as; NAME.jsonl and .csv are known, too."""
    parts: dict[str, _Label] = {}
    """For a set of several files, in place of `files` and `label`: the label of each file's rows."""
    columns: list[str] = []
    """Names of the columns of a tab-separated file without a head."""
    sha256: dict[str, str] = {}
    """Known hashes of files, by name."""
    text: _Names = ["text", "prompt"]
    label: LabelRule | _Label = LabelRule(column="label", safe=["safe"], unsafe=["unsafe"])
    only: dict[str, _Names] = {}
    """Rows that belong to the set: the values that a column may have."""
    without: dict[str, _Names] = {}
    """Rows that do not: the values that a column may not have."""
    category: Categories | None = None
    kind: str | None = None
    cluster: str | None = None
    """Column of rows that belong together (a template, a translation, a contrast pair): drawn as one."""
    published: Literal["inhouse", "xstest"] | None = None
    """Which of the paper's two tables has rows for it."""
    note: str | None = None

    @property
    def names(self) -> list[str]:
        """What its files are saved as."""
        return list(self.parts) or self.files[:1]

    @property
    def mapping(self) -> str:
        """How its rows become safe or unsafe, in words."""
        if self.parts:
            return " | ".join(f"{label}: {name}" for name, label in self.parts.items())
        rows = "".join(f"; {name} {', '.join(values)} only" for name, values in self.only.items())
        rows += "".join(f"; without {name} {', '.join(values)}" for name, values in self.without.items())
        return (f"all {self.label}" if isinstance(self.label, str) else str(self.label)) + rows

    def find(self) -> list[Path] | None:
        """The files of the set, under GUARDIAN_DATA or else in the cache; None when one is missing."""
        if self.parts:
            found = [_find([name]) for name in self.parts]
            return [path for path in found if path] if all(found) else None
        path = _find([*self.files, *(self.name + suffix for suffix in _OWN)])
        return [path] if path else None

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        """The numbered rows of one of its files that belong to the set.

        Raises DataError when a column is missing.
        """
        for number, row in _rows(path, self.columns):
            if isinstance(row, dict) and not _own(row):
                self._check(path, row)
            if isinstance(row, dict) and self._excluded(row):
                continue
            yield number, row

    def convert(self, row: dict[str, Any], label: str | None = None) -> Example:
        """An Example of a row; `label` is that of the file for a set in parts. Raises ValueError with the reason."""
        shared = {"source": self.name, "licence": self.licence, "lang": self.languages[0]}
        if self.cluster and row.get(self.cluster) not in (None, ""):
            shared["pair"] = row[self.cluster]
        if _own(row):
            return from_row({**shared, **row})
        text = next((row[name] for name in self.text if name in row), None)
        read = label or (self.label if isinstance(self.label, str) else self.label.read(row))
        kind = row.get(self.kind) if self.kind else None
        return from_row(
            {**shared, "text": text, "label": read, "kind": kind, "category": self._category(row)}
        )

    def _category(self, row: Mapping[str, Any]) -> str | None:
        if self.category is None:
            return None
        known = {_plain(theirs): ours for theirs, ours in self.category.map.items()}
        return known.get(_plain(row.get(self.category.column)))

    def _excluded(self, row: Mapping[str, Any]) -> bool:
        def has(name: str, values: list[str]) -> bool:
            return _plain(row[name]) in map(_plain, values)

        return any(name in row and not has(name, values) for name, values in self.only.items()) or any(
            name in row and has(name, values) for name, values in self.without.items()
        )

    def _check(self, path: Path, row: Mapping[str, Any]) -> None:
        needed = [] if isinstance(self.label, str) or self.parts else self.label.columns
        missing = [name for name in needed if name not in row]
        if not any(name in row for name in self.text):
            missing.append(" or ".join(self.text))
        if missing:
            raise DataError(
                f"{path} lacks the column '{missing[0]}' of {self.name}: get the file again from {self.home}, "
                "or give it the columns text and label (safe or unsafe)"
            )

    def missing(self) -> str:
        """One line: how to get it."""
        fetched = f"run guardian sets fetch {self.name}, or " if self.fetch else ""
        return f"{self.name} is not here: {fetched}{self.by_hand()}"

    def by_hand(self) -> str:
        """How to get it without `fetch`."""
        place = os.environ.get(DATA_ENV) or f"a directory that {DATA_ENV} names"
        what = " and ".join(self.fetch) or self.otherwise
        return f"get {what} from {self.home} ({self.licence}) and save it as {' and '.join(self.names)} in {place}"


def known_sets() -> dict[str, DataSource]:
    """Every registered data set by name."""
    names = sorted(entry.name.removesuffix(".yaml") for entry in _SETS.iterdir())
    return {name: _load(name) for name in names}


def find_set(name: str) -> DataSource | None:
    """The data set of a name, where one is registered; `kosbi` alone is an error that names kosbi.en and kosbi.ko."""
    if _SETS.joinpath(f"{name}.yaml").is_file() and Path(name).name == name:
        return _load(name)
    longer = [known for known in known_sets() if known.startswith(f"{name}.")]
    if longer:
        raise DataError(f"{name} comes as {', '.join(longer)}: name one of them")
    return None


@cache
def _load(name: str) -> DataSource:
    return DataSource(name=name, **yaml.safe_load(_SETS.joinpath(f"{name}.yaml").read_text("utf-8")))


def cache_directory() -> Path:
    """Where fetched sets are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "slm-guardian", "sets")


def _find(names: list[str]) -> Path | None:
    """The first file of these names; what lies under GUARDIAN_DATA comes before what was fetched."""
    home = os.environ.get(DATA_ENV)
    places = [Path(home, folder) for folder in FOLDERS] if home else []
    paths = (place / name for place in [*places, cache_directory()] for name in names)
    return next((path for path in paths if path.is_file()), None)


def _own(row: Mapping[str, Any]) -> bool:
    """Has the row this project's columns?"""
    return "text" in row and row.get("label") in LABELS


def _plain(value: Any) -> str:
    return "" if value is None else str(value).strip().lower()


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".tsv":
        return _tsv_rows(path, columns)
    readers = {".json": _json_rows, ".parquet": _parquet_rows}
    return readers.get(path.suffix, read_rows)(path)


def _tsv_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Rows under the names in the head, or under `columns` where the file has none."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file, columns or None, delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from enumerate(rows, 1 if columns else 2)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list):
        raise DataError(f"{path} is not a JSON list: get it again")
    yield from enumerate(rows, 1)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    arrow, parquet = load_pyarrow()
    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), 1)
    except arrow.ArrowInvalid:
        raise DataError(f"{path} is not a Parquet file: get it again") from None
