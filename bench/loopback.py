"""What bench/serve.py and bench/soak.py share: real servers on this machine, and what they were measured on."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm_guardian.evaluate.cache import machine

GUARDIAN = (sys.executable, "-c", "from slm_guardian.cli.main import main; main()", "serve", "--port", "0")
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "httpx2", "onnxruntime", "pydantic")
_START_S = 120
_TICK = os.sysconf("SC_CLK_TCK")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Server:
    """A server in a process of its own, or in several."""

    process: subprocess.Popen[str]
    port: int

    def cpu_seconds(self) -> float:
        """Processor time that it has used, workers included."""
        return sum(_stat(pid, 11) + _stat(pid, 12) for pid in self.pids()) / _TICK

    def memory_mb(self) -> float:
        """Memory in use, workers included."""
        return sum(_status(pid, "VmRSS") for pid in self.pids()) / 1024

    def files(self) -> int:
        """Open file descriptors, workers included."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())

    def pids(self) -> list[int]:
        """The process and its children."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [pid, *map(int, children.split())]


@contextmanager
def server(command: Sequence[str], ready: str = "/readyz", **environment: str) -> Iterator[Server]:
    """A server that prints its address, ready, until the block ends."""
    with tempfile.TemporaryFile("w+") as log:
        variables = os.environ | environment
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=variables)
        try:
            assert process.stdout
            found = _ADDRESS.search(process.stdout.readline())
            if found is None:
                log.seek(0)
                raise SystemExit(f"{command[-1]} did not start: {log.read()[-2000:]}")
            running = Server(process, int(found[1]))
            _until_ready(running.port, ready)
            yield running
        finally:
            process.terminate()
            process.wait()


def queries(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of all files, each text once."""
    rows: dict[str, dict[str, Any]] = {}
    for path in files:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as f
        ):
            rows |= {row["text"]: row for row in map(json.loads, f)}
    return list(rows.values())


def surroundings() -> dict[str, Any]:
    """Machine, versions, commit and command: what a number is worth without is little."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", *(Path(a).name if a.startswith("/") else a for a in sys.argv)]),
    }


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def _until_ready(port: int, path: str) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            if get(port, path)[0] == 200:
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise SystemExit(f"port {port} is not ready after {_START_S} s")
        time.sleep(0.05)


def _stat(pid: int, field: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field])


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
