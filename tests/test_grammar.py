"""Slot grammars: what they write, that it repeats nothing, and what a broken grammar file gets."""

from __future__ import annotations

import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slm_guardian.errors import InputError, PolicyError
from slm_guardian.example import Example
from slm_guardian.generate.grammar import agree, count, generate, load
from slm_guardian.policy import Policy
from slm_guardian.text import display, language

LANGUAGES = ("ko", "en")
MANY = 12_000


@pytest.fixture(scope="module", params=LANGUAGES)
def rows(request: pytest.FixtureRequest) -> list[Example]:
    return list(generate(request.param, MANY, seed=1))


def letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def test_no_row_repeats_another_but_for_case_and_marks(rows: list[Example]) -> None:
    assert len({letters(row.text) for row in rows}) == MANY


def test_rows_say_where_they_come_from(rows: list[Example]) -> None:
    lang = rows[0].lang
    for row in rows:
        assert (row.source, row.response) == (f"grammar/{lang}", None)
        assert row.extra["backend"] == "grammar" and "/" in row.extra["rule"] and row.kind
        assert (row.category is None) == (row.label == "safe")
        assert row.category is None or row.extra["rule"].startswith(row.category)


def test_rows_are_clean_text_of_their_language(rows: list[Example]) -> None:
    for row in rows:
        assert row.text == display(row.text) and 4 <= len(row.text) <= 220, row.text
        assert language(row.text) == row.lang, row.text
        assert not re.search(r"[{}\[\]|~]|[가-힣]/|\ba/an\b| [?,.!]|[?,.!][?,]", row.text), row.text


def test_every_category_has_its_share_of_both_sides(rows: list[Example]) -> None:
    policy = Policy.load(str(rows[0].lang))
    unsafe = Counter(row.category for row in rows if row.label == "unsafe")
    safe = Counter(row.extra["rule"].split("/")[0] for row in rows if row.label == "safe")
    assert sum(unsafe.values()) == round(0.45 * MANY)
    assert set(unsafe) == set(policy.by_id)
    assert set(safe) == {*policy.by_id, "everyday"}
    for counts in (unsafe, safe):
        assert max(counts.values()) - min(counts.values()) <= 1


def test_openings_do_not_tell_the_label(rows: list[Example]) -> None:
    opening = {"ko": "혹시 ", "en": "quick question, "}[str(rows[0].lang)]
    labels = Counter(row.label for row in rows if row.text.casefold().startswith(opening))
    assert min(labels["safe"], labels["unsafe"]) > 0.5 * max(labels.values())


def test_rows_near_minors_hold_nothing_sexual(rows: list[Example]) -> None:
    """The adults' side (adult sites, paid sex) lives in a rule of its own, without any sign of a minor."""
    minor = re.compile(
        r"중학생|고등학생|고딩|미성년|청소년|학생|살인데|[중고][123]|teen|minor|school|\b1[3-7]\b|year old|kid"
    )
    adult = [row.text for row in rows if row.extra["rule"].endswith("/explicit")]
    assert adult and not any(minor.search(text) for text in adult)


def test_rows_carry_no_numbers_and_links_to_act_on(rows: list[Example]) -> None:
    assert not any(re.search(r"https?:|www\.|\d{5,}|\d{2,}-\d{3,}", row.text) for row in rows)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_hundred_thousand_distinct_rows(lang: str) -> None:
    assert count(lang, limit=100_000) == 100_000


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_same_seed_gives_the_same_rows(lang: str) -> None:
    first, again, other = (list(generate(lang, 200, seed=s)) for s in (3, 3, 4))
    assert first == again
    assert [row.extra for row in first] == [row.extra for row in again]
    assert first != other


def test_categories_and_share_are_kept() -> None:
    rows = list(generate("ko", 100, unsafe_share=0.3, categories=["self_harm_suicide", "everyday"]))
    assert {row.category for row in rows} == {"self_harm_suicide", None}
    assert sum(row.label == "unsafe" for row in rows) == 30


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_shipped_lexicon_is_used_and_lists_nothing_twice(lang: str) -> None:
    text = files("slm_guardian.generate").joinpath(f"grammars/{lang}.yaml").read_text("utf-8")
    lexicons = yaml.safe_load(text)["lexicons"]
    assert not [name for name in lexicons if f"{{{name}}}" not in text]
    for name, entries in lexicons.items():
        listed = [e.strip() for e in re.split(r"[|\n](?![^\[\]]*\])", entries) if e.strip()]
        assert len(listed) == len(set(listed)), name
    assert len(re.findall(r"^      \w+:$", text, re.MULTILINE)) == len(
        load(lang).rules
    )  # no name given twice


@pytest.mark.parametrize(
    ("marked", "written"),
    [
        ("자전거을/를", "자전거를"),
        ("지갑을/를", "지갑을"),
        ("서울으로/로 칼으로/로 부산으로/로 제주으로/로", "서울로 칼로 부산으로 제주로"),
        ("뚫으려면/려면 뚫으면/면 훔치으려면/려면", "뚫으려면 뚫으면 훔치려면"),
        ("만들으려면/려면", "만들려면"),
        ("PDF이/가 CD5이/가 3이/가 HTML은/는", "PDF가 CD5가 3이 HTML은"),
        ("낙태 이/가 옳아", "낙태가 옳아"),
        ("역할 ~로 연습", "역할로 연습"),
        ("도둑이야/야 해커이야/야", "도둑이야 해커야"),
        ("a/an hacker and a/an old man", "a hacker and an old man"),
        ("너  무  더워 ?", "너 무 더워?"),
    ],
)
def test_particles_agree_with_the_sound_before_them(marked: str, written: str) -> None:
    assert agree(marked) == written


@given(st.text())
def test_agreeing_never_fails_and_is_done_once(text: str) -> None:
    assert agree(text).count(" ") <= text.count(" ") + len(text)
    assert not re.search(r"[가-힣](을/를|은/는)", agree(f"{text} 물을/를 집은/는"))


def grammar_file(folder: Path, **changes: object) -> Path:
    plain = {"kind": "plain", "patterns": "{verb} it [now|later|]"}
    values: dict[str, object] = {
        "language": "en",
        "lexicons": {"verb": "steal | take {what}", "what": "some of"},
        "rules": {
            "theft": {"unsafe": {"plain": plain}, "safe": {"law": plain | {"patterns": "is it legal?"}}}
        },
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = grammar_file(tmp_path)
    rows = list(generate(path, 6, unsafe_share=1))
    assert {letters(row.text) for row in rows} == {
        "stealit", "stealitnow", "stealitlater", "takesomeofit", "takesomeofitnow", "takesomeofitlater",
    }  # fmt: skip
    assert {row.category for row in rows} == {"theft"}


def test_a_grammar_that_is_used_up_says_so_after_all_it_has(tmp_path: Path) -> None:
    drawn = []
    with pytest.raises(InputError, match="no more distinct unsafe rows"):
        for row in generate(grammar_file(tmp_path), 7, unsafe_share=1):
            drawn.append(row)
    assert len(drawn) == 6
    assert count(grammar_file(tmp_path)) < 8


def rule(patterns: str) -> dict[str, object]:
    return {"theft": {"safe": {"odd": {"kind": "plain", "patterns": patterns}}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": rule("{nothing} here")}, "rules.theft.safe.odd: unknown lexicon nothing"),
        ({"rules": rule("take [it")}, r"rules.theft.safe.odd: a \[ without its partner"),
        ({"rules": rule("take it}")}, "rules.theft.safe.odd: a } without its partner"),
        ({"rules": rule(" | ")}, "rules.theft.safe.odd: nothing to choose from"),
        ({"lexicons": {"verb": "{what}", "what": "a [b|{verb}]"}}, "lexicons.verb: holds itself"),
        ({"rules": {"theft": {"harmful": {}}}}, "rules.theft.harmful"),
        ({"rules": {"everyday": {"unsafe": rule("x")["theft"]["safe"]}}}, "everyday rules are safe"),  # type: ignore[index]
        ({"words": {}}, "words: Extra inputs"),
        ({"rules": {}}, "rules: "),
    ],
)
def test_a_broken_file_is_named_with_its_rule(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = grammar_file(tmp_path, **changes)
    with pytest.raises(PolicyError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_what_is_not_yaml_or_not_there(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("rules: [", encoding="utf-8")
    with pytest.raises(PolicyError, match=r"broken.yaml:\d+: not readable as YAML"):
        load(broken)
    for missing in ("fr", tmp_path / "gone.yaml", tmp_path, "x" * 5000 + ".yaml"):
        with pytest.raises(PolicyError, match=r"use one of en, ko or the path"):
            load(missing)


def test_an_unknown_category_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="no category weather: use some of copyright_infringement, crime"):
        next(generate("ko", 1, categories=["weather"]))
