"""A real HTTP server on loopback that speaks the OpenAI (and the Anthropic) chat protocol and misbehaves as told.

with LLMServer(lambda call: answer("1. hello") if call.attempt else status(429)) as server:
    OpenAIBackend("any", server.url)
server.log      # every call with the status that was sent
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Event, Thread
from typing import Any


@dataclass
class Call:
    """A chat call as the server saw it."""

    user: str
    system: str
    index: int
    """How many calls came before it."""
    attempt: int
    """How many calls with the same user text came before it."""
    body: dict[str, Any]
    headers: dict[str, str]
    status: int | None = None
    """What was answered; None until then, 0 where the connection was dropped without an answer."""


@dataclass
class Reply:
    """What to send: a chat with `text`, or `raw` as it is."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    finish: str = "stop"
    raw: bytes | None = None
    missing: int = 0
    """Bytes that Content-Length promises and that never come."""
    hold: bool = False
    """Say nothing until the server closes or `release` is set; then drop the connection."""
    usage: bool = True


def answer(text: str) -> Reply:
    """A good answer."""
    return Reply(text)


def status(code: int) -> Reply:
    """An error that asks for an immediate retry."""
    headers = {"Retry-After": "0", "Retry-After-Ms": "1"}
    return Reply(status=code, headers=headers, raw=json.dumps({"error": {"message": "no"}}).encode())


def hold() -> Reply:
    """No answer until the client gives up."""
    return Reply(hold=True)


def truncated() -> Reply:
    """Status 200 and half a JSON body."""
    return Reply(raw=b'{"choices": [{"message": {"role": "assistant", "content": "1. hel')


def refused() -> Reply:
    """A refusal as OpenAI marks it."""
    return Reply(refusal="I can't help with that.")


def cut_off(text: str) -> Reply:
    """An answer that ran into the token limit."""
    return Reply(text, finish="length")


Script = Callable[[Call], Reply]


class LLMServer:
    """Answers each call by `script`, on a free port, until the `with` block ends."""

    def __init__(self, script: Script) -> None:
        self.script, self.log = script, list[Call]()
        self.changed, self.release = Condition(), Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        self.url = self.root + "/v1"

    def __enter__(self) -> LLMServer:
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answered(self) -> list[str]:
        """User texts that were answered with status 200."""
        return [call.user for call in self.log if call.status == 200]

    def wait_for(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until the log satisfies `ready`."""
        with self.changed:
            assert self.changed.wait_for(ready, timeout), "the calls did not come"

    def record(self, body: dict[str, Any], headers: dict[str, str]) -> Call:
        """Log a call."""
        said = {m["role"]: m["content"] for m in body["messages"]}
        user, system = said["user"], body.get("system", said.get("system", ""))
        with self.changed:
            attempt = sum(call.user == user for call in self.log)
            call = Call(user, system, len(self.log), attempt, body, headers)
            self.log.append(call)
            self.changed.notify_all()
        return call


def _handler(server: LLMServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            call = server.record(body, {k.lower(): v for k, v in self.headers.items()})
            reply = server.script(call)
            if reply.hold:
                server.release.wait()
                call.status, self.close_connection = 0, True
                return
            call.status = reply.status  # before it is sent: the client may read the log at once
            self._send(reply, _messages(reply) if self.path.endswith("/messages") else _chat(reply))

        def _send(self, reply: Reply, body: dict[str, Any]) -> None:
            content = reply.raw if reply.raw is not None else json.dumps(body).encode()
            self.send_response(reply.status)
            headers = {
                "Content-Type": "application/json",
                "Content-Length": str(len(content) + reply.missing),
            }
            for name, value in (headers | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = self.close_connection or bool(reply.missing)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    return Handler


def _chat(reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    body: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": reply.finish}]}
    return body | ({"usage": {"prompt_tokens": 10, "completion_tokens": 5}} if reply.usage else {})


def _messages(reply: Reply) -> dict[str, Any]:
    stop = {"stop": "end_turn", "length": "max_tokens"}[reply.finish]
    blocks = [] if reply.text is None else [{"type": "text", "text": reply.text}]
    usage = {"input_tokens": 10, "output_tokens": 5}
    return {"content": blocks, "stop_reason": "refusal" if reply.refusal else stop, "usage": usage}
