"""POST /beta/litellm_basic_guardrail_api: a guardrail for LiteLLM's proxy, by its generic guardrail schema."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse

from slm_guardian.serve.gateway import Caller, Gateway, caller, gateway, verdict_headers, worst
from slm_guardian.serve.schemas import JUDGING, GuardrailRequest, GuardrailResponse

router = APIRouter()
_NOT_JUDGED = "only text can be judged: leave out images"


@router.post("/beta/litellm_basic_guardrail_api", response_model=GuardrailResponse, responses=JUDGING)
async def guardrail(
    body: GuardrailRequest,
    here: Annotated[Gateway, Depends(gateway)],
    who: Annotated[Caller, Depends(caller)],
) -> JSONResponse:
    """Judge the texts of a request or a response. BLOCKED carries the safeguard answer as its reason."""
    unjudged = [name for name in ("images", "tools", "tool_calls") if getattr(body, name)]
    answer: dict[str, Any] = {"action": "NONE"}
    if unjudged:
        answer["unjudged"] = unjudged
    if body.images and here.settings.fail.unjudged == "closed":
        return JSONResponse(answer | {"action": "BLOCKED", "blocked_reason": _NOT_JUDGED})
    if not body.texts:
        return JSONResponse(answer)
    target = "input" if body.input_type == "request" else "output"
    verdict = worst(await here.check(body.texts, who, target=target))
    if verdict.action in ("answer", "block"):
        said = await here.judge.respond(verdict, who.guard)
        answer |= {"action": "BLOCKED", "blocked_reason": said.response}
    return JSONResponse(answer, headers=verdict_headers(verdict, who.guard))
