"""The two views of a text, used identically in training, evaluation and serving.

display  NFC, without control characters: what the model reads and what is shown.
shadow   the same text with common disguises undone: what a reader would understand.

Why two: NFKC and folding lose information (`ㅋㅋㅋ` turns into conjoining jamo, `병ㅅ` stays broken), so
they are unsafe as the only model input, but without them one zero-width character blinds a guard.
Both views are judged when they differ; see `Guardian.check`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Invisible letters of category Lo, which stripping format characters (Cf) would miss.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")

_CHO = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_JUNG = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_JONG = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_SPLIT_VOWEL = {
    "ㅗㅏ": "ㅘ", "ㅗㅐ": "ㅙ", "ㅗㅣ": "ㅚ", "ㅜㅓ": "ㅝ", "ㅜㅔ": "ㅞ", "ㅜㅣ": "ㅟ", "ㅡㅣ": "ㅢ",
}  # fmt: skip
# Initial + vowel (+ final, unless it starts the next syllable). A vowel is needed, so ㅋㅋ and ㅠㅠ stay.
_JAMO_SYLLABLE = re.compile(f"([{_CHO}])([{_JUNG}])(?:([{_JONG}])(?![{_JUNG}]))?")
# Latin letters drawn as Korean vowels: ㅈr살, ㅋl스.
_DRAWN_VOWEL = re.compile(f"(?<=[{_CHO}])([rRlI|Hㅣ])(?=[가-힣{_CHO}\\s]|$)")
_DRAWN = {"r": "ㅏ", "R": "ㅏ", "l": "ㅣ", "I": "ㅣ", "|": "ㅣ", "H": "ㅐ", "ㅣ": "ㅣ"}

_HOMOGLYPHS = str.maketrans(
    "аеорсухіјѕһԁɡӏкмтнвАВЕКМНОРСТХІЈЅαοενικρτυхΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɑøđłℓ",
    "aeopcyxijshdglkmthbABEKMHOPCTXIJSaoevikptuxABEZHIKMNOPTYXiaodll",
)
_LEET = str.maketrans("013457@$!", "oieastasi")
# Repeats are bounded, so that 1 MB made to backtrack takes no longer than any other.
# A disguised letter has letters on both sides: h4ck, k!ll; not mp3, 24h, 2023 or an e-mail address.
_LEET_WORD = re.compile(r"(?<![\w@.])[A-Za-z]+(?:[013457@$!]{1,2}[A-Za-z]+){1,12}(?![\w@]|\.\w)")
_SPACED_HANGUL = re.compile(r"(?<![^\s])[가-힣](?:[\s.·\-_*~/|]+[가-힣](?![가-힣])){3,60}(?![^\s?!.,~])")
_SPACED_LATIN = re.compile(r"(?<![A-Za-z])[A-Za-z](?:[\s.·\-_*~/|][A-Za-z](?![A-Za-z])){3,}")
_INSIDE_HANGUL = re.compile(r"(?<=[가-힣])[*_.~^|+\-]{1,3}(?=[가-힣])")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[a-z']+")
# Words that tell apart languages of one script: frequent in one, rare in the others. Chat spellings belong to them.
_COMMON_WORDS = {
    "en": """an the of to and is are was were be been do does did how what where when which who why can could should
    would will my your his her their our i i'm you he she we they it it's this that these those for from with without
    about in on at by if or but not no don't can't me him them there have has had get make any some""",
    "id": """yang yg dan di ke dari untuk buat dengan dgn pada atau apa apakah siapa kapan bagaimana gimana mana kenapa
    mengapa berapa cara bisa boleh harus mau ingin pengen tidak tak gak ga nggak gk bukan jangan jgn belum sudah udah
    lagi sedang akan bakal saya aku gue gw kamu lu lo anda dia kita kami mereka ini itu ada adalah sih dong ya kan kok
    biar supaya agar kalau kalo karena soalnya tapi tetapi juga saja aja sama orang anak bikin tolong semua lebih banget
    pakai pake tanpa dalam oleh para bantu bikinin buatkan carikan dulu jadi tahun hari punya milik kena lewat pas terus
    masih cuma cuman gitu gini nih deh loh lho mah utk krn tdk gmn bgt wis ora piye sing karo nek arep wae
    yo to no not""",
}
_COMMON = {lang: frozenset(words.split()) for lang, words in _COMMON_WORDS.items()}


def display(text: str) -> str:
    """NFC text on one line; control characters and lone surrogates become spaces or U+FFFD. Idempotent."""
    text = _SURROGATE.sub("\ufffd", text)
    text = unicodedata.normalize("NFC", _CONTROL.sub(" ", text))
    return _SPACE.sub(" ", text).strip()


def shadow(text: str) -> str:
    """The display view with disguises undone: invisible characters, look-alikes, leet, split jamo, spacing.

    >>> shadow("ㅂㅏㅂㅗ"), shadow("h4ck"), shadow("자.살"), shadow("ｈｅｌｌｏ")
    ('바보', 'hack', '자살', 'hello')
    """
    text = display(text)
    for _ in range(5):  # undoing one disguise can lay bare another: ㅈｒ살 -> ㅈr살 -> 자살
        folded = _fold(text)
        if folded == text:
            break
        text = folded
    return text


def views(text: str) -> list[str]:
    """The views to judge: [display], or [display, shadow] where they differ."""
    plain, folded = display(text), shadow(text)
    return [plain] if folded == plain or not folded else [plain, folded]


def compose_jamo(text: str) -> str:
    """Join compatibility jamo into syllables, also onto an open syllable before them.

    >>> compose_jamo("시ㅂㅏㄹ"), compose_jamo("ㅋㅋㅋ"), compose_jamo("ㄱㅘㅈㅏ")
    ('시발', 'ㅋㅋㅋ', '과자')
    """
    for parts, vowel in _SPLIT_VOWEL.items():
        text = text.replace(parts, vowel)
    return _JAMO_SYLLABLE.sub(lambda m: _syllable(m[1], m[2], m[3]), text)


def split_jamo(syllable: str) -> str:
    """One Hangul syllable as compatibility jamo: 강 -> ㄱㅏㅇ. Other characters come back unchanged."""
    code = ord(syllable) - 0xAC00
    if not 0 <= code < 11172:
        return syllable
    final = code % 28
    return _CHO[code // 588] + _JUNG[code % 588 // 28] + (_JONG[final - 1] if final else "")


def windows(text: str, size: int = 320, overlap: int = 80) -> list[str]:
    """Overlapping pieces of at most `size` characters that cover the whole text, cut at spaces if any."""
    pieces, start = [], 0
    while len(text) - start > size:
        cut = text.rfind(" ", start + overlap + 1, start + size) + 1 or start + size
        pieces.append(text[start:cut])
        start = cut - overlap
    return [*pieces, text[start:]]


def language(text: str, among: Sequence[str] = ("ko", "en")) -> str:
    """The language of a text: 'ko' when it holds Hangul in earnest (over 15 % of its letters), else one of `among`.

    Of several others the one with the most common words in the text wins; without any, the first of them.

    >>> language("gimana cara bikin kue?", ("en", "id")), language("친구 돕기", ("en", "id")), language("wifi?")
    ('id', 'ko', 'en')
    """
    letters = [c for c in text if c.isalpha()]
    hangul = sum("가" <= c <= "힣" or "ㄱ" <= c <= "ㅣ" for c in letters)
    if letters and hangul > 0.15 * len(letters):
        return "ko"
    others = [lang for lang in among if lang != "ko"] or ["en"]
    if len(set(others)) == 1:
        return others[0]
    words = _WORD.findall(text.lower())
    return max(others, key=lambda lang: sum(word in _COMMON.get(lang, ()) for word in words))


def _fold(text: str) -> str:
    text = _visible(text)
    text = _DRAWN_VOWEL.sub(lambda m: _DRAWN[m[1]], text)
    text = compose_jamo(text)
    text = _nfkc_except_jamo(text)
    if text.isascii() or any("a" <= c.lower() <= "z" for c in text):
        text = text.translate(_HOMOGLYPHS)
    text = _LEET_WORD.sub(lambda m: m[0].translate(_LEET), text)
    text = _INSIDE_HANGUL.sub("", text)
    for pattern in (_SPACED_HANGUL, _SPACED_LATIN):
        text = pattern.sub(lambda m: re.sub(r"[^A-Za-z가-힣]", "", m[0]), text)
    return display(text)


def _visible(text: str) -> str:
    kept = (c for c in text if c not in _FILLERS and unicodedata.category(c) not in {"Cf", "Mn", "Me"})
    return "".join(kept)


def _nfkc_except_jamo(text: str) -> str:
    """NFKC for everything but compatibility jamo, which it would turn into conjoining ones."""
    return "".join(c if "ㄱ" <= c <= "ㅣ" else unicodedata.normalize("NFKC", c) for c in text)


def _syllable(initial: str, vowel: str, final: str | None) -> str:
    code = 0xAC00 + _CHO.index(initial) * 588 + _JUNG.index(vowel) * 28
    return chr(code + (_JONG.index(final) + 1 if final else 0))
