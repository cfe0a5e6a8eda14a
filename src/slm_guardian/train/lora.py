"""LoRA: a base stays as it is, and a guardian is a few megabytes beside it (Hu et al. 2021, 2106.09685), by PEFT.

The rows of pieces that the base lacked are trained, too. A base that has them all (a guardian) gets an adapter of plain
LoRA layers, which servers can switch by request.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from slm_guardian.errors import ModelError
from slm_guardian.train.bases import base_of
from slm_guardian.train.pieces import grow, read_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"


def attach(
    model: PreTrainedModel, base: str, rank: int, alpha: int, targets: Sequence[str], new: Sequence[int]
) -> PeftModel:
    """Put LoRA layers into a model, in place; `new` rows of embeddings and head are trained, too."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets[0] if len(targets) == 1 else list(targets),
        trainable_token_indices=_rows(model, new) or None,
        task_type=None if model.config.model_type == "bert" else "CAUSAL_LM",
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).is_dir() else base,
    )
    with _quiet():
        return _trainable(get_peft_model(model, config))


def go_on(model: PreTrainedModel, directory: str) -> PeftModel:
    """Put the trained LoRA of a directory into its base, in place, to be trained on."""
    return _trainable(_load(model, directory, is_trainable=True))


def merged(model: PreTrainedModel, directory: str) -> PreTrainedModel:
    """The base with the LoRA of a directory merged into its weights: a plain model again."""
    adapter: Any = _load(model, directory, is_trainable=False)
    return adapter.merge_and_unload()


def is_adapter(directory: str | Path) -> bool:
    """Whether a directory holds a LoRA and not a whole model."""
    return (Path(directory) / CONFIG).is_file()


def _load(model: PreTrainedModel, directory: str, is_trainable: bool) -> PeftModel:
    from peft import PeftModel

    grow(model, read_tokenizer(directory))
    try:
        with _quiet():
            return PeftModel.from_pretrained(model, directory, is_trainable=is_trainable)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{directory} does not fit its base {base_of(directory)}: train it again") from error


def _rows(model: PreTrainedModel, new: Sequence[int]) -> dict[str, list[int]]:
    """New rows by the name of their layer; a tied head follows the embeddings by itself."""
    if not new:
        return {}
    layers: list[Any] = [model.get_input_embeddings()]
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is not layers[0].weight:
        layers.append(head)
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)]: list(new) for layer in layers}


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT asks transformers for an attribute that has a new name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _trainable(adapter: PeftModel) -> PeftModel:
    """What is trained is kept in float32, whatever the base is in: small steps are lost in bfloat16."""
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return adapter
