"""How a model runs. An engine scores tokens at the end of sequences and goes on token by token; nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from slm_guardian.errors import GuardianError, ModelError
from slm_guardian.layout import Layout

Tokens = Sequence[int] | np.ndarray
ADAPTERS = "adapters"  # folder of a model directory: one LoRA for each policy, named by its id


class State(Protocol):
    """A sequence that an engine has read, as far as it needs it to go on. Never changed: two may go on from it."""

    def scores(self, tokens: Tokens) -> np.ndarray:
        """Logits of `tokens` as the next one, up to a constant: (tokens,)."""
        ...


class Engine(Protocol):
    """What a guardian needs of a model."""

    layout: Layout

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Logits of `tokens` at the last two places of each sequence: (sequences, 2, tokens).

        Up to a constant for each place. Sequences come from `Layout.judge`; order and number are kept.
        Raises Unanswered, with NaN in the rows that have none, where a server gave no numbers.
        """
        ...

    def meaning(self, sequence: Sequence[int]) -> np.ndarray:
        """Mean of the last hidden states over the query of a sequence from `Layout.judge`: (hidden,)."""
        ...

    def begin(self, prompt: Sequence[int], prefix: int) -> State:
        """Read a prompt whose first `prefix` tokens see each other."""
        ...

    def extend(self, state: State, token: int) -> State:
        """Read one token more, after a state of this engine."""
        ...

    def write(self, prompt: Sequence[int], prefix: int, banned: np.ndarray, limit: int) -> Iterator[int]:
        """Tokens after a prompt, the likeliest each time, until `<|end|>` or `limit`; see `decoding.greedy`."""
        ...

    def adapted(self, policy: str) -> Engine:
        """This engine with the adapter of a policy, where it has one; else itself."""
        ...


class Unanswered(GuardianError):
    """A server gave no numbers for some sequences: `scores` holds NaN in their rows."""

    def __init__(self, reason: str, scores: np.ndarray) -> None:
        super().__init__(reason)
        self.scores = scores


def is_address(model: str | Path | None) -> bool:
    """Whether a model is given as the address of a server."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def load_engine(directory: Path, threads: int | None = None) -> Engine:
    """The engine that fits a model directory: ONNX where there is a model.onnx, else torch."""
    if not directory.is_dir():
        raise ModelError(
            f"no model directory {directory}: check --model, or leave it out for the shipped one"
        )
    if (directory / "model.onnx").exists():
        from slm_guardian.engines.onnx import OnnxEngine

        return OnnxEngine.load(directory, threads)
    if any((directory / name).exists() for name in ("config.json", "adapter_config.json")):
        from slm_guardian.engines.torch import TorchEngine

        return TorchEngine.load(directory)
    raise ModelError(f"{directory} holds neither model.onnx nor config.json: export or train the model again")
