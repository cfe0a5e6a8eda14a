"""The two training stages: instruction (language), then safety (joint loss), for both model families."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BertForMaskedLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from slm_guardian.answers import learn_casing
from slm_guardian.errors import DataError, InputError, ModelError
from slm_guardian.evaluate.metrics import auroc
from slm_guardian.example import Example, write_json
from slm_guardian.layout import Layout
from slm_guardian.policy import Policy
from slm_guardian.train import lora, parallel, pieces
from slm_guardian.train.bases import base_of
from slm_guardian.train.corpora import parallel as read_parallel
from slm_guardian.train.data import SOFT, Corpus, Encoder, Epochs, Row, safety_rows
from slm_guardian.train.loop import LoopConfig, device, run
from slm_guardian.train.loss import JointLoss, is_prefix, judge
from slm_guardian.train.topics import answer_by_topic, read_topics
from slm_guardian.train.transfer import Alignment, Teacher

if TYPE_CHECKING:
    from peft import PeftModel

transformers_logging.set_verbosity_error()  # its loading report is about heads that nobody uses
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class StageConfig:
    """What a stage sees. λ weighs category and response against the label.

    `batch_tokens` bounds a batch by what it holds, over all processes, instead of by rows; `packing` lays the rows
    of a causal model end to end, without padding.
    """

    batch_size: int = 64
    lam: float = 0.5
    smoothing: float = 0.05
    perturbed: float = 0.3
    answered: float = 0.4
    align_every: int = 8
    align_batch: int = 64
    batch_tokens: int | None = None
    packing: bool = False
    soft_weight: float = 0.5


def load_model(
    directory: str | Path, dtype: torch.dtype = torch.float32, on: torch.device | str | None = None
) -> PreTrainedModel:
    """Load a prefix (BERT) or causal model from a Hugging Face directory or hub id; a LoRA merged into its base.

    Raises ModelError when it cannot be loaded.
    """
    model = load_base(directory, dtype, on)
    return lora.merged(model, str(directory)) if lora.is_adapter(directory) else model


def load_base(
    directory: str | Path, dtype: torch.dtype = torch.float32, on: torch.device | str | None = None
) -> PreTrainedModel:
    """Load the model of a directory or hub id; of a LoRA directory, what it was trained on."""
    base = base_of(directory)
    try:
        config = AutoConfig.from_pretrained(base)
        family: Any = BertForMaskedLM if config.model_type == "bert" else AutoModelForCausalLM
        # Measured: explicit attention is 1.4 x faster than the fused one for these lengths on a CPU.
        extra: dict[str, Any] = {"attn_implementation": "eager"} if config.model_type == "bert" else {}
        return family.from_pretrained(base, dtype=dtype, **extra).to(on or device())
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{base} cannot be loaded as a model: pass a Hugging Face directory") from error


def prepare(
    model: PreTrainedModel,
    directory: str | Path,
    names: Mapping[str, str] | Sequence[str],
    template: bool = True,
) -> Layout:
    """The layout of a base; a causal base gets the special tokens and policy pieces that it lacks.

    `names` may hold words that say what a category means. An earlier stage keeps its frame around a query; a new base
    gets that of its chat `template`, if it has one. Raises ModelError for a prefix base that lacks pieces.
    """
    words = names if isinstance(names, Mapping) else dict.fromkeys(names, "")
    layout, missing = pieces.read_layout(str(directory), words, template and not is_prefix(model))
    if missing and is_prefix(model):
        raise ModelError(
            f"the tokenizer lacks {len(missing)} pieces of the policy: run `guardian transfer` first"
        )
    pieces.add_rows(model, layout, words, missing)
    return layout


def train(
    stage: str,
    model: PreTrainedModel,
    encoder: Encoder,
    corpora: Sequence[Corpus],
    dev: Sequence[Example],
    settings: StageConfig,
    config: LoopConfig,
    out: Path,
    alignment: Alignment | None = None,
) -> list[int]:
    """Train one stage; AUROC on `dev` per language is logged on the way of the second.

    Stage 1, `instruct`: answers to questions. Short: it teaches the form of an answer, the next stage its substance.
    Stage 2, `safety`: the joint loss over all corpora. Returns the tokens that its answers are made of.
    """
    epochs, tokens = epochs_for(stage, encoder, corpora, settings, config)
    first = stage == "instruct"
    lam, smoothing = (1.0, 0.0) if first else (settings.lam, settings.smoothing)
    loss = JointLoss(
        model,
        encoder.layout,
        encoder.categories,
        lam,
        smoothing,
        tokens,
        settings.soft_weight,
        settings.packing,
    )
    rejected = encoder.rejects.copy()
    evaluate = (lambda: dev_auroc(model, encoder, dev)) if dev and not first else None
    run(model, _with_alignment(loss, epochs, settings, alignment), config, out, evaluate)
    encoder.rejects = rejected
    return [] if first else tokens


def epochs_for(
    stage: str, encoder: Encoder, corpora: Sequence[Corpus], settings: StageConfig, config: LoopConfig
) -> tuple[Epochs, list[int]]:
    """The batches of a stage, and the tokens that its answers are made of. Raises DataError without usable rows."""
    examples = [e for corpus in corpora for e in corpus.examples]
    if stage == "instruct":
        rows = [row for row in map(encoder.instruction, (e for e in examples if e.response)) if row]
        if not rows:
            raise DataError("no answered queries: pass --data or --chat FILE whose rows have answers")
        draw: Callable[[random.Random], list[Row]] = lambda rng: list(rows)  # noqa: E731
    else:
        if not examples:
            raise DataError("no labelled rows: pass --data FILE with `text` and `label`")
        draw = safety_rows(corpora, encoder, settings.perturbed, settings.answered)
        rows = [row for e in examples if e.response for row in [encoder.safety(e)] if row.answer is not None]
    rejected = encoder.rejects.copy()  # each epoch counts them again
    epochs = Epochs(draw, settings.batch_size, config.seed, settings.batch_tokens, settings.packing)
    encoder.rejects = rejected
    return epochs, answer_tokens(rows)


def answer_tokens(rows: Sequence[Row]) -> list[int]:
    """The tokens that occur in answers: nothing else is ever written."""
    return sorted({token for row in rows for token in row.ids[(row.answer or 0) + 1 :]})


def give_topic_answers(
    corpora: Sequence[Corpus], answers: Path, parallel_files: Sequence[Path], teacher: Path | None
) -> None:
    """Replace the responses of all corpora, in place, by the answers of their topics."""
    if teacher is None:
        raise InputError("--answers needs --teacher DIR: an English encoder that places queries in topics")
    encoder, topics = Teacher(teacher), read_topics(answers)
    rows = [e for corpus in corpora for e in corpus.examples]
    pairs = read_parallel(parallel_files, [e for e in rows if "original" in e.extra])
    for corpus in corpora:
        if corpus.cap is None:  # our own rows: labels of public ones are too noisy to answer by
            corpus.examples = answer_by_topic(corpus.examples, topics, pairs, encoder)


def dev_auroc(model: PreTrainedModel, encoder: Encoder, dev: Sequence[Example]) -> dict[str, float]:
    """AUROC of the label logits per language: `auroc_ko`, `auroc_en`."""
    import numpy as np

    labels, _ = judge(model, encoder.layout, encoder.categories, [e.text for e in dev])
    scores = (labels[:, 1] - labels[:, 0]).numpy()
    result = {}
    for lang in sorted({e.lang or "" for e in dev}):
        rows = np.array([e.lang == lang for e in dev])
        value = auroc(np.array([e.label == "unsafe" for e in dev])[rows], scores[rows])
        if value is not None:
            result[f"auroc_{lang}"] = value
    return result


def save(
    model: PreTrainedModel | PeftModel,
    layout: Layout,
    out: Path,
    manifest: dict[str, object],
    base: str | None = None,
) -> None:
    """Write a plain Hugging Face or PEFT directory, with the tokenizer's files of `base`; `guardian.json` comes last.

    All processes have to call it; the first one writes.
    """
    state = parallel.whole_state(model)
    if parallel.rank() > 0:
        return
    out.mkdir(parents=True, exist_ok=True)
    saved: Any = model
    extra: dict[str, Any] = {} if state is None else {"state_dict": state}
    if hasattr(
        model, "peft_config"
    ):  # PEFT would look for resized embeddings on a hub: trained rows are saved anyway
        extra["save_embedding_layers"] = False
    saved.save_pretrained(out, **extra)
    if base:
        pieces.copy_side_files(base, out)
    layout.tokenizer.save(str(out / "tokenizer.json"))
    frame = {"frame": asdict(layout.frame)} if layout.around else {}
    write_json(out / "guardian.json", manifest | frame)


def read_manifest(directory: str | Path) -> dict[str, object]:
    """`guardian.json` of a model directory, or an empty one for a bare base."""
    path = Path(directory) / "guardian.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def encoder_for(layout: Layout, policies: dict[str, Policy]) -> Encoder:
    """An encoder whose policies the layout knows. Raises ModelError for a category without a piece."""
    encoder = Encoder(layout, policies)
    missing = [c for c in encoder.categories if layout.piece_id(c) is None]
    if missing:
        raise ModelError(f"the model does not know the category {missing[0]}: train it with this policy")
    return encoder


def _with_alignment(
    loss: JointLoss, epochs: Epochs, stage: StageConfig, alignment: Alignment | None
) -> Callable[[int], dict[str, Tensor]]:
    """Add the alignment loss every few steps: without it fine-tuning undoes the crossing (measured)."""

    def objective(step: int) -> dict[str, Tensor]:
        parts = loss(epochs(step))
        if alignment and stage.align_every and step % stage.align_every == 0:
            aligned = alignment(step // stage.align_every, stage.align_batch)
            parts = {**parts, "loss": parts["loss"] + 0.3 * aligned, "align": aligned.detach()}
        return parts

    return objective


def settings(stage: StageConfig, config: LoopConfig) -> dict[str, object]:
    """Both configurations as one plain dictionary, for manifests."""
    return asdict(config) | asdict(stage)


def extended(
    manifest: dict[str, object],
    stage: str,
    model: PreTrainedModel,
    encoder: Encoder,
    corpora: Sequence[Corpus],
    settings: dict[str, object],
    tokens: Sequence[int],
) -> dict[str, object]:
    """The base's manifest with this stage added: settings, corpora, policies, rejects, teachers, answer tokens."""
    done = manifest.get("stages")
    stages = dict(done) if isinstance(done, dict) else {}
    taught = sum(SOFT in e.extra for c in corpora for e in c.examples)
    stages[stage] = {
        **settings,
        "corpora": [c.manifest() for c in corpora],
        "rejected_responses": dict(encoder.rejects),
        **({"taught": taught} if taught else {}),
    }
    return {
        "family": "prefix" if is_prefix(model) else "causal",
        "categories": encoder.categories,
        "policies": {p.id: p.version for p in encoder.policies.values()},
        "casing": learn_casing(e.response for c in corpora for e in c.examples if e.response),
        "answer_tokens": list(tokens),
        "stages": stages,
    }
