"""How a model runs. An engine scores tokens at the end of sequences and decodes answers; nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout

Mask = Callable[[Sequence[int]], np.ndarray]


class Engine(Protocol):
    """What a guardian needs of a model."""

    layout: Layout

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Logits of `tokens` at the last two places of each sequence: (sequences, 2, tokens).

        Sequences come from `Layout.judge`; order and number are kept.
        """
        ...

    def decode(self, prompt: Sequence[int], prefix: int, mask: Mask, limit: int) -> Iterator[int]:
        """Token ids after `prompt`, greedy, until `<|end|>` or `limit`.

        `prefix` tokens see each other; `mask` gives, for the tokens written so far, what to add to the logits
        (vocabulary): large negative numbers ban.
        """
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
