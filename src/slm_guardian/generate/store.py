"""The files of a generation run: a directory that every call reads first and goes on from.

plan.json                  what was asked for; another plan needs another directory
cache.sqlite               every completion that was paid for
requests.jsonl             (batch) what waits for an answer
round-N.jsonl/.rejects.jsonl/.json   rows, dropped rows with reasons, counts; the .json is written last
corpus.jsonl or .parquet   all rounds; card.md, manifest.json: what it holds
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_guardian.errors import InputError
from slm_guardian.example import Example, file_sha256, load_pyarrow, read_examples, write_json, write_jsonl
from slm_guardian.generate.pipeline import Tally


class Store:
    """The directory of one run. Raises InputError when it belongs to another plan."""

    def __init__(self, out: Path, plan: Mapping[str, Any]) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        path = out / "plan.json"
        if path.exists() and json.loads(path.read_text("utf-8")) != dict(plan):
            raise InputError(f"{out} belongs to another plan ({path}): choose another --out or remove it")
        write_json(path, dict(plan))

    def read_round(self, number: int) -> list[Example] | None:
        """The rows of a finished round, None for one that is not finished."""
        if not self._path(number, ".json").exists():
            return None
        path = self._path(number, ".jsonl")
        return read_examples(path)[0] if path.stat().st_size else []

    def write_round(self, number: int, rows: Sequence[Example], tally: Tally) -> None:
        """Write a round: rows, rejects, and the counts that mark it as finished."""
        write_jsonl(self._path(number, ".jsonl"), (row.to_dict() for row in rows))
        write_jsonl(
            self._path(number, ".rejects.jsonl"),
            (
                {"where": reject.where, "reason": reject.reason} | (row.to_dict() if row else {})
                for row, reject in tally.rejects
            ),
        )
        write_json(self._path(number, ".json"), tally.counts())

    def counts(self, rounds: int) -> list[dict[str, Any]]:
        """The counts of all rounds."""
        return [json.loads(self._path(n, ".json").read_text("utf-8")) for n in range(1, rounds + 1)]

    def finish(
        self, rows: Sequence[Example], card: str, counts: Sequence[Mapping[str, Any]], form: str
    ) -> Path:
        """Write corpus, card and, last, the manifest; returns the corpus file."""
        path = self.out / f"corpus.{form}"
        write_rows(path, rows)
        (self.out / "card.md").write_text(card, encoding="utf-8")
        plan = json.loads((self.out / "plan.json").read_text("utf-8"))
        manifest = {"plan": plan, "rows": len(rows), "rounds": list(counts), "sha256": file_sha256(path)}
        write_json(self.out / "manifest.json", manifest)
        return path

    def _path(self, number: int, suffix: str) -> Path:
        return self.out / f"round-{number}{suffix}"


def write_rows(path: Path, rows: Sequence[Example]) -> None:
    """Write examples as JSON Lines, or as Parquet for that suffix (nested provenance as JSON text).

    Raises GuardianError where pyarrow is missing.
    """
    if path.suffix != ".parquet":
        write_jsonl(path, (row.to_dict() for row in rows))
        return
    arrow, parquet = load_pyarrow()
    keys = dict.fromkeys(key for row in rows for key in row.to_dict())
    columns = {key: [_plain(row.to_dict().get(key)) for row in rows] for key in keys}
    parquet.write_table(arrow.table(columns), path)


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def total(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of all rounds added up."""
    added: dict[str, Any] = {
        "rows": sum(c["rows"] for c in counts),
        "accepted": sum(c["accepted"] for c in counts),
    }
    for key in ("requests", "rejected", "unread_answers_and_votes"):
        added[key] = dict(sum((Counter(c[key]) for c in counts), Counter()).most_common())
    return added
