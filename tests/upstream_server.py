"""A real upstream on loopback: the example's server, which records what it got and misbehaves as told.

with UpstreamServer() as upstream:
    upstream.script = lambda call: Reply([sse("half an ans"), CUT])
upstream.calls      # every request, with its raw body
"""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Event, Thread
from types import ModuleType
from typing import Any, Final, Literal

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

TIMEOUT = 30


def _example() -> ModuleType:
    path = Path(__file__).parent.parent / "examples/upstream.py"
    spec = importlib.util.spec_from_file_location("example_upstream", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # FastAPI looks up the annotations there
    spec.loader.exec_module(module)
    return module


example = _example()


class Cut:
    """A step of a reply that resets the connection."""


CUT: Final = Cut()


class Gate:
    """A step of a reply that waits until `open` is called, from any thread."""

    def __init__(self) -> None:
        self._opened, self._loop = Event(), None
        self._inside = asyncio.Event()

    def open(self) -> None:
        """Let the reply go on."""
        self._opened.set()
        if self._loop:
            self._loop.call_soon_threadsafe(self._inside.set)

    @property
    def opened(self) -> bool:
        """Whether it is open."""
        return self._opened.is_set()

    async def passed(self) -> None:
        """Wait, in the server's loop."""
        self._loop = asyncio.get_running_loop()
        if not self.opened:
            await self._inside.wait()


@dataclass
class Reply:
    """What to answer, step by step; the headers go with the first bytes, or at once if `early`."""

    steps: Sequence[bytes | Gate | Cut]
    status: int = 200
    type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    early: bool = False


@dataclass
class Call:
    """A request as it came in. `gone` is set when the client hung up before the end of the reply."""

    path: str
    query: bytes
    headers: list[tuple[str, str]]
    body: bytes
    gone: Event = field(default_factory=Event)

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        return dict(self.headers).get(name)


class UpstreamServer:
    """Answers as the example does, or by `script`, on a free port until the `with` block ends."""

    def __init__(self) -> None:
        self.calls = list[Call]()
        self.script: Callable[[Call], Reply | None] = lambda call: None
        self._changed = Condition()
        self._gates = list[Gate]()

    def __enter__(self) -> UpstreamServer:
        self._running = running(self._app)
        self.url = self._running.__enter__() + "/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()
        self._running.__exit__(None, None, None)

    def reset(self) -> None:
        """Forget all calls, open all gates and answer as the example does."""
        self.script = lambda call: None
        self.calls.clear()
        while self._gates:
            self._gates.pop().open()

    def gate(self) -> Gate:
        """A gate that is opened at the end at the latest."""
        self._gates.append(Gate())
        return self._gates[-1]

    def wait_for(self, calls: int) -> None:
        """Wait until so many requests have come in."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= calls, TIMEOUT), "no request came"

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body = await _body(receive)
        headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        call = Call(scope["path"], scope["query_string"], headers, body)
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
        if reply := self.script(call):
            await _reply(reply, call, receive, send)
        else:
            await example.app(scope, _again(body, receive), send)


async def _reply(reply: Reply, call: Call, receive: Receive, send: Send) -> None:
    begun = False
    for step in [b"", *reply.steps] if reply.early else reply.steps:
        if isinstance(step, Cut):
            return _reset(send)
        if isinstance(step, Gate):
            if await _gone(step, receive):
                return call.gone.set()
            continue
        if not begun:
            head = [(b"content-type", reply.type.encode())]
            head += [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
            await send({"type": "http.response.start", "status": reply.status, "headers": head})
            begun = True
        await send({"type": "http.response.body", "body": step, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(gate: Gate, receive: Receive) -> bool:
    """Wait for a gate, or for the client to hang up, which comes first."""
    passed, gone = asyncio.ensure_future(gate.passed()), asyncio.ensure_future(receive())
    await asyncio.wait((passed, gone), return_when=asyncio.FIRST_COMPLETED)
    hung_up = gone.done()
    for task in (passed, gone):
        task.cancel()
    await asyncio.wait((passed, gone))
    return hung_up


def _reset(send: Send) -> None:
    transport = send.__self__.transport  # type: ignore[attr-defined]  # uvicorn's
    raw: socket.socket = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` with a body that was read already."""
    first = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def received() -> Any:
        return next(first, None) or await receive()

    return received


def sse(*words: str) -> bytes:
    """Events of a streamed answer, one a word."""
    return b"".join(example.event({"content": word}) for word in words)


def squeezed(*parts: bytes) -> bytes:
    """Compressed, as a server with `Content-Encoding: gzip` sends it."""
    return gzip.compress(b"".join(parts))


DONE = b"data: [DONE]\n\n"


class StartedServer(uvicorn.Server):
    """uvicorn, saying when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def running(app: ASGIApp, lifespan: Literal["on", "off"] = "off") -> Iterator[str]:
    """An application served by uvicorn in a thread, on a free port of loopback; gives its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = StartedServer(
        uvicorn.Config(
            app,
            interface="asgi3",
            lifespan=lifespan,
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )  # type: ignore[arg-type]
    )
    thread = Thread(target=server.run, args=([listening],))
    thread.start()
    assert server.up.wait(TIMEOUT), "the server did not start"
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
