"""Numbered lists as language models really write them: a model's answer in, its items by number out."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

# 1. | 1) | **1.** | (1) | [1] | #1: | 1 - | Q1. | 질문 1: | 1번. | １． | ① ; not 1.5, 12:30 or 5-10
_MARK = re.compile(
    r"(?P<indent>\s{0,40})(?:[-*+>#]{1,6}\s{1,4})?[*_`\"“]{0,3}"
    r"(?:(?:Q|No\.?|Query|Question|Item|질문|문항|항목|번호)\s?)?"
    r"(?:(?P<circled>[①-⑳])|[#(\[]?(?P<number>\d{1,4})번?\s?(?:\\?[.．)\]:、：](?!\d)|[-–—](?=\s)))"
    r"[*_`\"”]{0,3}\s{0,40}(?P<text>.*)",
    re.IGNORECASE,
)
_THINKING = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
_CHATTER = re.compile(r"\s*(?:#|```|~~~|[-=*_]{3,}\s*$)")  # headings, fences, rules: never part of an item
_JSON_START = re.compile(r"^[ \t]{0,8}[\[{]", re.MULTILINE)
_NESTED = 3  # a number that is indented this much further than the list's first belongs to the item above it
_PAIRS = ("**", "__", "*", "_", "`", '"', "'", "“”", "‘’", "「」", "『』", "«»")
_TEXT_KEYS = ("text", "query", "question", "prompt", "response", "answer", "content", "질문")
_NUMBER_KEYS = ("number", "id", "index", "n", "번호")
_JSON = json.JSONDecoder()


def numbered(text: str) -> dict[int, str]:
    """Items of a numbered list or a JSON array, by their number, each on one line.

    Takes lists with chatter around them, in code fences, with quotes or markdown around items and with items
    over several lines. Items of a JSON array are numbered from 1 unless they say their number. A number that
    was there before (the numbering restarted) becomes the next free one, so that no item is lost; a reader
    that asked for n items should ignore numbers above n. Never raises; text without a list gives {}.

    >>> numbered('Sure!\\n1. "first"\\n**2)** second,\\nlonger\\n\\nAnything else?')
    {1: 'first', 2: 'second, longer'}
    """
    text = _THINKING.sub("", text)
    items: dict[int, str] = {}
    for number, item in _json_items(text) or _list_items(text.splitlines()):
        if cleaned := _clean(item):
            items[max(items) + 1 if number in items else number] = cleaned
    return items


def _list_items(lines: list[str]) -> list[tuple[int, str]]:
    """Numbers and raw texts. A blank line ends an item unless what follows is indented."""
    found: list[tuple[int, list[str]]] = []
    indent, is_open = None, False
    for line in lines:
        mark = _MARK.match(line)
        if mark and (indent is None or len(mark["indent"]) < indent + _NESTED):
            indent = len(mark["indent"]) if indent is None else indent
            found.append((_number(mark), [mark["text"]]))
            is_open = True
        elif not line.strip():
            is_open = bool(found) and not found[-1][1][-1].strip()  # the text of "1." may follow below it
        elif _CHATTER.match(line):
            is_open = False
        elif found and (is_open or line[0].isspace()):
            found[-1][1].append(line)
    return [(number, " ".join(parts)) for number, parts in _without_outro(found)]


def _without_outro(found: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Drop a closing remark right under the last item: no other item goes on without indentation."""
    runs_on = [any(_runs_on(parts, i) for i in range(1, len(parts))) for _, parts in found]
    if len(found) < 2 or any(runs_on[:-1]):
        return found
    number, parts = found[-1]
    end = next((i for i in range(1, len(parts)) if _runs_on(parts, i)), len(parts))
    return [*found[:-1], (number, parts[:end])]


def _runs_on(parts: list[str], i: int) -> bool:
    """Whether line `i` of an item is one that only its place joins to the line above."""
    return (
        not parts[i][0].isspace() and bool(parts[i - 1].strip()) and parts[i - 1].rstrip()[-1] not in ",:、"
    )


def _number(mark: re.Match[str]) -> int:
    return int(mark["number"]) if mark["number"] else int(unicodedata.numeric(mark["circled"]))


def _json_items(text: str) -> list[tuple[int, str]]:
    """Items of the first JSON array or object of the text, as far as it goes where it was cut off."""
    start = _JSON_START.search(text)
    if not start:
        return []
    found: list[tuple[int, str]] = []
    for place, value in enumerate(_json_values(text, start.end() - 1), 1):
        number, item = _entry(value, place)
        if isinstance(item, str):
            mark = _MARK.match(item)
            found.append((_number(mark), mark["text"]) if mark else (number, item))
    return found


def _json_values(text: str, start: int) -> Iterator[Any]:
    """Values of the array, or of the array inside of the object, that opens at `start`."""
    try:
        if text[start] == "{":
            whole = _JSON.raw_decode(text, start)[0]
            lists = [value for value in whole.values() if isinstance(value, list)]
            yield from lists[0] if lists else [{"number": k, "text": v} for k, v in whole.items()]
            return
        while text[start] in "[,":
            value, end = _JSON.raw_decode(text, start + 1 + _spaces(text, start + 1))
            yield value
            start = end + _spaces(text, end)
    except (ValueError, IndexError, RecursionError):  # cut off, or no JSON at all: [Rules]
        return


def _spaces(text: str, start: int) -> int:
    """How many white characters there are from `start` on."""
    end = start
    while text[end : end + 1].isspace():
        end += 1
    return end - start


def _entry(value: Any, place: int) -> tuple[int, Any]:
    """Number and text of one JSON value: a string, or an object with a known key or a single string."""
    if not isinstance(value, dict):
        return place, value
    numbers = [str(value[k]) for k in _NUMBER_KEYS if k in value]
    strings = [v for k, v in value.items() if isinstance(v, str) and k not in _NUMBER_KEYS]
    texts = [value[k] for k in _TEXT_KEYS if k in value] or (strings if len(strings) == 1 else [None])
    is_number = bool(numbers) and numbers[0].isdecimal() and len(numbers[0]) <= 4
    return int(numbers[0]) if is_number else place, texts[0]


def _clean(item: str) -> str:
    """One line, without the quotes and markdown around the whole of it."""
    item = " ".join(item.split())
    if item.count("**") % 2 and item.endswith("**"):  # **1. text**
        item = item[:-2].rstrip()
    for pair in _PAIRS:
        left, right = (pair, pair) if pair in {"**", "__"} or len(pair) == 1 else pair
        inner = item[len(left) : -len(right)]
        if item.startswith(left) and item.endswith(right) and left not in inner and right not in inner:
            return _clean(inner) if len(item) > len(left + right) else ""
    return item
