"""Example: the one record that flows from generation to evaluation, its files and its manifests."""

from __future__ import annotations

import csv
import dataclasses
import glob
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_guardian.errors import DataError, GuardianError

if TYPE_CHECKING:
    from slm_guardian.policy import Policy

LABELS = ("safe", "unsafe")


@dataclass(frozen=True)
class Example:
    """One query with what is known about it. `category` is None for safe rows and where unknown."""

    text: str
    label: str | None = None
    category: str | None = None
    lang: str | None = None
    kind: str | None = None
    response: str | None = None
    source: str | None = None
    licence: str | None = None
    pair: str | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        """Content hash (16 hex digits) of text and label: the same row has the same id in every file."""
        return hashlib.sha256(f"{self.text}\x00{self.label}".encode(errors="surrogatepass")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary without empty fields, for JSON."""
        row = {k: v for k, v in dataclasses.asdict(self).items() if k != "extra" and v is not None}
        return {"id": self.id, **row, **self.extra}


@dataclass(frozen=True)
class Reject:
    """A row that was not used, and why. Holds the place of the row, never its text."""

    where: str
    reason: str


def from_row(row: dict[str, Any]) -> Example:
    """Build an Example from a JSON or CSV row.

    Accepts `text` or `prompt`, and `kind` or `type`. Raises ValueError with a short reason when the
    row cannot be used.
    """
    text = row.get("text", row.get("prompt"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no 'text' or 'prompt'")
    label = row.get("label") or None
    if label is not None and label not in LABELS:
        raise ValueError("label is neither 'safe' nor 'unsafe'")
    category = row.get("category") or None
    pair = row.get("pair")
    known = {"id", "text", "label", "category", "kind", "type", "pair"}
    known |= set() if "text" in row else {"prompt"}
    named = {f.name for f in dataclasses.fields(Example)} - known - {"extra"}
    return Example(
        text=text,
        label=label,
        category=None if category == "safe" else category,
        kind=row.get("kind") or row.get("type") or None,
        pair=_pair(pair, row.get("source")),
        extra={k: v for k, v in row.items() if k and k not in known | named},
        **{k: row.get(k) or None for k in named},
    )


def _pair(pair: Any, source: Any) -> str | None:
    """A pair id that is unique across sources; one that already names its source stays."""
    if pair is None or pair == "":
        return None
    return str(pair) if "#" in str(pair) else f"{source or ''}#{pair}"


def read_examples(path: str | os.PathLike[str]) -> tuple[list[Example], list[Reject]]:
    """Read a .jsonl, .jsonl.gz, .csv or .txt file (a query a line). Rows that cannot be used come back as rejects.

    Raises DataError when the file is missing, of another type, or holds no usable row.
    """
    path = Path(path)
    return to_examples(path, read_rows(path))


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number, row) of each row of a .jsonl, .jsonl.gz, .csv or .txt file.

    A row that is no JSON is None. Raises DataError when the file is missing or of another type.
    """
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise DataError(f"{path} is not a file: check the path")
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".txt": _txt_rows}
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in readers:
        raise DataError(f"{path}: use a .jsonl, .csv or .txt file, or one of these with .gz")
    return readers[suffix](path)


def to_examples(
    path: Path,
    rows: Iterable[tuple[int, Any]],
    convert: Callable[[dict[str, Any]], Example] = from_row,
) -> tuple[list[Example], list[Reject]]:
    """Examples of the numbered rows of a file, and the rows that `convert` refuses with a ValueError, as rejects.

    Raises DataError when no row can be used.
    """
    examples, rejects = [], []
    for where, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            examples.append(convert(row))
        except ValueError as error:
            rejects.append(Reject(f"{path.name}:{where}", str(error)))
    if not examples:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in Counter(r.reason for r in rejects).items())
        raise DataError(f"{path} has no usable row ({reasons or 'it is empty'})")
    return examples, rejects


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):  # also a number of 5000 digits, 100 000 open brackets
            yield number, None


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    lines = (line.replace("\x00", "") for line in _lines(path))
    try:
        yield from enumerate(csv.DictReader(lines), 2)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}") from None


def _txt_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file; bytes that are not UTF-8 become U+FFFD, so one bad byte costs no row."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(f"{path} is not a whole gzip file: get it again") from None


def expand(patterns: Iterable[str]) -> list[Path]:
    """Files of paths and quoted glob patterns, sorted. Raises DataError for a pattern without a file."""
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise DataError(f"no file matches {pattern}: check the path")
        paths += map(Path, found)
    return [p for p in dict.fromkeys(paths) if p.stat().st_size]


def read_json_lines(path: Path, *keys: str) -> list[dict[str, str]]:
    """All objects of a JSON Lines file (.gz, too). Raises DataError with the line that is broken or lacks a key."""
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path}:{number}: not JSON: mend or remove the line") from None
        if not isinstance(row, dict) or not row.keys() >= set(keys):
            raise DataError(f"{path}:{number}: not an object with {', '.join(keys)}: mend or remove the line")
        rows.append(row)
    return rows


def policy_examples(policies: Iterable[Policy]) -> list[Example]:
    """The golden examples of policies: the shortest way from a written clause to the model."""
    rows = []
    for policy in policies:
        source = f"policy/{policy.id}"
        blank = Example("", lang=policy.language, kind="golden", source=source, licence="Apache-2.0")
        for category in policy.categories:
            harmful = dataclasses.replace(blank, label="unsafe", category=category.id)
            rows += [dataclasses.replace(harmful, text=text) for text in category.harmful]
            rows += [dataclasses.replace(blank, label="safe", text=text) for text in category.safe]
    return rows


def load_pyarrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`, which are an extra. Raises GuardianError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise GuardianError("Parquet files need pyarrow: pip install 'slm-guardian[parquet]'") from None
    return pyarrow, pyarrow.parquet


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSON Lines through a temporary file, so that a kill never leaves half a file.

    Lone surrogates are written as JSON escapes: the file is UTF-8, and they come back as they were.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    partial.replace(path)
    return count


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write one JSON value through a temporary file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, for manifests."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
