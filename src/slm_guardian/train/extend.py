"""Give a trained guardian one more language: pieces for its words, each starting from its English neighbours.

All that the guardian knows stays: no piece is dropped or moved, so what it reads without a new piece is judged as
before. What the new pieces mean is learned by the safety stage that follows (`guardian train`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout, piece
from slm_guardian.train.loss import is_prefix
from slm_guardian.train.transfer import Pair, initial_embeddings
from slm_guardian.train.vocabulary import learned_pieces

_LATIN_WORD = re.compile(r"[a-z]{2,}")
_LONGEST = 14  # letters of a piece


def extended_tokenizer(path: Path, texts: Iterable[str], names: Sequence[str], size: int) -> Tokenizer:
    """The word-piece tokenizer of `path` with `names` and up to `size` pieces of the texts' words behind its own."""
    values = json.loads(path.read_text("utf-8"))
    vocabulary = values["model"].get("vocab") if values.get("model", {}).get("type") == "WordPiece" else None
    if not isinstance(vocabulary, dict):
        raise ModelError(f"{path} is no word-piece tokenizer: only a prefix guardian is extended")
    wanted = [*map(piece, names), *latin_pieces(texts, size)]
    for token in dict.fromkeys(wanted):
        vocabulary.setdefault(token, len(vocabulary))
    return Tokenizer.from_str(json.dumps(values))


def latin_pieces(texts: Iterable[str], size: int) -> list[str]:
    """The `size` best word-initial and continuation pieces of the Latin words of the texts, lower case."""
    words = Counter(word for text in texts for word in _LATIN_WORD.findall(text.lower()))
    learned = learned_pieces(words, size, _LONGEST)
    return [token for token in learned if _LATIN_WORD.fullmatch(token.removeprefix("##"))][:size]


def extend(model: PreTrainedModel, old: Layout, new: Layout, pairs: Sequence[Pair]) -> None:
    """Resize the model to the layout `new`; new rows are the mean of the English pieces that they occur with."""
    if not is_prefix(model):
        raise ModelError("only a prefix guardian is extended: causal bases know many languages already")
    embeddings: Any = model.get_input_embeddings()
    known = old.tokenizer.get_vocab()
    start = initial_embeddings(new, known, embeddings.weight.detach().cpu().numpy(), pairs)
    model.resize_token_embeddings(new.size, mean_resizing=False)
    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight.copy_(torch.from_numpy(start).to(embeddings.weight.device))
    model.tie_weights()
