"""The batch files and the translation importer: answers come in any order, cut off or wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_guardian.errors import DataError
from slm_guardian.example import Example, expand, write_jsonl
from slm_guardian.generate.backends import Request
from slm_guardian.generate.backends.batch import read_responses, write_requests
from slm_guardian.generate.translate import read_translations, translation_requests
from slm_guardian.policy import Policy
from slm_guardian.train import corpora

ROWS = [
    Example(
        "친구를 어떻게 도와줘요?", "safe", lang="ko", kind="plain", pair="s#1", source="seed", response="네"
    ),
    Example("남의 문을 여는 법", "unsafe", "crime_advice", lang="ko", pair="s#1", source="seed"),
    Example("오늘 날씨", "safe", lang="ko", source="seed"),
]
ITEM = st.builds(
    "{}{}{}".format, st.integers(0, 9), st.sampled_from([".", ") ", "-"]), st.sampled_from(["x", "-", "가"])
)
GOOD = ["how do I help a friend?", "how to open someone's door", "weather today"]


def answer(custom_id: str, content: Any) -> dict[str, Any]:
    body = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(*texts: str, rows: list[Example] = ROWS, target: str = "en") -> tuple[list[Example], list[str]]:
    """The kept rows and the reasons of the rejects, for one answer with these numbered texts."""
    (request,) = translation_requests(rows, target)
    content = "\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1))
    kept, rejects = read_translations(rows, target, {request.custom_id: content})
    return kept, [r.reason for r in rejects]


def test_request_file_is_openai_batch(tmp_path: Path) -> None:
    assert write_requests(tmp_path / "r.jsonl", [Request("id-1", "be kind", "안녕")], "some-model") == 1
    row = json.loads((tmp_path / "r.jsonl").read_text("utf-8"))
    assert (row["custom_id"], row["method"], row["url"]) == ("id-1", "POST", "/v1/chat/completions")
    assert row["body"]["model"] == "some-model"
    assert [m["content"] for m in row["body"]["messages"]] == ["be kind", "안녕"]


def test_responses_in_any_order_and_from_several_files(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", answer("c", "3"), answer("a", "1"))
    two = write(tmp_path / "2.jsonl", answer("b", "2"))
    assert read_responses([two, one]) == ({"a": "1", "b": "2", "c": "3"}, 0)


def test_a_response_file_that_was_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "1.jsonl", answer("a", "1"), answer("b", "2"))
    path.write_bytes(path.read_bytes()[:-40])
    assert read_responses([path]) == ({"a": "1"}, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"custom_id": "b", "response": None, "error": {"code": "server_error"}},
        {"custom_id": "b", "response": {"status_code": 500, "body": {"error": "no"}}},
        {"custom_id": "b", "response": {"body": {"choices": []}}},
        answer("b", None),
        {"response": answer("b", "x")["response"]},
        [],
        "b",
        None,
    ],
)
def test_error_lines_are_counted(tmp_path: Path, bad: Any) -> None:
    assert read_responses([write(tmp_path / "1.jsonl", bad, answer("a", "1"))]) == ({"a": "1"}, 1)


def test_bytes_that_a_response_file_may_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "1.jsonl", answer("a", "x\u2028y\x85z"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\n" + b"\xff\n" + b"[" * 100_000)
    assert read_responses([path]) == ({"a": "x\u2028y\x85z"}, 2)


def test_requests_are_numbered_and_stable() -> None:
    requests = translation_requests(ROWS, "en", per_request=2)
    assert [r.user.splitlines()[-1][:2] for r in requests] == ["2.", "1."]
    assert "Korean" in requests[0].system and "English" in requests[0].system
    assert requests == translation_requests(ROWS, "en", per_request=2)
    assert len({r.custom_id for r in requests}) == 2


def test_a_query_of_several_lines_takes_one() -> None:
    (request,) = translation_requests([Example("하나\n2. 둘", lang="ko")], "en")
    assert request.user == "1. 하나 2. 둘"


def test_translations_keep_what_is_known() -> None:
    kept, reasons = imported(*GOOD)
    assert reasons == []
    assert [k.text for k in kept] == GOOD
    for original, made in zip(ROWS, kept, strict=True):
        assert (made.label, made.category, made.kind, made.pair) == (
            original.label,
            original.category,
            original.kind,
            original.pair,
        )
        assert (made.lang, made.response, made.source) == ("en", None, "seed/translated")
        assert made.extra == {"translation_of": original.id, "original": original.text}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-", "skipped by the model"),
        ("—", "skipped by the model"),
        ("", "missing"),
        ("오늘 날씨", "wrong language"),
        ("the weather " * 20, "length out of proportion"),
        ("weather 0101234567", "a number that the original does not have"),
    ],
)
def test_reject_reasons(text: str, reason: str) -> None:
    kept, reasons = imported(*GOOD[:2], text)
    assert reasons == [reason]
    assert [k.text for k in kept] == GOOD[:2]


def test_wrong_language_into_korean() -> None:
    rows = [Example("weather today", "safe", lang="en")]
    assert imported("weather today", rows=rows, target="ko")[1] == ["wrong language"]
    assert imported("오늘 날씨", rows=rows, target="ko")[1] == []


def test_an_answer_that_was_cut_off() -> None:
    kept, reasons = imported(*GOOD[:1])
    assert [k.text for k in kept] == GOOD[:1]
    assert reasons == ["missing", "missing"]


def test_no_answer_at_all() -> None:
    kept, rejects = read_translations(ROWS, "en", {})
    assert not kept
    assert [(r.where, r.reason) for r in rejects] == [(row.id, "missing") for row in ROWS]


@given(st.text(st.characters(codec=None, categories=None)) | st.lists(ITEM, max_size=5).map("\n".join))
def test_any_answer_is_kept_or_rejected(content: str) -> None:
    (request,) = translation_requests(ROWS, "en")
    kept, rejects = read_translations(ROWS, "en", {request.custom_id: content})
    assert len(kept) + len(rejects) == len(ROWS)
    assert all(k.text.strip() for k in kept)


def test_a_number_of_five_thousand_digits_is_no_item() -> None:
    (request,) = translation_requests(ROWS, "en")
    kept, _ = read_translations(ROWS, "en", {request.custom_id: "1" * 5000 + ". x\n3) weather today"})
    assert [k.text for k in kept] == ["weather today"]


def test_order_and_chatter_do_not_matter() -> None:
    (request,) = translation_requests(ROWS, "en")
    lines = [f"{n}) {text}" for n, text in enumerate(GOOD, 1)]
    content = "\n".join(["Here you are:", *reversed(lines), "", "Anything else?"])
    assert [k.text for k in read_translations(ROWS, "en", {request.custom_id: content})[0]] == GOOD


def test_translated_rows_join_their_originals(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"translation_of": ROWS[1].id, "lang": "en", "text": "x\u2028y"}
    write_jsonl(path, [row, row | {"translation_of": "unknown"}])
    (made,) = corpora.translated(ROWS, path)
    assert (made.text, made.lang) == ("x\u2028y", "en")
    assert (made.label, made.category, made.pair) == ("unsafe", "crime_advice", "s#1")
    assert corpora.parallel([], [made]) == [corpora.Pair(ROWS[1].text, "x\u2028y")]


def test_parallel_takes_each_pair_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", {"ko": "가", "en": "a"}, {"ko": "가", "en": "a"}, {"ko": "나", "en": "b"}
    )
    assert corpora.parallel([path, path]) == [corpora.Pair("가", "a"), corpora.Pair("나", "b")]


@pytest.mark.parametrize("bad", ["{", "[]", '{"ko": "가"}', "[" * 100_000])
def test_a_broken_parallel_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"ko": "가", "en": "a"}\n' + bad + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"p\.jsonl:2: "):
        corpora.parallel([path])


def test_expand_names_a_pattern_without_a_file(tmp_path: Path) -> None:
    full, empty = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    full.write_text("{}")
    empty.touch()
    assert expand([str(tmp_path / "*.jsonl"), str(full)]) == [full]
    with pytest.raises(DataError, match="nothing-here"):
        expand([str(tmp_path / "nothing-here*")])


def test_golden_examples_of_a_policy() -> None:
    policy = Policy.load("ko")
    rows = corpora.policy_examples([policy])
    assert {r.category for r in rows if r.label == "unsafe"} == set(policy.by_id)
    assert {r.category for r in rows if r.label == "safe"} == {None}
    assert {(r.lang, r.kind, r.source) for r in rows} == {("ko", "golden", "policy/ko")}
