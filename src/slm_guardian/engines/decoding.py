"""How an answer is written with an engine, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from slm_guardian.engines import Engine, State

_BANNED = np.float32(-1e9)


class Stepwise(Engine, Protocol):
    """What every engine that runs here does alike, token by token."""

    def write(self, prompt: Sequence[int], prefix: int, banned: np.ndarray, limit: int) -> Iterator[int]:
        """Tokens after a prompt; see `greedy`."""
        return greedy(self, self.begin(prompt, prefix), banned, limit)

    def adapted(self, policy: str) -> Engine:
        """The engine itself: it has one model for all policies."""
        return self


def greedy(engine: Engine, state: State, banned: np.ndarray, limit: int) -> Iterator[int]:
    """Tokens after `state`, the likeliest each time, until `<|end|>` or `limit`.

    `banned` is added to the logits (vocabulary). No three tokens are written twice: small models loop.
    """
    vocabulary = np.arange(len(banned))  # a model may have more rows, to round their number
    written: list[int] = []
    for _ in range(limit):
        token = int((state.scores(vocabulary) + without_repeats(banned, written)).argmax())
        if token == engine.layout.end:
            return
        yield token
        written.append(token)
        state = engine.extend(state, token)


def without_repeats(banned: np.ndarray, written: Sequence[int]) -> np.ndarray:
    """`banned`, and every token that would repeat three tokens already written."""
    last = list(written[-2:])
    seen = [written[i + 2] for i in range(len(written) - 2) if list(written[i : i + 2]) == last]
    if len(last) < 2 or not seen:
        return banned
    banned = banned.copy()
    banned[seen] = _BANNED
    return banned
