"""The training loop of every stage: resumable, deterministic, with progress, metrics and curves.

A stage gives a model and an `objective(step)`; what batch a step sees depends on the step and the seed alone,
so a run that was killed goes on exactly where its last checkpoint was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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

from slm_guardian.errors import GuardianError
from slm_guardian.example import write_json
from slm_guardian.train import parallel
from slm_guardian.train.checkpoint import Average, Run

Objective = Callable[[int], dict[str, Tensor]]
Evaluation = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class LoopConfig:
    """How a stage is optimised. Learning rates are peaks: linear warm-up, then linear decay to zero.

    `stop` ends the stage early, on the way of the same schedule: for a stage that goes on with other data.
    `average` is the decay of an exponential moving average of the weights, which is what is evaluated and kept
    (Izmailov et al. 2018, 1803.05407); 0 keeps the last weights. `sharded` splits the model over the processes.
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
    sharded: bool = False


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
    together = parallel.distributed(model, config.sharded)
    optimizer = _optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    state = Run(model, optimizer, schedule, Average(model, config.average))
    start, end = _restore(out, state, config), config.stop or config.steps
    if start >= end:
        return state.average.swap()
    model.train()
    step, saved = start, time.monotonic()
    try:
        with _progress() as bar:
            task = bar.add_task(out.name, total=end, completed=start, info="")
            for step in range(start, end):
                parts = _update(state, lambda: together(lambda: objective(step)), config)  # noqa: B023
                state.average.update()
                last = step + 1 == end
                if step % 20 == 0 or last:
                    values = parallel.mean(parts)
                    _log(out, {"step": step, **{k: round(v, 5) for k, v in values.items()}})
                    bar.update(task, info=" ".join(f"{k} {v:.3f}" for k, v in values.items()))
                bar.update(task, completed=step + 1)
                if evaluate and config.evaluate_every and ((step + 1) % config.evaluate_every == 0 or last):
                    _log(out, {"step": step, **_evaluated(state, lambda: together(evaluate))})
                if parallel.agree(last or time.monotonic() - saved > config.checkpoint_seconds):
                    state.save(out, step + 1, config)
                    saved = time.monotonic()
    except KeyboardInterrupt:
        if parallel.size() == 1:  # others may be at another step: they go on from the last checkpoint
            state.save(out, step, config)
        raise GuardianError(f"stopped at step {step} of {end}: run the same command to go on") from None
    except OSError as error:
        raise GuardianError(
            f"cannot write to {out} ({error.strerror}): free some space, then run again"
        ) from error
    state.average.swap()
    if parallel.rank() == 0:
        draw_curves(out)
        write_json(out / "done.json", asdict(config))


def _update(state: Run, objective: Callable[[], dict[str, Tensor]], config: LoopConfig) -> dict[str, Tensor]:
    with torch.autocast(device().type, torch.bfloat16, enabled=config.bf16):
        parts = objective()
    parts["loss"].backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad(set_to_none=True)
    return parts


def _evaluated(state: Run, evaluate: Evaluation) -> dict[str, float]:
    state.model.eval()
    state.average.swap()
    try:
        with torch.no_grad():
            values = evaluate()
    finally:
        state.average.swap()
    state.model.train()
    return {k: round(v, 5) for k, v in values.items()}


def _optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW with a rate of its own for embeddings and new rows; no decay for biases, norms and these."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            embedding = ("embed" in name or "token_adapter" in name) and parameter.ndim == 2
            decay = 0.0 if embedding or parameter.ndim < 2 else config.weight_decay
            groups.setdefault((config.embedding_lr if embedding else config.lr, decay), []).append(parameter)
    settings = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    return torch.optim.AdamW(settings, fused=True)


def _rate(step: int, config: LoopConfig) -> float:
    warm = max(1, round(config.warmup * config.steps))
    return (step + 1) / warm if step < warm else max(0.0, (config.steps - step) / max(1, config.steps - warm))


def _restore(out: Path, state: Run, config: LoopConfig) -> int:
    """The step to go on from; what was logged after its checkpoint is forgotten: those steps are run again."""
    path, log = out / "checkpoint.pt", out / "metrics.jsonl"
    step = state.load(path, config) if path.exists() else 0
    if parallel.rank() == 0 and log.exists():
        lines = log.read_text("utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a kill may leave half a line
        log.write_text("".join(line for line in whole if json.loads(line)["step"] < step), "utf-8")
    return step


def _log(out: Path, row: dict[str, float]) -> None:
    if parallel.rank() > 0:
        return
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
    )
    return Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        refresh_per_second=1,
        disable=parallel.rank() > 0,
    )


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
