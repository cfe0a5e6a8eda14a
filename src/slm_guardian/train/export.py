"""Export: a trained model becomes a guardian that runs without torch (ONNX, tokenizer, guardian.json)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slm_guardian.approved import FILE as APPROVED
from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.example import file_sha256, read_examples, write_json
from slm_guardian.layout import Layout
from slm_guardian.text import display
from slm_guardian.train.loss import is_prefix
from slm_guardian.train.stages import load_model, read_manifest, save
from slm_guardian.train.topics import fit_answers, read_topics, with_examples

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_onnx(
    model_dir: Path,
    out: Path,
    answers: Path | None = None,
    examples: Sequence[Path] = (),
    kind: str | None = None,
) -> dict[str, int]:
    """Write a guardian that runs without torch; returns the bytes of each file.

    The weights of a prefix LM become int8, those of a causal one what `kind` says: f32 (default) or int8.
    `answers` is a topic file: the guardian then says only these answers, the one whose topic fits the query.
    `examples` are labelled files whose rows name their topic: more to tell the topics apart by.

    Raises ModelError for what has no ONNX form.
    """
    model = load_model(model_dir)
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        unfinished.mkdir()
        _write_graph(model, unfinished / "model.onnx", kind)
        files = [path.replace(out / path.name) for path in unfinished.iterdir()]
        shutil.copyfile(model_dir / "tokenizer.json", out / "tokenizer.json")
    except OSError as error:
        raise GuardianError(
            f"cannot write to {out} ({error.strerror}): free some space, then run again"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    manifest = read_manifest(model_dir) | {"sha256": file_sha256(out / "model.onnx")}
    write_json(out / "guardian.json", manifest)
    files += [out / "tokenizer.json", out / "guardian.json"]
    (out / APPROVED).unlink(missing_ok=True)  # an earlier export's, chosen by other weights
    if answers:
        rows = [row for path in examples for row in read_examples(path)[0]]
        topics = with_examples(read_topics(answers), rows)
        files.append(fit_answers(topics, _embedding(out)).save(out))
    return {file.name: file.stat().st_size for file in files}


def _write_graph(model: PreTrainedModel, path: Path, kind: str | None) -> None:
    import onnx

    from slm_guardian.train import onnx_causal, onnx_graph

    config: Any = model.config
    if not is_prefix(model):
        return onnx_causal.write(model, path, kind or "f32")
    if kind not in (None, "int8"):
        raise ModelError("a prefix model is exported to ONNX as int8 only: leave --type out")
    if config.model_type != "bert":
        raise ModelError(
            f"prefix models of the type {config.model_type} have no ONNX form here: use a BERT base"
        )
    state = {k: v.detach().cpu().numpy().astype(np.float32) for k, v in model.state_dict().items()}
    graph = onnx_graph.build(
        state, config.num_hidden_layers, config.num_attention_heads, config.layer_norm_eps
    )
    onnx.save(graph, str(path))


def _embedding(directory: Path) -> Callable[[str], np.ndarray]:
    """What the exported guardian makes of a query's meaning."""
    from slm_guardian.engines import load_engine

    engine = load_engine(directory)
    return lambda text: engine.meaning(engine.layout.judge(display(text)))


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
