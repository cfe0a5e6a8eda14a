"""POST /v1/moderations: OpenAI's shape, with the categories of your policy."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse

from slm_guardian.guardian import Verdict
from slm_guardian.serve.gateway import Caller, Gateway, caller, gateway, verdict_headers, worst
from slm_guardian.serve.guards import Guard
from slm_guardian.serve.schemas import JUDGING, Moderation, ModerationRequest, judged

router = APIRouter()


@router.post("/v1/moderations", response_model=Moderation, responses=JUDGING)
async def moderations(
    body: ModerationRequest,
    here: Annotated[Gateway, Depends(gateway)],
    who: Annotated[Caller, Depends(caller)],
) -> JSONResponse:
    """Judge texts. `flagged` follows the policy's thresholds; what could not be judged is flagged, too."""
    verdicts = await here.check(body.texts, who)
    answer = {
        "id": f"modr-{secrets.token_hex(12)}",
        "model": here.guards.model,
        "results": [_result(verdict, who.guard) for verdict in verdicts],
    }
    return JSONResponse(answer, headers=verdict_headers(worst(verdicts), who.guard))


def _result(verdict: Verdict, guard: Guard) -> dict[str, Any]:
    ids = list(guard.guardian.policy_for(verdict.text).by_id)
    scores = verdict.scores or {}
    return {
        "flagged": verdict.label == "unsafe",
        "categories": {i: i == verdict.category for i in ids},
        "category_scores": {i: scores.get(i, 0.0) for i in ids},
        "category_applied_input_types": {i: ["text"] for i in ids},
        "guardian": judged(verdict),
    }
