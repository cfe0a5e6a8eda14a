"""guardian answers: a page of answers that people can judge, with the fallback share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def answers(
    data: Annotated[Path, typer.Option("--data", "-d", help="Labelled queries; harmful ones are drawn.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Page to write (.md); numbers go beside it (.json).")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model directory; default: shipped.")
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="Policy name or file.")] = None,
    n: Annotated[int, typer.Option(help="Harmful queries to answer.")] = 200,
    printed: Annotated[int, typer.Option(help="Rows printed on the page.")] = 40,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Answer random harmful queries and report how many answers passed the checks.

    Example: guardian answers --data seed/dev.jsonl --out docs/ANSWERS.md
    """
    from slm_guardian.evaluate.answer_report import report
    from slm_guardian.example import read_examples
    from slm_guardian.guardian import Guardian

    guardian = Guardian.load(model, policy)
    numbers = report(guardian, read_examples(data)[0], n, printed, seed, out)
    typer.echo(json.dumps(numbers, ensure_ascii=False, indent=1))
