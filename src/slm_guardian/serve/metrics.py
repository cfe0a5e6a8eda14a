"""What the gateway counts, in Prometheus' format: every name and label in one place.

No label ever holds a text, an address, a key or an id: routes are those of `ROUTES`, all others come from
the settings, the policies or this package. With several worker processes, `across_processes()` around them
makes `/metrics` of any one show the sum of all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it once, when it is imported
ROUTES = frozenset(
    {
        "/",
        "/beta/litellm_basic_guardrail_api",
        "/healthz",
        "/metrics",
        "/readyz",
        "/v1/chat/completions",
        "/v1/guard",
        "/v1/models",
        "/v1/moderations",
        "/v1/policy",
    }
)
OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The gateway's counters, gauges and histograms, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a series beside each other one, which no query here needs
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "HTTP requests by route and status.", "route", "status")
        self._seconds = self._histogram(
            "request_seconds", "Time to the end of the answer.", _SECONDS, "route"
        )
        self._verdicts = self._counter(
            "verdicts", "Texts judged.", "policy", "label", "category", "action", "forced"
        )
        self._judge_seconds = self._histogram("judge_seconds", "Time the model took for a batch.", _SECONDS)
        self._judge_texts = self._histogram("judge_texts", "Texts in a batch.", _TEXTS)
        self._queue = Gauge(
            "guardian_queue_texts",
            "Texts that wait to be judged.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._sheds = self._counter("sheds", "Requests turned away.", "reason")
        self._upstream_errors = self._counter("upstream_errors", "Failures of the upstream.", "kind")
        self._first_byte = self._histogram(
            "upstream_first_byte_seconds", "Time to the upstream's first byte.", _SECONDS
        )
        self._dropped = self._counter("audit_dropped", "Audit entries that were lost.")
        self._reloads = self._counter("policy_reloads", "Policy reloads by outcome.", "outcome")

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; a route that is not one of ours counts as `other`."""
        route = route if route in ROUTES else OTHER
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def verdict(
        self, policy: str, label: str, category: str | None, action: str, forced: bool = False
    ) -> None:
        """A text was judged; `policy` is the name of the policy set."""
        self._verdicts.labels(policy, label, category or "", action, str(forced).lower()).inc()

    def judged(self, seconds: float, texts: int) -> None:
        """The model judged a batch."""
        self._judge_seconds.observe(seconds)
        self._judge_texts.observe(texts)

    def queue(self, depth: int) -> None:
        """So many texts wait to be judged now."""
        self._queue.set(depth)

    def shed(self, reason: str) -> None:
        """A request was turned away, for a reason in a word."""
        self._sheds.labels(reason).inc()

    def upstream_error(self, kind: str) -> None:
        """The upstream failed: a kind in a word, such as `down`, `timeout` or `cut`."""
        self._upstream_errors.labels(kind).inc()

    def upstream_first_byte(self, seconds: float) -> None:
        """The upstream began to answer."""
        self._first_byte.observe(seconds)

    def audit_dropped(self, n: int) -> None:
        """So many audit entries were lost."""
        self._dropped.inc(n)

    def reload(self, ok: bool) -> None:
        """The policies were loaded again, or could not be."""
        self._reloads.labels("ok" if ok else "failed").inc()

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of `/metrics`."""
        return generate_latest(self._everyone()), CONTENT_TYPE_LATEST

    def _everyone(self) -> CollectorRegistry:
        if SHARED not in os.environ:
            return self.registry
        from prometheus_client.multiprocess import MultiProcessCollector

        _forget_the_dead(Path(os.environ[SHARED]))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return registry

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"guardian_{name}_total", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"guardian_{name}", about, labels, registry=self.registry, buckets=buckets)


def _forget_the_dead(directory: Path) -> None:
    """What a worker that is gone counted stays; what it had in its queue does not."""
    from prometheus_client.multiprocess import mark_process_dead

    for path in directory.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(directory))


@contextmanager
def across_processes() -> Iterator[None]:
    """Let the worker processes started inside share their metrics, in a directory that goes away after."""
    with tempfile.TemporaryDirectory(prefix="guardian-metrics-") as directory:
        os.environ[SHARED] = directory
        try:
            yield
        finally:
            del os.environ[SHARED]
