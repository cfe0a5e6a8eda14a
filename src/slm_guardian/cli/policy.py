"""guardian policy: show, check and compare policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from slm_guardian.evaluate.effect import Effect
    from slm_guardian.generate.policy_diff import Affected
    from slm_guardian.policy import Policy

app = typer.Typer(help="Show, check and compare policies.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a shipped pack (ko, en, id) or a YAML file.")]


@app.command()
def show(
    name: Name = "ko", category: Annotated[str | None, typer.Option(help="One category in full.")] = None
) -> None:
    """Print a policy: its categories, what they cover and what not. Example: guardian policy show ko"""
    import yaml
    from rich.console import Console
    from rich.table import Table

    from slm_guardian.errors import PolicyError
    from slm_guardian.policy import Policy

    policy = Policy.load(name)
    if category:
        if category not in policy.by_id:
            raise PolicyError(
                f"policy {policy.id} has no category {category}: one of {', '.join(policy.by_id)}"
            )
        values = policy.by_id[category].model_dump()
        typer.echo(yaml.safe_dump(values, allow_unicode=True, sort_keys=False))
        return
    table = Table("category", "name", "action", "covers", "does not cover", show_lines=True)
    for item in policy.categories:
        table.add_row(item.id, item.name, item.action, "\n".join(item.covers), "\n".join(item.excludes))
    console = Console()
    console.print(f"{policy.id} {policy.version} ({policy.language}): {policy.culture}")
    console.print(table)


@app.command()
def check(
    name: Name,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Also check that this model knows it.")
    ] = None,
) -> None:
    """Check a policy file; with --model also against a model. Example: guardian policy check my.yaml"""
    from slm_guardian.policy import Policy

    policy = Policy.load(name)
    if model is not None:
        from slm_guardian.guardian import Guardian

        Guardian.load(model or None, policy)
    examples = sum(len(c.harmful) + len(c.safe) for c in policy.categories)
    typer.echo(
        f"{policy.id} {policy.version}: {len(policy.categories)} categories, {len(policy.facts)} facts, "
        f"{examples} golden examples: no fault found"
    )


@app.command()
def diff(
    old: Name,
    new: Name,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Corpus: which rows are concerned; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write these rows here (.jsonl), with the reasons.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="All texts, also between two languages.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Changes and ids of rows, as JSON.")] = False,
) -> None:
    """What changes from one policy to another, in words, and which rows of a corpus that concerns.

    Example: guardian policy diff ko my.yaml --data seed/train.jsonl -o out/concerned.jsonl
    """
    import json

    from slm_guardian.errors import InputError
    from slm_guardian.example import expand, read_examples, write_jsonl
    from slm_guardian.generate import policy_diff
    from slm_guardian.policy import Policy

    if out and not data:
        raise InputError("--out needs --data FILE: the corpus whose rows are looked through")
    before, after = Policy.load(old), Policy.load(new)
    rows = [row for path in expand(data or []) for row in read_examples(path)[0]]
    hits = policy_diff.affected(before, after, rows) if data else None
    if out and hits is not None:
        write_jsonl(out, (hit.to_dict() for hit in hits))
    if as_json:
        typer.echo(json.dumps(policy_diff.as_json(before, after, hits), ensure_ascii=False))
        return
    _say_changes(before, after, full)
    if hits is not None:
        _say_rows(hits, len(rows))


@app.command()
def effect(
    before: Annotated[str, typer.Option("--before", help="Model before the change.")],
    after: Annotated[
        str, typer.Option("--after", help="Model after it; the same for a change of thresholds.")
    ],
    data: Annotated[
        list[str], typer.Option("--data", "-d", help="Rows labelled by the new policy; repeatable.")
    ],
    old: Annotated[str | None, typer.Option(help="Policy that --before judges by.")] = None,
    new: Annotated[str | None, typer.Option(help="Policy that --after judges by.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """What a changed policy, or the training that followed it, did: rows judged rightly by category, with tests.

    Example: guardian policy effect --before runs/old --after runs/new --old ko --new my.yaml --data dev.jsonl
    """
    import json

    from slm_guardian.evaluate.datasets import load_datasets
    from slm_guardian.evaluate.effect import effects
    from slm_guardian.evaluate.systems import load_system

    first, second = load_system(before, old), load_system(after, new)
    found = {dataset.name: effects(first, second, dataset) for dataset in load_datasets(data, repeats=True)}
    if as_json:
        rows = {name: [e.to_dict() for e in table] for name, table in found.items()}
        return typer.echo(json.dumps(rows, ensure_ascii=False))
    for name, table in found.items():
        _say_effects(name, table)


def _say_effects(name: str, table: Sequence[Effect]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("rows", "n", "before", "after", "95 % interval", "mended", "broken", "p")
    shown = Table(*columns, title=f"{name}: share judged rightly")
    for e in table:
        low, high = e.ci95 or (0.0, 1.0)
        texts = (e.group, f"{e.n:,}", f"{e.before:.3f}", f"{e.after:.3f}", f"{low:.3f} to {high:.3f}")
        shown.add_row(*texts, str(e.better), str(e.worse), f"{e.p:.2g}", style="bold" if e.p < 0.05 else None)
    Console(width=None if Console().is_terminal else 120).print(shown)


def _say_changes(before: Policy, after: Policy, full: bool) -> None:
    from slm_guardian.generate.policy_diff import EFFECTS, changes

    found = changes(before, after)
    if before.language != after.language and not full:
        typer.echo(f"{before.language} and {after.language} texts are left out: --full prints them\n")
        found = [
            c for c in found if c.key in ("id", "version", "language", "category", "action", "threshold")
        ]
    for effect, meaning in EFFECTS.items():
        own = [change.words() for change in found if change.effect == effect]
        if own:
            typer.echo(f"{meaning[0].upper()}{meaning[1:]}:")
            typer.echo("\n".join(f"  {words}" for words in own))


def _say_rows(hits: Sequence[Affected], total: int) -> None:
    from collections import Counter

    typer.echo(f"\n{len(hits):,} of {total:,} rows are concerned" + (":" if hits else "."))
    counts = Counter((hit.change.category, hit.reason, hit.row.label, hit.label) for hit in hits)
    for (category, reason, label, wanted), count in counts.most_common():
        what = (
            "label to decide" if wanted is None else "label stays" if wanted == label else f"becomes {wanted}"
        )
        typer.echo(f"  {count:>6,}  {category}: {label or 'unlabelled'} rows, {reason}; {what}")
