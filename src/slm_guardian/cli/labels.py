"""guardian labels: which labels of a corpus to doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def labels(
    data: Annotated[list[str], typer.Option(help="Labelled files or quoted globs; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for rows.jsonl and report.md.")],
    folds: Annotated[
        int, typer.Option(help="Parts of the corpus; each is judged by models of the others.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Judge every label by models that did not see it: doubted rows get a tier and a lower weight, none is dropped.

    Example: guardian labels --data 'public/train/*.jsonl' -o runs/labels
    and then: guardian train --data runs/labels/rows.jsonl ...
    """
    from collections import Counter

    from slm_guardian.example import expand, write_jsonl
    from slm_guardian.train.data import load_corpus
    from slm_guardian.train.label_check import check_labels, report, weighted

    examples = [e for path in expand(data) for e in load_corpus(path).examples]
    doubts = check_labels(examples, folds, seed)
    write_jsonl(out / "rows.jsonl", (e.to_dict() for e in weighted(examples, doubts)))
    (out / "report.md").write_text(report(examples, doubts), "utf-8")
    counts = Counter(d.tier for d in doubts)
    typer.echo(", ".join(f"{tier} {n:,}" for tier, n in counts.most_common()) + f": {out / 'report.md'}")
