"""The http engine: a guardian that vLLM or llama-server runs, on this machine or another.

`http://HOST:PORT/v1?model=NAME&tokenizer=DIR`, where DIR holds the tokenizer.json and guardian.json of the served
model: what `guardian export --to hf` or `--to gguf` wrote. Queries are read, and answers checked, on this side.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from slm_guardian.engines import Engine, State, Tokens, Unanswered
from slm_guardian.engines.decoding import without_repeats
from slm_guardian.engines.dialects import Client, Dialect, Failure, connect
from slm_guardian.errors import InputError, ModelError
from slm_guardian.layout import PRED, Layout

_CHUNK = 24  # tokens of an answer a call: about a sentence, so that the first one can be shown early
_TRIES = 20  # tokens refused in one place before an answer is given up
_OPTIONS = {"model", "tokenizer", "timeout", "concurrency", "retries"}


@dataclass(frozen=True)
class HttpState:
    """A sequence that the server would go on from; it is asked when its numbers are wanted."""

    engine: HttpEngine
    ids: tuple[int, ...]

    def scores(self, tokens: Tokens) -> np.ndarray:
        """Log-probs of `tokens` as the next one, up to a constant. Raises Unanswered."""
        return self.engine.after(self.ids, [int(token) for token in tokens])


class HttpEngine(Engine):
    """Asks a server for the numbers of each sequence, `concurrency` of them side by side."""

    def __init__(self, dialect: Dialect, layout: Layout, directory: Path, concurrency: int = 16) -> None:
        self.layout, self.directory = layout, directory
        self._dialect = dialect
        self._pool = ThreadPoolExecutor(concurrency, "guardian-http")
        self._adapter: str | None = None

    @classmethod
    def load(cls, address: str) -> HttpEngine:
        """Connect to the server of an address. Raises InputError, ModelError or GuardianError with what to do."""
        parts = urlsplit(address)
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if unknown := set(options) - _OPTIONS:
            raise InputError(
                f"unknown option of the address: {min(unknown)} (known: {', '.join(sorted(_OPTIONS))})"
            )
        if "tokenizer" not in options:
            raise InputError("add &tokenizer=DIR to the address: the exported directory of the served model")
        directory = Path(options["tokenizer"])
        layout = Layout.load(directory)
        timeout, retries = _number(options, "timeout", 60), int(_number(options, "retries", 2))
        client = Client(f"{parts.scheme}://{parts.netloc}{parts.path}", timeout, retries)
        dialect = connect(client, layout, options.get("model"))
        if dialect.read(PRED) not in (None, [layout.pred]):
            raise ModelError(f"the server runs another model than {directory}: check both")
        return cls(dialect, layout, directory, max(1, int(_number(options, "concurrency", 16))))

    def adapted(self, policy: str) -> Engine:
        """This engine with the server's adapter named like a policy, where there is one."""
        if policy not in self._dialect.adapters:
            return self
        other = copy.copy(self)
        other._adapter = policy
        return other

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """Log-probs of `tokens` at the last two places of each sequence: (sequences, 2, tokens)."""
        found = list(self._pool.map(lambda ids: self._two(ids, tokens), sequences))
        result = np.full((len(found), 2, len(tokens)), np.nan, np.float32)
        for row, numbers in zip(result, found, strict=True):
            if not isinstance(numbers, Failure):
                row[:] = numbers
        failures = [str(numbers) for numbers in found if isinstance(numbers, Failure)]
        if failures:
            raise Unanswered(failures[0], result)
        return result

    def meaning(self, sequence: Sequence[int]) -> np.ndarray:
        """Raises ModelError: servers give log-probs, no hidden states, so answers are written, not chosen."""
        raise ModelError(
            "an inference server gives no hidden states: approved answers need the ONNX or torch engine"
        )

    def begin(self, prompt: Sequence[int], prefix: int) -> HttpState:
        """A prompt to go on from; the model is causal, `prefix` changes nothing."""
        return HttpState(self, tuple(prompt))

    def extend(self, state: State, token: int) -> HttpState:
        """One token more, after a state of this engine."""
        assert isinstance(state, HttpState)
        return HttpState(self, (*state.ids, token))

    def after(self, ids: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Log-probs of `tokens` after a sequence, up to a constant. Raises Unanswered."""
        try:
            return np.array(self._dialect.scores([ids], tokens, self._adapter)[0], np.float32)
        except Failure as failure:
            raise Unanswered(str(failure), np.full(len(tokens), np.nan, np.float32)) from None

    def write(self, prompt: Sequence[int], prefix: int, banned: np.ndarray, limit: int) -> Iterator[int]:
        """Tokens after a prompt, written by the server. Raises Unanswered.

        The server does not know all that is banned: where it strays, it is asked for another token in that place,
        and goes on from there.
        """
        allowed = np.flatnonzero(banned == 0).tolist()
        allowed = [] if len(allowed) == len(banned) else allowed
        written: list[int] = []
        while len(written) < limit:
            ids = [*prompt, *written]
            tokens = self._written(ids, allowed, [], min(_CHUNK, limit - len(written)))
            if not tokens:
                return
            for proposed in tokens:
                now = without_repeats(banned, written)
                token = self._permitted(proposed, [*prompt, *written], allowed, now)
                if token in (None, self.layout.end):
                    return
                yield token
                written.append(token)
                if token != proposed:
                    break

    def _permitted(
        self, token: int, ids: Sequence[int], allowed: Sequence[int], banned: np.ndarray
    ) -> int | None:
        """The token after `ids`, or the likeliest one that is not banned; None where the server finds none."""
        refused: list[int] = []
        while token >= len(banned) or banned[token] < 0:
            refused.append(token)
            again = self._written(ids, allowed, refused, 1)
            if not again or again[0] in refused or len(refused) == _TRIES:
                return None
            token = again[0]
        return token

    def _written(
        self, ids: Sequence[int], allowed: Sequence[int], refused: Sequence[int], limit: int
    ) -> list[int]:
        try:
            return self._dialect.written(ids, allowed, refused, limit, self._adapter)
        except Failure as failure:
            raise Unanswered(str(failure), np.zeros(0, np.float32)) from None

    def _two(self, ids: Sequence[int], tokens: Sequence[int]) -> list[list[float]] | Failure:
        try:
            return self._dialect.scores([ids[:-1], ids], tokens, self._adapter)
        except Failure as failure:
            return failure


def _number(options: dict[str, str], name: str, default: float) -> float:
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = -1
    if not 0 <= value < 1e6:
        raise InputError(f"{name} of the address must be a number: leave it out for {default:g}")
    return value
