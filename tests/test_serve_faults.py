"""When the guardian cannot judge: overloaded, late, broken, unreadable; closed by default, open where asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from serving import DEADLINE_S, Gate, Serving, serving
from slm_guardian.engines import Engine
from slm_guardian.serve.guards import Guards
from slm_guardian.serve.settings import Settings

HARMFUL, SAFE = "sns 계정 해킹하는 방법 알려줘", "화분에 생긴 진딧물 죽이는 법"


@contextmanager
def gated(**values: Any) -> Iterator[tuple[Serving, Gate]]:
    """A gateway behind a gate that the test shuts and opens."""
    gates: list[Gate] = []

    def gate(engine: Engine) -> Engine:
        gates.append(Gate(engine))
        return gates[-1]

    with serving(engine=gate, **values) as server, ExitStack() as stack:
        stack.callback(gates[0].release)
        yield server, gates[0]


def ask(server: Serving, text: str | list[str] = SAFE) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/moderations", json={"input": text}, timeout=DEADLINE_S)


def ready(server: Serving) -> httpx2.Response:
    return httpx2.get(f"{server.url}/readyz", timeout=DEADLINE_S)


def metric(server: Serving, start: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics", timeout=DEADLINE_S).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


def until(true: Callable[[], bool]) -> None:
    """Ask again and again, for as long as a test may take."""
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, "it never came"


def waiting(server: Serving) -> int:
    return server.app.state.gateway.judge.depth


def broken(scores: np.ndarray) -> np.ndarray:
    raise RuntimeError("my secret text")


def no_number(scores: np.ndarray) -> np.ndarray:
    return np.full_like(scores, np.nan)


# Overloaded


@pytest.mark.parametrize("mode", ["closed", "open"])
def test_more_than_the_queue_holds(mode: str) -> None:
    with gated(limits={"queue": 2, "batch": 1}, fail={"overloaded": mode}) as (server, gate):
        gate.shut()
        before = len(gate.batches)
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, server)]
            gate.wait_for(before + 1)  # one is with the model
            asked += [pool.submit(ask, server) for _ in range(2)]
            until(lambda: waiting(server) == 2)
            shed = ask(server, HARMFUL)
            gate.release()
        assert [reply.result().status_code for reply in asked] == [200] * 3
        assert metric(server, 'guardian_sheds_total{reason="overloaded"}') == 1
    if mode == "closed":
        assert shed.status_code == 429 and shed.headers["Retry-After"] == "1"
        assert shed.json()["error"]["code"] == "overloaded"
    else:
        (result,) = shed.json()["results"]
        assert shed.headers["X-Guardian-Verdict"] == "unjudged"
        assert not result["flagged"] and "too many texts" in result["guardian"]["error"]


# Late


@pytest.mark.parametrize("mode", ["closed", "open"])
def test_a_verdict_that_is_late(mode: str) -> None:
    with gated(limits={"deadline_s": 0.2}, fail={"timeout": mode}) as (server, gate):
        gate.shut()
        late = ask(server, HARMFUL)
        gate.release()
    if mode == "closed":
        assert late.status_code == 503 and late.json()["error"]["code"] == "judge_timeout"
        assert late.headers["Retry-After"] == "1"
    else:
        assert late.headers["X-Guardian-Verdict"] == "unjudged" and not late.json()["results"][0]["flagged"]


def test_what_waited_too_long_is_dropped_not_judged() -> None:
    with gated(limits={"deadline_s": 0.2, "batch": 1}) as (server, gate):
        gate.shut()
        with ThreadPoolExecutor(4) as pool:
            statuses = [reply.status_code for reply in pool.map(ask, [server] * 4)]
        batches = len(gate.batches)
        gate.release()
        until(lambda: waiting(server) == 0)
        assert statuses == [503] * 4
        assert len(gate.batches) == batches  # the one that was with the model, and none of the others


# Broken


@pytest.mark.parametrize("fault", [broken, no_number])
def test_a_model_that_breaks_is_no_pass_and_heals(
    fault: Callable[[np.ndarray], np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    with gated() as (server, gate):
        gate.fault = fault
        reply = ask(server, HARMFUL)
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "guardian_broken"
        assert ready(server).status_code == 503
        gate.fault = None
        until(lambda: ready(server).status_code == 200)
        assert ask(server, HARMFUL).json()["results"][0]["flagged"]
    assert "secret" not in caplog.text + reply.text


def test_an_open_mode_lets_through_and_says_so() -> None:
    with gated(fail={"broken": "open"}) as (server, gate):
        gate.fault = broken
        reply = ask(server, HARMFUL)
        assert reply.status_code == 200 and reply.headers["X-Guardian-Verdict"] == "unjudged"
        assert (
            metric(
                server, 'guardian_verdicts_total{action="pass",category="",forced="false",label="unjudged"'
            )
            == 1
        )


def test_one_text_that_breaks_the_model_spoils_no_other() -> None:
    def only_together(scores: np.ndarray) -> np.ndarray:
        if len(scores) > 1:
            raise RuntimeError
        return scores

    with gated() as (server, gate):
        gate.fault = only_together
        assert [row["flagged"] for row in ask(server, [SAFE, HARMFUL]).json()["results"]] == [False, True]


@pytest.mark.parametrize(("mode", "flagged"), [("closed", True), ("open", False)])
def test_a_text_that_cannot_be_read(mode: str, flagged: bool) -> None:
    with serving(fail={"unreadable": mode}) as server:
        reply = ask(server, ["\u200b", HARMFUL, SAFE])
        assert [row["flagged"] for row in reply.json()["results"]] == [flagged, True, False]


def test_a_model_that_is_broken_at_the_start_refuses_until_it_is_put_right(tmp_path: Path) -> None:
    with serving(Settings.load(None, model=str(tmp_path / "mini"))) as server:
        reply = ready(server)
        assert reply.status_code == 503 and "no model directory" in reply.json()["error"]["message"]
        assert ask(server).status_code == 503
        assert httpx2.get(f"{server.url}/healthz", timeout=DEADLINE_S).status_code == 200
        (tmp_path / "mini").symlink_to(str(files("slm_guardian").joinpath("assets/mini")))
        until(lambda: ready(server).status_code == 200)
        assert ask(server).status_code == 200


# Together


def test_what_gathers_is_judged_together_and_in_turns() -> None:
    with gated(limits={"batch": 4}) as (server, gate):
        gate.shut()
        before = len(gate.batches)
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(ask, server)
            gate.wait_for(before + 1)
            many = pool.submit(ask, server, [SAFE] * 12)
            until(lambda: waiting(server) == 12)
            one = pool.submit(ask, server, HARMFUL)
            until(lambda: waiting(server) == 13)
            gate.release()
            replies = [reply.result() for reply in (first, many, one)]
        assert [len(reply.json()["results"]) for reply in replies] == [1, 12, 1]
        assert replies[2].json()["results"][0]["flagged"]
        assert gate.batches[before:] == [1, 4, 4, 4, 1]


def test_a_client_that_hangs_up_while_waiting_harms_nobody() -> None:
    with gated(limits={"batch": 1}) as (server, gate):
        gate.shut()
        before = len(gate.batches)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, server)
            gate.wait_for(before + 1)
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{server.url}/v1/guard", json={"input": HARMFUL}, timeout=0.3)
            gate.release()
            assert first.result().status_code == 200


# Reloading


POLICY = "id: mine\nextends: en\nversion: '{version}'\nthreshold: {threshold}\n"


def version(server: Serving) -> str:
    return httpx2.get(f"{server.url}/v1/policy", timeout=DEADLINE_S).json()["sets"][0]["version"]


def test_a_changed_policy_is_in_force_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(POLICY.format(version=1, threshold=1), "utf-8")
    with serving(policies={"default": {"files": [str(file)]}}) as server:
        old = version(server)
        assert not ask(server, "hello").json()["results"][0]["flagged"]
        file.write_text(POLICY.format(version=2, threshold=0), "utf-8")
        until(lambda: version(server) != old)
        assert ask(server, "hello").json()["results"][0]["flagged"]
        assert metric(server, 'guardian_policy_reloads_total{outcome="ok"}') == 1


def test_a_broken_policy_leaves_the_old_one_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(POLICY.format(version=1, threshold=0), "utf-8")
    with serving(policies={"default": {"files": [str(file)]}}) as server:
        old = version(server)
        file.write_text("categories: [", "utf-8")
        until(lambda: metric(server, 'guardian_policy_reloads_total{outcome="failed"}') == 1)
        assert version(server) == old and ask(server, "hello").json()["results"][0]["flagged"]
        assert ready(server).status_code == 200
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "mine.yaml:" in record.getMessage() and "stay in force" in record.getMessage()


def test_loading_again_says_what_changed(tmp_path: Path) -> None:
    base, settings = tmp_path / "base.yaml", tmp_path / "gateway.yaml"
    base.write_text(POLICY.format(version=1, threshold=0.5), "utf-8")
    (tmp_path / "mine.yaml").write_text("id: mine2\nextends: base.yaml\n", "utf-8")
    settings.write_text("policies: {default: {}, mine: {files: [mine.yaml]}}", "utf-8")
    guards = Guards(Settings.load(settings))
    assert not guards.stale() and guards.reload().changed == []
    base.write_text(POLICY.format(version=1, threshold=0.6), "utf-8")
    assert guards.stale() and guards.reload().changed == ["mine"]
    settings.write_text("policies: {default: {threshold: 0.1}, third: {}}", "utf-8")
    assert guards.stale() and guards.reload().changed == ["default", "mine", "third"]
    assert guards.get().guardian.threshold == 0.1
    settings.write_text("policies: {default: {files: [gone.yaml]}}", "utf-8")
    assert "gone.yaml" in (guards.reload().error or "") and not guards.stale()
    assert guards.get().guardian.threshold == 0.1


# Logs


def test_a_line_a_request_and_no_text_in_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="slm_guardian")
    with serving() as server:
        ask(server, "my secret words")
        httpx2.post(f"{server.url}/v1/guard?q=my+secret+words", json={"input": 3}, timeout=DEADLINE_S)
        httpx2.get(f"{server.url}/v1/my%20secret%0awords", timeout=DEADLINE_S)
    lines = [r.getMessage() for r in caplog.records if r.name == "slm_guardian.serve.access"]
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "POST /v1/moderations 200",
        "POST /v1/guard 400",
        "GET other 404",
    ]
    assert "secret" not in caplog.text
