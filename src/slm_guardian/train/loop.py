"""The training loop of every stage: resumable, deterministic, with progress, metrics and curves.

A stage gives a model and an `objective(step)`; what batch a step sees depends on the step and the seed alone,
so a run that was killed goes on exactly where its last checkpoint was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from slm_guardian.errors import GuardianError
from slm_guardian.example import write_json

Objective = Callable[[int], dict[str, Tensor]]
Evaluation = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class LoopConfig:
    """How a stage is optimised. Learning rates are peaks: linear warm-up, then linear decay to zero.

    `stop` ends the stage early, on the way of the same schedule: for a stage that goes on with other data.
    `average` is the decay of an exponential moving average of the weights, which is what is evaluated and kept
    (Izmailov et al. 2018, 1803.05407); 0 keeps the last weights.
    """

    steps: int
    stop: int | None = None
    lr: float = 1e-4
    embedding_lr: float = 3e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.0
    seed: int = 0
    evaluate_every: int = 0
    checkpoint_seconds: float = 120.0
    bf16: bool = True


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run(
    model: nn.Module, objective: Objective, config: LoopConfig, out: Path, evaluate: Evaluation | None = None
) -> None:
    """Train `model` in place and leave `metrics.jsonl`, `curves.png` and `done.json` in `out`.

    A finished stage returns at once with its trained weights. Ctrl-C saves a checkpoint and raises
    GuardianError; the same call goes on from it.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    optimizer = _optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    average = AveragedModel(model, multi_avg_fn=_moving_average(config.average))
    state = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    start, end = _restore(out, state, config), config.stop or config.steps
    if start >= end:
        return _swap(model, average)
    model.train()
    step, saved = start, time.monotonic()
    try:
        with _progress() as bar:
            task = bar.add_task(out.name, total=end, completed=start, info="")
            for step in range(start, end):
                parts = _update(model, objective, optimizer, schedule, config, step)
                average.update_parameters(model)
                last = step + 1 == end
                if step % 20 == 0 or last:
                    _log(out, {"step": step, **{k: round(v.item(), 5) for k, v in parts.items()}})
                    bar.update(task, info=" ".join(f"{k} {v.item():.3f}" for k, v in parts.items()))
                bar.update(task, completed=step + 1)
                if evaluate and config.evaluate_every and ((step + 1) % config.evaluate_every == 0 or last):
                    _log(out, {"step": step, **_evaluated(model, average, evaluate)})
                if last or time.monotonic() - saved > config.checkpoint_seconds:
                    _checkpoint(out, state, step + 1, config)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        _checkpoint(out, state, step, config)
        raise GuardianError(f"stopped at step {step} of {end}: run the same command to go on") from None
    except OSError as error:
        raise GuardianError(
            f"cannot write to {out} ({error.strerror}): free some space, then run again"
        ) from error
    _swap(model, average)
    draw_curves(out)
    write_json(out / "done.json", asdict(config))


def _update(
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    config: LoopConfig,
    step: int,
) -> dict[str, Tensor]:
    with torch.autocast(device().type, torch.bfloat16, enabled=config.bf16):
        parts = objective(step)
    parts["loss"].backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return parts


def _evaluated(model: nn.Module, average: AveragedModel, evaluate: Evaluation) -> dict[str, float]:
    model.eval()
    _swap(model, average)
    try:
        with torch.no_grad():
            values = evaluate()
    finally:
        _swap(model, average)
    model.train()
    return {k: round(v, 5) for k, v in values.items()}


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Update of the moving average; its window grows with the run, so that a short one forgets its start."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, count)

    return update


def _swap(model: nn.Module, average: AveragedModel) -> None:
    """Exchange the weights of the model and of its average."""
    for ours, averaged in zip(model.parameters(), average.module.parameters(), strict=True):
        ours.data, averaged.data = averaged.data, ours.data


def _optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for embeddings; no decay for biases, norms and embeddings."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            embedding = "embed" in name and parameter.ndim == 2
            decay = 0.0 if embedding or parameter.ndim < 2 else config.weight_decay
            groups.setdefault((config.embedding_lr if embedding else config.lr, decay), []).append(parameter)
    settings = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    return torch.optim.AdamW(settings, fused=True)


def _rate(step: int, config: LoopConfig) -> float:
    warm = max(1, round(config.warmup * config.steps))
    return (step + 1) / warm if step < warm else max(0.0, (config.steps - step) / max(1, config.steps - warm))


def _checkpoint(out: Path, state: dict[str, Any], step: int, config: LoopConfig) -> None:
    partial = out / "checkpoint.pt.partial"
    saved = {name: part.state_dict() for name, part in state.items()}
    torch.save({**saved, "step": step, "rng": torch.get_rng_state(), "config": asdict(config)}, partial)
    os.replace(partial, out / "checkpoint.pt")


def _restore(out: Path, state: dict[str, Any], config: LoopConfig) -> int:
    path = out / "checkpoint.pt"
    if not path.exists():
        (out / "metrics.jsonl").unlink(missing_ok=True)
        return 0
    saved = torch.load(path, map_location=device(), weights_only=True)
    if _settings(saved["config"]) != _settings(asdict(config)):
        raise GuardianError(f"{path} belongs to other settings: choose another --out or remove it")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    torch.set_rng_state(saved["rng"].cpu())
    _drop_after(out / "metrics.jsonl", saved["step"])
    return int(saved["step"])


def _settings(config: dict[str, object]) -> dict[str, object]:
    """What must not change between a checkpoint and the run that goes on from it: all but the place to stop."""
    return {key: value for key, value in config.items() if key != "stop"}


def _drop_after(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint: those steps are run again."""
    if path.exists():
        kept = [line for line in path.read_text("utf-8").splitlines() if json.loads(line)["step"] < step]
        path.write_text("".join(line + "\n" for line in kept), "utf-8")


def _log(out: Path, row: dict[str, float]) -> None:
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
    )
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=1)


def draw_curves(out: Path) -> None:
    """Draw `curves.png` from `metrics.jsonl`: losses on the left, evaluations on the right."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for key in dict.fromkeys(k for row in rows for k in row if k != "step"):
        points = [(row["step"], row[key]) for row in rows if key in row]
        panel = panels[0] if any("loss" in row and key in row for row in rows) else panels[1]
        panel.plot(*zip(*points, strict=True), label=key, linewidth=1)
    for panel, title in zip(panels, ("training", "evaluation"), strict=True):
        panel.set(xlabel="step", title=f"{out.name}: {title}")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=8)
    figure.savefig(out / "curves.png", dpi=110)
