"""Loopback servers that hand out data sets as GitHub's raw files, the Hugging Face hub and its storage do.

with SetsServer({"/data/sets.csv": b"..."}) as server:
    server.github, server.hub    # addresses for GITHUB_RAW and HF_ENDPOINT
server.log                       # every call to any of them

The hub answers as it did in 2026: small files by a redirect on the same host, large ones (.parquet) by one to its
storage, which is another host and must not see the token; gated sets want the token TOKEN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN, COMMIT = "hf_test", "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Reply:
    """What to send; `cut` sends fewer bytes than were announced, as a connection that breaks does."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


class SetsServer:
    """Answers on free ports until the `with` block ends.

    `files` are by the end of their path; `gated` repositories need the token; `reply` takes the place of all files.
    """

    def __init__(
        self, files: dict[str, bytes], gated: tuple[str, ...] = (), reply: Reply | None = None
    ) -> None:
        self.files, self.gated, self.reply = files, gated, reply
        self.log: list[tuple[str, str, str | None]] = []
        self._servers = {name: ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, name)) for name in _SITES}
        self.github, self.hub, self.storage = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers.values()
        )

    def __enter__(self) -> SetsServer:
        self._threads = [Thread(target=s.serve_forever, args=(0.01,)) for s in self._servers.values()]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def answer(self, site: str, path: str, token: str | None) -> Reply:
        """The reply to one call, which is logged as (site, path, authorisation)."""
        self.log.append((site, path, token))
        if self.reply:
            return self.reply
        return getattr(self, f"_{site}")(path, token)

    def _github(self, path: str, token: str | None) -> Reply:
        body = self._content(path)
        return Reply(404, b"404: Not Found") if body is None else Reply(200, body)

    def _hub(self, path: str, token: str | None) -> Reply:
        commit = {"X-Repo-Commit": COMMIT}
        if path.startswith("/api/resolve-cache"):
            return Reply(200, self._content(path) or b"", commit)
        if any(repository in path for repository in self.gated) and token != f"Bearer {TOKEN}":
            return Reply(403 if token else 401, b"Access denied", {"X-Error-Code": "GatedRepo"})
        if self._content(path) is None:
            return Reply(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", **commit})
        large = path.endswith(".parquet")
        place = f"{self.storage}{path}" if large else f"/api/resolve-cache{path}"
        return Reply(302 if large else 307, b"", {"Location": place, **commit})

    def _storage(self, path: str, token: str | None) -> Reply:
        return Reply(200, self._content(path) or b"")

    def _content(self, path: str) -> bytes | None:
        return next((body for name, body in self.files.items() if path.endswith(name)), None)


_SITES = ("github", "hub", "storage")


def _handler(server: SetsServer, site: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = server.answer(site, self.path, self.headers.get("Authorization"))
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body[: len(reply.body) - reply.cut])
            self.close_connection = bool(reply.cut)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr."""

    return Handler
