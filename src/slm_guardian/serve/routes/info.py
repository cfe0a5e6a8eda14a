"""What the gateway says about itself: its models and policies, its health, its metrics."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from slm_guardian.policy import Policy
from slm_guardian.serve.access import Traffic, key_of
from slm_guardian.serve.faults import Broken, Draining
from slm_guardian.serve.gateway import Gateway, gateway
from slm_guardian.serve.guards import Guard
from slm_guardian.serve.schemas import errors

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok"}


@router.get("/readyz", responses=errors(503))
async def readyz(request: Request) -> dict[str, str]:
    """The model has judged and the server takes requests; 503 with the reason otherwise."""
    traffic: Traffic = request.app.state.traffic
    if traffic.draining:
        raise Draining("the server is stopping")
    if traffic.broken:
        raise Broken(traffic.broken)
    if not request.app.state.gateway.judge.ready:
        raise Broken("the model cannot judge: see the server's log")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    body, kind = request.app.state.metrics.render()
    return Response(body, media_type=kind)


@router.get("/v1/models", responses=errors(401, 429, 502, 503, 504))
async def models(request: Request, here: Annotated[Gateway, Depends(gateway)]) -> dict[str, Any]:
    """The upstream's models, if there is one, and the guardian."""
    own = {"id": here.guards.model, "object": "model", "created": 0, "owned_by": "slm-guardian"}
    others = await here.upstream.models(request) if here.upstream else []
    return {"object": "list", "data": [*others, own]}


@router.get("/v1/policy", responses=errors(401, 429, 503))
async def policy(request: Request, here: Annotated[Gateway, Depends(gateway)]) -> dict[str, Any]:
    """The policy sets that the caller may use: their categories, thresholds, actions and versions."""
    key = key_of(request.scope)
    guards = [here.guards.get(key.policy)] if key and key.policy else here.guards.all()
    return {"model": here.guards.model, "sets": [_set(guard) for guard in guards]}


def _set(guard: Guard) -> dict[str, Any]:
    return {
        "name": guard.name,
        "version": guard.version,
        "forced": [{"name": topic.name, "category": topic.category} for topic in guard.forced],
        "policies": [_policy(guard, policy) for policy in guard.guardian.policies.values()],
    }


def _policy(guard: Guard, policy: Policy) -> dict[str, Any]:
    return {
        "id": policy.id,
        "version": policy.version,
        "language": policy.language,
        "groups": {group.id: group.name for group in policy.groups},
        "categories": [
            {
                "id": category.id,
                "name": category.name,
                "group": category.group,
                "action": category.action,
                "threshold": guard.guardian.limit(policy, category),
            }
            for category in policy.categories
        ],
    }
