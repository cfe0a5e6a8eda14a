"""What a base needs to become a guardian: the special tokens, the policy's pieces, and the frame around a query.

A new row of the embeddings starts as the mean of those of the words that say what it means, so that it lies among
words at once and not in a place of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slm_guardian.errors import ModelError
from slm_guardian.layout import END, EXPL, HARM, PRED, SAFE, SPECIAL_TOKENS, Frame, Layout, piece
from slm_guardian.policy import Policy

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

_MEANINGS = {
    PRED: "Is this request safe or harmful?",
    EXPL: "explanation and answer",
    SAFE: "safe",
    HARM: "harmful",
    END: "end of the answer",
}
_SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_QUERY = "\u2063query\u2063"  # stands for the query while a template is rendered


def meanings(policies: Sequence[Policy]) -> dict[str, str]:
    """Words for each category, its names in all policies, and each fact, the parts of its key."""
    names: dict[str, list[str]] = {}
    for policy in policies:
        for category in policy.categories:
            names.setdefault(category.id, []).append(category.name)
    facts = sorted({fact for policy in policies for fact in policy.facts})
    return {name: ", ".join(dict.fromkeys(own)) for name, own in names.items()} | dict.fromkeys(facts, "")


def read_layout(base: str, names: Iterable[str], template: bool = True) -> tuple[Layout, list[str]]:
    """The layout of a base with the special tokens and the pieces of names, and which of these it lacked.

    An earlier stage keeps its frame around a query; a new base gets that of its chat `template`, if it has one.
    """
    tokenizer = read_tokenizer(base)
    wanted = (*SPECIAL_TOKENS, *map(piece, names))
    missing = [token for token in wanted if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([t for t in missing if t in SPECIAL_TOKENS])
    tokenizer.add_tokens([t for t in missing if t not in SPECIAL_TOKENS])
    known = (Path(base) / "guardian.json").exists()
    return Layout(tokenizer, Frame.load(base) if known else frame_of(base, template)), missing


def add_rows(
    model: PreTrainedModel, layout: Layout, names: Mapping[str, str], missing: Sequence[str]
) -> list[int]:
    """Give a model rows for the pieces that its base lacked; `names` has words for them. The ids of the new rows."""
    said = _MEANINGS | {piece(name): words or _words(name) for name, words in names.items()}
    ids = layout.tokenizer.get_vocab()
    new = [ids[token] for token in missing]
    grow(model, layout.tokenizer)
    _start(
        model, new, [layout.tokenizer.encode(said[token], add_special_tokens=False).ids for token in missing]
    )
    return new


def grow(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Give a model rows for all tokens; many bases have some to spare."""
    rows: Any = model.get_input_embeddings()
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows.weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)


def read_tokenizer(base: str) -> Tokenizer:
    """`tokenizer.json` of a directory or hub id. Raises ModelError."""
    from tokenizers import Tokenizer

    path = file_of(base, "tokenizer.json")
    if path is None:
        raise ModelError(f"{base} has no tokenizer.json: choose a base with a fast tokenizer")
    return Tokenizer.from_file(str(path))


def file_of(base: str, name: str) -> Path | None:
    """A file of a directory, or of a hub id (fetched); None where there is none."""
    if Path(base).is_dir():
        path = Path(base) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(base, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{base} cannot be fetched: check the hub id, the network and your access"
        ) from error
    return Path(found) if found else None


def frame_of(base: str, template: bool = True) -> Frame:
    """What a base wants around a query: its template's user turn, else what its tokenizer opens a text with."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    if template and tokenizer.chat_template:
        turn: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": _QUERY}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # where a template knows it; the verdict comes at once
        )
        before, _, after = turn.partition(_QUERY)
        return Frame(before, after)
    opens = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return Frame(str(tokenizer.bos_token)) if opens else Frame()


def copy_side_files(base: str, out: Path) -> None:
    """Keep what plain transformers and servers read beside `tokenizer.json`."""
    for name in _SIDE_FILES:
        path = file_of(base, name)
        if path is not None and path.resolve() != (out / name).resolve():
            shutil.copyfile(path, out / name)


def _words(name: str) -> str:
    return name.replace(".", " ").replace("_", " ")


@torch.no_grad()
def _start(model: PreTrainedModel, new: Sequence[int], words: Sequence[Sequence[int]]) -> None:
    """Set new rows of the embeddings, and of a head that is not tied to them, to the means of rows of words."""
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for weight in {id(layer.weight): layer.weight for layer in layers if layer is not None}.values():
        for row, ids in zip(new, words, strict=True):
            weight[row] = weight[list(ids)].mean(0)
