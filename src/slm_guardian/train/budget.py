"""What a training run will take, before anything is loaded: parameters, memory and time.

Parameters are counted on a model without weights, made from the configuration alone. Memory follows from the numbers
that training keeps: AdamW two for each trained weight (Loshchilov & Hutter 2019, 1711.05101), activations as in
Korthikanti et al. 2022, 2205.05198, counted for gated layers. Time divides the arithmetic, 6 operations for each weight
and token (Kaplan et al. 2020, 2001.08361), by the measured speed of this machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slm_guardian.train import lora, pieces
from slm_guardian.train.bases import Base, load_config
from slm_guardian.train.data import Row
from slm_guardian.train.loop import device
from slm_guardian.train.tuning import Tuning

USED = 0.4  # share of a machine's speed in multiplying matrices that training reaches: an assumption


@dataclass(frozen=True)
class Budget:
    """Counts of parameters, bytes a process, operations a step, and seconds on this machine."""

    total: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    operations: float
    seconds: float

    @property
    def memory(self) -> int:
        """All bytes of a process."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Load:
    """What a step sees over all processes: rows, tokens (with their padding), tokens of answers and possible ones."""

    rows: int
    tokens: int
    answers: int
    written: int

    @classmethod
    def of(cls, batches: Sequence[Sequence[Row]], written: int, packed: bool = False) -> Load:
        """The mean of some batches."""
        n = len(batches)
        answers = (len(r.ids) - 1 - r.answer for rows in batches for r in rows if r.answer is not None)
        lengths = [[len(row.ids) for row in rows] for rows in batches]
        tokens = sum(sum(sizes) if packed else max(sizes) * len(sizes) for sizes in lengths)
        return cls(sum(map(len, batches)) // n, tokens // n, sum(answers) // n, written)


def budget(
    base: str,
    row: Base,
    names: Mapping[str, str],
    tuning: Tuning,
    load: Load,
    steps: int,
    average: bool,
    processes: int = 1,
) -> Budget:
    """Estimate a run of `steps` steps. Reads the configuration and the tokenizer of the base, nothing else."""
    model = empty(base, row, names, tuning)
    counts = [(p.numel(), p.element_size(), p.requires_grad) for p in model.parameters()]
    total, trainable = sum(n for n, _, _ in counts), sum(n for n, _, trained in counts if trained)
    parts = processes if tuning.sharded else 1
    # Backward through frozen weights costs what forward does; their own gradients are not computed.
    each = 2 * (2 * total + trainable) + (2 * total if tuning.checkpointing else 0)
    operations = float(each) * load.tokens
    return Budget(
        total=total,
        trainable=trainable,
        weights=sum(n * size for n, size, _ in counts) // parts,
        gradients=4 * trainable // parts,
        optimizer=8 * trainable // parts,
        average=4 * trainable // parts if average else 0,
        activations=_activations(model.config.get_text_config(), load, tuning) // processes,
        operations=operations,
        seconds=steps * operations / (USED * speed(tuning.bf16) * processes),
    )


def empty(base: str, row: Base, names: Mapping[str, str], tuning: Tuning) -> Any:
    """The model as it will be trained, without weights."""
    from transformers import AutoModelForCausalLM, BertForMaskedLM

    config = load_config(base)
    with torch.device("meta"):
        prefix = config.model_type == "bert"
        model: Any = BertForMaskedLM(config) if prefix else AutoModelForCausalLM.from_config(config)
        model.to(tuning.dtype)
        layout, missing = pieces.read_layout(base, names, tuning.template)
        new = pieces.add_rows(model, layout, names, missing)
        if tuning.lora:
            lora.attach(model, base, tuning.rank, tuning.alpha, row.targets, new)
    return model


def speed(bf16: bool) -> float:
    """Operations a second of this machine when it multiplies matrices: measured, in a moment."""
    place = device()
    side = 8192 if place.type == "cuda" else 1024
    left = torch.randn(side, side, device=place, dtype=torch.bfloat16 if bf16 else torch.float32)
    torch.mm(left, left)  # the first one sets things up
    _wait(place)
    start, times = time.perf_counter(), 0
    while times < 3 or time.perf_counter() - start < 0.2:
        torch.mm(left, left)
        _wait(place)
        times += 1
    return 2 * side**3 * times / (time.perf_counter() - start)


def lines(budget: Budget, steps: int, processes: int, place: str) -> Sequence[str]:
    """A budget in words."""
    gib = {name: getattr(budget, name) / 2**30 for name in ("weights", "gradients", "optimizer", "average")}
    held = ", ".join(f"{name} {value:.2f}" for name, value in gib.items())
    share = 100 * budget.trainable / budget.total
    speed = budget.operations / max(budget.seconds / steps, 1e-9) / processes
    return (
        f"parameters  {budget.total:,}, trained {budget.trainable:,} ({share:.2f} %)",
        f"memory      {budget.memory / 2**30:.2f} GiB a process (estimate): {held}, "
        f"activations {budget.activations / 2**30:.2f}",
        f"time        {_duration(budget.seconds)} for {steps:,} steps on {processes} x this {place} (estimate: "
        f"{budget.operations / 1e12:.3g} Tflop a step at {speed / 1e12:.3g} Tflop/s, {USED:.0%} of what it multiplies)",
    )


def _activations(config: Any, load: Load, tuning: Tuning) -> int:
    """Bytes kept for the backward pass: every layer's inner ones, or its input and one layer's inner ones."""
    number = 2 if tuning.bf16 else 4
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer = (
        number * load.tokens * (10 * hidden + 4 * inner)
    )  # projections, norms, residuals; gate, up, product
    kept = number * load.tokens * hidden * layers + layer if tuning.checkpointing else layer * layers
    places = load.answers * load.written + 2 * load.rows * 16
    return kept + 3 * 4 * places  # logits, their softmax and gradient in float32


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize()


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
