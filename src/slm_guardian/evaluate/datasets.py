"""Data sets for evaluation: a file by its path, or a bare name under the directory GUARDIAN_DATA."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slm_guardian.errors import DataError
from slm_guardian.example import Example, Reject, file_sha256, read_examples

DATA_ENV = "GUARDIAN_DATA"
_SUFFIXES = (".jsonl", ".csv")
_FOLDERS = ("", "public/dev", "seed")


@dataclass(frozen=True)
class Dataset:
    """Labelled rows of one file. `rejects` are the rows that could not be used, `sha256` is of the file."""

    name: str
    path: Path
    examples: list[Example]
    rejects: list[Reject]
    sha256: str

    @property
    def reject_reasons(self) -> dict[str, int]:
        """How many rows were rejected, by reason."""
        return dict(Counter(reject.reason for reject in self.rejects))


def load_dataset(name_or_path: str | os.PathLike[str]) -> Dataset:
    """Read one labelled data set; rows without a label become rejects.

    A value that ends in .jsonl or .csv, or that is an existing file, is a path; any other is a name, looked
    up as NAME.jsonl or NAME.csv in GUARDIAN_DATA, its public/dev and its seed folder. Raises DataError when
    nothing is found or no row has a label.
    """
    path = _find(os.fspath(name_or_path))
    rows, rejects = read_examples(path)
    examples = [row for row in rows if row.label is not None]
    rejects = rejects + [Reject(f"{path.name}#{row.id}", "no label") for row in rows if row.label is None]
    if not examples:
        raise DataError(f"{path} has no labelled row: evaluation needs a 'label' of safe or unsafe")
    return Dataset(path.stem, path, examples, rejects, file_sha256(path))


def load_datasets(names_or_paths: Sequence[str | os.PathLike[str]]) -> list[Dataset]:
    """Read several data sets, each under a name of its own; a file that is given twice is read once.

    Files with the same stem are told apart by their parent directory, else by their whole path.
    """
    if not names_or_paths:
        raise DataError("no data set given: name at least one with --data")
    found = [_find(os.fspath(name)) for name in names_or_paths]
    paths = {Path(os.path.abspath(path)): path for path in found}
    datasets = [load_dataset(path) for path in paths.values()]
    names = [_names(path) for path in paths]
    levels = [Counter(level) for level in zip(*names, strict=True)]
    return [
        replace(dataset, name=next(name for name, level in zip(own, levels, strict=True) if level[name] == 1))
        for dataset, own in zip(datasets, names, strict=True)
    ]


def _names(path: Path) -> tuple[str, str, str]:
    """Names that a file can go by, shortest first; the last is its own."""
    return path.stem, f"{path.parent.name}/{path.stem}", str(path)


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in _SUFFIXES or path.is_file():
        return path
    home = os.environ.get(DATA_ENV)
    if not home:
        raise DataError(f"{name} is not a .jsonl or .csv file, and {DATA_ENV} is not set to look up names")
    places = [Path(home, folder, name + suffix) for folder in _FOLDERS for suffix in _SUFFIXES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(
            f"no data set {name} under {home}: looked for {name}.jsonl and .csv, also in public/dev and seed"
        )
    return found
