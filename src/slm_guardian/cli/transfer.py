"""guardian transfer: a base learns Korean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Files = Annotated[list[str] | None, typer.Option(help="File or quoted glob; repeatable.")]
PolicyNames = Annotated[
    list[str] | None, typer.Option("--policy", "-p", help="Policy name or file; repeatable.")
]


def transfer(
    base: Annotated[Path, typer.Option(help="Hugging Face directory of an English BERT-type encoder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the extended model.")],
    parallel: Files = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Labelled files whose words the vocabulary covers.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="More files for the vocabulary only (.jsonl).")
    ] = None,
    translations: Annotated[Path | None, typer.Option(help="Translations of the rows of --data.")] = None,
    policy: PolicyNames = None,
    steps: Annotated[int, typer.Option(help="Alignment steps of 128 sentence pairs.")] = 1200,
    korean: Annotated[int, typer.Option(help="Korean pieces in the vocabulary.")] = 13_000,
    english: Annotated[int, typer.Option(help="English pieces kept.")] = 15_000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Give an English encoder Korean: extend its vocabulary, align it on parallel text.

    Example: guardian transfer --base minilm --parallel 'parallel/*.jsonl' --data seed/train.jsonl -o runs/ko
    """
    import random

    from slm_guardian.example import expand
    from slm_guardian.layout import Layout
    from slm_guardian.policy import Policy
    from slm_guardian.train.corpora import parallel as read_parallel
    from slm_guardian.train.corpora import translated
    from slm_guardian.train.data import load_corpus
    from slm_guardian.train.loop import LoopConfig
    from slm_guardian.train.pieces import meanings
    from slm_guardian.train.stages import save
    from slm_guardian.train.transfer import transfer as align
    from slm_guardian.train.vocabulary import build_tokenizer

    policies = [Policy.load(name) for name in policy or ["ko", "en"]]
    corpora = [load_corpus(path) for path in expand(data or [])]
    own = [e for corpus in corpora for e in corpus.examples]
    more = [e for path in expand(text or []) for e in load_corpus(path).examples]
    extra = translated(own, translations) if translations else []
    pairs = read_parallel(expand(parallel or []), extra)
    names = list(meanings(policies))
    texts = [
        *_texts([*own, *extra]) * 2,
        *_texts(more),
        *(side for p in pairs for side in (p.new, p.english)),
    ]
    if (out / "tokenizer.json").exists():
        layout = Layout.load(out)
    else:
        layout = Layout(build_tokenizer(base, texts, names, korean, english))
        out.mkdir(parents=True, exist_ok=True)
        layout.tokenizer.save(str(out / "tokenizer.json"))
    random.Random(seed).shuffle(pairs)
    config = LoopConfig(steps=steps, lr=1e-4, embedding_lr=2e-3, seed=seed, evaluate_every=max(1, steps // 6))
    model = align(base, layout, pairs[500:], pairs[:500], config, out / "stage")
    files = [path.name for path in expand([*(parallel or []), *(data or [])])]
    save(model, layout, out, {"family": "prefix", "stages": {"transfer": {"steps": steps, "files": files}}})
    typer.echo(f"Extended model: {out}")


def _texts(examples: list) -> list[str]:  # type: ignore[type-arg]
    return [text for e in examples for text in (e.text, e.response) if text]
