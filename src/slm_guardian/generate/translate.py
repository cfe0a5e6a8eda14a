"""Translate labelled queries into the other language with an LLM: parallel text and twice the rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from slm_guardian.example import Example, Reject
from slm_guardian.generate.backends import Request

LANGUAGES = {"ko": "Korean", "en": "English", "id": "Indonesian"}
_ITEM = re.compile(r"^\s*(\d{1,6})\s*[.)]\s*(.*\S)\s*$")
_HANGUL = re.compile(r"[가-힣ㄱ-ㅎㅏ-ㅣ]")
_DIGITS = re.compile(r"\d{3,}")


def translation_requests(
    examples: Sequence[Example], target: str, per_request: int = 50, template: str = "translate"
) -> list[Request]:
    """Requests that ask for `per_request` translations each, numbered in the order of `examples`.

    `template` names a file in `templates/`: `translate` for queries, `glossary` for single words.
    """
    text = files("slm_guardian.generate").joinpath(f"templates/{template}.txt").read_text("utf-8")
    requests = []
    for chunk in _chunks(examples, per_request):
        source = LANGUAGES[str(chunk[0].lang)]
        system = text.format(source_language=source, target_language=LANGUAGES[target])
        lines = [f"{n}. {' '.join(example.text.split())}" for n, example in enumerate(chunk, 1)]
        requests.append(Request(_custom_id(chunk, target), system, "\n".join(lines), 8192))
    return requests


def read_translations(
    examples: Sequence[Example], target: str, answers: dict[str, str], per_request: int = 50
) -> tuple[list[Example], list[Reject]]:
    """Pair the answers with their examples; a translation keeps label, category and kind.

    Rows that fail a check come back as rejects: skipped by the model, missing, wrong language,
    out of proportion, a long number that the original does not have.
    """
    kept, rejects = [], []
    for chunk in _chunks(examples, per_request):
        items = _parse(answers.get(_custom_id(chunk, target), ""))
        for number, example in enumerate(chunk, 1):
            text = items.get(number, "")
            reason = _fault(example.text, text, target)
            if reason:
                rejects.append(Reject(example.id, reason))
            else:
                kept.append(_translated(example, text, target))
    return kept, rejects


def _chunks(examples: Sequence[Example], size: int) -> list[Sequence[Example]]:
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def _custom_id(chunk: Sequence[Example], target: str) -> str:
    ids = " ".join(example.id for example in chunk)
    return f"translate-{target}-{hashlib.sha256(ids.encode()).hexdigest()[:12]}"


def _parse(answer: str) -> dict[int, str]:
    matches = filter(None, map(_ITEM.match, answer.splitlines()))
    return {int(match[1]): match[2] for match in matches}


def _fault(original: str, text: str, target: str) -> str | None:
    if not text:
        return "missing"
    if text in {"-", "–", "—"}:
        return "skipped by the model"
    hangul = len(_HANGUL.findall(text))
    if (target == "ko" and hangul == 0) or (target == "en" and hangul > 0.1 * len(text)):
        return "wrong language"
    if not 0.25 <= (len(text) + 15) / (len(original) + 15) <= 4:  # lenient where both are short
        return "length out of proportion"
    if set(_DIGITS.findall(text)) - set(_DIGITS.findall(original)) and re.search(r"\d{6,}", text):
        return "a number that the original does not have"
    return None


def _translated(example: Example, text: str, target: str) -> Example:
    extra = {"translation_of": example.id, "original": example.text}
    source = f"{example.source}/translated"
    return replace(example, text=text, lang=target, response=None, source=source, licence="CC0", extra=extra)
