"""Label-preserving perturbations: how people really type, and how they hide what they type.

Each is a pure function of a text and a random generator. `perturb` picks one that fits the language.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from slm_guardian.text import compose_jamo, language, split_jamo

Perturbation = Callable[[str, random.Random], str]

_ROWS_EN = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_ROWS_KO = ("ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔ", "ㅁㄴㅇㄹㅎㅗㅓㅏㅣ", "ㅋㅌㅊㅍㅠㅜㅡ")
_LEET = {"o": "0", "i": "1", "e": "3", "a": "4", "s": "5", "t": "7"}
_LOOKALIKE = {"a": "а", "e": "е", "o": "о", "p": "р", "c": "с", "x": "х", "i": "і", "s": "ѕ"}
# Consonants that Korean slang swaps: tense for plain and back (까 -> 가, 진짜 -> 진자).
_SWAPS = {"ㄱ": "ㄲ", "ㄷ": "ㄸ", "ㅂ": "ㅃ", "ㅅ": "ㅆ", "ㅈ": "ㅉ", "ㅐ": "ㅔ", "ㅔ": "ㅐ", "ㅚ": "ㅙ"}
_TAILS = ("ㅋㅋ", "ㅠㅠ", "ㅎㅎ", "??", "...", "~", "!!", " ㅇㅇ")


def neighbours(rows: tuple[str, ...]) -> dict[str, str]:
    """Keys that lie beside each key of a keyboard."""
    return {key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in rows for i, key in enumerate(row)}


_NEAR = neighbours(_ROWS_EN) | neighbours(_ROWS_KO)


def no_spaces(text: str, rng: random.Random) -> str:
    """All spaces removed."""
    return text.replace(" ", "")


def random_spaces(text: str, rng: random.Random) -> str:
    """Some spaces lost, some put in the wrong place."""
    kept = (c for c in text if c != " " or rng.random() > 0.4)
    return "".join(c + (" " if rng.random() < 0.05 and c != " " else "") for c in kept).strip()


def typo(text: str, rng: random.Random) -> str:
    """One or two letters hit beside their key, dropped, doubled or swapped."""
    for _ in range(rng.choice((1, 1, 2))):
        places = [i for i, c in enumerate(text) if c.isalpha()]
        if places:
            i = rng.choice(places)
            text = text[:i] + rng.choice((_beside, _doubled, _dropped))(text[i], rng) + text[i + 1 :]
    return text


def jamo(text: str, rng: random.Random) -> str:
    """Some syllables taken apart: 바보 -> ㅂㅏ보."""
    return "".join(split_jamo(c) if rng.random() < 0.25 else c for c in text)


def sounds(text: str, rng: random.Random) -> str:
    """Spelling by sound and slang: tense and plain consonants, ㅐ and ㅔ exchanged in some syllables."""
    return "".join(_swapped(c) if rng.random() < 0.15 else c for c in text)


def leet(text: str, rng: random.Random) -> str:
    """Digits for letters in some places: hack -> h4ck."""
    return "".join(_LEET[c] if c in _LEET and rng.random() < 0.35 else c for c in text.lower())


def homoglyphs(text: str, rng: random.Random) -> str:
    """Cyrillic look-alikes for some Latin letters."""
    return "".join(_LOOKALIKE[c] if c in _LOOKALIKE and rng.random() < 0.2 else c for c in text)


def casing(text: str, rng: random.Random) -> str:
    """All capitals, all small or capitals at random."""
    return rng.choice((str.upper, str.lower, lambda t: _mixed_case(t, rng)))(text)


def tail(text: str, rng: random.Random) -> str:
    """A chat tail, or the final punctuation lost."""
    return text.rstrip(" .?!") + rng.choice(("", "", *_TAILS))


Perturbations = tuple[Perturbation, ...]
KOREAN: Perturbations = (no_spaces, random_spaces, random_spaces, typo, typo, jamo, sounds, tail, tail)
ENGLISH: Perturbations = (no_spaces, random_spaces, typo, typo, typo, leet, homoglyphs, casing, tail)


def perturb(text: str, rng: random.Random) -> str:
    """One random perturbation that fits the language of the text; never empty."""
    chosen = rng.choice(KOREAN if language(text) == "ko" else ENGLISH)
    return chosen(text, rng).strip() or text


def _mixed_case(text: str, rng: random.Random) -> str:
    return "".join(rng.choice((c, c.swapcase())) for c in text)


def _beside(letter: str, rng: random.Random) -> str:
    parts = list(split_jamo(letter))
    i = rng.randrange(len(parts))
    parts[i] = rng.choice(_NEAR.get(parts[i].lower()) or parts[i])
    return compose_jamo("".join(parts))


def _doubled(letter: str, rng: random.Random) -> str:
    return letter * 2


def _dropped(letter: str, rng: random.Random) -> str:
    parts = split_jamo(letter)
    return compose_jamo(parts[:-1]) if len(parts) == 3 else ""


def _swapped(syllable: str) -> str:
    parts = split_jamo(syllable)
    if len(parts) == 1:
        return syllable
    pairs = _SWAPS | {v: k for k, v in _SWAPS.items() if v not in _SWAPS}
    return compose_jamo("".join(pairs.get(p, p) if i < 2 else p for i, p in enumerate(parts)))
