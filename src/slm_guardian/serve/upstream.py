"""The main LLM behind the gateway. A request goes to it and its answer comes back byte for byte.

Left out on the way are the headers of one connection, keys that are the gateway's own, and what the gateway
says itself (`X-Guardian-*`, CORS). No cookie is kept, no redirect is followed, nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
from starlette.requests import Request

from slm_guardian.errors import InputError
from slm_guardian.serve.faults import Overloaded, UpstreamDown, UpstreamTimeout
from slm_guardian.serve.metrics import Metrics
from slm_guardian.serve.settings import Settings, UpstreamSettings

RawHeaders = list[tuple[bytes, bytes]]

_KEEP_ALIVE_S = 4  # less than the 5 s after which uvicorn, Node.js and others close an idle connection
_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_NOT_SENT = _HOP | {b"host", b"content-length", b"expect"}
_NOT_RETURNED = _HOP | {b"date", b"server"}  # uvicorn gives its own
_OURS = (b"x-guardian-",)
_KEYS = frozenset({b"authorization", b"x-api-key"})


@dataclass
class Answer:
    """What the upstream answers: its status, its headers, and its body as it comes in.

    `body` raises UpstreamDown or UpstreamTimeout where the answer breaks off; `aclose` hangs up.
    """

    status: int
    headers: RawHeaders
    body: AsyncIterator[bytes]
    hang_up: Callable[[], Awaitable[None]]

    def header(self, name: bytes) -> str:
        """A header by its lower-case name, empty if there is none."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")

    @property
    def streams(self) -> bool:
        """Whether these are server-sent events."""
        return self.header(b"content-type").lower().startswith("text/event-stream")

    async def read(self) -> bytes:
        """All of the body."""
        return b"".join([chunk async for chunk in self.body])

    async def aclose(self) -> None:
        """Hang up, if the answer is not complete yet."""
        await self.hang_up()


class Upstream:
    """The connections to the upstream, shared by all requests of a process."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        assert settings.upstream is not None
        self._settings, self._metrics = settings.upstream, metrics
        self._url = httpx2.URL(settings.upstream.url.rstrip("/"))
        self._key = _key(settings.upstream)
        self._drop_keys = self._key is not None or bool(settings.keys)
        self._client = _client(settings.upstream)

    async def send(self, request: Request, body: bytes, *, plain: bool = False) -> Answer:
        """Send the body of a chat request; comes back when the first byte of the answer's body is there.

        `plain` asks for an answer that is not compressed, and undoes a compression that comes all the same.
        Raises UpstreamDown, UpstreamTimeout or Overloaded.
        """
        return await self._exchange("POST", "/chat/completions", request, body, plain)

    async def models(self, request: Request) -> list[dict[str, Any]]:
        """The models that the upstream lists. Raises what `send` raises."""
        answer = await self._exchange("GET", "/models", request, b"", True)
        try:
            data = json.loads(await answer.read())["data"]
            return [model for model in data if isinstance(model, dict)]
        except (ValueError, KeyError, TypeError):
            raise UpstreamDown("the upstream gives no list of models: check upstream.url") from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _exchange(self, method: str, path: str, request: Request, body: bytes, plain: bool) -> Answer:
        outgoing = self._request(method, path, request, body, plain)
        started = time.perf_counter()
        with self._faults("down"):
            async with asyncio.timeout(self._settings.first_byte_s):
                response = await self._client.send(outgoing, stream=True)
                raw = response.aiter_bytes() if plain else response.aiter_raw()
                first = await anext(raw, b"")
        self._metrics.upstream_first_byte(time.perf_counter() - started)
        gone = _NOT_RETURNED | ({b"content-encoding", b"content-length"} if plain else set())
        headers = _passed(response.headers.raw, gone, (*_OURS, b"access-control-"))
        return Answer(response.status_code, headers, self._body(first, raw), response.aclose)

    async def _body(self, first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        chunk = first
        while chunk:
            yield chunk
            with self._faults("cut"):
                async with asyncio.timeout(self._settings.idle_s):
                    chunk = await anext(rest, b"")

    def _request(self, method: str, path: str, request: Request, body: bytes, plain: bool) -> httpx2.Request:
        query = request.scope.get("query_string") or None
        url = self._url.copy_with(raw_path=self._url.raw_path.rstrip(b"/") + path.encode() + _asked(query))
        dropped = (
            _NOT_SENT | (_KEYS if self._drop_keys else set()) | ({b"accept-encoding"} if plain else set())
        )
        headers = _passed(request.headers.raw, dropped, _OURS)
        headers += [(b"authorization", b"Bearer " + self._key)] if self._key else []
        headers += [(b"accept-encoding", b"identity")] if plain else []
        timeout = {"connect": self._settings.connect_s, "pool": self._settings.connect_s}
        extensions = {"timeout": timeout | {"read": None, "write": self._settings.first_byte_s}}
        return httpx2.Request(method, url, headers=headers, content=body or None, extensions=extensions)

    @contextmanager
    def _faults(self, kind: str) -> Iterator[None]:
        """Faults of the connection as faults of the gateway; `kind` is how a broken connection counts."""
        try:
            yield
        except TimeoutError:
            self._metrics.upstream_error("timeout")
            raise UpstreamTimeout("the upstream took too long: try again later") from None
        except httpx2.PoolTimeout:
            self._metrics.shed("upstream_connections")
            raise Overloaded("all connections to the upstream are in use: try again", retry_after=1) from None
        except httpx2.HTTPError:
            self._metrics.upstream_error(kind)
            done = "cannot be reached" if kind == "down" else "broke off its answer"
            raise UpstreamDown(f"the upstream {done}: try again later") from None


def _client(settings: UpstreamSettings) -> httpx2.AsyncClient:
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # below it logs addresses, with the client's query
    most = settings.max_connections
    limits = httpx2.Limits(
        max_connections=most, max_keepalive_connections=most, keepalive_expiry=_KEEP_ALIVE_S
    )
    jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # one client's cookies are not another's
    return httpx2.AsyncClient(limits=limits, cookies=jar, follow_redirects=False)


def _key(settings: UpstreamSettings) -> bytes | None:
    if settings.key_env is None:
        return None
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise InputError(
            f"upstream.key_env: the environment has no {settings.key_env}: set it to the API key"
        )
    return key.encode()


def _asked(query: bytes | None) -> bytes:
    return b"?" + query if query else b""


def _passed(headers: RawHeaders, dropped: Iterable[bytes], prefixes: tuple[bytes, ...]) -> RawHeaders:
    """The headers that are passed on, with lower-case names."""
    named = [(name.lower(), value) for name, value in headers]
    listed = b",".join(value for name, value in named if name == b"connection").lower()
    gone = {*dropped, *(name.strip() for name in listed.split(b","))}
    return [(name, value) for name, value in named if name not in gone and not name.startswith(prefixes)]
