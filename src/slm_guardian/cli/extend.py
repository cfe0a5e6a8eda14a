"""guardian extend: a trained guardian gets one more language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[list[str] | None, typer.Option(help="File or quoted glob; repeatable.")]


def extend(
    base: Annotated[Path, typer.Option(help="Trained prefix guardian (not the exported one).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the extended guardian.")],
    policy: Annotated[str, typer.Option("--policy", "-p", help="Policy of the new language: name or file.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Texts in the new language (`text`, `response`); repeatable.")
    ] = None,
    parallel: Annotated[
        list[str] | None, typer.Option(help="Sentence pairs with English: where new pieces start.")
    ] = None,
    pieces: Annotated[int, typer.Option(help="New pieces at most.")] = 4_000,
) -> None:
    """Give a trained guardian the words of another language and the facts of its policy. Needs `guardian train` after.

    Example: guardian extend --base runs/guardian -p id --data data/id.jsonl --parallel corpus/id-en.jsonl -o runs/id
    """
    from slm_guardian.example import expand, policy_examples, read_examples
    from slm_guardian.layout import Layout
    from slm_guardian.policy import Policy
    from slm_guardian.train import stages
    from slm_guardian.train.corpora import parallel as read_parallel
    from slm_guardian.train.extend import extend as grow
    from slm_guardian.train.extend import extended_tokenizer

    rules = Policy.load(policy)
    rows = [row for path in expand(data or []) for row in read_examples(path)[0]]
    pairs = read_parallel(expand(parallel or []))
    own = [row for row in [*rows, *policy_examples([rules])] if row.lang in (None, rules.language)]
    texts = [text for row in own for text in (row.text, row.response) if text] + [pair.new for pair in pairs]
    texts += [text for category in rules.categories for text in (category.guidance, *category.fallback)]
    model, old = stages.load_model(base), Layout.load(base)
    names = [*rules.by_id, *sorted(rules.facts)]
    new = Layout(extended_tokenizer(base / "tokenizer.json", texts, names, pieces))
    before = _pieces_a_word(old, texts)
    grow(model, old, new, pairs)
    manifest = stages.read_manifest(base)
    grown = {"language": rules.language, "pieces": new.size - old.size, "pairs": len(pairs)}
    done = manifest.get("stages")
    stages_done = {**(done if isinstance(done, dict) else {}), f"extend:{rules.language}": grown}
    stages.save(model, new, out, manifest | {"stages": stages_done})
    typer.echo(
        f"{new.size - old.size:,} new pieces: {before:.2f} a word before, {_pieces_a_word(new, texts):.2f} now: {out}"
    )


def _pieces_a_word(layout, texts: list[str]) -> float:  # type: ignore[no-untyped-def]
    return sum(len(layout.query(text)) for text in texts) / max(1, sum(len(text.split()) for text in texts))
