"""guardian evaluate and guardian baseline: measure a model on data sets, and train the floor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model path or name; tfidf:PATH is a saved baseline.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Data set: a name or a .jsonl/.csv file. Repeatable."),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="DATA", help="Further data sets.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the results.")] = Path("evaluation"),
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="P(harm) from which a query is unsafe; default: the model's own."),
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="Policy path or name.")] = None,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Put the texts into predictions.jsonl.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json.")] = False,
) -> None:
    """Measure a model on labelled data sets; write metrics, predictions and a report."""
    from slm_guardian.evaluate.datasets import load_datasets
    from slm_guardian.evaluate.report import summary
    from slm_guardian.evaluate.run import evaluate_system, load_system

    datasets = load_datasets([*(data or []), *(more or [])])
    system = load_system(model, policy, threshold)
    metrics = evaluate_system(system, datasets, threshold, out, with_text)
    if as_json:
        typer.echo(json.dumps(metrics, ensure_ascii=False))
    else:
        typer.echo(f"{summary(metrics)}\n\nReport: {out / 'report.md'}")


def baseline(
    train: Annotated[list[str], typer.Option("--train", help="Labelled .jsonl/.csv file. Repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the trained baseline.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Further files.")] = None,
) -> None:
    """Train the TF-IDF floor; evaluate it with --model tfidf:PATH."""
    from slm_guardian.evaluate.baseline import TfidfBaseline
    from slm_guardian.evaluate.datasets import load_datasets

    examples = [row for dataset in load_datasets([*train, *(more or [])]) for row in dataset.examples]
    TfidfBaseline.fit(examples).save(out)
    typer.echo(f"Trained on {len(examples)} rows: {out}")
