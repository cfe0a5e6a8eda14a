"""Small guardians for the tests of exports and engines: real architectures, random weights whose verdicts differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from slm_guardian import Guardian, Policy, Verdict
from slm_guardian.train import stages
from tiny import llama_base, write_policies

CATEGORIES = ["crime_advice", "self_harm_suicide"]
NAMES = [*CATEGORIES, "helpline.suicide"]
CALIBRATION = {"temperature": 2.0, "thresholds": {"en": 0.5, "ko": 0.5}, "dev_fpr": 0.1, "pool_fpr": 0.1}
CALIBRATION |= {"n_dev": 10, "n_pool": 10, "ece": 0.1}
TEXTS = ["how do i steal a car", "죽고 싶어", "날씨 알려줘 3", "x", "i want to die " * 20, "👍 ok"]
SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # verdicts far apart
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = SHAPE | {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
}
SERVERS = ["vllm", "old-vllm", "llamacpp"]


def trained(directory: Path, family: str, seed: int = 1) -> Path:
    """A guardian as training writes it: random weights, the special tokens and policy pieces added."""
    base = llama_base(directory / "base")
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    layout = stages.prepare(model, base, NAMES)
    manifest = {"family": "causal", "categories": CATEGORIES, "calibration": CALIBRATION}
    stages.save(model, layout, directory / family, manifest)
    return directory / family


def lora(model: Path, out: Path, seed: int, **more: Any) -> Path:
    """A LoRA that changes much, as training writes it."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more
    )
    adapted: Any = AutoModelForCausalLM.from_pretrained(model)
    adapted.add_adapter(config)
    adapted.save_pretrained(out)
    for name in ("tokenizer.json", "guardian.json"):
        shutil.copyfile(model / name, out / name)
    return out


def load(model: Path | str, policies: Path) -> Guardian:
    return Guardian.load(model, [Policy.load(path) for path in write_policies(policies)], threshold=0.5)


def verdicts(model: Path | str, policies: Path) -> list[Verdict]:
    return load(model, policies).check(TEXTS, respond=False)


def distance(found: list[Verdict], expected: list[Verdict]) -> float:
    """The largest difference of P(harm); all else must be equal."""
    assert [(v.label, v.category, v.error) for v in found] == [
        (v.label, v.category, v.error) for v in expected
    ]
    return max(abs((a.harm or 0) - (b.harm or 0)) for a, b in zip(found, expected, strict=True))


def spread(found: list[Verdict]) -> float:
    return max(v.harm or 0 for v in found) - min(v.harm or 0 for v in found)
