"""POST /v1/chat/completions: the proxy. Safe queries go on to the upstream, harmful ones are answered here.

Nothing is sent to the upstream before the verdict. What is sent is the body as it came in, so it must have one
reading only: a body with a repeated key, in another encoding, compressed or of another type is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from slm_guardian.guardian import Verdict
from slm_guardian.serve.access import CLIENT_GONE
from slm_guardian.serve.completions import Completion
from slm_guardian.serve.dialogue import ROLES, Dialogue, judge, read_dialogue, stops
from slm_guardian.serve.faults import BadRequest, NotConfigured, TooLarge, UpstreamDown
from slm_guardian.serve.gateway import Caller, Gateway, caller, gateway, verdict_headers
from slm_guardian.serve.hold import Hold, read_whole
from slm_guardian.serve.relay import Streamed, while_there, whole
from slm_guardian.serve.schemas import errors, judged
from slm_guardian.serve.tracing import UPSTREAM, span
from slm_guardian.serve.upstream import Answer, Upstream

router = APIRouter()

_LISTED = 16  # paths in a header
_SSE = "text/event-stream"
_JSON = re.compile(r'application/json\s*(?:;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)
_USER = {"required": ["role"], "properties": {"role": {"const": "user"}}}
_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["text", "input_text"]}, "text": {"type": "string"}},
    "description": "Other parts, such as images, are refused unless `fail.unjudged` is open.",
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]}
_BODY = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {"role": {"enum": sorted(ROLES)}},
                "if": _USER,
                "then": {"required": ["content"], "properties": {"content": _CONTENT}},
            },
            "contains": _USER,
        },
        "stream": {"type": "boolean"},
    },
}
_TAKES = {"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}}
_GIVES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A chat completion, or its events.",
        "content": {"application/json": {"schema": {"type": "object"}}, _SSE: {}},
    }
}


@router.post(
    "/v1/chat/completions",
    response_class=Response,
    responses=_GIVES | errors(400, 401, 403, 413, 429, 502, 503, 504),
    openapi_extra=_TAKES,
)
async def chat(
    request: Request,
    here: Annotated[Gateway, Depends(gateway)],
    who: Annotated[Caller, Depends(caller)],
) -> Response:
    """Chat with the upstream, as with OpenAI's API; a harmful last user turn is answered by the guardian."""
    if here.upstream is None:
        raise NotConfigured("the gateway has no upstream: start it with --upstream URL")
    _plain_json(request.headers)
    body = await request.body()
    asked = _read(body)
    said = read_dialogue(asked.get("messages"), here.settings.context_turns)
    verdict = await _verdict(said, here, who)
    exchange = _Exchange(here, who, verdict, said.unjudged)
    if stops(verdict):
        return await exchange.answered(asked)
    answer = await while_there(exchange.forwarded(here.upstream, request, body), request.receive)
    return answer or Response(status_code=CLIENT_GONE)


async def _verdict(said: Dialogue, here: Gateway, who: Caller) -> Verdict:
    """The verdict on the last user turn. Raises BadRequest for parts that no fail mode lets through."""
    if said.unjudged and here.settings.fail.unjudged == "closed":
        raise BadRequest("only text can be judged: leave out images and other parts", param=said.unjudged[0])
    if said.unjudged and not said.turns[-1]:
        guardian = who.guard.guardian
        policy = guardian.policy_for("").id
        return Verdict("", "safe", None, None, None, None, policy, guardian.name, error="no text to judge")

    async def check(texts: Sequence[str]) -> list[Verdict]:
        return await here.check(texts, who, record=False)

    verdict = await judge(said.turns, check)
    here.record([verdict], who)  # of all that was looked at, the one that decides
    return verdict


@dataclass
class _Exchange:
    """One query with its verdict, and the answer to it."""

    here: Gateway
    who: Caller
    verdict: Verdict
    unjudged: list[str]

    async def answered(self, asked: dict[str, Any]) -> Response:
        """The guardian's answer as a chat completion."""
        completion = Completion(self.verdict.model, self._extension(self.verdict, "input"))
        sentences = self.here.judge.answer(self.verdict, self.who.guard)
        if not asked.get("stream"):
            return await self._completed(completion, sentences)
        options = asked.get("stream_options")
        usage = isinstance(options, dict) and options.get("include_usage") is True
        events = completion.stream(sentences, usage)
        return StreamingResponse(events, headers=self._headers(), media_type=_SSE)

    async def forwarded(self, upstream: Upstream, request: Request, body: bytes) -> Response:
        """The upstream's answer, judged if the settings say so."""
        judging = self.here.settings.answers.judge
        with span(UPSTREAM, parent=self.who.traced, operation="chat") as trace:
            answer = await upstream.send(request, body, plain=judging)
            trace.set(status=answer.status)
        judging = judging and answer.status == 200
        if not answer.streams:
            content = await answer.read()
            return await self._judged(answer, content) if judging else whole(answer, content, self._headers())
        held = Hold(self.here.settings.answers, self._judge, self._ending)
        events = held.passed(answer.body) if judging else answer.body
        return Streamed(answer, events, self._headers())

    async def _judged(self, answer: Answer, content: bytes) -> Response:
        """An answer that is not streamed, or the guardian's in its place."""
        read = read_whole(content)
        self.unjudged += read.unjudged
        verdict = await self._judge(read.text) if read.text else None
        if verdict and stops(verdict):
            completion = Completion(verdict.model, self._extension(verdict, "output"))
            return await self._completed(completion, self.here.judge.answer(verdict, self.who.guard))
        if verdict and verdict.error:
            self.unjudged.append("choices[0].message.content")
        return whole(answer, content, self._headers())

    async def _completed(self, completion: Completion, sentences: AsyncIterator[str]) -> Response:
        text = "".join([sentence async for sentence in sentences])
        return JSONResponse(completion.whole(text), headers=self._headers())

    async def _judge(self, text: str) -> Verdict:
        whole_characters = text.encode("utf-8", "replace").decode()
        try:
            return (await self.here.check([whole_characters], self.who, target="output"))[0]
        except TooLarge:
            raise UpstreamDown("the answer is too long to be judged: raise limits.characters") from None

    def _ending(self, verdict: Verdict, begun: Completion, shown: bool) -> AsyncIterator[bytes]:
        """The guardian's answer in place of the rest of a stream."""
        completion = Completion(verdict.model, self._extension(verdict, "output"), begun.id, begun.created)
        return completion.stream(self.here.judge.answer(verdict, self.who.guard), shown=shown)

    def _extension(self, verdict: Verdict, target: str) -> dict[str, Any]:
        about = {"target": target, "label": verdict.label, "group": verdict.group}
        unjudged = {"unjudged": self.unjudged} if self.unjudged else {}
        return about | judged(verdict) | {"version": self.who.guard.version} | unjudged

    def _headers(self) -> dict[str, str]:
        listed = {"X-Guardian-Unjudged": ", ".join(self.unjudged[:_LISTED])} if self.unjudged else {}
        return verdict_headers(self.verdict, self.who.guard) | listed


def _plain_json(headers: Headers) -> None:
    """Raises BadRequest where the headers make the upstream read something else than what is judged here."""
    if not all(map(_JSON.fullmatch, headers.getlist("content-type"))):
        raise BadRequest("the body is not read as JSON: send it with Content-Type: application/json")
    if any(coding.lower() != "identity" for coding in headers.getlist("content-encoding")):
        raise BadRequest("the body is compressed: send it without Content-Encoding")


def _read(body: bytes) -> dict[str, Any]:
    """The request. Raises BadRequest unless it is JSON that can be read in one way only."""
    try:
        asked = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError:
        raise BadRequest("the body is not JSON in UTF-8 with each key once: check it") from None
    if not isinstance(asked, dict):
        raise BadRequest("the body must be a JSON object with messages")
    return asked


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a key is repeated")
    return read


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
