"""Export: a trained prefix LM becomes the embedded guardian (int8 ONNX, tokenizer, guardian.json)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.example import file_sha256, write_json
from slm_guardian.layout import Layout
from slm_guardian.train.stages import load_model, read_manifest, save
from slm_guardian.train.topics import read_topics

FILES = ("model.onnx", "tokenizer.json", "guardian.json")


def export_onnx(model_dir: Path, out: Path, answers: Path | None = None) -> dict[str, int]:
    """Write the embedded guardian of a trained prefix LM; returns the bytes of each file.

    `answers` is a topic file: the guardian then writes only these answers (it chooses, token by token).

    Raises ModelError for a causal model, which runs through torch or an inference server instead.
    """
    import onnx

    from slm_guardian.train.onnx_graph import build

    model = load_model(model_dir)
    config = model.config
    if config.model_type != "bert":
        raise ModelError(
            f"{model_dir} is a causal model, which ONNX export does not write: use --to hf or --to gguf"
        )
    state = {k: v.detach().cpu().numpy().astype(np.float32) for k, v in model.state_dict().items()}
    graph = build(state, config.num_hidden_layers, config.num_attention_heads, config.layer_norm_eps)
    out.mkdir(parents=True, exist_ok=True)
    try:
        onnx.save(graph, str(out / "model.onnx.partial"))
        (out / "model.onnx.partial").replace(out / "model.onnx")
        shutil.copyfile(model_dir / "tokenizer.json", out / "tokenizer.json")
    except OSError as error:
        raise GuardianError(
            f"cannot write to {out} ({error.strerror}): free some space, then run again"
        ) from error
    manifest = read_manifest(model_dir) | {"sha256": file_sha256(out / "model.onnx")}
    if answers:
        manifest["approved"] = approved_answers(answers, Layout.load(out))
    write_json(out / "guardian.json", manifest)
    return {name: (out / name).stat().st_size for name in FILES}


def approved_answers(path: Path, layout: Layout) -> dict[str, dict[str, list[list[int]]]]:
    """Token ids of every topic's answer: category -> language -> answers."""
    approved: dict[str, dict[str, list[list[int]]]] = {}
    for topic in read_topics(path):
        for lang, answer in topic.answers.items():
            approved.setdefault(topic.category, {}).setdefault(lang, []).append(layout.response(answer))
    return approved


def average(model_dirs: Sequence[Path], out: Path) -> None:
    """Average the weights of runs from one base; the tokenizer is the last one's, the manifest names all stages.

    Source: Wortsman et al. 2022, 2203.05482, "Model soups". Raises ModelError when the models differ in shape.
    """
    models = [load_model(path) for path in model_dirs]
    states = [model.state_dict() for model in models]
    if any({k: v.shape for k, v in s.items()} != {k: v.shape for k, v in states[0].items()} for s in states):
        raise ModelError("the models to average differ in shape: pass runs from one base")
    mean = {key: sum(state[key] for state in states) / len(states) for key in states[0]}
    models[-1].load_state_dict(mean)
    manifest = read_manifest(model_dirs[-1]) | {"average_of": len(models), "stages": _all_stages(model_dirs)}
    save(models[-1], Layout.load(model_dirs[-1]), out, manifest)


def _all_stages(model_dirs: Sequence[Path]) -> dict[str, object]:
    """The stages of all runs; where runs differ in a stage, the later one's is `NAME:DIRECTORY`."""
    stages: dict[str, object] = {}
    for path in model_dirs:
        own = read_manifest(path).get("stages")
        for name, values in own.items() if isinstance(own, dict) else ():
            stages[name if stages.setdefault(name, values) == values else f"{name}:{path.name}"] = values
    return stages
