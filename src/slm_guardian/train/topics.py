"""Topic answers: what a model too small to improvise learns to say.

A 22 M model that learned thousands of individual responses wrote broken sentences (measured: answer loss 4.8,
perplexity 120, after 0.9 epochs). So an LLM writes one good answer per topic of each category, and every harmful
training query takes the answer of the topic whose example queries are nearest to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slm_guardian.errors import DataError
from slm_guardian.example import Example
from slm_guardian.train.transfer import Pair, Teacher

NEAR = 0.2  # cosine below which a query belongs to no topic and takes the category's last one


@dataclass(frozen=True)
class Topic:
    """A topic of a category: its answer in each language, and English queries that belong to it."""

    category: str
    name: str
    answers: dict[str, str]
    examples: tuple[str, ...]


def read_topics(path: Path) -> list[Topic]:
    """Read a topic file (JSON Lines: category, topic, examples, an answer under each language). Raises DataError."""
    import json

    topics = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            answers = {key: str(value) for key, value in row.items() if len(key) == 2}
            topics.append(Topic(row["category"], row["topic"], answers, tuple(row["examples"])))
            if not answers:
                raise ValueError("no answer")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}:{number}: a topic needs category, topic, examples and an answer such as `ko` or `en`"
            ) from None
    return topics


def answer_by_topic(
    examples: Sequence[Example], topics: Sequence[Topic], pairs: Sequence[Pair], teacher: Teacher
) -> list[Example]:
    """The examples with their topic's answer as response; those without an English side keep none.

    `pairs` give the English of other queries, so that one English teacher places all languages. A row that names its
    `topic` needs no placing.
    """
    named = {(topic.category, topic.name): topic for topic in topics}
    english = {pair.new: pair.english for pair in pairs}
    known = {topic.category for topic in topics}
    places = [i for i, e in enumerate(examples) if e.label == "unsafe" and e.category in known]
    texts = [_english(examples[i], english) for i in places]
    vectors = teacher.encode([text or "-" for text in texts])
    queries = [(t, q) for t, topic in enumerate(topics) for q in topic.examples]
    owner = np.array([t for t, _ in queries])
    similar = vectors @ teacher.encode([q for _, q in queries]).T
    result = [replace(e, response=None) if e.category in known else e for e in examples]
    for row, (i, text) in enumerate(zip(places, texts, strict=True)):
        category = str(examples[i].category)
        topic = named.get((category, str(examples[i].extra.get("topic"))))
        if topic is None and text:
            topic = _nearest(similar[row], owner, topics, category)
        if topic:
            result[i] = replace(examples[i], response=topic.answers.get(examples[i].lang or ""))
    return result


def _english(example: Example, english: dict[str, str]) -> str:
    return example.text if example.lang == "en" else english.get(example.text, "")


def _nearest(similar: np.ndarray, owner: np.ndarray, topics: Sequence[Topic], category: str) -> Topic:
    own = [t for t, topic in enumerate(topics) if topic.category == category]
    scores = [float(np.sort(similar[owner == t])[-2:].mean()) for t in own]
    best = int(np.argmax(scores))
    return topics[own[best] if scores[best] >= NEAR else own[-1]]
