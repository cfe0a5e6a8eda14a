"""Teachers: what other systems said of the training rows, as soft labels.

Any system of `guardian compare` can be asked (`ask`), or its scores come from files: caches of `guardian compare` (a
hash of the text), predictions of `guardian evaluate` (the id of the row), or any JSON Lines with `text` and `harm`.
Where several judged a text, their mean counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track

from slm_guardian.errors import DataError
from slm_guardian.evaluate.cache import AnswerCache, Remembering, text_key
from slm_guardian.evaluate.datasets import Dataset
from slm_guardian.evaluate.systems import load_system
from slm_guardian.example import Example, read_json_lines
from slm_guardian.train.data import SOFT, Corpus

_ROWS = Dataset(
    "training rows", Path(), [], [], sha256="any"
)  # answers are kept by text, so rows may come and go
_BATCH = 256


def ask(specs: Iterable[str], corpora: Sequence[Corpus], directory: Path) -> list[Path]:
    """Let systems judge all rows; the files of their answers. What is there already is not asked again.

    Raises InputError for an unknown system, GuardianError where one cannot judge.
    """
    texts = list(dict.fromkeys(example.text for corpus in corpora for example in corpus.examples))
    files = []
    for system in map(load_system, specs):
        cache = AnswerCache(directory, system.name, system.revision, _ROWS)
        teacher = Remembering(system, cache, timed=0)
        for start in track(range(0, len(texts), _BATCH), f"{system.name} judges the rows"):
            teacher.judge(texts[start : start + _BATCH])
        files.append(cache.path)
    return files


def read_scores(paths: Iterable[Path]) -> dict[str, float]:
    """Mean P(harm) by hash of the text or id of the row; a system without probabilities counts as 0 or 1.

    Raises DataError for a file without a score.
    """
    said: dict[str, list[float]] = {}
    for path in paths:
        found = [
            (key, harm) for row in read_json_lines(path) for key, harm in [_score(row)] if harm is not None
        ]
        if not found:
            raise DataError(f"{path} has no scores: pass a cache of `guardian compare` or its like")
        for key, harm in found:
            said.setdefault(key, []).append(harm)
    return {key: sum(values) / len(values) for key, values in said.items()}


def give_soft_labels(corpora: Sequence[Corpus], scores: Mapping[str, float]) -> int:
    """Write the teachers' P(harm) into the rows of corpora, in place; how many rows got one.

    Of a row whose label is trusted they say how sure to be, not on which side: a small teacher would talk the model out
    of just those rows that were written because models miss them.
    """
    known = 0
    for corpus in corpora:
        corpus.examples = [_taught(example, scores, corpus.trusted) for example in corpus.examples]
        known += sum(SOFT in example.extra for example in corpus.examples)
    return known


def _taught(example: Example, scores: Mapping[str, float], trusted: bool) -> Example:
    harm = scores.get(text_key(example.text), scores.get(example.id))
    if harm is not None and trusted:
        harm = max(harm, 0.5) if example.label == "unsafe" else min(harm, 0.5)
    return example if harm is None else replace(example, extra={**example.extra, SOFT: harm})


def _score(row: Mapping[str, Any]) -> tuple[str, float | None]:
    """The key of a row and its P(harm), or None where it has none: a cache's first line, a system that failed."""
    text, harm = row.get("text"), row.get("harm")
    key = row.get("key") or (text_key(text) if isinstance(text, str) else row.get("id"))
    if harm is None and "key" in row and row.get("label"):
        harm = float(row["label"] == "unsafe")
    good = isinstance(key, str) and isinstance(harm, (int, float)) and 0 <= harm <= 1
    return (str(key), float(harm)) if good else ("", None)  # type: ignore[arg-type]
