"""Bases that a guardian is trained on: where they are, what their licence is, and how to start with them.

Any directory or hub id of a causal model, or of a prefix one (BERT-type), will do; the table holds starting points for
those that a Korean guardian is likely to be built on. Rates are starting points of common practice, not measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slm_guardian.errors import InputError, ModelError

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ENCODER = ("query", "key", "value", "dense")
_LLAMA_LICENCE = "Llama 3.2 Community"
_NAVER_LICENCE = "HyperCLOVA X SEED (terms)"
_LG_LICENCE = "EXAONE 1.2-NC (no commercial use)"


@dataclass(frozen=True)
class Base:
    """How to start with a base. `lr` is for full fine-tuning, `lora_lr` for LoRA; new rows take `embedding_lr`."""

    name: str
    hub: str
    model_type: str
    licence: str
    lr: float
    lora_lr: float = 2e-4
    embedding_lr: float = 1e-4
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = _LINEAR
    template: bool = True


BASES: tuple[Base, ...] = (
    Base("qwen3-0.6b", "Qwen/Qwen3-0.6B", "qwen3", "Apache-2.0", 2e-5),
    Base("qwen3-1.7b", "Qwen/Qwen3-1.7B", "qwen3", "Apache-2.0", 1e-5),
    Base("qwen3-4b", "Qwen/Qwen3-4B-Instruct-2507", "qwen3", "Apache-2.0", 1e-5),
    Base("qwen3-8b", "Qwen/Qwen3-8B", "qwen3", "Apache-2.0", 5e-6, 1e-4),
    Base("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "llama", _LLAMA_LICENCE, 1e-5),
    Base("llama-3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", "llama", _LLAMA_LICENCE, 1e-5),
    Base("gemma-3-270m", "google/gemma-3-270m-it", "gemma3_text", "Gemma (terms)", 2e-5),
    Base("gemma-3-1b", "google/gemma-3-1b-it", "gemma3_text", "Gemma (terms)", 1e-5),
    Base("exaone-4.0-1.2b", "LGAI-EXAONE/EXAONE-4.0-1.2B", "exaone4", _LG_LICENCE, 1e-5),
    Base("kanana-1.5-2.1b", "kakaocorp/kanana-1.5-2.1b-instruct-2505", "llama", "Apache-2.0", 1e-5),
    Base("kanana-1.5-8b", "kakaocorp/kanana-1.5-8b-instruct-2505", "llama", "Apache-2.0", 5e-6, 1e-4),
    Base(
        "clova-seed-0.5b",
        "naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-0.5B",
        "llama",
        _NAVER_LICENCE,
        2e-5,
    ),
    Base(
        "clova-seed-1.5b",
        "naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-1.5B",
        "llama",
        _NAVER_LICENCE,
        1e-5,
    ),
)
_PREFIX = Base("", "", "bert", "", lr=1e-4, embedding_lr=3e-4, targets=_ENCODER, template=False)
_OTHER = Base("", "", "", "", lr=1e-5, targets=("all-linear",))


def resolve(base: str) -> str:
    """A directory or hub id: of a name in the table, or the one given. Raises InputError for anything else."""
    if Path(base).is_dir():
        return base
    named = next((row.hub for row in BASES if row.name == base.lower()), None)
    if named is None and base.count("/") != 1:
        raise InputError(f"no base {base}: pass a directory, a hub id, or a name of `guardian bases`")
    return named or base


def settings_for(base: str, model_type: str) -> Base:
    """The row of a base, else the first one of its architecture, else what fits any causal model."""
    if model_type == "bert":
        return _PREFIX
    own = next((row for row in BASES if row.hub == base), None)
    alike = next((row for row in BASES if row.model_type == model_type), _OTHER)
    return own or replace(alike, name="", hub="", licence="")  # an architecture has no licence


def load_config(base: str) -> Any:
    """The configuration of a base; of a LoRA's base for a LoRA directory. Raises ModelError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base_of(base))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{base} has no usable config.json: pass a Hugging Face directory or hub id"
        ) from error


def base_of(directory: str | Path) -> str:
    """What a LoRA directory was trained on; any other directory or hub id is its own base."""
    import json

    path = Path(directory) / "adapter_config.json"
    return (
        json.loads(path.read_text("utf-8"))["base_model_name_or_path"] if path.is_file() else str(directory)
    )


def table() -> list[Mapping[str, str]]:
    """The table as text, for people."""
    return [
        {
            "name": row.name,
            "hub id": row.hub,
            "licence": row.licence,
            "LoRA": f"{row.rank}/{row.alpha}",
            "lr": f"{row.lora_lr:g} / {row.lr:g}",
            "template": "chat" if row.template else "-",
        }
        for row in BASES
    ]
