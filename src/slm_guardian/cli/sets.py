"""guardian sets: the data sets that are known by name, where they are, and how to get them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from slm_guardian.evaluate.registry import DataSource

app = typer.Typer(
    help="Data sets that are known by name: where they are, how to get them.", no_args_is_help=True
)


@app.command("list")
def show() -> None:
    """Every set: licence, how its rows become safe or unsafe, and where it is or how to get it.

    Sets are looked for under the directory that GUARDIAN_DATA names and in the cache of fetched ones.
    """
    from rich.console import Console
    from rich.table import Table

    from slm_guardian.evaluate.registry import known_sets

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("data set", "licence"):
        table.add_column(head, no_wrap=True)
    for head in ("what", "safe | unsafe", "where"):
        table.add_column(head, overflow="fold")
    for name, source in known_sets().items():
        table.add_row(name, source.licence, source.title, source.mapping, _where(source))
    Console().print(table, markup=False)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of guardian sets list.")],
) -> None:
    """Get published sets from their homes into the cache; what is here already stays.

    Example: guardian sets fetch xstest harmbench wildguardtest

    A gated set needs HF_TOKEN. Beside each file lies NAME.lock.json: address, commit and sha256 of what was got.
    """
    from slm_guardian.errors import DataError, GuardianError
    from slm_guardian.evaluate.fetch import fetch as get
    from slm_guardian.evaluate.registry import find_set

    failed = False
    for name in dict.fromkeys(names):
        try:
            source = find_set(name)
            if source is None:
                raise DataError(f"no data set is called {name}: guardian sets list shows all")
            for path in get(source):
                typer.echo(f"{name}: {path}")
        except GuardianError as error:  # one that cannot be had stops no other
            failed = True
            print(f"guardian: {error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _where(source: DataSource) -> str:
    if found := source.find():
        return ", ".join(map(str, found))
    if not source.fetch:
        return source.by_hand()
    return f"guardian sets fetch {source.name}" + (" (with HF_TOKEN)" if source.gated else "")
