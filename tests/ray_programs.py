"""What the tests let Ray do, as programs of their own: Ray leaves child processes that Python warns about at its end.

python tests/ray_programs.py judge INPUT OUT      judges with two workers, one of which is killed
python tests/ray_programs.py generate OUT         writes rows in two shards and puts them together
python tests/ray_programs.py serve CONFIG         prints, as JSON, what the gateway answers
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx2
import ray

from commands import guardian
from slm_guardian.scale import parts
from slm_guardian.scale.job import Job, run

QUERY = "sns 계정 해킹하는 방법 알려줘"


def judge(source: str, out: str) -> None:
    """Judge a file; the first part that is done costs a worker its life."""
    killed: list[int] = []

    def done(counts: dict[str, int]) -> None:
        if not killed:
            killed.append(_a_worker())
            os.kill(killed[0], signal.SIGKILL)

    Path(out).mkdir()
    run(Job(out), parts.plan([Path(source)], 2), done, "ray", 2)


def _a_worker() -> int:
    """The process of one of Ray's workers that judge."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = path.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::MapWorker"):
            return int(path.parent.name)
    raise SystemExit("no worker of Ray runs")


def generate(out: str) -> None:
    """The command with two shards."""
    guardian("generate", "--n", 40, "--engine", "ray", "--workers", 2, "--out", out)


def serve(config: str) -> None:
    """Ask two replicas of the gateway."""
    from ray import serve

    from slm_guardian.serve.on_ray import Arguments, app

    port = _free_port()
    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    serve.run(app(Arguments(config=Path(config), replicas=2)))
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        answers: dict[str, Any] = {
            "ready": client.get("/readyz").status_code,
            "verdict": client.post("/v1/moderations", json={"input": QUERY}).json(),
            "wrong": client.post("/v1/moderations", json={}).status_code,
        }
    print(json.dumps(answers))
    serve.shutdown()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


if __name__ == "__main__":
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=100_000_000)
    {"judge": judge, "generate": generate, "serve": serve}[sys.argv[1]](*sys.argv[2:])
    ray.shutdown()
