"""POST /v1/guard: verdicts as the library gives them, with answers when asked for, streamed if wanted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from slm_guardian.guardian import Verdict
from slm_guardian.serve.access import POLICY_HEADER
from slm_guardian.serve.faults import BadRequest
from slm_guardian.serve.gateway import Caller, Gateway, choose, gateway, verdict_headers, worst
from slm_guardian.serve.schemas import JUDGING, Guarded, GuardRequest, native

router = APIRouter()
_SSE = "text/event-stream"
_GIVES: dict[int | str, dict[str, Any]] = {200: {"content": {_SSE: {}}}}


@router.post("/v1/guard", response_model=Guarded, responses=_GIVES | JUDGING)
async def guard(body: GuardRequest, request: Request, here: Annotated[Gateway, Depends(gateway)]) -> Response:
    """Judge texts; with `respond` harmful ones are answered. `stream` sends the events verdict, answer, done."""
    if body.stream and len(body.texts) > 1:
        raise BadRequest("a stream is of one text: send one, or leave stream out", param="stream")
    who = choose(request, body.policy or request.headers.get(POLICY_HEADER))
    verdicts = await here.check(body.texts, who, force=body.force)
    headers = verdict_headers(worst(verdicts), who.guard)
    if body.stream:
        events = _events(verdicts[0], body.respond, who, here)
        return StreamingResponse(events, headers=headers | {"Cache-Control": "no-cache"}, media_type=_SSE)
    if body.respond:
        verdicts = await asyncio.gather(*(_answered(verdict, who, here) for verdict in verdicts))
    rows = [native(verdict) for verdict in verdicts]
    return JSONResponse({"verdicts": rows, **_by(who)}, headers=headers)


async def _answered(verdict: Verdict, who: Caller, here: Gateway) -> Verdict:
    return await here.judge.respond(verdict, who.guard) if _wants_answer(verdict) else verdict


async def _events(verdict: Verdict, respond: bool, who: Caller, here: Gateway) -> AsyncIterator[str]:
    yield _event("verdict", native(verdict) | {"set": who.guard.name, "version": who.guard.version})
    if respond and _wants_answer(verdict):
        async for sentence in here.judge.answer(verdict, who.guard):
            yield _event("answer", {"text": sentence})
    yield _event("done", {})


def _wants_answer(verdict: Verdict) -> bool:
    return verdict.action in ("answer", "block")


def _by(who: Caller) -> dict[str, str]:
    return {"policy": who.guard.name, "version": who.guard.version}


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
