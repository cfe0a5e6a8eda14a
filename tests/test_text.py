"""The two text views: never a crash, nothing lost in the one, disguises undone in the other."""

from __future__ import annotations

import doctest
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm_guardian import text
from slm_guardian.text import compose_jamo, display, language, shadow, split_jamo, views, windows

SYLLABLES = [chr(code) for code in range(0xAC00, 0xAC00 + 11172)]
# Any code point at all, lone surrogates and NUL too; and a mix that the disguise rules react to.
ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=60)
DISGUISED = st.text(
    "ㄱㅂㅋㅏㅗㅣㅡ가자살 a4h0krlIH1|!@$.·-_*~/\u200b\u3164\u1160\u0301ａｒ①ﬁаоҺ\x00\ud800ᄀﾡￂﾟ…", max_size=25
)
WORDS = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=2, max_size=12), min_size=1
)
ENGLISH = WORDS.map(" ".join)


def test_docstring_examples() -> None:
    assert doctest.testmod(text).failed == 0


@given(ANYTHING | DISGUISED)
@example("\ud800\x00\x1f")
def test_display_is_idempotent_and_clean(raw: str) -> None:
    shown = display(raw)
    assert display(shown) == shown
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in shown)
    assert shown == unicodedata.normalize("NFC", shown) == shown.strip()
    assert len(shown) <= 3 * len(raw)  # NFC never makes more of a character


@given(ANYTHING | DISGUISED)
@example("ﾟ")  # NFKC turns it into a combining mark
@example("ㅈｒ살")
@settings(max_examples=300)
def test_shadow_is_idempotent_and_bounded(raw: str) -> None:
    folded = shadow(raw)
    assert shadow(folded) == folded == display(folded)
    assert len(folded) <= 18 * len(raw)  # NFKC's longest expansion
    folded.encode()  # no lone surrogate is left


@given(ANYTHING | DISGUISED)
def test_shadow_sees_only_what_is_displayed(raw: str) -> None:
    assert shadow(raw) == shadow(display(raw))


@given(ENGLISH)
def test_plain_english_words_have_one_view(words: str) -> None:
    assert views(words) == [words]


@given(
    st.lists(st.text(st.sampled_from(SYLLABLES), min_size=2, max_size=5), min_size=1, max_size=6).map(
        " ".join
    )
)
def test_plain_korean_words_have_one_view(words: str) -> None:
    assert views(words) == [words]


@given(ANYTHING | DISGUISED)
def test_first_view_is_the_displayed_text(raw: str) -> None:
    first, *more = views(raw)
    assert first == display(raw)
    assert more in ([], [shadow(raw)])


@pytest.mark.parametrize(
    "plain", ["ㅋㅋㅋ", "ㅠㅠ", "ㅇㅇ", "병ㅅ", "ㄱㅅ", "mp3 파일", "24h", "2023년", "me@x.com", "C++"]
)
def test_harmless_forms_stay(plain: str) -> None:
    assert display(plain) == shadow(plain) == plain


@pytest.mark.parametrize("decomposed", ["한국", "각", "é"])
def test_display_composes(decomposed: str) -> None:
    assert display(unicodedata.normalize("NFD", decomposed)) == decomposed


@pytest.mark.parametrize(
    "filler", ["\u115f", "\u1160", "\u3164", "\uffa0", "\u2800", "\u200b", "\u200d", "\ufeff", "\u00ad"]
)
def test_invisible_characters_blind_nobody(filler: str) -> None:
    assert shadow(f"바{filler}보") == "바보"
    assert shadow(f"h{filler}ack") == "hack"


@pytest.mark.parametrize(
    ("hidden", "meant"),
    [
        ("ㅂㅏㅂㅗ", "바보"),
        ("시ㅂㅏㄹ", "시발"),
        ("ㄱㅜㅔㄴ", "궨"),
        ("ㅈr살", "자살"),
        ("ㅈｒ살", "자살"),
        ("ㅋl스", "키스"),
        ("ﾊﾞ", "バ"),
        ("ﾡￂ", "가"),
        ("자.살", "자살"),
        ("자*살", "자살"),
        ("자 살 하 는 법", "자살하는법"),
        ("k i l l", "kill"),
        ("k.i.l.l", "kill"),
        ("h4ck", "hack"),
        ("k!ll", "kill"),
        ("ｋｉｌｌ", "kill"),
        ("ѕеx", "sex"),
        ("k̶i̶l̶l̶", "kill"),
    ],
)
def test_disguises_are_undone(hidden: str, meant: str) -> None:
    assert shadow(hidden) == meant
    assert meant in views(hidden)


@pytest.mark.parametrize("bait", ["가* ", "a@!", "a1!", "가.나 ", "a.", "ㄱㅏ", " ", "\u200b", "h4ck "])
def test_long_text_takes_linear_time(bait: str) -> None:
    started = time.process_time()
    shadow(bait * (150_000 // len(bait)))
    assert time.process_time() - started < 2  # a quadratic pattern takes minutes


def test_every_syllable_survives_taking_apart() -> None:
    assert all(compose_jamo(split_jamo(s)) == s for s in SYLLABLES)


@given(st.text(st.sampled_from(SYLLABLES), max_size=8))
def test_split_words_compose_again(word: str) -> None:
    assert compose_jamo("".join(map(split_jamo, word))) == word


@given(st.characters(codec=None, categories=None).filter(lambda c: not "가" <= c <= "힣"))
def test_only_syllables_split(character: str) -> None:
    assert split_jamo(character) == character


@given(st.text("ab가 ", max_size=400), st.integers(20, 60), st.integers(0, 15))
def test_windows_cover_the_whole_text(raw: str, size: int, overlap: int) -> None:
    pieces = windows(raw, size, overlap)
    assert all(len(piece) <= size for piece in pieces)
    covered = pieces[0]
    for piece in pieces[1:]:
        assert covered.endswith(piece[:overlap])
        covered += piece[overlap:]
    assert covered == raw


def test_windows_cut_at_spaces() -> None:
    assert windows("aaaa bbbb cccc dddd", 12, 2) == ["aaaa bbbb ", "b cccc dddd"]
    assert windows("") == [""]


def test_a_megabyte_is_cut_into_few_windows() -> None:
    assert len(windows("가" * 1_000_000)) < 5_000


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("안녕하세요", "ko"),
        ("hello", "en"),
        ("how to ㅋㅋㅋ 하는 법", "ko"),
        ("What does 'bap' (밥) mean in that long sentence", "en"),
    ],
)
def test_language(written: str, code: str) -> None:
    assert language(written) == code


@pytest.mark.parametrize("empty", ["", "123", "?!", "\ud800"])
def test_language_of_no_letters(empty: str) -> None:
    assert language(empty) == "en"
