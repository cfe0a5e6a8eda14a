"""The embedded engine: int8 ONNX with a key-value cache. Needs numpy and onnxruntime only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm_guardian.engines import State, Tokens
from slm_guardian.engines.decoding import Stepwise
from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout

CAUSAL = {"attention": "causal"}  # property of a file whose query tokens do not see later ones
AWAY = np.float32(-1e4)  # added to the attention score of a token that must not be seen


@dataclass(frozen=True)
class OnnxState:
    """Logits of the next token and the key-value cache of the `length` tokens before it."""

    logits: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    length: int

    def scores(self, tokens: Tokens) -> np.ndarray:
        """Logits of `tokens` as the next one: (tokens,)."""
        return self.logits[tokens]


class OnnxEngine(Stepwise):
    """Runs `model.onnx` as `slm_guardian.train.onnx_graph` and `onnx_causal` write it.

    Each sequence runs by itself, on one thread, several side by side: int8 activations are scaled over what
    runs together, so in a padded batch a verdict would depend on its neighbours. It is also faster.
    """

    def __init__(self, session: Any, layout: Layout, threads: int) -> None:
        self.session, self.layout = session, layout
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        layers, _, heads, _, size = next(i.shape for i in session.get_inputs() if i.name == "past_keys")
        self._past = np.zeros((layers, 1, heads, 0, size), np.float32)
        self._causal = CAUSAL.items() <= session.get_modelmeta().custom_metadata_map.items()

    @classmethod
    def load(cls, directory: Path, threads: int | None = None) -> OnnxEngine:
        """Load a directory with model.onnx and tokenizer.json. Raises ModelError when one is broken."""
        import onnxruntime

        layout = Layout.load(directory)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                str(directory / "model.onnx"),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # measured: its kernel costs a quarter of a run
            )
            return cls(session, layout, threads or os.cpu_count() or 1)
        except Exception as error:  # onnxruntime raises many types for a truncated or foreign file
            path = directory / "model.onnx"
            raise ModelError(f"{path} cannot be loaded: export or install it again") from error

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Logits of `tokens` at the last two places of each sequence: (sequences, 2, tokens)."""

        def run(sequence: Sequence[int]) -> np.ndarray:
            feed = self._feed(sequence, len(sequence) - 2)
            return self.session.run(["scores"], feed | {"tokens": np.array(tokens, np.int64)})[0][0]

        each = map if len(sequences) == 1 or self._pool is None else self._pool.map
        return np.stack(list(each(run, sequences)))

    def meaning(self, sequence: Sequence[int]) -> np.ndarray:
        """Mean of the last hidden states over the query of a sequence from `Layout.judge`: (hidden,)."""
        prefix = max(1, len(sequence) - 2)
        feed = self._feed(sequence, prefix) | {"select": np.arange(prefix)[None]}
        return self.session.run(["states"], feed)[0][0].mean(0)

    def begin(self, prompt: Sequence[int], prefix: int) -> OnnxState:
        """Read a prompt whose first `prefix` tokens see each other."""
        return self._next(self._feed(prompt, prefix) | {"next": np.array([1])}, len(prompt))

    def extend(self, state: State, token: int) -> OnnxState:
        """Read one token more, after a state of this engine."""
        assert isinstance(state, OnnxState)
        feed = {
            "ids": np.array([[token]]),
            "positions": np.array([[state.length]]),
            "mask": np.zeros((1, 1, 1, state.length + 1), np.float32),
            "past_keys": state.keys,
            "past_values": state.values,
            "select": np.zeros((1, 1), np.int64),
            "tokens": np.array([self.layout.end], np.int64),
            "next": np.array([0]),
        }
        return self._next(feed, state.length + 1)

    def _next(self, feed: dict[str, np.ndarray], length: int) -> OnnxState:
        logits, keys, values = self.session.run(["logits", "keys", "values"], feed)
        return OnnxState(logits[-1], keys, values, length)

    def _feed(self, sequence: Sequence[int], prefix: int) -> dict[str, np.ndarray]:
        """Inputs for a whole sequence whose first `prefix` tokens see each other; the last two are selected."""
        length = len(sequence)
        mask = np.triu(np.full((length, length), AWAY), k=1)
        if not self._causal:
            mask[:prefix, :prefix] = 0
        return {
            "ids": np.array([sequence], np.int64),
            "positions": np.arange(length)[None],
            "mask": mask[None, None],
            "past_keys": self._past,
            "past_values": self._past,
            "select": np.array([[length - 2, length - 1]]),
            "tokens": np.array([self.layout.end], np.int64),
            "next": np.zeros(0, np.int64),
        }
