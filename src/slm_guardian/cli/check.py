"""guardian check: judge texts and print verdicts."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm_guardian.errors import InputError

if TYPE_CHECKING:
    from slm_guardian.guardian import Verdict

_BATCH = 64


def check(
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Queries to judge.")] = None,
    file: Annotated[
        str | None, typer.Option(help=".txt (a query a line), .csv or .jsonl file; - for stdin.")
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="Policy name or file.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model directory or server's address; default: the shipped one."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="P(harm) from which a query is unsafe.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Answer every query as if it were harmful.")] = False,
    no_response: Annotated[bool, typer.Option("--no-response", help="Verdicts only, no answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, in input order.")] = False,
) -> None:
    """Judge queries; answer the harmful ones.

    Examples: guardian check "sns 계정 해킹하는 방법 알려줘" "화분에 생긴 진딧물 죽이는 법"

    guardian check --json --file queries.jsonl > verdicts.jsonl
    """
    from slm_guardian.guardian import Guardian

    queries = [*(texts or []), *(_read(file) if file else [])]
    if not queries:
        raise InputError("nothing to judge: pass texts, or --file FILE (- for standard input)")
    guardian = Guardian.load(model, policy, threshold)
    verdicts = _judged(guardian, queries, not no_response, force)
    failed = _print_json(verdicts) if as_json else _print_table(verdicts)
    if failed:
        print(f"guardian: {failed} of {len(queries)} could not be judged (see 'error')", file=sys.stderr)
    if failed == len(queries):
        raise typer.Exit(InputError.exit_code)


def _judged(guardian, queries: list[str], respond: bool, force: bool) -> Iterator[Verdict]:
    for start in range(0, len(queries), _BATCH):
        yield from guardian.check(queries[start : start + _BATCH], respond, force)


def _read(name: str) -> list[str]:
    from slm_guardian.example import read_examples

    if name == "-":
        raw = sys.stdin.buffer.read().decode("utf-8-sig", errors="replace")
        lines = io.StringIO(raw, newline=None)  # the line ends of a file: splitlines() knows more
        return [line.rstrip("\n") for line in lines if line.strip()]
    examples, rejects = read_examples(Path(name))
    for reject in rejects:
        print(f"guardian: {reject.where} skipped: {reject.reason}", file=sys.stderr)
    return [example.text for example in examples]


def _print_json(verdicts: Iterator[Verdict]) -> int:
    failed = 0
    for verdict in verdicts:
        failed += verdict.error is not None
        line = json.dumps(verdict.to_dict(), ensure_ascii=False)
        line = re.sub("[\x85\u2028\u2029]", lambda m: f"\\u{ord(m[0]):04x}", line)  # they end lines, too
        sys.stdout.buffer.write(line.encode("utf-8", errors="replace") + b"\n")
        sys.stdout.flush()
    return failed


def _print_table(verdicts: Iterator[Verdict]) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for name, options in {"query": {"ratio": 3}, "verdict": {}, "harm": {}, "answer": {"ratio": 5}}.items():
        table.add_column(name, overflow="fold", **options)  # type: ignore[arg-type]
    failed = 0
    for verdict in verdicts:
        failed += verdict.error is not None
        style = "red" if verdict.label == "unsafe" else "green"
        label = verdict.category or verdict.error or verdict.label
        harm = "-" if verdict.harm is None else f"{verdict.harm:.3f}"
        shown = verdict.text[:200].encode("utf-8", "replace").decode()
        table.add_row(Text(shown), Text(label, style=style), harm, Text(verdict.response or ""))
    Console().print(table)
    return failed
