"""Checkpoints of a training run: all that is needed to go on as if it had never stopped.

One file, the same for one process and for many: what was trained is kept under the names of its parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import get_ema_multi_avg_fn

from slm_guardian.errors import GuardianError
from slm_guardian.train.parallel import WHOLE, rank

if TYPE_CHECKING:
    from slm_guardian.train.loop import LoopConfig

_FORMAT = 2


class Average:
    """Exponential moving average of the trained weights; its window grows, so that a short run forgets its start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self._ours: list[Tensor] = [p.detach() for p in model.parameters() if p.requires_grad]
        self._mean = [p.clone() for p in self._ours] if decay else []

    def update(self) -> None:
        """Take the weights of a step in."""
        if self.decay and not self.count:
            for mean, ours in zip(self._mean, self._ours, strict=True):
                mean.copy_(ours)
        elif self.decay:
            n = self.count
            get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(self._mean, self._ours, n)
        self.count += 1

    def swap(self) -> None:
        """Exchange the weights of the model and their average."""
        for ours, mean in zip(self._ours, self._mean, strict=bool(self.decay)):
            held = ours.clone()
            ours.copy_(mean)
            mean.copy_(held)


@dataclass
class Run:
    """What changes while a model trains."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: Average

    def save(self, out: Path, step: int, config: LoopConfig) -> None:
        """Write `checkpoint.pt`, through a temporary file; all processes have to call it."""
        saved = {
            "format": _FORMAT,
            "model": self._weights(),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=WHOLE),
            "average": self._averaged(self._weights),
            "count": self.average.count,
            "schedule": self.schedule.state_dict(),
            "step": step,
            "rng": torch.get_rng_state(),
            "config": asdict(config),
        }
        if rank() == 0:
            partial = out / "checkpoint.pt.partial"
            torch.save(saved, partial)
            os.replace(partial, out / "checkpoint.pt")

    def load(self, path: Path, config: LoopConfig) -> int:
        """Go back to a checkpoint; the step it was written at. Raises GuardianError where it is of other settings."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        known = saved.get("format") == _FORMAT
        if not known or _settings(saved["config"]) != _settings(asdict(config)):
            raise GuardianError(f"{path} belongs to other settings: choose another --out or remove it")
        set_optimizer_state_dict(self.model, self.optimizer, saved["optimizer"], options=WHOLE)
        self._averaged(lambda: set_model_state_dict(self.model, saved["average"], options=WHOLE))
        set_model_state_dict(self.model, saved["model"], options=WHOLE)
        self.average.count = saved["count"]
        self.schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"])
        return int(saved["step"])

    def _weights(self) -> dict[str, Any]:
        """What is trained, once: a tied head has a name of its own, and a frozen one would come along."""
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = get_model_state_dict(self.model, options=WHOLE)
        return {name: value for name, value in state.items() if name in trained}

    def _averaged(self, work: Callable[[], Any]) -> Any:
        """What work gives with the averaged weights in place; nothing where there is no average."""
        if not self.average.decay:
            return {}
        self.average.swap()
        try:
            return work()
        finally:
            self.average.swap()


def _settings(config: dict[str, object]) -> dict[str, object]:
    """What must not change between a checkpoint and the run that goes on from it: all but how far and how often."""
    return {
        key: value for key, value in config.items() if key not in ("stop", "checkpoint_seconds", "sharded")
    }
