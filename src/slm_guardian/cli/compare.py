"""guardian compare: any systems side by side on any data sets, with intervals, tests, curves, speed and cost."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from slm_guardian.errors import InputError

_ONCE = ("--cached", "--retry-errors", "--fetch")


def compare(
    systems: Annotated[
        list[str] | None,
        typer.Argument(metavar="SYSTEM...", help="KIND[:TARGET][?key=value&...], or a model directory."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", help="Data set: a name of guardian sets list, or a .jsonl/.csv file. Repeatable."
        ),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Get named sets that are not here from their public homes.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for report and answers.")] = Path(
        "comparison"
    ),
    published: Annotated[
        bool, typer.Option("--published", help="Put the paper's rows beside ours, marked.")
    ] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
    price: Annotated[
        list[str] | None,
        typer.Option(help="SYSTEM=X dollars for 1,000 queries, or SYSTEM=X/h of machine time. Repeatable."),
    ] = None,
    perturb: Annotated[
        list[str] | None, typer.Option(help="Perturbation to measure under, or all. Repeatable.")
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(help="Training data to look test rows up in: file or quoted glob. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    cached: Annotated[
        bool, typer.Option("--cached", help="Make the report from remembered answers; load no system.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again where a system gave an error before.")
    ] = False,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Leave the worst errors, which hold texts, out of the page.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json.")] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Show the data sets and systems that are known.")
    ] = False,
) -> None:
    """Compare systems on data sets: tables, intervals, tests, curves, speed and cost as one HTML page.

    Examples: guardian compare guardian keywords constant:unsafe --data kosbi.ko --out comparison

    guardian compare guardian tfidf:floor.joblib "chat:gpt-4-turbo?shots=ic" -d xstest -d xstest.ko --published

    A run that was stopped goes on where it was: every answer is kept under OUT/cache.
    """
    if listing:
        return _list()
    from slm_guardian.evaluate.compare import Options, write
    from slm_guardian.evaluate.compare import compare as run
    from slm_guardian.evaluate.datasets import load_datasets
    from slm_guardian.evaluate.tables import build, to_markdown

    if not systems:
        raise InputError("name a system, such as guardian or keywords: guardian compare --list shows all")
    if fetch:
        _fetch(data or [])
    datasets = load_datasets(data or [])
    for dataset in datasets:
        for reason, n in dataset.reject_reasons.items():
            print(f"guardian: {n} rows of {dataset.name} left out: {reason}", file=sys.stderr)
    command = shlex.join(["guardian", *(word for word in sys.argv[1:] if word not in _ONCE)])
    options = Options(
        resamples, seed, _prices(price or []), perturb or [], train or [], cached, retry_errors, command
    )
    comparison = run(systems, datasets, out, options)
    write(comparison, out, published, not no_text)
    _print(comparison.result, as_json, to_markdown(build(comparison.result, published)), out)
    for name, reason in comparison.stopped.items():
        print(f"guardian: {name} did not finish: {reason}: run again to go on", file=sys.stderr)
    if comparison.stopped:
        raise typer.Exit(1)


def _print(result: dict[str, Any], as_json: bool, tables: str, out: Path) -> None:
    import json

    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
    else:
        typer.echo(f"{tables}\nReport: {out / 'report.html'}")


def _prices(given: list[str]) -> dict[str, str]:
    """{system: price} of SYSTEM=PRICE; a system's name may hold = signs of its own."""
    pairs = [text.rpartition("=") for text in given]
    if bad := [text for text, (name, _, _) in zip(given, pairs, strict=True) if not name]:
        raise InputError(f"--price {bad[0]}: write SYSTEM=DOLLARS")
    return {name: price for name, _, price in pairs}


def _fetch(names: list[str]) -> None:
    """Get the registered sets among the names; the others are paths, or told to be unknown later."""
    from slm_guardian.evaluate.fetch import fetch
    from slm_guardian.evaluate.registry import find_set

    for source in filter(None, map(find_set, names)):
        fetch(source)


def _list() -> None:
    """Every data set and kind of system."""
    from slm_guardian.cli.sets import show
    from slm_guardian.evaluate.systems import KINDS

    show()
    typer.echo(f"\nSystems, KIND[:TARGET][?key=value&...]: {', '.join(KINDS)}")
