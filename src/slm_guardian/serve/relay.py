"""An upstream's answer on its way to the client: whole, or as it comes in, for as long as the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from slm_guardian.serve.completions import event
from slm_guardian.serve.faults import ServeError
from slm_guardian.serve.upstream import Answer, RawHeaders

_T = TypeVar("_T")


def whole(answer: Answer, content: bytes, headers: Mapping[str, str]) -> Response:
    """An answer that was read to its end, with the gateway's headers."""
    response = Response(content, answer.status)
    kept = [(name, value) for name, value in answer.headers if name != b"content-length"]
    response.raw_headers = [*kept, (b"content-length", b"%d" % len(content)), *_encoded(headers)]
    return response


class Streamed(Response):
    """An answer that is passed on as it comes in. When the client hangs up, so does the gateway.

    One that breaks off ends with an error event, and without `[DONE]`.
    """

    def __init__(self, answer: Answer, events: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(status_code=answer.status)
        self.raw_headers = [*answer.headers, *_encoded(headers)]
        self._answer, self._events = answer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await while_there(self._sent(send), receive)
        finally:
            await self._answer.aclose()

    async def _sent(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ServeError as fault:
            if self._answer.header(b"content-encoding"):
                return  # an event cannot be put into it: without an end the client sees that it broke off
            await send({"type": "http.response.body", "body": event(fault.to_dict()), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_there(work: Coroutine[Any, Any, _T], receive: Receive) -> _T | None:
    """Do a piece of work, but stop when the client hangs up: None then."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.wait((doing, gone))


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _encoded(headers: Mapping[str, str]) -> RawHeaders:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
