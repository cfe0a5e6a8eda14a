"""guardian translate: double a corpus, and make parallel text, with any LLM through OpenAI-Batch files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Translate labelled queries with an LLM (OpenAI-Batch files).", no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="Labelled queries to translate (.jsonl, .csv).")]
Target = Annotated[str, typer.Option(help="Language to translate into: ko or en.")]
Known = Annotated[
    list[str] | None, typer.Option(help="Parallel files whose sentences are already translated.")
]


@app.command("requests")
def write(
    data: Data,
    target: Target,
    out: Annotated[Path, typer.Option("--out", "-o", help="Request file to write.")],
    known: Known = None,
    model: Annotated[str, typer.Option(help="Model name put into each request.")] = "gpt-4.1",
) -> None:
    """Write the request file. Example: guardian translate requests --data seed.jsonl --target ko -o req.jsonl"""
    from slm_guardian.generate.backends.batch import write_requests
    from slm_guardian.generate.translate import translation_requests

    rows = _todo(data, target, known)
    count = write_requests(out, translation_requests(rows, target), model)
    typer.echo(f"{count} requests for {len(rows)} queries: {out}")


@app.command("import")
def read(
    data: Data,
    target: Target,
    responses: Annotated[
        list[str], typer.Option(help="Response files of the batch; repeatable, quoted globs.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Translations to write (.jsonl).")],
    known: Known = None,
) -> None:
    """Check the answers and write the translations; rejected rows go to OUT.rejects.jsonl with the reason."""
    from slm_guardian.example import expand, write_jsonl
    from slm_guardian.generate.backends.batch import read_responses
    from slm_guardian.generate.translate import read_translations

    answers, failed = read_responses(expand(responses))
    rows, rejects = read_translations(_todo(data, target, known), target, answers)
    write_jsonl(
        out, ({"translation_of": r.extra["translation_of"], "lang": r.lang, "text": r.text} for r in rows)
    )
    write_jsonl(out.with_suffix(".rejects.jsonl"), ({"id": r.where, "reason": r.reason} for r in rejects))
    reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())
    typer.echo(f"{len(rows)} translations ({failed} failed answers; rejected: {reasons or 'none'}): {out}")


def _todo(data: Path, target: str, known: list[str] | None) -> list:  # type: ignore[type-arg]
    """Queries in the other language without a translation yet; contrast pairs stay together."""
    import random

    from slm_guardian.example import expand, read_examples, read_json_lines

    sides = ("ko", "en")
    done = {row[s] for path in expand(known or []) for row in read_json_lines(path, *sides) for s in sides}
    groups: dict[str, list] = {}  # type: ignore[type-arg]
    for example in read_examples(data)[0]:
        if example.lang != target and example.text not in done:
            groups.setdefault(example.pair or example.id, []).append(example)
    keys = sorted(groups)
    random.Random(7).shuffle(keys)
    return [example for key in keys for example in groups[key]]
