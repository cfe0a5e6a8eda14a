"""guardian export and guardian calibrate: the last two steps before a guardian is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[Path, typer.Option("--model", "-m", help="Trained model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the exported guardian.")],
    answers: Annotated[
        Path | None, typer.Option(help="Topic answers (.jsonl): write nothing but these (onnx).")
    ] = None,
    examples: Annotated[
        list[str] | None,
        typer.Option(help="Rows that name their `topic`: more examples for --answers; repeatable."),
    ] = None,
    to: Annotated[
        str, typer.Option(help="onnx (embedded), hf (transformers, vLLM) or gguf (llama.cpp).")
    ] = "onnx",
    kind: Annotated[
        str | None,
        typer.Option(
            "--type", help="Of the weights: f32, f16, bf16 (hf, gguf), q8_0 (gguf), f32, int8 (onnx)."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="POLICY=DIR: a LoRA of a policy, laid beside the model (hf); repeatable."),
    ] = None,
) -> None:
    """Write a guardian for an engine: ONNX that runs without torch, a Hugging Face directory, or GGUF.

    Examples: guardian export -m runs/out/safety -o runs/out/mini

    guardian export --type int8 -m runs/out/qwen3 -o runs/out/qwen3-onnx

    guardian export --to hf -m runs/out/qwen3 -o runs/out/qwen3-guardian --adapter ko=runs/out/ko

    guardian export --to gguf --type q8_0 -m runs/out/qwen3 -o runs/out/qwen3-gguf
    """
    from slm_guardian.errors import InputError
    from slm_guardian.example import expand

    only = {"--answers": (answers, "onnx"), "--examples": (examples, "onnx"), "--adapter": (adapter, "hf")}
    if unused := [option for option, (value, format) in only.items() if value and format != to]:
        raise InputError(f"{unused[0]} is for --to {only[unused[0]][1]}: leave it out")
    if to == "onnx" and kind in (None, "f32", "int8"):
        from slm_guardian.train.export import export_onnx

        if examples and not answers:
            raise InputError("--examples are for --answers: give both")
        sizes = export_onnx(model, out, answers, expand(examples or []), kind)
    elif to == "hf" and kind in (None, "f32", "f16", "bf16"):
        from slm_guardian.train.export_hf import export_hf

        sizes = export_hf(model, out, kind, _adapters(adapter or []))
    elif to == "gguf" and kind in (None, "f32", "f16", "bf16", "q8_0"):
        from slm_guardian.train.export_gguf import export_gguf

        sizes = export_gguf(model, out, kind or "f16")
    else:
        raise InputError("--to is onnx (f32, int8), hf (f32, f16, bf16) or gguf (f32, f16, bf16, q8_0)")
    for name, size in sizes.items():
        typer.echo(f"{size / 1e6:8.2f} MB  {name}")
    typer.echo(f"{sum(sizes.values()) / 1e6:8.2f} MB  {out}")


def _adapters(options: list[str]) -> dict[str, Path]:
    from slm_guardian.errors import InputError

    pairs = [option.partition("=") for option in options]
    if not all(policy and directory for policy, _, directory in pairs):
        raise InputError("--adapter is POLICY=DIR, a policy's id and the directory of its LoRA")
    return {policy: Path(directory) for policy, _, directory in pairs}


def calibrate(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory (exported or not).")],
    dev: Annotated[Path, typer.Option(help="Labelled queries with `lang`: temperature and thresholds.")],
    benign: Annotated[
        list[str] | None, typer.Option(help="Benign queries (safe rows are used); repeatable.")
    ] = None,
    dev_fpr: Annotated[
        float, typer.Option(min=0, max=1, help="FPR allowed on the safe rows of --dev.")
    ] = 0.08,
    fpr: Annotated[float, typer.Option(min=0, max=1, help="FPR allowed on each --benign file.")] = 0.02,
    policy: Annotated[list[str] | None, typer.Option("--policy", "-p", help="Policy; repeatable.")] = None,
) -> None:
    """Fit the temperature, and a threshold per policy for stated false-positive rates.

    Example: guardian calibrate -m runs/out/mini --dev seed/dev.jsonl --benign 'public/dev/chatbot*.jsonl'
    """
    from slm_guardian.example import expand, read_examples
    from slm_guardian.policy import Policy
    from slm_guardian.train.calibrate import calibrate as fit

    files = expand(benign or [])
    pools = [[e for e in read_examples(path)[0] if e.label == "safe"] for path in files]
    policies = [Policy.load(name) for name in policy or ["ko", "en"]]
    rows = [e for e in read_examples(dev)[0] if e.label]
    typer.echo(json.dumps(fit(model, rows, dev_fpr, pools, fpr, [dev, *files], policies), indent=1))


def average(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Runs from one base.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the averaged model.")],
) -> None:
    """Average the weights of several runs from one base: better than any of them.

    Example: guardian average runs/out/first runs/out/second -o runs/out/averaged
    """
    from slm_guardian.train.export import average as mean

    mean(models, out)
    typer.echo(f"Averaged {len(models)} models: {out}")
