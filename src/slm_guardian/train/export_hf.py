"""Export to a Hugging Face directory that plain transformers and vLLM load, with a card that shows how to use it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from slm_guardian.engines import ADAPTERS
from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.evaluate.card import provenance
from slm_guardian.example import write_json
from slm_guardian.layout import END, MARK, Layout
from slm_guardian.train.bases import base_of
from slm_guardian.train.loss import is_prefix
from slm_guardian.train.stages import load_model, read_manifest

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def export_hf(
    model_dir: Path, out: Path, kind: str | None = None, adapters: Mapping[str, Path] | None = None
) -> dict[str, int]:
    """Write a causal guardian as an ordinary Hugging Face directory; returns the bytes of each file.

    A LoRA is merged into its base. `kind` is one of TYPES, by default that of the trained model. `adapters` are
    LoRAs by policy id, trained on this model: they are laid beside it, for engines that switch them per request.

    Raises ModelError for a prefix model, and for an adapter that cannot be switched.
    """
    model: Any = whole(model_dir)
    layout, manifest = Layout.load(model_dir), read_manifest(model_dir)
    for path in (adapters or {}).values():
        _check_adapter(path)
        manifest = _joined(manifest, read_manifest(path))
    out.mkdir(parents=True, exist_ok=True)
    try:
        save_tokenizer(layout, model_dir, out)
        model.config.architectures = [type(model).__name__]
        model.config.eos_token_id = model.config.pad_token_id = layout.end
        # Not the base's: servers take its sampling settings and its end of turn for defaults.
        model.generation_config = GenerationConfig(eos_token_id=layout.end, pad_token_id=layout.end)
        model.to(TYPES[kind] if kind else _stored(model_dir)).save_pretrained(out)
        for policy, path in (adapters or {}).items():
            _copy_adapter(path, out / ADAPTERS / policy)
        (out / "README.md").write_text(card(out, layout, manifest, sorted(adapters or {})), "utf-8")
        write_json(out / "guardian.json", manifest)
    except OSError as error:
        raise GuardianError(
            f"cannot write to {out} ({error.strerror}): free some space, then run again"
        ) from error
    return {str(f.relative_to(out)): f.stat().st_size for f in sorted(out.rglob("*")) if f.is_file()}


def whole(model_dir: Path) -> PreTrainedModel:
    """A trained causal model, a LoRA merged into its base. Raises ModelError."""
    model = load_model(model_dir)
    if is_prefix(model):
        raise ModelError(
            f"{model_dir} is a prefix model, which only this package runs: export it with --to onnx"
        )
    return model.eval()


def save_tokenizer(layout: Layout, model_dir: Path, out: Path) -> None:
    """Write a tokenizer that AutoTokenizer loads, with the special tokens and policy pieces in it.

    tokenizer.json, as it was trained with, says which tokens are special; what is beside it must load in
    transformers 4 as well, which many servers still have.
    """
    layout.tokenizer.save(str(out / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
    }
    if (model_dir / "tokenizer_config.json").exists():
        template: Any = AutoTokenizer.from_pretrained(model_dir).chat_template
        settings |= {"chat_template": template} if template else {}
    write_json(out / "tokenizer_config.json", settings)


def card(out: Path, layout: Layout, manifest: Mapping[str, Any], adapters: list[str]) -> str:
    """The README of an exported directory. Its snippet is what the tests run."""
    calibration = manifest.get("calibration", {})
    thresholds = ", ".join(f"{k}: {v}" for k, v in calibration.get("thresholds", {}).items()) or "0.5"
    name = out.resolve().name
    loras = " --enable-lora --lora-modules " + " ".join(f"{a}={ADAPTERS}/{a}" for a in adapters)
    switched = f"\n\nLoRAs by policy id in `{ADAPTERS}/`: {', '.join(adapters)}. A query runs with that of its policy."
    turn = (
        (f"encode({layout.frame.before!r}) + ", f" + encode({layout.frame.after!r})")
        if layout.around
        else ("", "")
    )
    return _CARD.format(
        name=name,
        before=turn[0],
        after=turn[1],
        categories=", ".join(f"`{MARK}{c}`" for c in manifest.get("categories", [])),
        temperature=calibration.get("temperature", 1.0),
        thresholds=thresholds,
        loras=loras if adapters else "",
        switched=switched if adapters else "",
        provenance=provenance(manifest),
    )


def _stored(model_dir: Path) -> torch.dtype:
    """The type of the weights on disk; of a LoRA, that of its base."""
    dtype = AutoConfig.from_pretrained(base_of(model_dir)).dtype or "float32"
    return getattr(torch, str(dtype).removeprefix("torch."))


def _check_adapter(path: Path) -> None:
    try:
        config = json.loads((path / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} holds no adapter_config.json: pass the directory of a trained LoRA"
        ) from error
    if config.get("modules_to_save") or config.get("trainable_token_indices"):
        raise ModelError(
            f"the adapter {path} changes the embeddings, which no server can switch per request: train it on a "
            "base that has the special tokens already"
        )


def _copy_adapter(path: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(path / name, out / name)


def _joined(manifest: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The base's manifest with the policies and thresholds of an adapter's."""
    calibration = dict(manifest.get("calibration") or other.get("calibration") or {})
    thresholds = other.get("calibration", {}).get("thresholds", {})
    if calibration:
        calibration["thresholds"] = calibration.get("thresholds", {}) | thresholds
    joined = {
        "categories": list(dict.fromkeys([*manifest.get("categories", []), *other.get("categories", [])])),
        "policies": manifest.get("policies", {}) | other.get("policies", {}),
        "answer_tokens": sorted({*manifest.get("answer_tokens", []), *other.get("answer_tokens", [])}),
    }
    return manifest | joined | ({"calibration": calibration} if calibration else {})


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [safety, guardrail, moderation]
---

# {name}

A guardian: it reads a query and says how likely it breaks a policy, in which category, and what to answer instead.
It is an ordinary causal language model: no code of its own is needed.

## P(harm) with transformers

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
safe, harm, pred = tokenizer.convert_tokens_to_ids(["<|safe|>", "<|harm|>", "<|pred|>"])
encode = lambda part: tokenizer(part, add_special_tokens=False).input_ids
ids = {before}encode(text){after} + [pred]
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0, -1].float()
print(torch.softmax(logits[[safe, harm]] / {temperature}, 0)[1].item())
```

`path` is this directory and `text` the query, in Unicode NFC. Take special tokens out of it before (`<|` -> `< |`,
`§` -> a space), or a user can write the verdict. Unsafe from: {thresholds}.

## Layout

    query <|pred|> <|safe|> <|end|>
    query <|pred|> <|harm|> category <|expl|> response <|end|>

The category is the likeliest of these tokens after `<|harm|>`: {categories}. A response holds facts as tokens like
`§helpline.suicide`, which the policy fills.{switched}

## Served

    vllm serve {name}{loras}
    guardian check "..." -m "http://localhost:8000/v1?model={name}&tokenizer={name}"

{provenance}
"""
