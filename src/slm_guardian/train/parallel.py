"""Several processes that train one model: plain data parallelism (DDP), or weights in shards (FSDP2).

Started by `torchrun` or `accelerate launch`; one process needs neither. Every process draws the same batch and takes
its share of the rows; a loss is divided by what the whole batch holds, so the gradient is that of one process, up to
rounding. Only the first process writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

# A state dictionary as one process would have it, on the CPU of the first one, without frozen weights.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
Step = Callable[[Callable[[], Any]], Any]
T = TypeVar("T")


@contextmanager
def session() -> Iterator[None]:
    """Join the processes that a launcher started with this one, if any, for as long as the block lasts."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(rows: Sequence[T]) -> Sequence[T]:
    """This process's part of a batch; every n-th row, since a batch may be sorted by length."""
    return rows if size() == 1 else rows[rank() :: size()]


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The others wait until the first process has done the block, whose files they then find."""
    if size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if size() > 1 and rank() == 0:
        dist.barrier()


def agree(value: bool) -> bool:
    """What the first process says, for all: clocks differ."""
    if size() == 1:
        return value
    said = torch.tensor([value], device=_device())
    dist.broadcast(said, 0)
    return bool(said.item())


def mean(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all processes, each of which has the same parts."""
    values = torch.stack([value.detach().float() for value in parts.values()])
    if size() > 1:
        dist.all_reduce(values)
        values /= size()
    return dict(zip(parts, values.tolist(), strict=True))


class _Whole(nn.Module):
    """A model whose forward pass is any work with it: DDP and FSDP act before and after a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def distributed(model: nn.Module, sharded: bool = False) -> Step:
    """A function that does work with the model in step with the other processes; in one process, just does it.

    `sharded` splits weights, gradients and optimizer state over the processes: FSDP2, one unit a layer. Call it before
    the optimizer is made.
    """
    if size() == 1:
        return lambda work: work()
    if not sharded:
        # Buffers are computed from the configuration: the same everywhere.
        return nn.parallel.DistributedDataParallel(_Whole(model), forward_sync_buffers=False)
    from torch.distributed.fsdp import fully_shard

    for layer in _layers(model):
        fully_shard(layer)
    whole: Any = fully_shard(_Whole(model))

    def step(work: Callable[[], Any]) -> Any:
        done = whole(work)
        if not torch.is_grad_enabled():  # no backward pass follows that would let go of the gathered weights
            whole.reshard()
        return done

    return step


def whole_state(model: nn.Module) -> dict[str, Any] | None:
    """The weights for saving, gathered where they lie in shards, tied ones once; None where the model has them itself.

    All processes have to call it; only the first gets the weights.
    """
    if not any(hasattr(p, "full_tensor") for p in model.parameters()):
        return None
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {name: value for name, value in state.items() if name in own}


def _layers(model: nn.Module) -> list[nn.Module]:
    """The decoder (or encoder) layers: what the model's class says is not to be split."""
    whole = set(getattr(model, "_no_split_modules", None) or ())
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList))
    return [layer for layers in lists for layer in layers if type(layer).__name__ in whole]


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
