"""guardian train: a base learns the policy. guardian bases: which ones to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[list[str] | None, typer.Option(help="File or quoted glob; repeatable.")]
PolicyNames = Annotated[
    list[str] | None, typer.Option("--policy", "-p", help="Policy name or file; repeatable.")
]


def bases() -> None:
    """Show the bases that have presets; any other directory or hub id can be trained, too."""
    from rich.console import Console
    from rich.table import Table

    from slm_guardian.train.bases import table

    rows = table()
    shown = Table(*rows[0], title="guardian train --base NAME (LoRA: rank/alpha, lr: LoRA / full)")
    for row in rows:
        shown.add_row(*row.values())
    Console(width=None if Console().is_terminal else 160).print(shown)


def train(
    base: Annotated[
        str,
        typer.Option(
            help="Model to train: a directory, an earlier stage, a hub id or a name of `guardian bases`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the trained model.")],
    stage: Annotated[str, typer.Option(help="instruct (language) or safety (joint loss).")] = "safety",
    data: Files = None,
    chat: Annotated[
        list[str] | None, typer.Option(help="Chat-format files (`messages`) for --stage instruct.")
    ] = None,
    noisy: Annotated[
        list[str] | None, typer.Option(help="Public files: half weight, --cap rows an epoch.")
    ] = None,
    cap: Annotated[int, typer.Option(help="Rows of each --noisy file that an epoch draws.")] = 600,
    translations: Annotated[
        list[str] | None, typer.Option(help="Translations of the rows of --data.")
    ] = None,
    parallel: Annotated[
        list[str] | None, typer.Option(help="Sentence pairs: keeps the languages aligned.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="English base that --parallel is aligned to.")] = None,
    soft_labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Scores of teachers: caches of `guardian compare`, predictions of `guardian evaluate`."
        ),
    ] = None,
    soft_from: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYSTEM",
            help="Distil from this guard too (as in `guardian compare`): it judges the rows, once; repeatable.",
        ),
    ] = None,
    soft_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of teachers against labels.")
    ] = 0.5,
    dev: Annotated[Path | None, typer.Option(help="Labelled file; its AUROC is logged on the way.")] = None,
    policy: PolicyNames = None,
    lora: Annotated[bool, typer.Option("--lora/--full", help="Train a LoRA, or all weights.")] = False,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA; the base's preset without it.")] = None,
    alpha: Annotated[
        int | None, typer.Option(help="Scale of the LoRA; the base's preset without it.")
    ] = None,
    template: Annotated[bool, typer.Option(help="Keep the chat template of the base around a query.")] = True,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    batch: Annotated[int, typer.Option(help="Rows a step.")] = 64,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens a step, padding included, instead of --batch rows.")
    ] = None,
    packing: Annotated[
        bool, typer.Option(help="Lay the rows of a step end to end: no padding (causal bases).")
    ] = False,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of the body; the base's preset without it.")
    ] = None,
    embedding_lr: Annotated[
        float | None, typer.Option(help="The same of embeddings and new rows; the base's preset without it.")
    ] = None,
    average: Annotated[float, typer.Option(help="Decay of the moving average of the weights.")] = 0.999,
    bf16: Annotated[bool, typer.Option(help="Compute in bfloat16.")] = True,
    checkpointing: Annotated[
        bool, typer.Option(help="Compute activations twice: less memory, a third more time.")
    ] = False,
    fsdp: Annotated[
        bool,
        typer.Option(help="With several processes: split the model over them (FSDP2), not copy it (DDP)."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would take, and load no weights.")
    ] = False,
    stop: Annotated[int | None, typer.Option(help="End early, at this step of the same schedule.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 120.0,
    answers: Annotated[
        Path | None,
        typer.Option(help="Topic answers (.jsonl) instead of the rows' own responses; needs --teacher."),
    ] = None,
    answered: Annotated[float, typer.Option(help="Share of responses that an epoch trains on.")] = 0.4,
    lam: Annotated[float, typer.Option("--lambda", help="λ: weight of category and response.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train a stage of a guardian. Stop it at any time; the same command goes on.

    On many GPUs: torchrun --nproc-per-node N --no-python guardian train ... (or accelerate launch).

    Example: guardian train --base runs/ko --data seed/train.jsonl --dev seed/dev.jsonl -o runs/guardian
    Example: guardian train --base qwen3-0.6b --lora --data seed/train.jsonl -o runs/qwen --dry-run
    """
    from slm_guardian.errors import InputError
    from slm_guardian.policy import Policy
    from slm_guardian.train import session
    from slm_guardian.train.bases import load_config, resolve, settings_for
    from slm_guardian.train.loop import LoopConfig
    from slm_guardian.train.stages import StageConfig
    from slm_guardian.train.tuning import Tuning

    if stage not in ("instruct", "safety"):
        raise InputError("--stage is 'instruct' or 'safety'")
    base = resolve(base)
    row = settings_for(base, load_config(base).model_type)
    config = LoopConfig(
        steps=steps,
        stop=stop,
        lr=lr if lr is not None else row.lora_lr if lora else row.lr,
        embedding_lr=row.embedding_lr if embedding_lr is None else embedding_lr,
        average=average,
        seed=seed,
        evaluate_every=max(1, steps // 10),
        checkpoint_seconds=checkpoint_seconds,
        bf16=bf16,
        sharded=fsdp,
    )
    files = {
        "data": data,
        "noisy": noisy,
        "translations": translations,
        "chat": chat,
        "parallel": parallel,
        "soft_labels": soft_labels,
    }
    plan = session.Plan(
        base=base,
        row=row,
        stage=stage,
        out=out,
        policies=[Policy.load(name) for name in policy or ["ko", "en"]],
        sources=session.Sources.of(files, cap, teacher, dev, answers, soft_from or []),
        tuning=Tuning(
            lora, rank or row.rank, alpha or row.alpha, bf16, checkpointing, fsdp, template and row.template
        ),
        settings=StageConfig(
            batch_size=batch,
            batch_tokens=batch_tokens,
            packing=packing,
            lam=lam,
            answered=answered,
            soft_weight=soft_weight,
        ),
        config=config,
    )
    if dry_run:
        typer.echo("\n".join(session.dry_run(plan)))
    else:
        session.train(plan, typer.echo)
