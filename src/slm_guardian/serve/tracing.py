"""OpenTelemetry traces: an extra, off unless the settings say so. Every name is here.

The names are those of the guardrail conventions that the GenAI group still works on
(`gen_ai.guardrail.*`, status: development). They keep what the guardian said (verdict) apart from what was
done (action). Only the attributes below can be set, and none of them holds a text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slm_guardian.errors import InputError
from slm_guardian.guardian import Verdict
from slm_guardian.serve.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

COMPONENT = "slm-guardian"
JUDGE = f"run_guardrail {COMPONENT}"  # the judging of one request's texts
UPSTREAM = "chat"  # the upstream's answer

_NAMES = {
    "route": "http.route",
    "method": "http.request.method",
    "status": "http.response.status_code",
    "operation": "gen_ai.operation.name",
    "component": "gen_ai.guardrail.component.name",
    "target": "gen_ai.guardrail.target.type",
    "verdict": "gen_ai.guardrail.verdict.type",
    "action": "gen_ai.guardrail.action.type",
    "policy": "gen_ai.guardrail.security.policy.id",
    "category": "gen_ai.guardrail.security.risk.category",
    "harm": "gen_ai.guardrail.security.risk.score",
    "error": "error.type",
    # ours, where the conventions have no name
    "texts": "guardian.texts",
    "unsafe": "guardian.texts.unsafe",
    "version": "guardian.policy.version",
    "policy_action": "guardian.policy.action",
}
_ALWAYS = {
    JUDGE: {"operation": "run_guardrail", "component": COMPONENT},
    UPSTREAM: {"operation": "chat"},
}
_ACTIONS = {"pass": "allow", "flag": "audit", "answer": "block", "block": "block"}
_provider: TracerProvider | None = None


class Trace:
    """A span, or nothing while tracing is off."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    def set(self, **attributes: str | int | float | None) -> Trace:
        """Set attributes by their short names; None sets nothing."""
        named = {_NAMES[name]: value for name, value in attributes.items() if value is not None}
        if self._span is not None:
            self._span.set_attributes(named)
        return self

    def failed(self, kind: str) -> None:
        """The work failed; `kind` is a word, never a message."""
        self.set(error=kind)
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)

    def verdict(self, verdict: Verdict) -> None:
        """What the guardian said of a text, and what the policy wants done."""
        self.set(
            verdict="allow" if verdict.label == "safe" else "deny",
            action=_ACTIONS.get(verdict.action, verdict.action),
            policy_action=verdict.action,
            category=verdict.category,
            harm=verdict.harm,
            error="unjudged" if verdict.error else None,
        )


def setup(settings: Settings, exporter: SpanExporter | None = None) -> None:
    """Trace if the settings say so; by default to where the `OTEL_EXPORTER_OTLP_*` variables say.

    Raises InputError without the extra.
    """
    global _provider
    if not settings.tracing:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise InputError("tracing needs: pip install 'slm-guardian[otel]'") from None
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", COMPONENT)})
    _provider = TracerProvider(resource=resource)
    _provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))


def shutdown() -> None:
    """Send what waits, and trace no more."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


@contextmanager
def span(
    name: str, *, parent: Mapping[str, str] | None = None, **attributes: str | int | float | None
) -> Iterator[Trace]:
    """A span around a piece of work, one of the names above; nothing at all while tracing is off.

    `parent` are the headers of a request: a `traceparent` among them is continued. Attributes are given by
    their short names. Of an exception only the type is kept: its message may hold anything.
    """
    attributes = _ALWAYS.get(name, {}) | attributes
    if _provider is None:
        yield Trace().set(**attributes)
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = _provider.get_tracer("slm_guardian")
    context = TraceContextTextMapPropagator().extract(parent) if parent is not None else None
    with tracer.start_as_current_span(
        name, context, record_exception=False, set_status_on_exception=False
    ) as started:
        trace = Trace(started).set(**attributes)
        try:
            yield trace
        except Exception as error:
            trace.failed(type(error).__name__)
            raise
