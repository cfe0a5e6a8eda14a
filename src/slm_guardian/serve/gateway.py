"""What every route works with: the gateway of this process, and who calls it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from slm_guardian.guardian import Verdict
from slm_guardian.serve.access import POLICY_HEADER, key_of
from slm_guardian.serve.faults import BadRequest, Forbidden, TooLarge
from slm_guardian.serve.guards import Guard, Guards
from slm_guardian.serve.judge import Judge, is_forced
from slm_guardian.serve.metrics import Metrics
from slm_guardian.serve.settings import Settings
from slm_guardian.serve.tracing import JUDGE, span

if TYPE_CHECKING:
    from slm_guardian.serve.audit import Audit, Entry
    from slm_guardian.serve.upstream import Upstream

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Caller:
    """Who calls (the name of the key, or `anonymous`), by which policy set, and where."""

    name: str
    guard: Guard
    route: str
    traced: dict[str, str]
    """The request's `traceparent`, if any."""


@dataclass
class Gateway:
    """All that one process serves with."""

    settings: Settings
    guards: Guards
    judge: Judge
    metrics: Metrics
    audit: Audit | None = None
    upstream: Upstream | None = None

    async def check(
        self,
        texts: Sequence[str],
        caller: Caller,
        *,
        force: bool = False,
        target: str = "input",
        record: bool = True,
    ) -> list[Verdict]:
        """Judge texts for a caller: limited, traced and, unless the caller of this does it, recorded.

        Raises TooLarge, BadRequest, and as `Judge.check`.
        """
        self._admit(texts)
        guard = caller.guard
        with span(
            JUDGE,
            parent=caller.traced,
            route=caller.route,
            target=target,
            policy=guard.name,
            version=guard.version,
            texts=len(texts),
        ) as trace:
            verdicts = await self.judge.check(texts, guard, force=force)
            trace.verdict(worst(verdicts))
        if record:
            self.record(verdicts, caller, target)
        return verdicts

    def record(self, verdicts: Sequence[Verdict], caller: Caller, target: str = "input") -> None:
        """Count verdicts and write them to the audit log."""
        for verdict in verdicts:
            label = "unjudged" if verdict.error else verdict.label
            set_name, forced = caller.guard.name, is_forced(verdict)
            self.metrics.verdict(set_name, label, verdict.category, verdict.action, forced)
            if self.audit:
                self.audit.record(_entry(verdict, label, caller, target))

    def _admit(self, texts: Sequence[str]) -> None:
        limits = self.settings.limits
        if len(texts) > limits.texts:
            raise TooLarge(f"{len(texts)} texts are too many: send at most {limits.texts} at a time")
        if (length := sum(map(len, texts))) > limits.characters:
            raise TooLarge(
                f"{length:,} characters are too many: send at most {limits.characters:,} at a time"
            )
        if any(_SURROGATE.search(text) for text in texts):
            raise BadRequest("a text holds half a character (a lone surrogate): send valid Unicode")


def _entry(verdict: Verdict, label: str, caller: Caller, target: str) -> Entry:
    from slm_guardian.serve.audit import Entry

    return Entry(
        route=caller.route,
        caller=caller.name,
        policy=caller.guard.name,
        policy_version=caller.guard.version,
        model=verdict.model,
        label=label,
        category=verdict.category,
        harm=verdict.harm,
        action=verdict.action,
        text=verdict.text,
        target=target,
    )


# Dependencies are `async`, although they wait for nothing: FastAPI would run them in a thread each.


async def gateway(request: Request) -> Gateway:
    """The gateway that serves a request."""
    return request.app.state.gateway


async def caller(request: Request) -> Caller:
    """Who sends a request, and by which policy set: the key's, else the one the header names, else `default`."""
    return choose(request, request.headers.get(POLICY_HEADER))


def choose(request: Request, policy: str | None) -> Caller:
    """The caller, by a policy set of its own choice. Raises BadRequest, and Forbidden where the key is bound."""
    key = key_of(request.scope)
    bound = key.policy if key else None
    if bound and policy not in (None, bound):
        raise Forbidden(f"this key is for the policy set {bound} alone", param="policy")
    guard = request.app.state.gateway.guards.get(bound or policy)
    traced = {n: v for n in ("traceparent", "tracestate") if (v := request.headers.get(n))}
    return Caller(key.name if key else "anonymous", guard, request.url.path, traced)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that counts for all: a text that was not judged, else the most harmful one."""
    return max(verdicts, key=lambda v: (v.label == "unsafe", v.error is not None, v.harm or 0))


def verdict_headers(verdict: Verdict, guard: Guard) -> dict[str, str]:
    """The `X-Guardian-*` headers of an answer."""
    headers = {
        "X-Guardian-Verdict": "unjudged" if verdict.error else verdict.label,
        "X-Guardian-Policy": f"{guard.name}@{guard.version}",
    }
    if verdict.category:
        headers["X-Guardian-Category"] = verdict.category
    if verdict.harm is not None:
        headers["X-Guardian-Harm"] = f"{verdict.harm:.6f}"
    return headers
