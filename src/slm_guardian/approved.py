"""Approved answers: what an embedded guardian says is one of these, word for word.

A model of this size writes broken sentences when it writes freely, and one out of twenty at random when it has to
choose by their likelihood (bench/topics.py). What it does know is what a query means: the mean of its hidden states
over the query, from which a linear layer tells the topic.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_guardian.errors import ModelError

FILE = "answers.npz"


@dataclass(frozen=True)
class Approved:
    """One answer a topic and language, in slot form, with the layer that chooses among a category's topics.

    `categories` and `answers` (by language; empty where a topic has none) have an entry a topic; `weights` is
    (topics, hidden + 1), the bias last.
    """

    categories: list[str]
    answers: dict[str, list[str]]
    weights: np.ndarray

    @classmethod
    def load(cls, directory: Path) -> Approved | None:
        """Those of a model directory; None when it has none. Raises ModelError when they are broken."""
        path = directory / FILE
        if not path.exists():
            return None
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                answers = {lang: file[f"answers.{lang}"].tolist() for lang in file["languages"].tolist()}
                approved = cls(file["categories"].tolist(), answers, file["weights"].astype(np.float32))
            if any(len(part) != len(approved.weights) for part in (approved.categories, *answers.values())):
                raise ValueError("not an answer for each topic")
        except Exception as error:  # numpy and zipfile raise many types for a truncated file
            raise ModelError(f"{path} is broken: export the model again") from error
        return approved

    def save(self, directory: Path) -> Path:
        """Write them beside the model; returns the file."""
        path = directory / FILE
        arrays: dict[str, Any] = {f"answers.{lang}": texts for lang, texts in self.answers.items()}
        arrays |= {"languages": list(self.answers), "categories": self.categories}
        with path.open("wb") as file:
            np.savez_compressed(file, weights=self.weights.astype(np.float16), **arrays)
        return path

    def has(self, category: str, language: str) -> bool:
        """Whether there is an answer for harmful queries of a category in a language."""
        return bool(self._topics(category, language))

    def choose(self, meaning: np.ndarray, category: str, language: str) -> str:
        """The answer of the category's topic that fits the query's meaning (hidden,)."""
        own = self._topics(category, language)
        scores = self.weights[own, :-1] @ meaning + self.weights[own, -1]
        return self.answers[language][own[int(scores.argmax())]]

    def _topics(self, category: str, language: str) -> list[int]:
        answers = self.answers.get(language, [])
        return [i for i, name in enumerate(self.categories) if name == category and answers and answers[i]]
