"""What the default guardian is trained on: where each file goes, how translations join their originals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm_guardian.errors import DataError
from slm_guardian.example import Example, policy_examples, read_json_lines, read_rows, to_examples
from slm_guardian.policy import Policy
from slm_guardian.text import language
from slm_guardian.train.data import Corpus, load_corpus
from slm_guardian.train.transfer import Pair


def translated(originals: Sequence[Example], path: Path) -> list[Example]:
    """Translations, which name their original by id and take label, category and kind from it.

    A translation shares its original's pair, so that resampling keeps them together.
    """
    by_id = {example.id: example for example in originals}
    rows = []
    for row in read_json_lines(path, "translation_of", "text", "lang"):
        original = by_id.get(row["translation_of"])
        if original is not None:
            source = f"{original.source}/translated"
            made = replace(original, text=row["text"], lang=row["lang"], source=source, licence="CC0")
            rows.append(replace(made, response=None, extra={"original": original.text}))
    return rows


def parallel(paths: Iterable[Path], translations: Sequence[Example] = ()) -> list[Pair]:
    """Sentence pairs of parallel files and of translated examples, each pair once.

    A row holds the English side as `en` and the other one under its language, such as `ko` or `id`.
    """
    pairs = [pair for path in paths for pair in _file_pairs(path)]
    for example in translations:
        original = example.extra["original"]
        korean, english = (example.text, original) if example.lang == "ko" else (original, example.text)
        pairs.append(Pair(korean, english))
    return list(dict.fromkeys(pairs))


def _file_pairs(path: Path) -> list[Pair]:
    rows = read_json_lines(path, "en")
    other = next((key for key in (rows[0] if rows else {}) if len(key) == 2 and key != "en"), None)
    if rows and other is None:
        raise DataError(f"{path}:1: no other language beside `en`: a pair is {{'en': ..., 'ko': ...}}")
    return [Pair(row[other], row["en"]) for row in read_json_lines(path, "en", other)] if other else []


def chat_corpus(path: Path) -> Corpus:
    """The first question and answer of each conversation of a chat-format file, for the instruction stage.

    A row holds `messages` (role, content), or `conversations` (from, value). Later turns need what was said before.
    """
    examples, rejects = to_examples(path, read_rows(path), _first_turns)
    return Corpus(path, examples, rejects)


def _first_turns(row: dict[str, Any]) -> Example:
    turns = row.get("messages") or row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("no list of 'messages'")
    said = [(turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in turns]
    said = [(role, text) for role, text in said if role != "system"]
    roles = [role for role, _ in said[:2]]
    if roles not in (["user", "assistant"], ["human", "gpt"]) or not all(
        isinstance(t, str) for _, t in said[:2]
    ):
        raise ValueError("does not begin with a question and its answer")
    (_, question), (_, answer) = said[:2]
    source, licence = row.get("source") or "chat", row.get("licence")
    return Example(question, "safe", lang=language(question), response=answer, source=source, licence=licence)


def safety_corpora(
    data: Sequence[Path],
    noisy: Sequence[Path],
    translations: Sequence[Path],
    policies: Sequence[Policy],
    cap: int,
) -> list[Corpus]:
    """Corpora of the safety stage: our own rows, translated and golden ones; noisy public ones capped."""
    corpora = [load_corpus(path) for path in data]
    originals = [e for corpus in corpora for e in corpus.examples]
    corpora += [Corpus(path, translated(originals, path), []) for path in translations]
    golden = policy_examples(policies)
    corpora.append(Corpus(Path("policy"), [g for g in golden for _ in range(2)], []))
    for path in noisy:
        corpus = load_corpus(path, weight=0.5)
        queries = sum(e.extra.get("register") == "query" for e in corpus.examples)
        corpus.cap = cap if queries * 2 > len(corpus.examples) else cap // 2  # comments are not queries
        corpora.append(corpus)
    return corpora
