"""The gateway on a free port of this machine: the real application under a real uvicorn, in a thread.

with serving(limits={"texts": 4}) as server:
    httpx2.post(f"{server.url}/v1/moderations", json={"input": "hello"})

`engine` may put something between the guardian and its model, such as a `Gate`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI

from slm_guardian.engines import Engine, State
from slm_guardian.engines.decoding import Stepwise
from slm_guardian.serve.app import create_app
from slm_guardian.serve.guards import Guards
from slm_guardian.serve.settings import Settings
from upstream_server import StartedServer

DEADLINE_S = 20


@dataclass(frozen=True)
class Serving:
    """A running gateway."""

    url: str
    app: FastAPI


@contextmanager
def serving(
    settings: Settings | None = None, *, engine: Callable[[Engine], Engine] | None = None, **values: Any
) -> Iterator[Serving]:
    """A gateway with these settings until the block ends. The deadline is long: this machine may be busy."""
    values["limits"] = {"deadline_s": DEADLINE_S, **values.get("limits", {})}
    settings = settings or Settings.load(None, **values)
    app = create_app(settings, _behind(Guards(settings), engine) if engine else None)
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, ws="none", timeout_graceful_shutdown=5
    )
    server = StartedServer(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        assert server.up.wait(DEADLINE_S), "the server did not start"
        try:
            yield Serving(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
        finally:
            server.should_exit = True
            thread.join(DEADLINE_S)


def _behind(guards: Guards, engine: Callable[[Engine], Engine]) -> Guards:
    all_guards = guards.all()
    shared = engine(all_guards[0].guardian.engine)
    for guard in all_guards:
        guard.guardian.engine = shared
    return guards


class Gate(Stepwise):
    """A model that waits while the gate is shut, and fails when told to."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.layout = engine, engine.layout
        self._changed = Condition()
        self._open = True
        self.batches: list[int] = []
        """Sequences that came in, batch by batch."""
        self.fault: Callable[[np.ndarray], np.ndarray] | None = None

    def shut(self) -> None:
        """Let nothing through from now on."""
        self._set(False)

    def release(self) -> None:
        """Let all through."""
        self._set(True)

    def wait_for(self, batches: int) -> None:
        """Until so many batches have come in."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.batches) >= batches, DEADLINE_S)

    def scores(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
        """What the model gives, once the gate is open."""
        with self._changed:
            self.batches.append(len(sequences))
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._open, DEADLINE_S)
        scores = self._engine.scores(sequences, tokens)
        return self.fault(scores) if self.fault else scores

    def meaning(self, sequence: Sequence[int]) -> np.ndarray:
        """As the model does."""
        return self._engine.meaning(sequence)

    def begin(self, prompt: Sequence[int], prefix: int) -> State:
        """As the model does."""
        return self._engine.begin(prompt, prefix)

    def extend(self, state: State, token: int) -> State:
        """As the model does."""
        return self._engine.extend(state, token)

    def _set(self, value: bool) -> None:
        with self._changed:
            self._open = value
            self._changed.notify_all()
