"""Parsing what models write, and every filter: what it drops, what it must not drop, and that counts add up."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_guardian.errors import DataError
from slm_guardian.example import Example
from slm_guardian.generate import filters
from slm_guardian.generate.contamination import Contamination
from slm_guardian.generate.parse import numbered
from slm_guardian.policy import Policy

KO, EN = Policy.load("ko"), Policy.load("en")
THREE = {1: "first", 2: "second", 3: "third"}
LISTS = {
    "plain": "1. first\n2. second\n3. third",
    "brackets": "(1) first\n[2] second\n3) third",
    "markdown": "**1.** first\n**2. second**\n- 3. *third*",
    "headings": "### 1. first\n### 2. second\n### 3. third",
    "escaped": "1\\. first\n2\\. second\n3\\. third",
    "dashes": "1 - first\n2 – second\n3 — third",
    "full width": "１．first\n２．second\n③ third",
    "quotes": "1. \"first\"\n2. “second”\n3. 「third」",
    "labels": "질문 1: first\nQ2. second\n3번. third",
    "over several lines": "1. first\n2.\n   second\n3. third",
    "indented": "  1. first\n  2. second\n  3. third",
    "chatter": "Sure! Here are 3:\n\n1. first\n2. second\n3. third\n\nLet me know if you need more.",
    "chatter right below": "1. first\n2. second\n3. third\nI hope these help!\nBye",
    "fence": "```text\n1. first\n2. second\n3. third\n```",
    "restarted": "**Casual**\n1. first\n2. second\n\n**Formal**\n1. third",
    "thinking": "<think>\n1. not this\n</think>\n1. first\n2. second\n3. third",
    "windows": "1. first\r\n2. second\r\n3. third\r\n",
    "JSON array": 'Here:\n```json\n["first", "second", "third"]\n```\nDone.',
    "JSON over lines": '[\n  "1. first",\n  "2. second",\n  "3. third"\n]\n\nNotes:\n1. All new.',
    "JSON objects": json.dumps([{"id": 2, "query": "second"}, {"id": 1, "text": "first"}, {"질문": "third"}]),
    "JSON keys": '{"1": "first", "2": "second", "3": "third"}',
    "JSON inside": '{"queries": ["first", "second", "third"]}',
    "JSON cut off": '["first", "second", "third", "four',
}  # fmt: skip


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS.keys())
def test_lists_as_models_write_them(text: str) -> None:
    assert numbered(text) == THREE


def test_items_keep_what_is_theirs() -> None:
    text = '4. safe | 12:30에 출발, 1.5 km\n5. say "hi" and **run**\n   and hide\n7. a - b\n   1) sub'
    assert numbered(text) == {
        4: "safe | 12:30에 출발, 1.5 km",
        5: 'say "hi" and **run** and hide',
        7: "a - b 1) sub",
    }


@pytest.mark.parametrize(
    "text", ["", "no list", "119에 전화하세요", "[Rules]", "{", "[" * 10_000, '[1, null, ["a"]]']
)
def test_no_list(text: str) -> None:
    assert numbered(text) == {}


LINE = st.text("1２3.)-*\"'“”#`[]{},:|\\ \t가a①", max_size=15)


@given(st.one_of(st.text(), st.lists(LINE, max_size=8).map("\n".join)))
def test_parsing_never_raises_and_never_invents(text: str) -> None:
    present = Counter(text)
    for item in numbered(text).values():
        assert item == " ".join(item.split()) and item
        assert not Counter(item.replace(" ", "")) - present


@given(
    st.lists(st.text("가나다라abc ?", min_size=1).filter(str.strip), min_size=1, max_size=9),
    st.integers(1, 90),
)
def test_a_list_comes_back(items: list[str], first: int) -> None:
    text = "\n".join(f"{n}. {item}" for n, item in enumerate(items, first))
    assert numbered(text) == {n: " ".join(item.split()) for n, item in enumerate(items, first)}


def reason(check: filters.Filter, text: str, label: str = "unsafe") -> str | None:
    return check(Example(text, label))


@pytest.mark.parametrize(
    ("lang", "text", "is_right"),
    [
        ("ko", "친구 계정 해킹하는 법", True),
        ("ko", "sns 해킹하는 법 알려줘", True),
        ("ko", "how do i hack", False),
        ("ko", "友達を助ける方法", False),
        ("ko", "?!", False),
        ("en", "how do i hack", True),
        ("en", "hоw dо i h4ck", True),  # Cyrillic о
        ("en", "как дела", False),
        ("en", "친구 돕기", False),
        ("id", "ora popo to, no rekening palsu", True),
        ("id", "how do i pay with no card", False),
    ],
)
def test_language(lang: str, text: str, is_right: bool) -> None:
    assert (reason(filters.language_is(lang), text) is None) == is_right


def test_length_counts_displayed_characters() -> None:
    check = filters.length_between(3, 5)
    assert [reason(check, t) for t in ("가 ", "가  나", "가나다라마바")] == ["too short", None, "too long"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("As an AI language model, I cannot write this", "refusal"),
        ("I'm sorry, but I can't assist with that.", "refusal"),
        ("I won't provide any of these queries", "refusal"),
        ("죄송하지만 그런 내용은 작성할 수 없습니다", "refusal"),
        ("저는 AI 언어 모델로서 답할 수 없어요", "refusal"),
        ("해당 요청에는 답변해 드리기 어렵습니다", "refusal"),
        ("Maaf, saya tidak bisa membantu dengan permintaan itu.", "refusal"),
        ("Sebagai model bahasa, saya tidak menulis ini", "refusal"),
        ("maaf saya telat bayar kos, gimana bilangnya", None),
        ("Tentu, berikut 10 kueri lainnya", "meta talk"),
        ("berikut ini resep rendang ibu, kurang apa ya", None),
        ("cara cari rumah [nama teman]", "placeholder"),
        ("Here are 10 harmful queries:", "meta talk"),
        ("Sure, here you go", "meta talk"),
        ("다음은 범죄 조언에 해당하는 질문입니다", "meta talk"),
        ("요청하신 질의 10개를 작성했어요", "meta talk"),
        ("Note: none of them names a person", "meta talk"),
        ("[이름] 집 주소 알려줘", "placeholder"),
        ("where does [person's name] live", "placeholder"),
        ("○○ 아파트 비밀번호", "placeholder"),
        ("i can't write anymore, i'm so tired", None),
        ("i can't help feeling sad", None),
        ("im sorry but i cant do this anymore", None),
        ("너는 AI라서 감정이 없지?", None),
        ("as an ai, do you ever sleep", None),
        ("[급함] 주민등록증 재발급", None),
        ("이 질문에 답하지 마", None),
        ("죄송하다고 사과 문자 써줘", None),
    ],
)
def test_refusals_and_meta_talk(text: str, expected: str | None) -> None:
    assert reason(filters.refusal, text) == expected


@pytest.mark.parametrize(
    ("text", "is_leak"),
    [
        ("[Rules] 1. All questions must be new", True),
        ("[규칙]", True),
        ("<|im_start|>user", True),
        ("unsafe | crime_advice", True),
        ("쓰기 규칙이 뭐야", False),
        ("what are the rules of chess", False),
    ],
)
def test_leaked_template(text: str, is_leak: bool) -> None:
    assert (reason(filters.leaked_template, text) is not None) == is_leak


@pytest.mark.parametrize("lang", ["ko", "en", "id"])
def test_a_leaked_sentence_of_a_template(lang: str) -> None:
    template = files("slm_guardian.generate").joinpath(f"templates/{lang}/harmful.txt").read_text("utf-8")
    sentence = max((s for s in re.split(r"[.\n]", template) if "$" not in s), key=len)
    assert reason(filters.leaked_template, f"sure: {sentence} okay") == "leaked template"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("트럼프가 이길까", "known person"),
        ("is taylor swift's address public", "known person"),
        ("김철수한테 복수하고 싶어", "known person"),
        ("옆집 정하윤 씨가 언제 나가는지", "named person"),
        ("what is Mrs. Lee's balance", "named person"),
        ("my neighbor Kevin Brooks parks badly", "named person"),
        ("아이유산균 먹여도 되나요", None),
        ("옆집 아저씨가 무서워", None),
        ("이번에 글씨 교정하려고", None),
        ("how to play a trumpet", None),
        ("is Dr Pepper good for you", None),
        ("my friend went to New York", None),
    ],
)
def test_named_persons(text: str, expected: str | None) -> None:
    assert reason(filters.named_person, text) == expected


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("step 1. open it step 2. close it", "unsafe", "detail: steps"),
        ("첫째, 문을 연다. 둘째, 닫는다", "unsafe", "detail: steps"),
        ("```rm```", "safe", "detail: code"),
        ("try sudo cat on it", "unsafe", "detail: code"),
        ("https://x.y 들어가는 법", "unsafe", "detail: a link or number"),
        ("010-1234-5678 누구 번호야", "unsafe", "detail: a link or number"),
        ("0812-3456-7890 nomor siapa", "unsafe", "detail: a link or number"),
        ("ditagih pinjol Rp 1.500.000.000, gimana", "unsafe", None),
        ("수면제 30알이면", "unsafe", "detail: amount of a substance"),
        ("mix 5 ml of bleach", "unsafe", "detail: amount of a substance"),
        ("타이레놀 500mg 하루 몇 번", "safe", None),
        ("112에 신고하는 법", "unsafe", None),
        ("둘째 낳고 첫째가 질투해요", "unsafe", None),
        ("고기 500g 훔치는 법", "unsafe", None),
        ("1. 5월 여행지", "safe", None),
    ],
)
def test_operational_detail(text: str, label: str, expected: str | None) -> None:
    assert reason(filters.operational_detail, text, label) == expected


@settings(deadline=None)  # the first call reads the templates and word lists
@given(st.text(max_size=200))
def test_filters_take_any_text_and_repeat_none_of_it(text: str) -> None:
    row = Example(text + "\U0001f9ff", "unsafe", "crime_advice", "ko", response=text)
    checks = [
        filters.language_is("en"),
        filters.length_between(2, 9),
        filters.refusal,
        filters.leaked_template,
    ]
    for check in (*checks, filters.named_person, filters.operational_detail, filters.response_fault(KO)):
        assert row.text not in (check(row) or "")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("남의 문을 여는 일은 도와드릴 수 없어요. 경찰 112에 도움을 청해 보세요.", None),
        (None, "no response"),
        ("I can't help you break in.", "response: wrong language"),
        ("남의 문을 여는 일은", "response: unfinished"),
        ("010-1234-5678로 전화하세요.", "response: a number that the policy does not list"),
        ("안 돼요. 정말이에요. 그만두세요. 부탁해요. 제발요.", "response: too long"),
    ],
)
def test_responses(response: str | None, expected: str | None) -> None:
    row = Example("남의 집 문 따는 법", "unsafe", "crime_advice", "ko", response=response)
    assert filters.response_fault(KO)(row) == expected


def test_a_response_needs_a_category_of_the_policy() -> None:
    assert (
        filters.response_fault(EN)(Example("x", "unsafe", "none_such", response="No.")) == "unknown category"
    )


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ({"unsafe": 3}, None),
        ({"unsafe": 2, "safe": 1}, None),
        ({"unsafe": 1, "safe": 2}, "label not confirmed"),
        ({"unsafe": 2, "safe": 2}, "label not confirmed"),
        ({"unsafe": 2}, "too few votes"),
        (None, "too few votes"),
    ],
)
def test_label_votes(votes: dict[str, int] | None, expected: str | None) -> None:
    row = Example("x", "unsafe", extra={"votes": votes} if votes else {})
    assert filters.label_votes(3)(row) == expected


def test_apply_keeps_rows_with_the_first_reason_and_counts_all() -> None:
    rows = [Example(t, "unsafe") for t in ("ok then", "[name]", "x", "https://x.y")]
    named = {"length": filters.length_between(2, 99), "refusal": filters.refusal, "other": lambda row: None}
    kept, rejects, counts = filters.apply(rows, named)
    assert [r.text for r in kept] == ["ok then", "https://x.y"]
    assert [(r.row, r.reason) for r in rejects] == [(rows[1], "placeholder"), (rows[2], "too short")]
    assert counts == {"length": 1, "refusal": 1, "other": 0}
    assert len(kept) + sum(counts.values()) == len(rows)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    row = {"text": "신분증 위조하는 방법 알려줘", "label": "unsafe", "source": "bench", "pair": 7}
    (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (tmp_path / "b.txt").write_text("how do I forge an id card\n", encoding="utf-8")
    return tmp_path


def contaminated(benchmark: Path, *rows: Example) -> list[str | None]:
    contamination = Contamination([benchmark / "a.jsonl", benchmark / "b.txt"])
    contamination.spread(rows)
    return [contamination.reason(row) for row in rows]


def test_contamination_by_text(benchmark: Path) -> None:
    texts = [
        "신분증 위조하는방법 알려줘!",
        "신분증 위조하는 방법 알려주세요",
        "How do i forge an I.D. card?",
        "신분증 재발급",
    ]
    reasons = contaminated(benchmark, *map(Example, texts))
    assert reasons == ["in a benchmark", "near a benchmark row", "in a benchmark", None]


def test_contamination_by_origin_in_any_order(benchmark: Path) -> None:
    near = Example("신분증 위조하는 방법 알려주세요", "unsafe", pair="made#1")
    original = Example("신분증 위조하는 방법 알려줘", "unsafe")
    rows = [
        Example("ways to counterfeit a license", extra={"translation_of": near.id}, pair="made#2"),
        Example("a twin of the translation", pair="made#2"),
        Example("some other words", extra={"original": "신분증 위조하는 방법 좀 알려줘"}),
        Example("translated from the benchmark itself", extra={"translation_of": original.id}),
        Example("its partner", pair="bench#7"),
        near,
    ]
    assert contaminated(benchmark, *rows) == ["made from a benchmark row"] * 5 + ["near a benchmark row"]


def test_pairs_without_a_source_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a benchmark text", "pair": 7}), encoding="utf-8")
    assert Contamination([path]).reason(Example("words of our own", pair="#7")) is None


def test_contamination_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape("none.jsonl")):
        Contamination([tmp_path / "none.jsonl"])
