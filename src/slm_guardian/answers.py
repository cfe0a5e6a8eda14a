"""What happens to a generated answer before anybody sees it: facts filled in, casing, and the checks.

An answer that fails a check is never shown; the category's own fallback text from the policy is given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from itertools import pairwise

from slm_guardian.layout import SLOT
from slm_guardian.policy import Category, Policy
from slm_guardian.text import display, language

_SENTENCE_END = re.compile(r"[.!?]+[\"')]*(?:\s+|$)")  # not the dots of {a.slot}, 3.5 or a link
_WORD = re.compile(r"[A-Za-z][A-Za-z'.]*[A-Za-z]|[A-Za-z]")
_SLOT_OR_WORD = re.compile(rf"{SLOT.pattern}|{_WORD.pattern}")
_I = re.compile(rf"{SLOT.pattern}|\bi(?=\b(?!\.))")
_START = re.compile(r"(^|[.!?][\"')]*\s+)([\"'(]*)([a-z])")
_LONG_NUMBER = re.compile(r"\d[\d\-]{2,}")


def fault(text: str, query: str, policy: Policy, category: Category) -> str | None:
    """Why an answer (in slot form) must not be shown, or None when it may."""
    if not any(map(str.isalnum, text)):
        return "empty"
    if unknown := set(SLOT.findall(text)) - set(category.facts):
        return "a fact of another category" if unknown <= set(policy.facts) else "an unknown fact"
    among = (policy.language, "ko", "en")
    if language(SLOT.sub(" ", text), among) != language(query, among):
        return "wrong language"
    if text.rstrip(" \"')")[-1:] not in {".", "!", "?"}:
        return "unfinished"
    if policy.foreign_numbers(text) or _LONG_NUMBER.search(SLOT.sub(" ", text)):
        return "a number that the policy does not list"
    if echoes(text, query):
        return "echo of the query"
    return None


def echoes(text: str, query: str) -> bool:
    """Whether an answer repeats the query: one common run of half the query and 12 characters or more."""
    a, b = display(query).lower(), display(text).lower()
    if len(a) > 2 * len(b):  # too long to be repeated; the search is slow on 1 MB
        return False
    match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    return match.size >= 12 and match.size >= 0.5 * len(a)


def sentences(text: str) -> list[str]:
    """Sentences of a text, each with its closing punctuation; the last may be unfinished."""
    ends = (match.end() for match in _SENTENCE_END.finditer(text))
    parts = (text[start:end] for start, end in pairwise([0, *ends, len(text)]))
    return [part for part in parts if part.strip()]


def fallback(policy: Policy, category: Category, query: str) -> str:
    """The policy's own answer; which of its texts depends on the query alone, so it never flickers."""
    return policy.fill(category.fallback[sum(map(ord, query)) % len(category.fallback)])


def recase(text: str, casing: Mapping[str, str]) -> str:
    """Capitals for text of an uncased model: sentence starts, `I`, and words that are always written so.

    Slots stay as they are.

    >>> recase("i can't say. ask the fbi or {helpline.uk}.", {"fbi": "FBI", "uk": "UK"})
    "I can't say. Ask the FBI or {helpline.uk}."
    """
    text = _I.sub(lambda m: m[0].upper() if m[0] == "i" else m[0], text)
    text = _SLOT_OR_WORD.sub(lambda m: casing.get(m[0], m[0]), text)
    return _START.sub(lambda m: m[1] + m[2] + m[3].upper(), text)


def learn_casing(texts: Iterable[str], minimum: int = 2) -> dict[str, str]:
    """Words that texts write with capitals in the middle of sentences, most of the time."""
    counts: dict[str, Counter[str]] = {}
    for text in texts:
        for sentence in sentences(text):
            for word in _WORD.findall(sentence)[1:]:
                counts.setdefault(word.lower(), Counter())[word] += 1
    best = {word: forms.most_common(1)[0] for word, forms in counts.items()}
    return {w: form for w, (form, n) in sorted(best.items()) if form != w and n >= minimum and w != "i"}
