"""Example files: every row is used or counted with its reason, and nothing is written by halves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_guardian.errors import DataError
from slm_guardian.example import Example, file_sha256, from_row, read_examples, write_json, write_jsonl

TEXTS = st.text(st.characters(codec=None, categories=None), min_size=1, max_size=30).filter(str.strip)


def write(directory: Path, content: bytes, name: str = "rows.jsonl") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def texts(path: Path) -> list[str]:
    return [example.text for example in read_examples(path)[0]]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"text": "cut',
        b"[1]",
        b"null",
        b'{"text": ""}',
        b'{"text": 5}',
        b'{"label": "safe"}',
        b'{"text":"a","label":"bad"}',
        b"[" * 100_000,
        b'{"text":"a","n":' + b"1" * 5000 + b"}",
    ],
    ids=range(9),
)
def test_a_broken_line_is_a_reject(tmp_path: Path, bad: bytes) -> None:
    path = write(tmp_path, b'{"text": "one"}\n' + bad + b'\n\n{"text": "two"}\n')
    examples, rejects = read_examples(path)
    assert [e.text for e in examples] == ["one", "two"]
    assert [r.where for r in rejects] == ["rows.jsonl:2"]
    assert rejects[0].reason


def test_rejects_never_hold_the_text(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"text": "one"}\n{"text": "secret words", "label": "secret words"}\n')
    assert "secret" not in str(read_examples(path)[1])


def test_bytes_that_are_not_utf8_cost_no_row(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"text": "caf\xe9"}\n{"text": "two"}\n')
    assert texts(path) == ["caf\ufffd", "two"]


def test_byte_order_mark_and_line_separators(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"text": "a\u2028b\x85c"}\r\n{"text": "two"}'.encode())
    assert texts(path) == ["a\u2028b\x85c", "two"]


def test_csv_with_prompt_and_type(tmp_path: Path) -> None:
    content = 'prompt,label,type,note\n"how, to ""kill"" a process",safe,homonyms,n1\n욕,unsafe,plain,n2\n'
    examples, rejects = read_examples(write(tmp_path, content.encode(), "rows.csv"))
    assert [(e.text, e.label, e.kind) for e in examples] == [
        ('how, to "kill" a process', "safe", "homonyms"),
        ("욕", "unsafe", "plain"),
    ]
    assert examples[0].extra == {"note": "n1"}
    assert not rejects


def test_csv_with_nul_and_ragged_rows(tmp_path: Path) -> None:
    content = b"text,label\na\x00b,safe\nshort\n,safe\nlong,unsafe,more,columns\n"
    examples, rejects = read_examples(write(tmp_path, content, "rows.csv"))
    assert [(e.text, e.label) for e in examples] == [("ab", "safe"), ("short", None), ("long", "unsafe")]
    assert [r.where for r in rejects] == ["rows.csv:4"]


def test_txt_is_a_query_a_line(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "하나\r\n\n  \ntwo".encode(), "rows.txt")) == ["하나", "two"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.csv", b""),
        ("a.csv", b"text,label\n"),
        ("a.txt", b"\n \n"),
        ("a.jsonl", b"\x00\xff\xfe"),
    ],
)
def test_no_usable_row_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match="no usable row"):
        read_examples(write(tmp_path, content, name))


def test_no_usable_row_counts_the_reasons(tmp_path: Path) -> None:
    path = write(tmp_path, b"query,label\na,safe\nb,safe\n", "rows.csv")
    with pytest.raises(DataError, match="2 x no 'text' or 'prompt'"):
        read_examples(path)


@pytest.mark.parametrize("name", ["missing.jsonl", "x" * 5000 + ".jsonl", "."])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="check the path"):
        read_examples(tmp_path / name)


def test_wrong_suffix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.jsonl, \.csv or \.txt"):
        read_examples(write(tmp_path, b"{}", "rows.parquet"))


def test_from_row_names() -> None:
    row = {"prompt": "a", "label": "safe", "category": "safe", "type": "t", "pair": 3, "source": "s", "x": 1}
    made = from_row(row)
    assert (made.category, made.kind, made.pair, made.extra) == (None, "t", "s#3", {"x": 1})


@given(TEXTS, st.sampled_from([None, "safe", "unsafe"]))
def test_dictionary_round_trip(text: str, label: str | None) -> None:
    made = Example(text, label, lang="ko", extra={"register": "query"})
    assert from_row(json.loads(json.dumps(made.to_dict()))) == made


def test_id_depends_on_text_and_label_only() -> None:
    assert Example("a", "safe").id == Example("a", "safe", kind="k", extra={"x": 1}).id
    assert len({Example("a", "safe").id, Example("a", "unsafe").id, Example("b", "safe").id}) == 3


def test_file_round_trip_keeps_every_text(tmp_path: Path) -> None:
    rows = [
        Example(t, "safe")
        for t in ("한글", "a\nb", "a\u2028b\x85c", "nul\x00", "lone \ud800 surrogate", '"\\')
    ]
    assert write_jsonl(tmp_path / "deep" / "a.jsonl", (row.to_dict() for row in rows)) == len(rows)
    examples, rejects = read_examples(tmp_path / "deep" / "a.jsonl")
    assert examples == rows
    assert [e.id for e in examples] == [r.id for r in rows]
    assert not rejects
    (tmp_path / "deep" / "a.jsonl").read_text("utf-8")


def test_writing_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"text": "old"}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"text": "new"}, {"text": object()}])
    assert texts(path) == ["old"]
    write_jsonl(path, [{"text": "new"}])
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert texts(path) == ["new"]


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / name, [{"text": "같은 줄"}])
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")


def test_write_json(tmp_path: Path) -> None:
    value = {"이름": [1, None, "\ud800"]}
    write_json(tmp_path / "deep" / "a.json", value)
    assert json.loads((tmp_path / "deep" / "a.json").read_text("utf-8")) == value
    with pytest.raises(TypeError):
        write_json(tmp_path / "deep" / "a.json", object())
    assert json.loads((tmp_path / "deep" / "a.json").read_text("utf-8")) == value


def test_a_compressed_file_reads_like_the_plain_one(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    write_jsonl(plain, [{"text": "하나", "label": "safe"}, {"text": "둘\u2028둘", "label": "unsafe"}])
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_examples(packed)[0] == read_examples(plain)[0]
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_examples(packed)
