"""One training run from a plan: read the data, make the base ready, train the stage, save what came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slm_guardian.errors import InputError, ModelError
from slm_guardian.example import expand, read_examples
from slm_guardian.policy import Policy
from slm_guardian.train import budget, parallel, pieces, stages
from slm_guardian.train.bases import Base, load_config
from slm_guardian.train.corpora import chat_corpus, safety_corpora
from slm_guardian.train.corpora import parallel as read_parallel
from slm_guardian.train.data import Corpus, Encoder
from slm_guardian.train.loop import LoopConfig, device
from slm_guardian.train.teachers import ask, give_soft_labels, read_scores
from slm_guardian.train.transfer import Alignment, teacher_vectors
from slm_guardian.train.tuning import Learner, Tuning, learner


@dataclass(frozen=True)
class Sources:
    """The files of a run; see `guardian train --help`."""

    data: Sequence[Path]
    noisy: Sequence[Path]
    translations: Sequence[Path]
    chat: Sequence[Path]
    parallel: Sequence[Path]
    soft_labels: Sequence[Path]
    soft_from: Sequence[str]
    cap: int
    teacher: Path | None
    dev: Path | None
    answers: Path | None

    @classmethod
    def of(
        cls,
        patterns: Mapping[str, Sequence[str] | None],
        cap: int,
        teacher: Path | None = None,
        dev: Path | None = None,
        answers: Path | None = None,
        soft_from: Sequence[str] = (),
    ) -> Sources:
        """Sources by path or glob pattern. Raises DataError for a pattern without a file."""
        names = ("data", "noisy", "translations", "chat", "parallel", "soft_labels")
        paths = {name: expand(patterns.get(name) or []) for name in names}
        return cls(**paths, soft_from=soft_from, cap=cap, teacher=teacher, dev=dev, answers=answers)


@dataclass(frozen=True)
class Plan:
    """What to train on what, and how."""

    base: str
    row: Base
    stage: str
    out: Path
    policies: Sequence[Policy]
    sources: Sources
    tuning: Tuning
    settings: stages.StageConfig
    config: LoopConfig

    @property
    def names(self) -> dict[str, str]:
        """Categories and facts, with words for what they mean."""
        return pieces.meanings(self.policies)


def train(plan: Plan, say: Callable[[str], object]) -> None:
    """Train a stage and save it in `plan.out`; with several processes each one calls this."""
    with parallel.session():
        if parallel.rank() > 0:
            say = lambda text: None  # noqa: E731
        if (
            plan.settings.packing and load_config(plan.base).model_type == "bert"
        ):  # before anything long begins
            raise InputError("--packing is for causal bases: leave it out for this one")
        torch.manual_seed(plan.config.seed)
        corpora = read(plan)
        say(f"Read {sum(len(c.examples) for c in corpora):,} rows of {len(corpora)} files")
        with parallel.first_goes_first():  # what is fetched or computed once is found by the others
            taught = ask(plan.sources.soft_from, corpora, plan.out.parent / "teachers")
            if soft := [*plan.sources.soft_labels, *taught]:
                say(f"Teachers judged {give_soft_labels(corpora, read_scores(soft)):,} of them")
            ready = learner(plan.base, plan.names, plan.tuning, plan.row)
            alignment = _alignment(plan, ready, corpora)
        if plan.sources.answers:
            say("Giving harmful rows the answer of their topic")
            stages.give_topic_answers(
                corpora, plan.sources.answers, plan.sources.parallel, plan.sources.teacher
            )
        say(json.dumps(stages.settings(plan.settings, plan.config)))
        manifest = _train(plan, ready, corpora, alignment)
        stages.save(ready.saved, ready.layout, plan.out, manifest, plan.base)
        say(f"Trained model: {plan.out}")


def read(plan: Plan) -> list[Corpus]:
    """The corpora of a plan."""
    files = plan.sources
    corpora = safety_corpora(files.data, files.noisy, files.translations, plan.policies, files.cap)
    return corpora + ([chat_corpus(path) for path in files.chat] if plan.stage == "instruct" else [])


def dry_run(plan: Plan) -> Iterable[str]:
    """What a run would take, in lines for people. Loads no weights."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    layout, missing = pieces.read_layout(plan.base, plan.names, plan.tuning.template)
    encoder = Encoder(layout, {p.language: p for p in plan.policies})
    epochs, tokens = stages.epochs_for(plan.stage, encoder, read(plan), plan.settings, plan.config)
    batches = [epochs(step) for step in range(min(200, epochs.steps_per_epoch))]
    load = budget.Load.of(batches, len(tokens), plan.settings.packing)
    made = budget.budget(
        plan.base,
        plan.row,
        plan.names,
        plan.tuning,
        load,
        plan.config.steps,
        plan.config.average > 0,
        processes,
    )
    yield f"base        {plan.base} ({plan.row.licence or 'licence: see its card'})"
    yield from budget.lines(made, plan.config.steps, processes, device().type)
    yield f"a step      {load.rows:,} rows, {load.tokens:,} tokens with {'no ' if plan.settings.packing else ''}padding"
    if layout.around:
        yield f"template    {layout.frame.before!r} QUERY {layout.frame.after!r}"
    yield f"new pieces  {len(missing)}"


def _train(
    plan: Plan, ready: Learner, corpora: Sequence[Corpus], alignment: Alignment | None
) -> dict[str, object]:
    encoder = stages.encoder_for(ready.layout, {p.language: p for p in plan.policies})
    settings, config, out = plan.settings, plan.config, plan.out / "stage"
    rows = read_examples(plan.sources.dev)[0] if plan.sources.dev else []
    tokens = stages.train(plan.stage, ready.model, encoder, corpora, rows, settings, config, out, alignment)
    return stages.extended(
        stages.read_manifest(plan.base),
        plan.stage,
        ready.model,
        encoder,
        corpora,
        stages.settings(settings, config),
        tokens,
    )


def _alignment(plan: Plan, ready: Learner, corpora: Sequence[Corpus]) -> Alignment | None:
    """The alignment loss, when --parallel and --teacher are given."""
    files = plan.sources
    model: Any = ready.model
    if not files.parallel or not files.teacher:
        return None
    if model.config.model_type != "bert":
        raise ModelError("--teacher aligns prefix bases only: leave it out for this one")
    extra = [e for corpus in corpora for e in corpus.examples if "original" in e.extra]
    pairs = read_parallel(files.parallel, extra)
    vectors = teacher_vectors(files.teacher, pairs, plan.out.parent)  # shared by sibling runs
    return Alignment(model, ready.layout, pairs, vectors)
