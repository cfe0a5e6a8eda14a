"""Parts of a large input: what one worker judges at a time, and one file of the output each.

A part's file appears whole, by a rename, once all its rows are judged. So a part is done if and only if its file is
there: whatever dies, the same command judges what is missing, and every row comes out exactly once.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_guardian.errors import DataError, InputError
from slm_guardian.example import expand, load_pyarrow, write_json, write_jsonl

_SUFFIXES = (".jsonl", ".parquet")
COLUMNS = {"row": "int64", "harm": "float64"}  # types of the output's columns that are not text


@dataclass(frozen=True)
class Part:
    """Rows `first` to `first + count` of all input files; `offset` is where they begin in `path`.

    Bytes for JSON Lines, rows for Parquet.
    """

    index: int
    path: str
    offset: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """The stem of its output file."""
        return f"part-{self.index:06d}"


def input_files(patterns: Sequence[str]) -> list[Path]:
    """Files of paths, directories and quoted globs, sorted. Raises DataError for one without a file."""
    within = [os.path.join(p, f"*{s}") for p in patterns if os.path.isdir(p) for s in _SUFFIXES]
    return expand([p for p in patterns if not os.path.isdir(p)] + [p for p in within if glob.glob(p)])


def plan(paths: Sequence[Path], rows: int) -> list[Part]:
    """Parts of at most `rows` rows of .jsonl and .parquet files.

    Raises DataError for another type, a missing file or no row at all.
    """
    parts: list[Part] = []
    first = 0
    for path in paths:
        for offset, count in _blocks(path, rows):
            parts.append(Part(len(parts), str(path), offset, first, count))
            first += count
    if not parts:
        raise DataError("the input has no row: check the paths")
    return parts


def shard_of(spec: str) -> tuple[int, int]:
    """(i, n) of `i/n`, with i from 0 to n - 1. Raises InputError."""
    index, _, count = spec.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError("--shard is I/N, with I from 0 to N - 1: 0/4, 1/4, 2/4, 3/4")
    return int(index), int(count)


def read(part: Part) -> list[Any]:
    """The rows of a part, in order; a line that is no JSON is None."""
    return list(_parquet_rows(part) if part.path.endswith(".parquet") else _json_rows(part))


def write(part: Part, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Write a part's output in the form of its input, whole or not at all."""
    path = target(part, out)
    partial = path.with_name(f".{path.name}.{os.getpid()}")  # a worker thought dead may still be writing
    if path.suffix == ".jsonl":
        write_jsonl(partial, rows)
    else:
        arrow, parquet = load_pyarrow()
        schema = arrow.schema([(name, COLUMNS.get(name, "string")) for name in rows[0]])
        parquet.write_table(arrow.Table.from_pylist(rows, schema), partial)
    partial.replace(path)


def target(part: Part, out: Path) -> Path:
    """The file of a part's output."""
    return out / (part.name + Path(part.path).suffix)


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make a directory the one of a job. Raises InputError when it is that of another job or holds other files."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "_job.json"  # readers of data sets skip names that begin so
    if path.exists() and json.loads(path.read_text("utf-8")) != settings:
        raise InputError(
            f"{out} holds another job's output ({path}): choose another --out, or remove it to start anew"
        )
    if not path.exists() and any(not file.name.startswith(path.name) for file in out.iterdir()):
        raise InputError(f"{out} is not empty: choose another --out")
    partial = path.with_name(f"{path.name}.{os.getpid()}")  # shards may start at the same moment
    write_json(partial, settings)
    partial.replace(path)


def _blocks(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    """(offset, number of rows) of each part of a file."""
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path}: use .jsonl or .parquet files")
    if not path.is_file():
        raise DataError(f"{path} is not a file: check the path")
    if path.suffix == ".parquet":
        total = _parquet_file(path).metadata.num_rows
        yield from ((start, min(rows, total - start)) for start in range(0, total, rows))
        return
    offset = start = count = 0
    with path.open("rb") as file:
        for line in file:
            offset += len(line)
            count += bool(line.strip())
            if count == rows:
                yield start, count
                start, count = offset, 0
    if count:
        yield start, count


def _json_rows(part: Part) -> Iterator[Any]:
    left = part.count
    with open(part.path, "rb") as file:
        file.seek(part.offset)
        while left:
            line = file.readline()
            if line.strip():
                left -= 1
                yield _json(line)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return None


def _parquet_rows(part: Part) -> Iterator[Any]:
    """Only the row groups that hold the part are read."""
    file, start, stop = _parquet_file(Path(part.path)), part.offset, part.offset + part.count
    begin = 0
    for group in range(file.metadata.num_row_groups):
        end = begin + file.metadata.row_group(group).num_rows
        if begin < stop and end > start:
            table = file.read_row_group(group)
            low, high = max(start, begin) - begin, min(stop, end) - begin
            yield from table.slice(low, high - low).to_pylist()
        begin = end


def _parquet_file(path: Path) -> Any:
    arrow, parquet = load_pyarrow()
    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a Parquet file: get it again") from error
