"""The gateway as a Ray Serve application: replicas over a cluster, behind Ray's proxies.

    serve run slm_guardian.serve.on_ray:app config=/shared/gateway.yaml replicas=4

Ray checks and restarts the replicas and spreads the requests; the routes are those of `guardian serve`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from slm_guardian.serve.app import create_app
from slm_guardian.serve.settings import Settings


class Arguments(BaseModel, extra="forbid"):
    """What `serve run` takes as NAME=VALUE; `config` is read by each replica, so it lies where all can see it."""

    config: Path | None = None
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0, description="Cores that each replica reserves.")


def app(args: Arguments) -> Application:
    """The gateway with so many replicas. Raises InputError for settings that are wrong, before any replica starts."""
    Settings.load(args.config)
    path = args.config.absolute() if args.config else None

    def build() -> ASGIApp:
        return create_app(Settings.load(path))

    gateway: Any = serve.ingress(build)  # a class without routes of its own
    deployment: Any = serve.deployment(
        gateway(),
        name="guardian",
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus},
        health_check_period_s=10,
    )
    return deployment.bind()
