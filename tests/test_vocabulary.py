"""The extended vocabulary: special tokens first, no known syllable unknown, a bad character costs itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from conftest import CORPUS, NAMES
from slm_guardian.layout import SPECIAL_TOKENS, piece
from slm_guardian.train.vocabulary import UNKNOWN, build_tokenizer, english_pieces, korean_pieces


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text, add_special_tokens=False).tokens


def test_special_tokens_and_names_come_first(tiny_tokenizer: Tokenizer) -> None:
    ids = [tiny_tokenizer.token_to_id(t) for t in (UNKNOWN, *SPECIAL_TOKENS, *map(piece, NAMES))]
    assert ids == list(range(len(ids)))


def test_ids_have_no_gap(tiny_tokenizer: Tokenizer) -> None:
    ids = sorted(tiny_tokenizer.get_vocab().values())
    assert ids == list(range(len(ids)))


def test_building_again_gives_the_same(tiny_tokenizer: Tokenizer, base_directory: Path) -> None:
    again = build_tokenizer(base_directory, CORPUS, NAMES, korean_size=300, english_size=200)
    assert again.to_str() == tiny_tokenizer.to_str()


def test_nothing_of_the_corpus_is_unknown(tiny_tokenizer: Tokenizer) -> None:
    assert not any(UNKNOWN in tokens(tiny_tokenizer, text) for text in CORPUS)


def test_unused_base_pieces_are_dropped(tiny_tokenizer: Tokenizer) -> None:
    assert tiny_tokenizer.token_to_id("hello") is not None
    for dropped in ("never", "[CLS]", "[PAD]", "[unused1]"):
        assert tiny_tokenizer.token_to_id(dropped) is None


def test_a_known_syllable_is_known_anywhere(tiny_tokenizer: Tokenizer) -> None:
    assert tokens(tiny_tokenizer, "찰경") == ["찰", "##경"]


@pytest.mark.parametrize("strange", ["쀍", "☃", "漢", "😀"])
def test_an_unknown_character_costs_only_itself(tiny_tokenizer: Tokenizer, strange: str) -> None:
    parts = tokens(tiny_tokenizer, f"hello{strange}call")
    assert parts == ["hello", UNKNOWN, "call"]


def test_a_long_word_is_not_one_unknown(tiny_tokenizer: Tokenizer) -> None:
    assert UNKNOWN not in tokens(tiny_tokenizer, "a" * 399)


def test_text_is_lowered_and_stays_composed(tiny_tokenizer: Tokenizer) -> None:
    assert tokens(tiny_tokenizer, "HELLO") == tokens(tiny_tokenizer, "hello") == ["hello"]
    assert tiny_tokenizer.decode(tiny_tokenizer.encode("경찰").ids) == "경찰"


def test_saved_tokenizer_is_the_same(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (*CORPUS[:5], "☃ 쀍 <|pred|>"):
        assert loaded.encode(text).ids == tiny_tokenizer.encode(text).ids


def test_english_pieces_rank_by_use(base_directory: Path) -> None:
    pieces = english_pieces(base_directory, ["police police hello"], 1000)
    assert pieces.index("police") < pieces.index("hello")
    assert "please" not in pieces
    assert {"a", "##z", "0", "##9", "!"} <= set(pieces)
    assert len(english_pieces(base_directory, ["police"], 10)) == 10


def test_korean_pieces_hold_hangul_only() -> None:
    pieces = korean_pieces(["경찰서에 abc 123 가다", "경찰서에 가다"], 200)
    assert {"경", "##경", "ㅋ", "##ㅋ"} <= set(pieces)
    assert len(pieces) == len(set(pieces))
    assert not any(c.isascii() for p in pieces for c in p.removeprefix("##"))


def test_syllables_are_kept_beyond_the_size() -> None:
    assert {"경", "##찰"} <= set(korean_pieces(["경찰", "경찰"], 20))


@pytest.mark.parametrize("corpus", [[], ["hello"], ["!"]])
def test_a_corpus_without_korean_still_builds(base_directory: Path, corpus: list[str]) -> None:
    tokenizer = build_tokenizer(base_directory, corpus, NAMES, 300, 200)
    assert tokens(tokenizer, "hey ㅋ") == ["h", "##e", "##y", "ㅋ"]
