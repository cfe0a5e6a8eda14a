"""guardian evaluate and guardian baseline: measure a model on data sets, and train the floor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model directory, or another system: tfidf:PATH, keywords, ..."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Data set: a name or a .jsonl/.csv file. Repeatable."),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="DATA", help="Further data sets.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the results.")] = Path("evaluation"),
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="P|strict|loose", help="P(harm) from which a query is unsafe; default: the model's own."
        ),
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
    from slm_guardian.evaluate.run import evaluate_system
    from slm_guardian.evaluate.systems import load_system
    from slm_guardian.guardian import as_threshold

    datasets = load_datasets([*(data or []), *(more or [])], repeats=True)
    limit = as_threshold(threshold)
    system = load_system(model, policy, limit)
    given = limit if isinstance(limit, float) else None  # a mode is the guardian's own threshold
    metrics = evaluate_system(system, datasets, given, out, with_text)
    if as_json:
        typer.echo(json.dumps(metrics, ensure_ascii=False))
    else:
        typer.echo(f"{summary(metrics)}\n\nReport: {out / 'report.md'}")


def baseline(
    data: Annotated[
        list[str], typer.Option("--data", "-d", help="Labelled file or quoted glob; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the trained baseline.")],
    noisy: Annotated[list[str] | None, typer.Option(help="Public files: --cap rows of each.")] = None,
    cap: Annotated[int, typer.Option(help="Rows drawn of each --noisy file.")] = 600,
    translations: Annotated[
        list[str] | None, typer.Option(help="Translations of the rows of --data.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train the TF-IDF floor on the rows that one epoch of `guardian train` sees.

    Example: guardian baseline --data seed/train.jsonl -o floor.joblib

    Then: guardian evaluate -m tfidf:floor.joblib ...
    """
    import random

    from slm_guardian.evaluate.baseline import TfidfBaseline
    from slm_guardian.example import expand
    from slm_guardian.train.corpora import safety_corpora

    corpora = safety_corpora(expand(data), expand(noisy or []), expand(translations or []), [], cap)
    rng = random.Random(seed)
    examples = [row for corpus in corpora for row in corpus.draw(rng)]
    TfidfBaseline.fit(examples).save(out)
    typer.echo(f"Trained on {len(examples)} rows: {out}")
