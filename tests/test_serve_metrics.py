"""The gateway's metrics and traces, by the real Prometheus client and the real OpenTelemetry SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.parser import text_string_to_metric_families

from slm_guardian.guardian import Verdict
from slm_guardian.serve import tracing
from slm_guardian.serve.app import create_app
from slm_guardian.serve.metrics import OTHER, ROUTES, Metrics, across_processes
from slm_guardian.serve.settings import Settings

UNSAFE = Verdict("a zebra", "unsafe", 0.9, "crime", "g", None, "ko", "mini", "answer", 0.5)
WORKER = """
from slm_guardian.serve.metrics import Metrics
metrics = Metrics()
metrics.request("/v1/guard", 200, 0.01)
metrics.queue(2)
"""


def values(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Samples by name and label values, as a scraper reads them."""
    body, kind = metrics.render()
    assert kind.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Where finished spans go once `tracing.shutdown` was called."""
    exporter = InMemorySpanExporter()
    tracing.setup(Settings(tracing=True), exporter)
    yield exporter
    tracing.shutdown()


def test_every_event_is_counted() -> None:
    metrics = Metrics()
    metrics.request("/v1/guard", 200, 0.02)
    metrics.request("/v1/guard", 200, 0.2)
    metrics.request("/v1/guard", 429, 0.001)
    metrics.verdict("default", "unsafe", "crime", "answer", forced=True)
    metrics.verdict("default", "safe", None, "pass")
    metrics.judged(0.01, 3)
    metrics.queue(7)
    metrics.shed("overloaded")
    metrics.upstream_error("down")
    metrics.upstream_first_byte(0.3)
    metrics.audit_dropped(5)
    metrics.reload(True)
    metrics.reload(False)
    seen = values(metrics)
    assert seen["guardian_requests_total", ("/v1/guard", "200")] == 2
    assert seen["guardian_requests_total", ("/v1/guard", "429")] == 1
    assert seen["guardian_request_seconds_count", ("/v1/guard",)] == 3
    assert seen["guardian_request_seconds_bucket", ("0.025", "/v1/guard")] == 2
    assert seen["guardian_verdicts_total", ("answer", "crime", "true", "unsafe", "default")] == 1
    assert seen["guardian_verdicts_total", ("pass", "", "false", "safe", "default")] == 1
    assert seen["guardian_judge_texts_sum", ()] == 3
    assert seen["guardian_judge_seconds_count", ()] == 1
    assert seen["guardian_queue_texts", ()] == 7
    assert seen["guardian_sheds_total", ("overloaded",)] == 1
    assert seen["guardian_upstream_errors_total", ("down",)] == 1
    assert seen["guardian_upstream_first_byte_seconds_sum", ()] == 0.3
    assert seen["guardian_audit_dropped_total", ()] == 5
    assert seen["guardian_policy_reloads_total", ("ok",)] == 1
    assert seen["guardian_policy_reloads_total", ("failed",)] == 1


def test_names_follow_the_conventions() -> None:
    for family in text_string_to_metric_families(Metrics().render()[0].decode()):
        assert family.name.startswith("guardian_")
        assert family.documentation.endswith(".")
        assert family.type != "histogram" or family.name.endswith(("_seconds", "_texts"))


def test_addresses_that_nobody_serves_are_one_label() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.request(f"/v1/guard/{number}", 404, 0.001)
    routes = {labels[0] for name, labels in values(metrics) if name == "guardian_requests_total"}
    assert routes == {OTHER}


def test_every_route_of_the_gateway_has_a_label() -> None:
    served = set(create_app(Settings()).openapi()["paths"])
    assert served <= ROUTES, "add the new route to ROUTES in metrics.py"


def test_processes_share_their_metrics_and_clean_up() -> None:
    with across_processes():
        directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
        for _ in range(3):
            subprocess.run([sys.executable, "-c", WORKER], check=True, timeout=60)
        seen = values(Metrics())
    assert seen["guardian_requests_total", ("/v1/guard", "200")] == 3
    assert seen["guardian_request_seconds_count", ("/v1/guard",)] == 3
    assert ("guardian_queue_texts", ()) not in seen, "nothing waits in a process that is gone"
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ and not os.path.exists(directory)


def test_a_span_keeps_verdict_and_action_apart_and_holds_no_text(spans: InMemorySpanExporter) -> None:
    with tracing.span(tracing.JUDGE, route="/v1/guard", target="input", policy="default", texts=1) as trace:
        trace.verdict(UNSAFE)
    tracing.shutdown()
    [span] = spans.get_finished_spans()
    assert span.name == "run_guardrail slm-guardian"
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "run_guardrail",
        "gen_ai.guardrail.component.name": "slm-guardian",
        "http.route": "/v1/guard",
        "gen_ai.guardrail.target.type": "input",
        "gen_ai.guardrail.security.policy.id": "default",
        "guardian.texts": 1,
        "gen_ai.guardrail.verdict.type": "deny",
        "gen_ai.guardrail.action.type": "block",
        "guardian.policy.action": "answer",
        "gen_ai.guardrail.security.risk.category": "crime",
        "gen_ai.guardrail.security.risk.score": 0.9,
    }
    assert span.resource.attributes["service.name"] == "slm-guardian"


def test_a_request_s_trace_is_continued_and_spans_nest(spans: InMemorySpanExporter) -> None:
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with tracing.span(tracing.JUDGE, parent=parent), tracing.span(tracing.UPSTREAM):
        pass
    tracing.shutdown()
    inner, outer = spans.get_finished_spans()
    assert outer.context and outer.parent and inner.parent and inner.context
    assert f"{outer.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
    assert inner.parent.span_id == outer.context.span_id


def test_an_error_leaves_its_type_not_its_message(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError), tracing.span(tracing.JUDGE):
        raise ValueError("a zebra")
    tracing.shutdown()
    [span] = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert "zebra" not in span.to_json()


def test_no_other_attribute_can_be_set_and_off_is_off(spans: InMemorySpanExporter) -> None:
    with pytest.raises(KeyError), tracing.span(tracing.JUDGE, text="a zebra"):
        pass
    tracing.shutdown()
    tracing.setup(Settings(tracing=False), spans)
    with tracing.span(tracing.JUDGE, route="/") as trace:
        trace.verdict(UNSAFE)
    with pytest.raises(KeyError), tracing.span(tracing.JUDGE, text="a zebra"):
        pass
    assert not any(span.name and span.end_time and span.attributes for span in spans.get_finished_spans())
