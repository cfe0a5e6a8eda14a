"""Vocabulary extension: an English word-piece tokenizer learns Korean, and forgets what nobody uses.

English pieces of the base are kept as they are (their embeddings carry the knowledge), pruned to those that
occur in the corpora; Korean pieces come from a unigram model trained on Korean text. The result is one plain
WordPiece `tokenizer.json` with the five special tokens and one piece per policy category and fact.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from slm_guardian.layout import SPECIAL_TOKENS, piece

UNKNOWN = "[UNK]"
_HANGUL_ONLY = re.compile(r"[가-힣ㄱ-ㅎㅏ-ㅣ]+")
_HANGUL_OR_SPECIAL = re.compile(r"\[[A-Z]+\]|(##)?[\u1100-\u11ff가-힣ㄱ-ㆎ]")
_JAMO = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"


def build_tokenizer(
    base: Path,
    corpus: Sequence[str],
    names: Sequence[str],
    korean_size: int = 13_000,
    english_size: int = 15_000,
) -> Tokenizer:
    """WordPiece tokenizer of special tokens, `names` (categories, facts), English and Korean pieces.

    `base` holds the English tokenizer.json; `corpus` is text in both languages. Deterministic.
    """
    pieces = [UNKNOWN, *SPECIAL_TOKENS, *map(piece, names)]
    pieces += english_pieces(base, corpus, english_size)
    pieces += korean_pieces(corpus, korean_size)
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=400))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_uncovered(vocabulary), "isolated"), pre_tokenizers.BertPreTokenizer()]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def english_pieces(base: Path, corpus: Iterable[str], size: int) -> list[str]:
    """The `size` base pieces that the corpus uses most, and all single ASCII characters."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts: Counter[str] = Counter()
    for encoding in tokenizer.encode_batch(list(corpus), add_special_tokens=False):
        counts.update(encoding.tokens)
    known = tokenizer.get_vocab()
    characters = string.ascii_lowercase + string.digits
    needed = [*string.punctuation, *characters, *("##" + c for c in characters)]
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    chosen = [t for t in dict.fromkeys([*needed, *ranked]) if t in known and not _HANGUL_OR_SPECIAL.match(t)]
    return chosen[:size]


def korean_pieces(corpus: Iterable[str], size: int) -> list[str]:
    """Word-initial and continuation pieces from a unigram model over the Hangul of the corpus.

    Every syllable of the corpus is there in both forms, so that no known syllable is ever unknown.
    """
    words: Counter[str] = Counter()
    for text in corpus:
        words.update(_HANGUL_ONLY.findall(text))
    syllables = Counter(c for word, n in words.items() for c in set(word) for _ in range(min(n, 3)))
    alphabet = sorted({c for c, n in syllables.items() if n >= 2} | set(_JAMO))
    covered = [form for c in alphabet for form in (c, "##" + c)]
    unique = dict.fromkeys([*covered, *learned_pieces(words, size)])
    pieces = [p for p in unique if _HANGUL_ONLY.fullmatch(p.removeprefix("##"))]
    return pieces[: max(size, len(covered))]


def learned_pieces(words: Counter[str], size: int, longest: int = 7) -> list[str]:
    """Pieces of a unigram model over words, best first; continuation pieces take "##"."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        unk_token="<unk>",
        special_tokens=["<unk>"],
        max_piece_length=longest,
        show_progress=False,
    )
    repeated = (word for word in sorted(words) for _ in range(min(words[word], 200)))
    tokenizer.train_from_iterator(repeated, trainer)
    found = (token for token, _ in json.loads(tokenizer.to_str())["model"]["vocab"])
    # Word-initial pieces carry Metaspace's mark.
    return [token[1:] if token.startswith("▁") else "##" + token for token in found]


def _normalizer() -> normalizers.Normalizer:
    # Stripping accents takes Hangul apart (NFD); the closing NFC puts it together again.
    bert = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=True, lowercase=True
    )
    return normalizers.Sequence([bert, normalizers.NFC()])


def _uncovered(vocabulary: dict[str, int]) -> Regex:
    """Characters without a continuation piece: each becomes a word of its own.

    WordPiece turns a whole word into [UNK] for one unknown character in it; alone, it costs only itself.
    """
    covered = sorted({t[2:] for t in vocabulary if t.startswith("##") and len(t) == 3})
    return Regex(f"[^\\s{''.join(_ranges(covered))}]")


def _ranges(characters: Sequence[str]) -> list[str]:
    ranges: list[list[int]] = []
    for code in map(ord, characters):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return [f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in ranges]
