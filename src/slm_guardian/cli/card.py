"""guardian card: write the model card from a run's manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def card(
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory with guardian.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Markdown file to write.")],
    metrics: Annotated[Path | None, typer.Option(help="metrics.json of `guardian evaluate`.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Numbers of `guardian answers` (.json).")] = None,
) -> None:
    """Write the model card.

    Example: guardian card -m runs/out/mini --metrics eval/metrics.json -o MODEL_CARD.md
    """
    from slm_guardian.errors import DataError
    from slm_guardian.evaluate.card import render

    def read(path: Path | None) -> dict | None:  # type: ignore[type-arg]
        if path is None:
            return None
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as JSON: run the command that writes it") from error

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        render(read(model / "guardian.json") or {}, read(metrics), read(answers)), encoding="utf-8"
    )
    typer.echo(f"Model card: {out}")
