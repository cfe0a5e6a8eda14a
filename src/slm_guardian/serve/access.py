"""Who may come in, how often and with how much: pure ASGI, around all routes, so that streams stay streams."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import TypedDict

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slm_guardian.serve.faults import Broken, Draining, RateLimited, ServeError, TooLarge, Unauthorized
from slm_guardian.serve.metrics import OTHER, ROUTES, Metrics
from slm_guardian.serve.settings import KeySettings, Settings

POLICY_HEADER = "X-Guardian-Policy"
CLIENT_GONE = 499  # nginx' number for a client that hung up; nobody reads it
_GUARDED = ("/v1/", "/beta/")  # what needs a key, where there are keys
_REQUEST_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_log = logging.getLogger("slm_guardian.serve.access")


class NewKey(TypedDict):
    """A key, and what the settings keep of it."""

    key: str
    sha256: str


@dataclass
class Traffic:
    """What goes on in a process: requests that run, whether it takes more, and why it cannot work if so."""

    running: int = 0
    draining: bool = False
    broken: str | None = "the model is being loaded"


def new_key() -> NewKey:
    """A random API key and its hash."""
    key = f"gk-{secrets.token_urlsafe(32)}"
    return NewKey(key=key, sha256=_sha256(key))


def key_of(scope: Scope) -> KeySettings | None:
    """The key that a request came in with; None where the gateway has no keys."""
    return scope["state"].get("key")


class Access:
    """Keys, rates, body sizes, request ids, one log line and one metric a request. No text of any."""

    def __init__(self, app: ASGIApp, settings: Settings, traffic: Traffic, metrics: Metrics) -> None:
        self.app, self._traffic, self._metrics = app, traffic, metrics
        self._keys, self._most = settings.keys, settings.limits.body_bytes
        self._buckets = {k.name: _Bucket(k.per_minute) for k in settings.keys if k.per_minute}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with what stands against it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sent = _Sent(scope, send)
        started = time.perf_counter()
        guarded = scope["path"].startswith(_GUARDED)
        self._traffic.running += guarded
        try:
            if guarded:
                scope.setdefault("state", {})["key"] = self._admitted(Headers(scope=scope))
            await self.app(scope, _Counted(receive, scope, self._most), sent)
        except ServeError as fault:
            await fault_response(fault)(scope, receive, sent)
        except ClientDisconnect:
            sent.status = CLIENT_GONE
        except Exception as error:
            await self._failed(error, scope, receive, sent)
        finally:
            self._traffic.running -= guarded
            self._tell(scope, sent.status, time.perf_counter() - started)

    def _admitted(self, headers: Headers) -> KeySettings | None:
        if self._traffic.draining:
            raise Draining("the server is stopping: try again", retry_after=1)
        key = self._known(headers) if self._keys else None
        if key and (bucket := self._buckets.get(key.name)):
            bucket.take()
        if self._traffic.broken:
            raise Broken(self._traffic.broken, retry_after=5)
        return key

    def _known(self, headers: Headers) -> KeySettings:
        """The key of a request: bearer token, or LiteLLM's `x-api-key`. Raises Unauthorized."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        hashed = _sha256(given)
        # All are compared, each in constant time: how long it takes tells nothing.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, hashed)]
        if not found:
            raise Unauthorized("no valid API key: send one as 'Authorization: Bearer KEY'")
        return found[0]

    async def _failed(self, error: Exception, scope: Scope, receive: Receive, sent: _Sent) -> None:
        """Answer what nobody expected, without its message: it may hold a text."""
        if os.environ.get("GUARDIAN_DEBUG"):
            raise error
        _log.error("internal error (%s): run with GUARDIAN_DEBUG=1 to see it", type(error).__name__)
        if sent.status:
            raise ConnectionError("the answer broke off") from None
        await fault_response(ServeError("internal error: see the server's log"))(scope, receive, sent)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        self._metrics.request(scope["path"], status, seconds)
        route = scope["path"] if scope["path"] in ROUTES else OTHER
        _log.info("%s %s %d %.0f ms", scope["method"], route, status, 1000 * seconds)


class _Sent:
    """`send` that gives each answer its request id and remembers its status."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self._id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(raw=message["headers"])["X-Request-Id"] = self._id
        await self._send(message)


class _Counted:
    """`receive` that refuses a body of more than `most` bytes, announced or not."""

    def __init__(self, receive: Receive, scope: Scope, most: int) -> None:
        self._receive, self._most, self._seen = receive, most, 0
        announced = Headers(scope=scope).get("content-length", "")
        self._announced = int(announced) if announced.isdecimal() else 0

    async def __call__(self) -> Message:
        message: Message = {} if self._announced > self._most else await self._receive()
        self._seen += len(message.get("body", b""))
        if max(self._seen, self._announced) > self._most:
            # FastAPI lets this one through while it reads a body; `app` gives it our shape.
            raise HTTPException(TooLarge.status, f"the body is too large: send at most {self._most:,} bytes")
        return message


class _Bucket:
    """A token bucket: `per_minute` requests a minute, as many at once."""

    def __init__(self, per_minute: int) -> None:
        self._most, self._left, self._at = per_minute, float(per_minute), time.monotonic()

    def take(self) -> None:
        """Use one. Raises RateLimited."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._most / 60)
        self._at = now
        if self._left < 1:
            wait = math.ceil((1 - self._left) * 60 / self._most)
            raise RateLimited(f"this key may send {self._most} requests a minute", retry_after=wait)
        self._left -= 1


def fault_response(fault: ServeError) -> JSONResponse:
    """A fault as an answer."""
    return JSONResponse(fault.to_dict(), fault.status, fault.headers)


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
