"""guardian serve as a process: how it starts, what it prints, which signals it takes and how it ends."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import httpx2
import pytest
import yaml

from slm_guardian.serve.settings import KeySettings

COMMAND = (sys.executable, "-c", "from slm_guardian.cli.main import main; main()", "serve")
DEADLINE_S = 60


@dataclass(frozen=True)
class Gateway:
    """A running command: the line that it printed, and where it listens."""

    process: subprocess.Popen[str]
    line: str
    url: str

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=DEADLINE_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextmanager
def gateway(*arguments: str | Path) -> Iterator[Gateway]:
    """`guardian serve` on a free port, ready, until the block ends."""
    command = [*COMMAND, "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            url = re.findall(r"http://127\.0\.0\.1:\d+", line)
            assert url, process.communicate()[1]
            running = Gateway(process, line, url[0])
            until(lambda: running.get("/readyz").status_code == 200)
            yield running
        finally:
            process.kill()


def until(true: Callable[[], bool]) -> None:
    """Ask again and again, for as long as a test may take."""
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, "it never came"


def failed(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and stderr of a command that cannot start."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def half_a_request(url: str) -> socket.socket:
    """A connection on which a request has begun: the server waits for the last byte of its body."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
    body = b'{"input": "hello"}'
    head = (
        "POST /v1/guard HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    )
    connection.sendall(head.format(len(body)).encode() + body[:-1])
    httpx2.get(f"{url}/healthz", timeout=DEADLINE_S)  # what came in before this has begun by now
    return connection


def test_one_line_says_where_it_is_and_what_is_on() -> None:
    with gateway("--upstream", "http://user:secret@127.0.0.1:9/v1", "--judge-answers") as running:
        assert "model mini" in running.line and "no keys" in running.line
        assert "upstream http://127.0.0.1:9" in running.line and "answers judged" in running.line
        assert "secret" not in running.line
        assert running.stop(signal.SIGINT) == 0
        assert running.process.stderr and running.process.stderr.read() == ""


def test_running_requests_finish_and_new_ones_are_sent_away() -> None:
    with gateway() as running, half_a_request(running.url) as begun:
        running.process.send_signal(signal.SIGTERM)
        until(lambda: running.get("/readyz").status_code == 503)
        refused = httpx2.post(f"{running.url}/v1/guard", json={"input": "hello"}, timeout=DEADLINE_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        begun.sendall(b"}")
        assert begun.recv(100_000).startswith(b"HTTP/1.1 200")
        assert running.process.wait(DEADLINE_S) == 0


def test_draining_ends_in_time(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("limits: {drain_s: 0.2}", "utf-8")
    with gateway("--config", config) as running, half_a_request(running.url):
        assert running.stop() == 0


def test_sighup_reloads_the_policies_and_a_broken_file_does_not(tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text("id: mine\nextends: en\nversion: '1'", "utf-8")
    stamp = policy.stat().st_mtime_ns

    def version() -> str:
        return running.get("/v1/policy").json()["sets"][0]["policies"][0]["version"]

    def rewrite(text: str) -> None:
        policy.write_text(text, "utf-8")
        os.utime(policy, ns=(stamp, stamp))  # only the signal tells
        running.process.send_signal(signal.SIGHUP)

    with gateway("--policy", policy) as running:
        assert version() == "1"
        rewrite("id: mine\nextends: en\nversion: '2'")
        until(lambda: version() == "2")
        rewrite("categories: [")
        until(lambda: 'reloads_total{outcome="failed"} 1' in running.get("/metrics").text)
        assert version() == "2"
        assert running.stop() == 0
        assert running.process.stderr and "stay in force" in running.process.stderr.read()


def test_workers_share_a_port_and_their_metrics(tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text("id: mine\nextends: en\nversion: '1'", "utf-8")
    with gateway("--workers", "2", "--policy", policy) as running:
        assert "2 workers" in running.line
        for _ in range(6):
            reply = httpx2.post(f"{running.url}/v1/moderations", json={"input": "hello"}, timeout=DEADLINE_S)
            assert reply.status_code == 200
        counted = 'requests_total{route="/v1/moderations",status="200"} 6.0'
        until(lambda: counted in running.get("/metrics").text)
        policy.write_text("categories: [", "utf-8")
        running.process.send_signal(signal.SIGHUP)
        until(lambda: 'reloads_total{outcome="failed"}' in running.get("/metrics").text)
        policy.write_text("id: mine\nextends: en\nversion: '2'", "utf-8")
        until(lambda: all('"version":"2"' in running.get("/v1/policy").text for _ in range(12)))
        assert running.stop() == 0


def test_a_broken_model_is_said_at_once(tmp_path: Path) -> None:
    model = Path(shutil.copytree(str(files("slm_guardian").joinpath("assets/mini")), tmp_path / "mini"))
    (model / "model.onnx").write_bytes(b"broken")
    code, message = failed("--model", model)
    assert code == 2 and "model.onnx cannot be loaded" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policies: {default: {files: [none.yaml]}}", "no policy 'none.yaml'"),
        ("policies: {default: {files: [en, en]}}", "same language"),
        ("policies: {default: {forced: [{name: a, category: x, phrases: [b]}]}}", "has no category x"),
        ("upstreams: {}", "upstreams"),
    ],
)
def test_settings_that_do_not_fit_are_said_at_once(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(text, "utf-8")
    code, said = failed("--config", config)
    assert code == 2 and message in said


def test_a_port_in_use_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, message = failed("--port", str(taken.getsockname()[1]))
    assert code == 2 and "choose another" in message


def test_a_new_key_is_printed_once_with_its_settings() -> None:
    done = subprocess.run([*COMMAND, "--new-key", "web: shop"], capture_output=True, text=True, check=True)
    key, _, settings = done.stdout.partition("\n")
    (entry,) = yaml.safe_load(settings)["keys"]
    assert KeySettings(**entry).name == "web: shop"
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
