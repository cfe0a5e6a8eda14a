"""How a model runs. An engine scores tokens at the end of sequences and goes on token by token; nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout


class State(Protocol):
    """A sequence that an engine has read, as far as it needs it to go on. Never changed: two may go on from it."""

    @property
    def logits(self) -> np.ndarray:
        """Of the next token: (vocabulary,)."""
        ...


class Engine(Protocol):
    """What a guardian needs of a model."""

    layout: Layout

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Logits of `tokens` at the last two places of each sequence: (sequences, 2, tokens).

        Sequences come from `Layout.judge`; order and number are kept.
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


def load_engine(directory: Path, threads: int | None = None) -> Engine:
    """The engine that fits a model directory: ONNX where there is a model.onnx, else torch."""
    if not directory.is_dir():
        raise ModelError(
            f"no model directory {directory}: check --model, or leave it out for the shipped one"
        )
    if (directory / "model.onnx").exists():
        from slm_guardian.engines.onnx import OnnxEngine

        return OnnxEngine.load(directory, threads)
    if (directory / "config.json").exists():
        from slm_guardian.engines.torch import TorchEngine

        return TorchEngine.load(directory)
    raise ModelError(f"{directory} holds neither model.onnx nor config.json: export or train the model again")
