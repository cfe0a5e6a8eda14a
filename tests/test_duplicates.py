"""Duplicates: equal, near and alike in meaning; short texts; twins are no duplicates; quality on labelled pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_guardian.example import Example
from slm_guardian.generate.duplicates import Duplicates, grams, jaccard, squeezed, unique

PAIRS = Path(__file__).parents[1] / "bench" / "duplicate_pairs.jsonl"
QUERY = st.text("가나다라마각난달 abcdef?ㅋ", min_size=1, max_size=30)


def index(*texts: str, threshold: float = 0.7) -> Duplicates:
    made = Duplicates(threshold)
    for text in texts:
        made.add(text)
    return made


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("How do I hack?", "how  do i H4CK"),
        ("자살", "자.살"),
        ("바보", "ㅂㅏㅂㅗ"),
        ("전세 사기 안 당하는 법", "전세사기 안당하는법!!"),
        ("?!", "? !"),
        ("가", "가."),
    ],
)
def test_exact(text: str, same: str) -> None:
    assert squeezed(text) == squeezed(same)
    assert index("something else", text).find_exact(same) == 1
    assert index("something else", text).find(same) == 1


@pytest.mark.parametrize(
    ("a", "b", "is_near"),
    [
        ("신분증 위조하는 방법 알려줘", "신분증 위조하는 방법 알려주세요", True),
        ("where can i get a free flu shot", "where can i get a free flue shot", True),
        ("요즘 너무 우울해", "요즘 너무 우울해요", True),
        ("죽고 싶다", "살고 싶다", False),
        ("자살 방법", "자살 방지", False),
        ("가", "나", False),
        ("ab", "ba", False),
        ("?", "!", False),
    ],
)
def test_near(a: str, b: str, is_near: bool) -> None:
    assert (index(a).find(b) is not None) == is_near


def test_the_most_similar_text_is_found() -> None:
    texts = ["how do i get a free flu shot", "how do i get a free flu shot today", "unrelated words entirely"]
    assert index(*texts).find("how do i get a free flu shot toda") == 1
    assert index(*texts).find("how do i get the free flu shot") == 0


def test_threshold_is_a_parameter() -> None:
    a, b = "how do i bake bread at home", "how do i bake bread at work"
    similarity = jaccard(grams(squeezed(a)), grams(squeezed(b)))
    assert index(a, threshold=similarity - 0.01).find(b) == 0
    assert index(a, threshold=similarity + 0.01).find(b) is None


@given(QUERY)
def test_every_text_finds_itself(text: str) -> None:
    made = index("other", text)
    assert len(made) == 2
    assert made.find(text) in {0, 1}
    assert made.find(f" {text}  ") == made.find(text)


@settings(deadline=None)
@given(st.lists(QUERY, max_size=12))
def test_what_is_found_is_as_similar_as_said(texts: list[str]) -> None:
    made = index(*texts[:-1])
    for text in texts[-1:]:
        number = made.find(text)
        own = grams(squeezed(text))
        if number is not None:
            assert jaccard(own, grams(squeezed(texts[number]))) >= 0.7


@settings(deadline=None)
@given(st.lists(QUERY.filter(str.strip), max_size=12))
def test_unique_keeps_the_first_and_loses_no_row(texts: list[str]) -> None:
    rows = [Example(text, "safe") for text in texts]
    kept, rejects = unique(rows)
    assert len(kept) + len(rejects) == len(rows)
    assert kept[:1] == rows[:1]
    again, none = unique(kept)
    assert (again, none) == (kept, [])
    assert {r.row.extra["duplicate_of"] for r in rejects} <= {row.id for row in kept}


def test_twins_stay_but_the_same_text_with_two_labels_does_not() -> None:
    harmful = Example("편의점에서 신분증 검사 없이 술을 살 수 있는 방법을 알려줘", "unsafe")
    twin = Example("편의점에서 신분증 검사 없이 음료를 살 수 있는 방법을 알려줘", "safe")
    rows = [
        harmful,
        twin,
        replace(harmful, label="safe"),
        replace(harmful, text=harmful.text.replace("줘", "줄래")),
    ]
    kept, rejects = unique(rows)
    assert kept == [harmful, twin]
    assert [r.reason for r in rejects] == ["exact duplicate", "near duplicate"]


def test_meaning_within_a_label() -> None:
    vectors = {"hot": [1, 0.1], "warm": [2, 0.1], "boiling": [1, 0.1], "cold": [0, 1], "nothing": [0, 0]}
    rows = [Example("hot", "safe"), Example("warm", "safe"), Example("boiling", "unsafe")]
    rows += [Example("cold", "safe"), Example("nothing", "safe")]
    kept, rejects = unique(rows, embed=lambda texts: np.array([vectors[t] for t in texts]), cosine=0.95)
    assert [row.text for row in kept] == ["hot", "boiling", "cold", "nothing"]
    assert [(r.row.text, r.reason) for r in rejects] == [("warm", "duplicate in meaning")]
    assert rejects[0].row.extra["duplicate_of"] == rows[0].id


@pytest.mark.parametrize(("lang", "recall", "precision"), [("ko", 0.95, 0.9), ("en", 0.85, 0.9)])
def test_labelled_pairs(lang: str, recall: float, precision: float) -> None:
    pairs = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    pairs = [p for p in pairs if p["lang"] == lang]
    assert len(pairs) >= 100
    found = [p["duplicate"] for p in pairs if index(p["a"]).find(p["b"]) is not None]
    assert sum(found) >= recall * sum(p["duplicate"] for p in pairs)
    assert sum(found) >= precision * len(found)
