"""Contamination: rows that say what a benchmark says, or come from a row that does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from slm_guardian.example import Example, read_examples
from slm_guardian.generate.duplicates import THRESHOLD, Duplicates


class Contamination:
    """Texts of benchmark files (.jsonl, .csv, .txt) that no row of a corpus may repeat.

    Found are equal and near-equal texts, and through ids what was made from one: translations
    (`extra["translation_of"]`, `extra["original"]`) and the other rows of its pair. Raises DataError for a
    file that cannot be used.
    """

    def __init__(self, files: Iterable[str | os.PathLike[str]], threshold: float = THRESHOLD) -> None:
        self._texts = Duplicates(threshold)
        self._ids: set[str] = set()
        self._pairs: set[str] = set()
        for file in files:
            for row in read_examples(file)[0]:
                self._texts.add(row.text)
                self._remember(row)

    def __len__(self) -> int:
        return len(self._texts)

    def reason(self, row: Example) -> str | None:
        """Why a row must not be used, or None: a filter."""
        original = row.extra.get("original")
        if self._texts.find_exact(row.text) is not None:
            return "in a benchmark"
        if self._texts.find(row.text) is not None:
            return "near a benchmark row"
        if row.extra.get("translation_of") in self._ids or row.pair in self._pairs:
            return "made from a benchmark row"
        if isinstance(original, str) and self._texts.find(original) is not None:
            return "made from a benchmark row"
        return None

    def spread(self, rows: Sequence[Example]) -> None:
        """Remember the contaminated rows of a corpus, so that `reason` finds what was made from them.

        Call it before filtering a corpus whose rows name others by id, in whatever order they come.
        """
        clean = list(rows)
        while True:
            found = [row for row in clean if self.reason(row)]
            if not found:
                return
            clean = [row for row in clean if not self.reason(row)]
            for row in found:
                self._remember(row)

    def _remember(self, row: Example) -> None:
        self._ids.add(row.id)
        if row.pair and not row.pair.startswith("#"):  # "#7" names no source: it says nothing across files
            self._pairs.add(row.pair)
