"""How a base is trained: all of its weights, or LoRA beside them; in which numbers, with which memory savings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout
from slm_guardian.train import lora, pieces, stages
from slm_guardian.train.bases import Base
from slm_guardian.train.loop import device

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Tuning:
    """Choices of a run. `checkpointing` computes activations twice to keep few; `sharded` is FSDP2.

    With `bf16` a base under LoRA is held in bfloat16; what is trained is in float32 always.
    """

    lora: bool = False
    rank: int = 16
    alpha: int = 32
    bf16: bool = True
    checkpointing: bool = False
    sharded: bool = False
    template: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """What the base's weights are held in."""
        return torch.bfloat16 if self.lora and self.bf16 else torch.float32


@dataclass(frozen=True)
class Learner:
    """A model ready to train: what runs, what is saved of it, and its layout."""

    model: PreTrainedModel
    saved: PreTrainedModel | PeftModel
    layout: Layout


def learner(base: str, names: Mapping[str, str], tuning: Tuning, row: Base) -> Learner:
    """Load a base and make it ready: missing pieces added, LoRA put in. Raises ModelError."""
    place = "cpu" if tuning.sharded else device()  # FSDP moves the shards
    goes_on = tuning.lora and lora.is_adapter(base)
    _, missing = pieces.read_layout(base, names, tuning.template)
    if goes_on and missing:
        raise ModelError(
            f"the LoRA {base} lacks {len(missing)} pieces of the policy: export it merged, then train on that"
        )
    load = stages.load_base if goes_on else stages.load_model  # which merges a LoRA
    model: Any = load(base, tuning.dtype, place)
    saved: Any = lora.go_on(model, base) if goes_on else model
    layout = stages.prepare(model, base, names, tuning.template)
    if tuning.lora and not goes_on:
        ids = layout.tokenizer.get_vocab()
        new = [ids[token] for token in missing]
        saved = lora.attach(model, base, tuning.rank, tuning.alpha, row.targets, new)
    model.to(place)
    if tuning.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return Learner(model, saved, layout)
