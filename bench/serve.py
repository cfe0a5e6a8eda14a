"""Load on `guardian serve`, all on this machine: the gateway, the load generator and a tiny upstream.

    python bench/serve.py [--data FILE ...] [--seconds 30] [--rates 300,350,...] [--workers 1,2] [--out FILE]

Open loop: requests fall due at a constant rate whatever the gateway does, over 32 keep-alive connections; the
latency of each counts from when it was due, so a stall counts for all that it held up. Rates rise until p99 is over
50 ms. Closed loop: each connection sends its next request when it has its answer. Chat: time to the first token of
a safe streamed chat, in pairs, straight from the upstream and through the gateway, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import re
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from loopback import GUARDIAN, Server, queries, server, surroundings

CONNECTIONS = 32
LIMIT_MS = 50
WARM_UP_S = 3
UPSTREAM = (
    sys.executable,
    "-c",
    """
import socket, sys, uvicorn
sys.path.insert(0, "examples")
from upstream import app
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, access_log=False, log_level="warning")
    uvicorn.Server(config).run([listening])
""",
)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_TOKEN = re.compile(rb'"content": ?"[^"]')


@dataclass
class Load:
    """What goes out, how fast, and what came of it. `rate` 0 is a closed loop."""

    port: int
    requests: Sequence[bytes]
    seconds: float
    rate: float = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """When a request was due, and how long it took from then."""
    statuses: Counter[int] = field(default_factory=Counter)

    async def run(self) -> Load:
        """Send it all and wait for the answers."""
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        self._waiting, self._idle = deque[float](), deque[_Connection]()
        self._due = self._sent = 0
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.port)
            self._idle.append(connection)
        self._start = time.perf_counter()
        if self.rate:
            self._tick(loop)
        while self.rate == 0 and self._idle:
            self._send(self._idle.popleft(), self._start)
        await self._done
        return self

    def free(self, connection: _Connection) -> None:
        """A connection has its answer: it takes what waits longest."""
        now = time.perf_counter()
        if self._waiting:
            return self._send(connection, self._waiting.popleft())
        if self.rate == 0 and now < self._start + self.seconds:
            return self._send(connection, now)
        self._idle.append(connection)  # taken in turns: the server closes one that idles for 5 s
        if len(self._idle) == CONNECTIONS and self._due == self._total and not self._done.done():
            self._done.set_result(None)

    def failed(self) -> None:
        """A connection broke: the measurement is worth nothing."""
        if not self._done.done():
            self._done.set_exception(RuntimeError("the gateway closed a connection"))

    @property
    def _total(self) -> int:
        return int(self.rate * self.seconds)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what is due by now; timers are of milliseconds and may be late, which counts as latency."""
        now = time.perf_counter()
        while self._due < self._total and (due := self._start + self._due / self.rate) <= now:
            self._due += 1
            if self._idle:
                self._send(self._idle.popleft(), due)
            else:
                self._waiting.append(due)
        if self._due < self._total:
            wait = self._start + self._due / self.rate - now
            loop.call_later(max(0.0, wait), self._tick, loop)

    def _send(self, connection: _Connection, due: float) -> None:
        connection.send(self.requests[self._sent % len(self.requests)], due)
        self._sent += 1


class _Connection(asyncio.Protocol):
    """One keep-alive connection: a request, its answer, the next one."""

    def __init__(self, load: Load) -> None:
        self._load, self._seen, self._whole = load, b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, request: bytes, due: float) -> None:
        """Send a request that was due at a time."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if not self._whole and (end := self._seen.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._seen, 0, end)
            self._whole = end + 4 + int(length[1] if length else 0)
        if self._whole and len(self._seen) >= self._whole:
            self._load.latencies.append((self._due, time.perf_counter() - self._due))
            self._load.statuses[int(self._seen[9:12])] += 1
            self._seen, self._whole = b"", 0
            self._load.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.failed()


def generate(port: int, requests: Sequence[bytes], seconds: float, rate: float = 0) -> dict[str, Any]:
    """One load, in this process: what was offered, what came back and how long it took."""
    load = uvloop.run(Load(port, requests, seconds, rate).run())
    started = min(due for due, _ in load.latencies)
    took = max(due + latency for due, latency in load.latencies) - started
    ms = 1000 * np.array([latency for _, latency in load.latencies])
    return {
        "per_second": len(ms) / took,
        **_quantiles(ms),
        "max_ms": float(ms.max()),
        "requests": len(ms),
        "errors": len(ms) - load.statuses[200],
        "statuses": dict(load.statuses),
    }


def first_tokens(ports: tuple[int, int], bodies: Sequence[bytes]) -> list[tuple[float, float]]:
    """Milliseconds to the first token from each of two servers, for every body, which of them first in turns."""
    connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for port in ports]
    rows = []
    for i, body in enumerate(bodies):
        pair = {turn: _first_token(connections[turn], body) for turn in ((0, 1) if i % 2 else (1, 0))}
        rows.append((pair[0], pair[1]))
    return rows


def _first_token(connection: socket.socket, body: bytes) -> float:
    start, seen, first = time.perf_counter(), b"", 0.0
    connection.sendall(body)
    while not seen.endswith(b"0\r\n\r\n"):
        part = connection.recv(65536)
        if not part:
            raise RuntimeError("the server closed a connection")
        seen += part
        if not first and _TOKEN.search(seen):
            first = time.perf_counter() - start
    assert seen.startswith(b"HTTP/1.1 200") and b"[DONE]" in seen, seen[:300]
    return 1000 * first


def _quantiles(ms: np.ndarray) -> dict[str, float]:
    return {f"p{q}_ms": float(np.percentile(ms, q)) for q in (50, 90, 99)}


def rendered(path: str, body: dict[str, Any]) -> bytes:
    """A request as bytes."""
    content = json.dumps(body, ensure_ascii=False).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@dataclass
class Bench:
    """One run: its texts, and a process for the load generator."""

    texts: list[str]
    safe: list[str]
    seconds: float
    pairs: int
    generator: ProcessPoolExecutor

    def rows(self, workers: int, rates: Sequence[float]) -> Iterator[dict[str, Any]]:
        """All measurements of a gateway with so many workers."""
        with server(UPSTREAM, "/v1/models") as upstream:
            url = f"http://127.0.0.1:{upstream.port}/v1"
            with server([*GUARDIAN, "--workers", str(workers), "--upstream", url]) as gateway:
                about = {"workers": workers}
                yield about | self._chat(upstream, gateway)
                yield about | {"loop": "closed", **self._moderations(gateway, 0)}
                for rate in rates:
                    row = self._moderations(gateway, rate)
                    yield about | {"loop": "open", "rate": rate, **row}
                    if row["p99_ms"] > LIMIT_MS or row["errors"]:
                        break

    def _moderations(self, gateway: Server, rate: float) -> dict[str, Any]:
        requests = [rendered("/v1/moderations", {"input": text}) for text in self.texts]
        self._run(generate, gateway.port, requests, WARM_UP_S, rate)
        before = gateway.cpu_seconds()
        row = self._run(generate, gateway.port, requests, self.seconds, rate)
        used = gateway.cpu_seconds() - before
        return row | {"gateway_cpu_ms": 1000 * used / row["requests"], "memory_mb": gateway.memory_mb()}

    def _chat(self, upstream: Server, gateway: Server) -> dict[str, Any]:
        path, asked = "/v1/chat/completions", {"model": "tiny", "stream": True}
        chosen = [self.safe[i % len(self.safe)] for i in range(self.pairs + 20)]
        bodies = [
            rendered(path, asked | {"messages": [{"role": "user", "content": text}]}) for text in chosen
        ]
        before = gateway.cpu_seconds()
        rows = np.array(self._run(first_tokens, (upstream.port, gateway.port), bodies))
        cpu = {"gateway_cpu_ms": 1000 * (gateway.cpu_seconds() - before) / len(rows)}
        rows = rows[20:]  # without the warm-up
        named = {"direct": rows[:, 0], "gateway": rows[:, 1], "added": rows[:, 1] - rows[:, 0]}
        return (
            {"loop": "chat", "pairs": len(rows)} | cpu | {name: _quantiles(ms) for name, ms in named.items()}
        )

    def _run(self, call: Callable[..., Any], *values: Any) -> Any:
        return self.generator.submit(call, *values).result()


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    if row["loop"] == "chat":
        cells = [f"chat, first token, {name}" for name in ("direct", "gateway", "added")]
        last = ["", row["pairs"], "", f"{row['gateway_cpu_ms']:.2f}"]
        parts = [["", *_ms(row[cell.split()[-1]]), *last] for cell in cells]
    else:
        cells = [f"moderations, {row['rate']:g}/s" if row["loop"] == "open" else "moderations, closed loop"]
        rest = [f"{row['max_ms']:.1f}", row["requests"], row["errors"], f"{row['gateway_cpu_ms']:.2f}"]
        parts = [[f"{row['per_second']:.0f}", *_ms(row), *rest]]
    lines = zip(cells, parts, strict=True)
    return "\n".join(f"| {row['workers']} | {cell} | {' | '.join(map(str, part))} |" for cell, part in lines)


def _ms(row: dict[str, float]) -> list[str]:
    return [f"{row[f'p{q}_ms']:.1f}" for q in (50, 90, 99)]


def main() -> None:
    """Measure, print the table, write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, action="append", help="JSON lines with texts; default: data/dev.jsonl.gz"
    )
    parser.add_argument("--seconds", type=float, default=30, help="of each load, after a warm-up")
    parser.add_argument(
        "--rates", default="300,350,400,450,500,600,700,800,1000", help="moderations a second"
    )
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--pairs", type=int, default=500, help="chats, each direct and through the gateway")
    parser.add_argument("--out", type=Path, default=Path("bench/serve.json"))
    arguments = parser.parse_args()
    about = surroundings()
    texts, safe = _texts(arguments.data or [Path("data/dev.jsonl.gz")])
    about["characters"] = {
        f"p{q}": float(np.percentile(list(map(len, texts)), q)) for q in (10, 50, 90, 99, 100)
    }
    print("| workers | what | per s | p50 ms | p90 ms | p99 ms | max ms | n | errors | gateway CPU ms each |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as generator:
        bench = Bench(texts, safe, arguments.seconds, arguments.pairs, generator)
        for workers in map(int, arguments.workers.split(",")):
            for row in bench.rows(workers, [float(rate) for rate in arguments.rates.split(",")]):
                rows.append(row)
                print(line(row), flush=True)
    arguments.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


def _texts(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """All texts in an order drawn once, and those that the guardian finds safe."""
    from slm_guardian import Guardian

    texts = [row["text"] for row in queries(files)]
    random.Random(0).shuffle(texts)
    verdicts = Guardian.load().check(texts[:1000], respond=False)
    return texts, [verdict.text for verdict in verdicts if verdict.label == "safe"]


if __name__ == "__main__":
    main()
