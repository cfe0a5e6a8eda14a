"""Contrast pairs: a harmful query and its harmless twin for a sampled word and category, in both languages.

Words sampled from a glossary and categories in turn spread the pairs over topics by design, not by luck
(Qwen3Guard, 2510.14276: paired prompts of the same surface form).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from importlib.resources import files

from slm_guardian.example import Example, Reject
from slm_guardian.generate.backends import Request
from slm_guardian.policy import Policy
from slm_guardian.text import language

_LINE = re.compile(r"^\s*(\d+)\s*[.)]\s*(safe|unsafe)\s*\|\s*([a-z_]+)\s*\|\s*(.+?)\s*\|\s*(.+?)\s*$")


def contrast_requests(
    policy: Policy, words: Sequence[str], per_request: int = 25, seed: int = 0
) -> list[Request]:
    """Requests that ask for one pair for each word; categories take turns."""
    template = files("slm_guardian.generate").joinpath("templates/contrast.txt").read_text("utf-8")
    system = template.format(policy=_summary(policy))
    categories = [c.id for c in policy.categories]
    shuffled = random.Random(seed).sample(list(words), len(words))
    requests = []
    for start in range(0, len(shuffled), per_request):
        items = enumerate(shuffled[start : start + per_request], 1)
        user = "\n".join(f"{n}. {word} ({categories[(start + n) % len(categories)]})" for n, word in items)
        requests.append(
            Request(f"contrast-{hashlib.sha256(user.encode()).hexdigest()[:12]}", system, user, 8192)
        )
    return requests


def read_contrast(policy: Policy, answers: dict[str, str]) -> tuple[list[Example], list[Reject]]:
    """Examples of all answers, two languages and two sides a pair. A pair is kept whole or not at all."""
    kept: list[Example] = []
    rejects: list[Reject] = []
    for name in sorted(answers):
        sides: dict[str, list[re.Match[str]]] = {}
        for number, line in enumerate(answers[name].splitlines(), 1):
            if match := _LINE.match(line):
                sides.setdefault(match[1], []).append(match)
            elif line.strip():
                rejects.append(Reject(f"{name}:{number}", "not a line of a pair"))
        for number, lines in sides.items():
            reason = _fault(policy, lines)
            if reason:
                rejects.append(Reject(f"{name}#{number}", reason))
            else:
                kept += _examples(lines, f"{name}#{number}")
    return kept, rejects


def _summary(policy: Policy) -> str:
    lines = []
    for category in policy.categories:
        covers, excludes = " ".join(category.covers), " ".join(category.excludes)
        lines.append(f"- {category.id}: {covers}\n  Not covered: {excludes}")
    return "\n".join(lines)


def _fault(policy: Policy, lines: Sequence[re.Match[str]]) -> str | None:
    if sorted(m[2] for m in lines) != ["safe", "unsafe"]:
        return "not one safe and one unsafe line"
    if any(m[2] == "unsafe" and m[3] not in policy.by_id for m in lines):
        return "unknown category"
    if any(language(m[4]) != "ko" or language(m[5]) != "en" for m in lines):
        return "wrong language"
    if any(len(m[4]) > 300 or len(m[5]) > 400 for m in lines):
        return "too long"
    return None


def _examples(lines: Sequence[re.Match[str]], pair: str) -> list[Example]:
    rows = []
    for match in lines:
        harmful = match[2] == "unsafe"
        for lang, text, other in (("ko", match[4], match[5]), ("en", match[5], match[4])):
            kind = "contrast" if harmful else match[3]
            category = match[3] if harmful else None
            extra = {"original": other}
            rows.append(
                Example(text, match[2], category, lang, kind, None, "corpus/contrast", "CC0", pair, extra)
            )
    return rows
