"""The embedded engine: int8 ONNX with a key-value cache. Needs numpy and onnxruntime only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm_guardian.engines import choose
from slm_guardian.errors import ModelError
from slm_guardian.layout import Layout

_AWAY = np.float32(-1e4)  # added to the attention score of a token that must not be seen
_BATCH_TOKENS = 2048  # padded tokens of one run; more is slower on a CPU, not faster


class OnnxEngine:
    """Runs `model.onnx` as `slm_guardian.train.onnx_graph` writes it."""

    def __init__(self, session: Any, layout: Layout) -> None:
        self.session, self.layout = session, layout
        layers, _, heads, _, size = next(i.shape for i in session.get_inputs() if i.name == "past_keys")
        self._past = (layers, heads, size)

    @classmethod
    def load(cls, directory: Path, threads: int | None = None) -> OnnxEngine:
        """Load a directory with model.onnx and tokenizer.json. Raises ModelError when one is broken."""
        import onnxruntime

        layout = Layout.load(directory)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads:
            options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(
                str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
            return cls(session, layout)
        except Exception as error:  # onnxruntime raises many types for a truncated or foreign file
            path = directory / "model.onnx"
            raise ModelError(f"{path} cannot be loaded: export or install it again") from error

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Logits of `tokens` at the last two places of each sequence: (sequences, 2, tokens)."""
        result = np.zeros((len(sequences), 2, len(tokens)), np.float32)
        for part in _batches([len(s) for s in sequences]):
            feed = self._feed([sequences[i] for i in part], [len(sequences[i]) - 2 for i in part], tokens)
            result[part] = self.session.run(["scores"], feed)[0]
        return result

    def decode(self, prompt: Sequence[int], prefix: int, banned: np.ndarray, limit: int) -> Iterator[int]:
        """Token ids after `prompt`, greedy, until `<|end|>` or `limit`."""
        feed = self._feed([prompt], [prefix], [self.layout.end])
        feed["select"] = np.array([[len(prompt) - 1]])
        written: list[int] = []
        for place in range(len(prompt), len(prompt) + limit):
            logits, keys, values = self.session.run(["logits", "keys", "values"], feed)
            token = choose(logits[0], banned, written)
            if token == self.layout.end:
                return
            yield token
            written.append(token)
            feed |= {
                "ids": np.array([[token]]),
                "positions": np.array([[place]]),
                "mask": np.zeros((1, 1, 1, place + 1), np.float32),
                "past_keys": keys,
                "past_values": values,
                "select": np.zeros((1, 1), np.int64),
            }

    def _feed(
        self, sequences: Sequence[Sequence[int]], prefixes: Sequence[int], tokens: Sequence[int]
    ) -> dict[str, np.ndarray]:
        count, length = len(sequences), max(map(len, sequences))
        ids = np.full((count, length), self.layout.end, np.int64)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = sequence
        lengths = np.array([len(s) for s in sequences])
        layers, heads, size = self._past
        past = np.zeros((layers, count, heads, 0, size), np.float32)
        return {
            "ids": ids,
            "positions": np.broadcast_to(np.arange(length), ids.shape),
            "mask": prefix_bias(lengths, np.array(prefixes), length),
            "past_keys": past,
            "past_values": past,
            "select": np.stack([lengths - 2, lengths - 1], 1),
            "tokens": np.array(tokens, np.int64),
        }


def prefix_bias(lengths: np.ndarray, prefixes: np.ndarray, length: int) -> np.ndarray:
    """Attention bias (batch, 1, length, length): queries see each other, later tokens what came before."""
    place = np.arange(length)
    causal = place[None, :] <= place[:, None]
    prefix = prefixes[:, None, None]
    within = (place[None, None, :] < prefix) & (place[None, :, None] < prefix)
    real = place[None, None, :] < lengths[:, None, None]
    return np.where((causal[None] | within) & real, np.float32(0), _AWAY)[:, None]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices in groups of like length whose padded size stays under the limit."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and lengths[i] * (len(group) + 1) > _BATCH_TOKENS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
