"""guardian policy: show, check and compare policies."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Show, check and compare policies.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a shipped pack (ko, en) or a YAML file.")]


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
def diff(old: Name, new: Name) -> None:
    """What changes from one policy to another, key by key. Example: guardian policy diff ko my.yaml"""
    from slm_guardian.policy import Policy

    before, after = (_flat(Policy.load(name).model_dump()) for name in (old, new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            for sign, side in (("-", before), ("+", after)):
                if key in side:
                    typer.echo(f"{sign} {key}: {side[key]}")


def _flat(value: object, path: str = "") -> dict[str, object]:
    """Nested values by dotted path; list items by their id where they have one."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = [(v["id"] if isinstance(v, dict) and "id" in v else i, v) for i, v in enumerate(value)]
    else:
        return {path: value}
    flat: dict[str, object] = {}
    for key, item in items:
        flat |= _flat(item, f"{path}.{key}" if path else str(key))
    return flat
