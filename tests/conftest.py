"""Fixtures that several test files share."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from slm_guardian.layout import Layout
from slm_guardian.train.vocabulary import build_tokenizer

NAMES = ("crime_advice", "self_harm", "helpline.police", "helpline.suicide")
CORPUS = 5 * (
    "hello , please call the police ; they can help you .",
    "i can't tell you that, but talking helps.",
    "경찰에 전화하세요. 힘드시면 친구로서 이야기해 주세요",
    "경찰에 전화로 알리고 친구에게 이야기해 보세요",
)


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the `tokenizer.json` of a tiny English base model."""
    characters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused1]", *string.punctuation, *characters]
    pieces += ["##" + c for c in characters]
    pieces += ["hello", "please", "call", "police", "talk", "##ing", "never", "가", "##가"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    directory = tmp_path_factory.mktemp("base")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def tiny_tokenizer(base_directory: Path) -> Tokenizer:
    """A guardian's tokenizer: special tokens, policy pieces, a little English and Korean."""
    return build_tokenizer(base_directory, CORPUS, NAMES, korean_size=300, english_size=200)


@pytest.fixture(scope="session")
def layout(tiny_tokenizer: Tokenizer) -> Layout:
    return Layout(tiny_tokenizer)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: tiny networks are slower on more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
