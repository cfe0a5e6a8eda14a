"""Topic answers: what a model too small to improvise learns to say.

A 22 M model that learned thousands of individual responses wrote broken sentences (measured: answer loss 4.8,
perplexity 120, after 0.9 epochs). So an LLM writes one good answer per topic of each category, and every harmful
training query takes the answer of the topic whose example queries are nearest to it. The embedded guardian says
one of these answers: which, a linear layer tells that `fit_answers` fits to the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slm_guardian.approved import Approved
from slm_guardian.errors import DataError
from slm_guardian.example import Example
from slm_guardian.train.transfer import Pair, Teacher

NEAR = 0.2  # cosine below which a query belongs to no topic and takes the category's last one


@dataclass(frozen=True)
class Topic:
    """A topic of a category: its answer and queries that belong to it, by language."""

    category: str
    name: str
    answers: dict[str, str]
    examples: dict[str, tuple[str, ...]]


def read_topics(path: Path) -> list[Topic]:
    """Read a topic file (JSON Lines: category, topic, examples by language, an answer under each language).

    Raises DataError.
    """
    import json

    topics = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            answers = {key: str(value) for key, value in row.items() if len(key) == 2}
            examples = {lang: tuple(texts) for lang, texts in row["examples"].items()}
            topics.append(Topic(row["category"], row["topic"], answers, examples))
            if not answers or not any(examples.values()):
                raise ValueError("no answer, or no examples")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}:{number}: a topic needs category, topic, an answer such as `ko`, and examples by language"
            ) from None
    return topics


def with_examples(topics: Sequence[Topic], rows: Sequence[Example]) -> list[Topic]:
    """The topics with the harmful rows that name them (`category` and `topic`) as further examples."""
    more: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.label == "unsafe" and "topic" in row.extra:
            more.setdefault((str(row.category), str(row.extra["topic"]), str(row.lang)), []).append(row.text)
    return [
        replace(
            topic,
            examples={
                lang: (*texts, *more.get((topic.category, topic.name, lang), ()))
                for lang, texts in topic.examples.items()
            },
        )
        for topic in topics
    ]


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
    queries = [(t, q) for t, topic in enumerate(topics) for q in topic.examples.get("en", ())]
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


def fit_answers(topics: Sequence[Topic], embed: Callable[[str], np.ndarray], decay: float = 0.01) -> Approved:
    """Fit what chooses among approved answers to the topics' examples in all languages.

    Multinomial logistic regression over `embed(query)` (hidden,), a softmax among the topics of one category and
    language, with an L2 penalty `decay` (chosen on corpus/topics.dev.jsonl).
    """
    from scipy.optimize import minimize

    rivals = np.array([[_rivals(a, b) for b in topics] for a in topics])
    queries = [(t, q) for t, topic in enumerate(topics) for texts in topic.examples.values() for q in texts]
    owner = np.array([t for t, _ in queries])
    vectors = np.stack([embed(query) for _, query in queries])
    centre, scale = vectors.mean(0), vectors.std()
    inputs = np.concatenate([(vectors - centre) / scale, np.ones((len(vectors), 1))], 1)
    own = rivals[owner]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(len(topics), -1)
        logits = np.where(own, inputs @ weights.T, -1e9)
        logits -= logits.max(1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        error = np.exp(logs)
        error[np.arange(len(owner)), owner] -= 1
        value = -logs[np.arange(len(owner)), owner].mean() + decay / 2 * (flat**2).sum()
        return float(value), (error.T @ inputs / len(owner) + decay * weights).ravel()

    start = np.zeros(len(topics) * inputs.shape[1])
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x.reshape(
        len(topics), -1
    )
    direct = weights[:, :-1] / scale  # the same layer over vectors that are not centred and scaled
    layer = np.concatenate([direct, (weights[:, -1] - direct @ centre)[:, None]], 1)
    languages = sorted({lang for topic in topics for lang in topic.answers})
    answers = {lang: [topic.answers.get(lang, "") for topic in topics] for lang in languages}
    return Approved([topic.category for topic in topics], answers, layer.astype(np.float32))


def _rivals(one: Topic, other: Topic) -> bool:
    """Whether a query could get either's answer."""
    return one.category == other.category and not set(one.answers).isdisjoint(other.answers)
