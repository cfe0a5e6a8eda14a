"""guardian generate: from a written policy to a corpus, with any LLM or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from slm_guardian.example import Example
    from slm_guardian.generate.backends import Backend, Request
    from slm_guardian.generate.pipeline import Ask, Errors
    from slm_guardian.generate.runner import Budget, Prices
    from slm_guardian.generate.session import Outcome

BACKENDS = ("grammar", "openai", "anthropic", "transformers", "batch")
Files = list[str] | None


def generate(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the run.")],
    backend: Annotated[str, typer.Option(help=f"Who writes: {', '.join(BACKENDS)}.")] = "grammar",
    n: Annotated[
        int, typer.Option(min=1, help="Harmful queries to ask for in a round; grammar: rows.")
    ] = 500,
    policy: Annotated[
        Files, typer.Option("--policy", "-p", help="Policy; repeatable. Default: ko, en.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Model name; transformers: directory.")] = "",
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint.")] = None,
    responses: Annotated[Files, typer.Option(help="batch: response files, quoted globs.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each takes its seeds from what is there.")] = 1,
    everyday: Annotated[
        int | None, typer.Option(min=0, help="Everyday queries to ask for in a round; default: n / 2.")
    ] = None,
    seeds: Annotated[
        Files, typer.Option(help="Labelled files to sample from; default: the policies.")
    ] = None,
    errors_of: Annotated[
        str | None, typer.Option(help="Guardian (directory or 'default') whose errors seed round 2 on.")
    ] = None,
    benchmarks: Annotated[Files, typer.Option(help="Files that no row may repeat; repeatable.")] = None,
    share: Annotated[Files, typer.Option(help="Share of a language: ko=0.6; default: equal.")] = None,
    votes: Annotated[int, typer.Option(min=0, help="Judge votes for each row's label.")] = 0,
    templates: Annotated[Path | None, typer.Option(help="Directory of templates that override ours.")] = None,
    preview: Annotated[int, typer.Option(min=0, help="Send only so many requests, show the rows.")] = 0,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Hard budget in money.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0, help="Hard budget in tokens.")] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of 1 M prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of 1 M answer tokens.")] = None,
    form: Annotated[str, typer.Option("--format", help="jsonl or parquet.")] = "jsonl",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do one N-th of the work, in OUT/shard-I-of-N.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local, or ray: shards over a cluster, then one corpus.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="ray: shards; default: one a core.")] = None,
) -> None:
    """Write harmful queries, harmless twins and answers by your policy; say for every dropped row why.

    The same command goes on where it was: nothing is paid twice.

    Examples: guardian generate --n 1000 -o data/offline

    guardian generate --backend openai -m gpt-4.1-mini --n 2000 --rounds 3 --preview 10 -o data/run

    guardian generate --backend batch -m gpt-4.1 --responses 'answers/*.jsonl' -o data/run
    """
    from slm_guardian.errors import InputError
    from slm_guardian.example import expand, policy_examples
    from slm_guardian.generate import session as sessions
    from slm_guardian.generate.pipeline import Plan, Run
    from slm_guardian.generate.runner import Budget, Prices
    from slm_guardian.generate.store import Store
    from slm_guardian.policy import Policy
    from slm_guardian.scale.parts import shard_of

    if backend not in BACKENDS:
        raise InputError(f"--backend is one of {', '.join(BACKENDS)}")
    if form not in ("jsonl", "parquet"):
        raise InputError("--format is jsonl or parquet")
    if engine not in ("local", "ray") or (shard and engine == "ray") or (workers and engine != "ray"):
        raise InputError("--engine is local or ray; --shard is for local, --workers for ray")
    if engine == "ray":
        return _on_ray(context.params, out, workers)
    if shard:
        index, count = shard_of(shard)
        out, seed = out / f"shard-{index}-of-{count}", seed * count + index
        n, everyday, max_tokens = (_part(value, index, count) for value in (n, everyday, max_tokens))
        max_cost = max_cost and max_cost / count
    if (price_in is None) != (price_out is None):
        raise InputError("give both --price-in and --price-out, or none")
    policies = {p.language: p for p in map(Policy.load, policy or ["ko", "en"])}
    shares = _shares(share, list(policies))
    if backend == "grammar":
        return _from_grammar(shares, n, out, form, seed)
    plan = Plan(shares, n, n // 2 if everyday is None else everyday, rounds, votes=votes, seed=seed)
    prices = Prices(price_in, price_out) if price_in is not None and price_out is not None else None
    ask = asker(backend, model, base_url, responses, out, Budget(max_tokens, max_cost), prices)
    pool = _examples(seeds) or policy_examples(policies.values())
    session = Run(
        plan,
        policies,
        ask,
        sessions.query_filters(policies, expand(benchmarks or [])),
        sessions.answer_filters(policies),
        _errors(errors_of),
        templates,
        {"backend": backend, "model": model},
    )
    _say_estimate(session.requests(1, pool), prices)
    if preview:
        rows = sessions.preview(session, pool, preview)
        return _say_preview(rows, session.tally.counts())
    settings = asdict(plan) | {"policies": [f"{p.id}@{p.version}" for p in policies.values()]}
    settings |= {"backend": backend, "model": model, "seeds": seeds, "errors_of": errors_of}
    outcome = sessions.run(session, Store(out, settings | {"benchmarks": benchmarks}), pool, form)
    _say_outcome(outcome, out)


def _part(value: int | None, index: int, count: int) -> Any:
    """The share of a number that shard `index` of `count` gets: all shares add up to it."""
    return None if value is None else value * (index + 1) // count - value * index // count


def _on_ray(options: dict[str, Any], out: Path, workers: int | None) -> None:
    """Each shard as a Ray task, then one corpus without what two shards both wrote. Shards that are done are read."""
    from slm_guardian.cli.data import clean
    from slm_guardian.scale import cluster

    workers = workers or cluster.cores(cluster.connect())
    common = options | {"engine": "local", "workers": None, "out": out.absolute()}
    shards = [common | {"shard": f"{i}/{workers}"} for i in range(workers)]
    cluster.run_all(_one_shard, shards, lambda: typer.echo("shard done", err=True))
    clean([str(out / f"shard-*-of-{workers}" / "corpus.*")], out)


def _one_shard(options: dict[str, Any]) -> None:
    generate(None, **options)  # type: ignore[arg-type]  # the context is for --engine ray alone


def _shares(given: Files, langs: list[str]) -> dict[str, float]:
    """Shares by language, adding up to 1."""
    from slm_guardian.errors import InputError

    if not given:
        return {lang: 1 / len(langs) for lang in langs}
    try:
        shares = {lang: float(value) for lang, _, value in (item.partition("=") for item in given)}
    except ValueError:
        shares = {}
    if set(shares) != set(langs) or min(shares.values()) < 0 or not sum(shares.values()):
        raise InputError(f"--share takes LANGUAGE=NUMBER for each of {', '.join(langs)}")
    return {lang: value / sum(shares.values()) for lang, value in shares.items()}


def _from_grammar(shares: dict[str, float], n: int, out: Path, form: str, seed: int) -> None:
    """Rows without any model."""
    from slm_guardian.generate import grammar
    from slm_guardian.generate.store import write_rows

    rows = [row for lang, share in shares.items() for row in grammar.generate(lang, round(n * share), seed)]
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / f"corpus.{form}", rows)
    typer.echo(f"{len(rows):,} rows: {out / f'corpus.{form}'}")


def asker(
    backend: str,
    model: str,
    base_url: str | None,
    responses: Files,
    out: Path,
    budget: Budget,
    prices: Prices | None = None,
) -> Ask:
    """How a run asks its backend: within the budget, with a cache in `out`, with progress."""
    from slm_guardian.generate.runner import run

    chosen = _backend(backend, model, base_url, responses, out)
    return lambda requests: run(chosen, requests, out, budget, prices, progress=True)


def _backend(name: str, model: str, base_url: str | None, responses: Files, out: Path) -> Backend:
    from slm_guardian.errors import InputError

    if not model:
        raise InputError(f"--backend {name} needs --model NAME")
    if name == "batch":
        from slm_guardian.generate.backends.batch import BatchBackend

        return BatchBackend(out / "requests.jsonl", responses or [], model)
    if name == "transformers":
        from slm_guardian.generate.backends.local import LocalBackend

        return LocalBackend(model)
    if name == "anthropic":
        from slm_guardian.generate.backends.anthropic import AnthropicBackend

        return AnthropicBackend(model, base_url)
    from slm_guardian.generate.backends.openai import OpenAIBackend

    return OpenAIBackend(model, base_url)


def _examples(patterns: Files) -> list[Example]:
    from slm_guardian.example import expand, read_examples

    return [e for path in expand(patterns or []) for e in read_examples(path)[0] if e.label]


def _errors(name: str | None) -> Errors | None:
    from slm_guardian.generate.session import wrong_rows
    from slm_guardian.guardian import Guardian

    return wrong_rows(Guardian.load(None if name == "default" else name)) if name else None


def _say_estimate(requests: Sequence[Request], prices: Prices | None) -> None:
    from slm_guardian.generate.runner import estimate

    e = estimate(requests, prices)
    cost = "" if e.cost is None else f", {e.cost:.2f} in money"
    typer.echo(
        f"First step of a round, an estimate: {e.requests:,} requests, {e.prompt_tokens:,} prompt tokens, at most "
        f"{e.completion_tokens:,} answer tokens{cost}. Twins and responses come on top.",
        err=True,
    )


def _say_preview(rows: Sequence[Example], counts: dict[str, Any]) -> None:
    for row in rows:
        typer.echo(f"{row.lang} {row.category or 'safe':26} {row.text}")
    _say_counts(counts | {"accepted": len(rows)})


def _say_outcome(outcome: Outcome, out: Path) -> None:
    _say_counts(outcome.counts)
    if outcome.waiting:
        say_waiting(outcome.waiting, out)
    else:
        typer.echo(f"{len(outcome.rows):,} rows: {outcome.corpus} (card: {out / 'card.md'})")


def say_waiting(count: int, out: Path) -> None:
    """Say where the requests of a batch are, and how to go on."""
    typer.echo(
        f"{count:,} requests wait for an answer: {out / 'requests.jsonl'}. Run them as a batch, give "
        "the answers by --responses, and run the same command again."
    )


def _say_counts(counts: dict[str, Any]) -> None:
    for key in ("requests", "rejected", "unread_answers_and_votes"):
        if counts[key]:
            typer.echo(
                f"{key.replace('_', ' ')}: " + ", ".join(f"{n:,} {what}" for what, n in counts[key].items())
            )
    typer.echo(f"accepted: {counts['accepted']:,} of {counts['rows']:,} rows")
