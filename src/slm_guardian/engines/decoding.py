"""How an answer is written with an engine: freely, or as the likeliest of a set of approved answers."""

from __future__ import annotations

import heapq
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


def likeliest(engine: Engine, state: State, answers: Sequence[Sequence[int]]) -> list[int]:
    """The answer that the model finds likeliest among `answers`, each taken as a whole.

    Best-first search over their common prefixes: exact, and the model runs only where answers part, a few times
    instead of once a token. Its probabilities are those of decoding within `answers`.
    """
    ends = {(*answer, engine.layout.end) for answer in answers}
    heap: list[tuple[float, tuple[int, ...], State]] = [(0.0, (), state)]
    while True:
        cost, written, before = heapq.heappop(heap)
        going_on = [end for end in ends if end[: len(written)] == written]
        if len(going_on) == 1:
            return list(going_on[0][:-1])
        here = engine.extend(before, written[-1]) if written else before
        tokens = sorted({end[len(written)] for end in going_on})
        scores = here.scores(tokens)
        shares = scores - np.logaddexp.reduce(scores)
        for token, share in zip(tokens, shares, strict=True):
            heapq.heappush(heap, (cost - float(share), (*written, token), here))


def without_repeats(banned: np.ndarray, written: Sequence[int]) -> np.ndarray:
    """`banned`, and every token that would repeat three tokens already written."""
    last = list(written[-2:])
    seen = [written[i + 2] for i in range(len(written) - 2) if list(written[i : i + 2]) == last]
    if len(last) < 2 or not seen:
        return banned
    banned = banned.copy()
    banned[seen] = _BANNED
    return banned
