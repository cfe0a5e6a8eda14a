"""guardian check: judge texts and print verdicts."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm_guardian.errors import InputError

if TYPE_CHECKING:
    from slm_guardian.guardian import Verdict
    from slm_guardian.scale.job import Job

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
        str | None,
        typer.Option(metavar="P|strict|loose", help="P(harm) from which a query is unsafe, or a mode."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Answer every query as if it were harmful.")] = False,
    no_response: Annotated[bool, typer.Option("--no-response", help="Verdicts only, no answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, in input order.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Large .jsonl and .parquet files (--file takes directories and globs): go on here.",
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="With --out: judge only every N-th part.")
    ] = None,
    engine: Annotated[str, typer.Option(help="With --out: local, or ray for a cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="ray: processes; default: one a core.")] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="With --out: rows a part, at most.")] = 5000,
) -> None:
    """Judge queries; answer the harmful ones.

    Examples: guardian check "sns 계정 해킹하는 방법 알려줘" "화분에 생긴 진딧물 죽이는 법"

    guardian check --json --file queries.jsonl > verdicts.jsonl

    guardian check --file 'logs/*.parquet' --out verdicts --engine ray
    """
    from slm_guardian.guardian import Guardian, as_threshold

    limit = as_threshold(threshold)
    if out is None and (shard or workers or engine != "local"):
        raise InputError("--shard, --engine and --workers are for large files: add --out DIRECTORY")
    if out is not None:
        if texts or as_json or not file:
            raise InputError(
                "--out takes --file, and neither texts nor --json: its files are JSON or Parquet"
            )
        from slm_guardian.scale.job import Job

        model, policy = _absolute(model), _absolute(policy)  # a worker may run in another directory
        job = Job(str(out.absolute()), model, policy, limit, not no_response, force)
        return _at_scale(job, file, part_rows, shard, engine, workers)
    queries = [*(texts or []), *(_read(file) if file else [])]
    if not queries:
        raise InputError("nothing to judge: pass texts, or --file FILE (- for standard input)")
    guardian = Guardian.load(model, policy, limit)
    verdicts = _judged(guardian, queries, not no_response, force)
    failed = _print_json(verdicts) if as_json else _print_table(verdicts)
    if failed:
        print(f"guardian: {failed} of {len(queries)} could not be judged (see 'error')", file=sys.stderr)
    if failed == len(queries):
        raise typer.Exit(InputError.exit_code)


def _at_scale(
    job: Job, pattern: str, part_rows: int, shard: str | None, engine: str, workers: int | None
) -> None:
    """Judge what is not judged yet of large files, with a progress bar, and say what came out."""
    from rich.progress import Progress

    from slm_guardian.scale import job as jobs
    from slm_guardian.scale import parts

    if engine not in ("local", "ray") or (shard and engine == "ray"):
        raise InputError("--engine is local or ray; --shard is for local")
    first, step = parts.shard_of(shard) if shard else (0, 1)
    files = [path.absolute() for path in parts.input_files([pattern])]
    planned = parts.plan(files, part_rows)
    parts.claim(Path(job.out), jobs.settings(job, files, part_rows))
    mine = planned[first::step]
    todo = jobs.todo(job, mine)
    found: Counter[str] = Counter()
    start = time.perf_counter()
    with Progress(*Progress.get_default_columns(), "{task.fields[rate]}", transient=True) as progress:
        bar = progress.add_task("rows", total=sum(part.count for part in todo), rate="")

        def done(counts: dict[str, int]) -> None:
            found.update(counts)
            rate = found["rows"] / (time.perf_counter() - start)
            progress.update(bar, completed=found["rows"], rate=f"{rate:,.0f}/s")

        if todo:
            jobs.run(job, todo, done, engine, workers)
    before = sum(part.count for part in mine) - found["rows"]
    typer.echo(
        f"{found['rows']:,} rows judged: {found['safe']:,} safe, {found['unsafe']:,} unsafe, "
        f"{found['error']:,} could not be judged; {before:,} were there before. {job.out}"
    )


def _absolute(value: str | None) -> str | None:
    return str(Path(value).absolute()) if value and Path(value).exists() else value


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
