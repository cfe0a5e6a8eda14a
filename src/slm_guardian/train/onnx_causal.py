"""The ONNX graph of a causal guardian, of whatever architecture transformers knows, by torch's own exporter.

Inputs and outputs are those of the prefix graph (see onnx_graph.py), so one engine runs both; a property of the
file, `attention: causal`, tells it that no token sees a later one.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel

from slm_guardian.engines.onnx import AWAY, CAUSAL
from slm_guardian.errors import ModelError
from slm_guardian.train.loss import logits

OUTPUTS = ("scores", "logits", "states", "keys", "values")


class _Decoder(nn.Module):
    """A causal model as the engine wants it: one tensor for all layers' keys, one for their values."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        select: Tensor,
        tokens: Tensor,
        next: Tensor,
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache(list(zip(past_keys.unbind(0), past_values.unbind(0), strict=True)))
        hidden = self.model.base_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._masks(mask, positions),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        states = hidden.gather(1, select[:, :, None].expand(-1, -1, hidden.shape[-1]))
        whole = logits(self.model, states[:, next]).flatten(0, 1)
        keys, values = (
            torch.stack([getattr(layer, of) for layer in cache.layers]) for of in ("keys", "values")
        )
        return logits(self.model, states, tokens), whole, states, keys, values

    def _masks(self, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask of each kind of layer: a sliding one sees only the last so many tokens."""
        config, kinds = self.model.config.get_text_config(), _layer_kinds(self.model)
        window = getattr(config, "sliding_window", None)
        if not window or kinds == {"full_attention"}:
            return mask
        behind = positions[:, None, :, None] - torch.arange(mask.shape[-1], device=mask.device)
        sliding = mask.masked_fill(behind >= window, float(AWAY))
        return {"full_attention": mask, "sliding_attention": sliding} if len(kinds) > 1 else sliding


def write(model: PreTrainedModel, path: Path, kind: str = "f32") -> None:
    """Write the graph of a causal model; `int8` quantises its weights, and activations as they come.

    Weights beyond 2 GB go into a file beside it. Raises ModelError for layers that are neither full nor sliding.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if odd := _layer_kinds(model) - {"full_attention", "sliding_attention"}:
        raise ModelError(f"layers of the kind {min(odd)} have no ONNX form here: use --to hf or --to gguf")
    example = _example(model)
    model.float().eval().set_attn_implementation("eager")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that are not needed
    with warnings.catch_warnings(action="ignore"), torch.no_grad():  # the exporter's own, of several kinds
        program: Any = torch.onnx.export(
            _Decoder(model),
            kwargs=example,
            dynamo=True,
            dynamic_shapes=_shapes(),
            input_names=list(example),
            output_names=OUTPUTS,
            verbose=False,
        )
    program.model.metadata_props.update(CAUSAL)
    program.save(path)
    if kind == "int8":
        quantize_dynamic(path, path, weight_type=QuantType.QInt8, per_channel=True)


def _layer_kinds(model: PreTrainedModel) -> set[str]:
    """How the layers attend, by transformers' names; empty where all of them do as the model does."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ())


def _example(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs of some size; sizes that differ from each other and from 1, which the exporter takes for fixed."""
    config: Any = model.config.get_text_config()
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    past = torch.zeros(config.num_hidden_layers, 2, heads, 3, size)
    return {
        "ids": torch.zeros(2, 5, dtype=torch.long),
        "positions": torch.arange(3, 8).repeat(2, 1),
        "mask": torch.zeros(2, 1, 5, 8),
        "past_keys": past,
        "past_values": past.clone(),
        "select": torch.tensor([[2, 3, 4, 4]] * 2),
        "tokens": torch.arange(6),
        "next": torch.tensor([0, 1, 2, 3, 3, 2, 1]),
    }


def _shapes() -> dict[str, dict[int, Any]]:
    """Which sizes differ from run to run; how they depend on each other the exporter finds out."""
    free = {
        "ids": (0, 1),
        "positions": (0, 1),
        "mask": (0, 2, 3),
        "past_keys": (1, 3),
        "past_values": (1, 3),
        "select": (0, 1),
        "tokens": (0,),
        "next": (0,),
    }
    return {name: dict.fromkeys(sizes, Dim.DYNAMIC) for name, sizes in free.items()}
