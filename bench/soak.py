"""Mixed load with faults on `guardian serve`, every answer checked, for as long as you like.

    python bench/soak.py [--minutes 10] [--clients 12] [--data FILE ...] [--out bench/soak.json]

What is checked: verdicts and answers are those of a Guardian in this process, by the policy version that the reply
names; the upstream's answers come whole, once and in order; each fault gives its status and its code; nothing harmful
reaches the upstream, nothing reaches it twice, and it hears when a client hangs up. Memory, open files and tasks of
the gateway are sampled; memory is flat where the slope over the second half, by its 95 % interval, is about 0.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from http_client import Client, Reply
from loopback import GUARDIAN, Server, get, queries, server, surroundings
from scipy import stats
from soak_upstream import completion, error, event

from slm_guardian import Guardian, Verdict
from slm_guardian.serve.guards import Guards
from slm_guardian.serve.settings import Settings

CHAT, GUARD, MODERATIONS = "/v1/chat/completions", "/v1/guard", "/v1/moderations"
LITELLM = "/beta/litellm_basic_guardrail_api"
UPSTREAM = (sys.executable, str(Path(__file__).with_name("soak_upstream.py")))
CHUNKS = 12
LIMITS = {"first_byte_s": 1.5, "idle_s": 1.0, "connect_s": 5}
COUNTED = (sys.executable, "-c", """
import asyncio, gc, os, threading, time
def count():
    while time.sleep(5) is None:
        tasks = sum(type(thing) is asyncio.Task and not thing.done() for thing in gc.get_objects())
        with open(os.environ["SOAK_TASKS"], "a") as file:
            print(tasks, file=file)
threading.Thread(target=count, daemon=True).start()
from slm_guardian.cli.main import main
main()
""", *GUARDIAN[3:])  # fmt: skip
FAULTS = {  # of the upstream: status and code of what the client gets
    "500": (500, "soak"),
    "429": (429, "soak"),
    "reset": (502, "upstream_down"),
    "empty": (502, "upstream_down"),
    "silent": (504, "upstream_timeout"),
}
CUTS = {"cut": "upstream_down", "rst": "upstream_down", "stall": "upstream_timeout"}


class Wrong(Exception):
    """An answer that is not what it must be."""


def must(true: object, what: str) -> None:
    """Raise Wrong unless something is so."""
    if not true:
        raise Wrong(what)


@dataclass
class Known:
    """What is right: verdicts and answers by a Guardian in this process, and versions of the set that turns."""

    safe: list[str]
    harmful: list[str]
    verdicts: dict[str, Verdict]
    labels: dict[str, str] = field(default_factory=dict)
    """Label of every text in the set `turning`, by the set's version."""

    @classmethod
    def of(cls, files: list[Path], rows: int) -> Known:
        texts = [row["text"] for row in queries(files)]
        random.Random(1).shuffle(texts)
        guardian = Guardian.load()
        verdicts = {verdict.text: verdict for verdict in guardian.check(texts[:rows])}
        safe = [text for text, verdict in verdicts.items() if verdict.label == "safe"]
        harmful = [text for text, verdict in verdicts.items() if verdict.action == "answer"]
        return cls(safe, harmful, verdicts)

    def check(self, text: str, said: dict[str, Any], answered: bool = False) -> None:
        """A verdict of /v1/guard against the right one."""
        right = self.verdicts[text].to_dict() | ({} if answered else {"response": None})
        must(all(said[key] == value for key, value in right.items()), "a wrong verdict")


@dataclass
class Soak:
    """One run against a gateway and its upstream."""

    gateway: Server
    upstream: Server
    known: Known
    settings: Path
    draw: random.Random = field(default_factory=lambda: random.Random(2))
    done: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SCENARIOS})
    """Seconds that each took, by kind."""
    wrong: list[str] = field(default_factory=list)
    once: dict[str, str] = field(default_factory=dict)
    """How each id's exchange must have ended at the upstream; `any` where it may not have come there."""
    samples: list[dict[str, float]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    _ids: int = 0

    async def run(self, minutes: float, clients: int) -> None:
        """Load it until the time is over."""
        self._end = time.monotonic() + 60 * minutes
        others = [asyncio.create_task(call()) for call in (self._sample, self._turn)]
        await asyncio.gather(*(self._client() for _ in range(clients)))
        await asyncio.gather(*others)

    async def _client(self) -> None:
        """One client: a scenario after the other, over one connection for as long as it lasts."""
        names = [name for name, weight in SCENARIOS.items() for _ in range(weight)]
        client = Client(self.gateway.port)
        while time.monotonic() < self._end:
            name, began = self.draw.choice(names), time.monotonic()
            try:
                await asyncio.wait_for(getattr(self, name)(client), 60)
            except Exception as fault:
                self.wrong.append(f"{name}: {type(fault).__name__}: {str(fault)[:200]}")
                client.drop()
            self.done[name].append(time.monotonic() - began)
        client.drop()

    # What clients do

    async def moderation(self, client: Client) -> None:
        text = self._text()
        said = await self._json(client, MODERATIONS, {"input": text})
        right = self.known.verdicts[text]
        (result,) = said["results"]
        must(result["flagged"] == (right.label == "unsafe"), "wrongly flagged")
        must(result["guardian"]["harm"] == right.harm, "another P(harm)")

    async def moderation_list(self, client: Client) -> None:
        texts = [self._text() for _ in range(self.draw.randint(2, 6))]
        said = await self._json(client, MODERATIONS, {"input": texts})
        flags = [self.known.verdicts[text].label == "unsafe" for text in texts]
        must([result["flagged"] for result in said["results"]] == flags, "a list wrongly flagged")

    async def guard(self, client: Client) -> None:
        text, respond = self._text(), self.draw.random() < 0.5
        said = await self._json(client, GUARD, {"input": text, "respond": respond})
        self.known.check(text, said["verdicts"][0], respond)

    async def guard_stream(self, client: Client) -> None:
        text = self.draw.choice(self.known.harmful)
        reply = await client.ask(GUARD, {"input": text, "respond": True, "stream": True})
        events = [part.partition("\ndata: ") for part in (await reply.read()).decode().split("\n\n") if part]
        names = [name.removeprefix("event: ") for name, _, _ in events]
        must(names[0] == "verdict" and names[-1] == "done", "events in another order")
        self.known.check(text, json.loads(events[0][2]))
        answer = "".join(json.loads(data)["text"] for name, _, data in events if "answer" in name)
        must(answer == self.known.verdicts[text].response, "another answer")

    async def litellm(self, client: Client) -> None:
        text = self._text()
        said = await self._json(client, LITELLM, {"texts": [text]})
        right = self.known.verdicts[text]
        must(said.get("blocked_reason") == right.response, "another reason")

    async def turning(self, client: Client) -> None:
        """The set that changes all the time: a label always fits the version that the reply names."""
        reply = await client.ask(GUARD, {"input": self._text(), "policy": "turning"})
        said = json.loads(await reply.read())
        self.seen.add(said["version"])
        must(said["verdicts"][0]["label"] == self.known.labels[said["version"]], "a label of another version")

    async def harmful_chat(self, client: Client) -> None:
        text, stream = self.draw.choice(self.known.harmful), self.draw.random() < 0.5
        reply = await client.ask(CHAT, self._asked(text, "never", None, stream=stream))
        body = await reply.read()
        must(reply.status == 200, f"status {reply.status}")
        said = _streamed(body) if stream else json.loads(body)["choices"][0]["message"]["content"]
        must(said == self.known.verdicts[text].response, "another answer")
        must(reply.headers["x-guardian-verdict"] == "unsafe", "another verdict")
        must(body.count(b'"content_filter"') == 1, "another finish_reason")

    async def chat(self, client: Client) -> None:
        """Safe and whole, streamed or not, fast or slow."""
        stream, slow = self.draw.random() < 0.6, self.draw.random() < 0.2
        name = self._id("done")
        reply = await client.ask(CHAT, self._safe(name, "slow" if slow else None, stream=stream))
        body, whole = await reply.read(), completion(name, CHUNKS)
        events = b"".join(event(name, i) for i in range(CHUNKS)) + b"data: [DONE]\n\n"
        must(reply.status == 200 and reply.headers["x-guardian-verdict"] == "safe", f"status {reply.status}")
        must(body == (events if stream else whole), "another answer")

    async def chat_refused(self, client: Client) -> None:
        fault = self.draw.choice(list(FAULTS))
        status, code = FAULTS[fault]
        ends = {"silent": "gone", "reset": "reset", "empty": "empty"}
        name = self._id(ends.get(fault, "done"))
        reply = await client.ask(CHAT, self._safe(name, fault, stream=self.draw.random() < 0.5))
        body = await reply.read()
        must(reply.status == status, f"{fault}: status {reply.status}")
        must(json.loads(body)["error"]["code"] == code, f"{fault}: another code")
        must(code != "soak" or body == error(name), f"{fault}: another body")

    async def chat_cut(self, client: Client) -> None:
        """What the upstream sent before it broke off, then an error event and no end."""
        fault = self.draw.choice(list(CUTS))
        name = self._id("gone" if fault == "stall" else fault)
        reply = await client.ask(CHAT, self._safe(name, fault, stream=True))
        *events, last = (await reply.read()).removesuffix(b"\n\n").split(b"\n\n")
        must(
            json.loads(last.removeprefix(b"data: "))["error"]["code"] == CUTS[fault], f"{fault}: another end"
        )
        right = [event(name, i).removesuffix(b"\n\n") for i in range(CHUNKS)]
        # A reset may overtake what was sent before it.
        must(events == right[: len(events)] if fault == "rst" else events == right, f"{fault}: lost or twice")

    async def hang_up(self, client: Client) -> None:
        """The client leaves: in its own request, before the verdict, before the answer, in the middle of it."""
        phase = self.draw.choice(["sending", "judging", "waiting", "reading", "refused", "guard"])
        name = self._id({"waiting": "gone", "reading": "gone"}.get(phase, "any"))
        if phase == "sending":
            await client.send(CHAT, self._safe(name, None), cut=20)
        elif phase == "judging":
            await client.send(CHAT, self._safe(name, None, stream=True))
        elif phase == "waiting":
            await client.send(CHAT, self._safe(name, "silent"))
            await asyncio.sleep(self.draw.uniform(0.3, 0.8))
        else:
            text = self.draw.choice(self.known.harmful)
            asked = {
                "reading": (CHAT, self._safe(name, "slow", stream=True, chunks=100)),
                "refused": (CHAT, self._asked(text, "never", None, stream=True)),
                "guard": (GUARD, {"input": text, "respond": True, "stream": True}),
            }[phase]
            await anext((await client.ask(*asked)).parts())
        client.drop()

    # Beside the clients

    async def _turn(self) -> None:
        """Change the policies all the time: by a changed file, by SIGHUP, and by a file that is broken."""
        for i in range(1_000_000):
            if time.monotonic() > self._end:
                return
            write(self.settings, self.upstream.port, threshold=i % 2, broken=i % 5 == 4)
            if i % 3 == 0:
                os.kill(self.gateway.process.pid, signal.SIGHUP)
            await asyncio.sleep(2.5)

    async def _sample(self) -> None:
        while time.monotonic() < self._end:
            memory, files = self.gateway.memory_mb(), self.gateway.files()
            threads = len(os.listdir(f"/proc/{self.gateway.process.pid}/task"))
            row = {"at": time.monotonic(), "memory_mb": memory, "files": files, "threads": threads}
            self.samples.append(row)
            await asyncio.sleep(1)

    def settle(self) -> None:
        """What only the upstream knows: who came, how often, and how it ended."""
        report = json.loads(get(self.upstream.port, "/report")[1])
        if "never" in report:
            self.wrong.append("a harmful query reached the upstream")
        for name, end in self.once.items():
            found = report.get(name, {"calls": 0, "end": None})
            if found["calls"] != 1 and not (end == "any" and found["calls"] == 0):
                self.wrong.append(f"{name}: came {found['calls']} times")
            elif end not in ("any", found["end"]):
                self.wrong.append(f"{name}: ended as {found['end']}, not {end}")

    # Small parts

    def _text(self) -> str:
        return self.draw.choice(self.known.harmful if self.draw.random() < 0.4 else self.known.safe)

    def _id(self, end: str) -> str:
        self._ids += 1
        self.once[name := f"q{self._ids}"] = end
        return name

    def _safe(self, name: str, fault: str | None, chunks: int = CHUNKS, **more: Any) -> dict[str, Any]:
        return self._asked(self.draw.choice(self.known.safe), name, fault, chunks, **more)

    def _asked(
        self, text: str, name: str, fault: str | None, chunks: int = CHUNKS, **more: Any
    ) -> dict[str, Any]:
        soak = {"id": name, "fault": fault, "chunks": chunks}
        return {"model": "soak", "messages": [{"role": "user", "content": text}], "soak": soak, **more}

    async def _json(self, client: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply: Reply = await client.ask(path, body)
        content = await reply.read()
        must(reply.status == 200, f"status {reply.status}")
        return json.loads(content)


SCENARIOS = {  # how often each, among all
    "moderation": 6,
    "moderation_list": 2,
    "guard": 3,
    "guard_stream": 1,
    "litellm": 1,
    "turning": 2,
    "harmful_chat": 4,
    "chat": 6,
    "chat_refused": 2,
    "chat_cut": 1,
    "hang_up": 2,
}


def _streamed(body: bytes) -> str:
    """The text of a streamed answer. Raises Wrong without its end."""
    *events, last = [part.removeprefix("data: ") for part in body.decode().split("\n\n") if part]
    must(last == "[DONE]", "no end")
    return "".join(json.loads(data)["choices"][0]["delta"].get("content", "") for data in events)


def write(path: Path, upstream: int, threshold: int, broken: bool = False) -> None:
    """Write the gateway's settings, in one step."""
    settings = {
        "policies": {"default": {}, "turning": {"threshold": threshold}},
        "upstream": {"url": f"http://127.0.0.1:{upstream}/v1", **LIMITS},
        "limits": {"deadline_s": 10},
    }
    new = path.with_suffix(".new")
    new.write_text("policies: {default: [" if broken else yaml.safe_dump(settings), "utf-8")
    new.replace(path)


def slope(samples: list[dict[str, float]], name: str, blocks: int = 12) -> dict[str, float]:
    """Change an hour over the second half with its 95 % interval, from block means: samples depend on each other."""
    half = samples[len(samples) // 2 :]
    hours = np.array([row["at"] for row in half]) / 3600
    values = np.array([row[name] for row in half])
    x, y = ([part.mean() for part in np.array_split(v, blocks)] for v in (hours, values))
    fit: Any = stats.linregress(x, y)
    width = float(stats.t.ppf(0.975, blocks - 2)) * float(
        np.nan_to_num(fit.stderr)
    )  # not a number: all are equal
    ends = {"low": fit.slope - width, "high": fit.slope + width}
    return {"first": float(values[0]), "last": float(values[-1]), "per_hour": fit.slope, **ends}


async def idle(gateway: Server, tasks: Path, port: int) -> dict[str, float]:
    """Open files and tasks while nothing runs; the upstream's connections that are too old are let go."""
    await asyncio.sleep(6)
    get(port, "/v1/models")
    before = len(tasks.read_text().split())
    while len(counts := tasks.read_text().split()) < before + 2:
        await asyncio.sleep(0.5)
    return {"files": gateway.files(), "tasks": int(counts[-1]), "memory_mb": gateway.memory_mb()}


async def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Everything: servers, load, what was wrong and what grew."""
    known = Known.of(arguments.data or [Path("data/dev.jsonl.gz")], arguments.rows)
    settings, tasks = directory / "gateway.yaml", directory / "tasks"
    tasks.touch()
    with server(UPSTREAM, "/v1/models") as upstream:
        for threshold in (1, 0):
            write(settings, upstream.port, threshold)
            guards = Guards(Settings.load(settings))
            known.labels[guards.get("turning").version] = "safe" if threshold else "unsafe"
            del guards
            gc.collect()
        with server([*COUNTED, "--config", str(settings)], SOAK_TASKS=str(tasks)) as gateway:
            soak = Soak(gateway, upstream, known, settings)
            await soak.run(
                min(0.1, arguments.minutes / 10), arguments.clients
            )  # a warm-up, checked all the same
            soak.samples.clear()
            start = await idle(gateway, tasks, gateway.port)
            began = time.monotonic()
            await soak.run(arguments.minutes, arguments.clients)
            took = time.monotonic() - began
            end = await idle(gateway, tasks, gateway.port)
            soak.settle()
            reloads = [
                x for x in get(gateway.port, "/metrics")[1].splitlines() if "policy_reloads_total{" in x
            ]
    return {
        "minutes": took / 60,
        "answers": sum(map(len, soak.done.values())),
        "by_kind": {
            name: {"n": len(took), "p50": float(np.median(took)), "max": max(took)}
            for name, took in soak.done.items()
            if took
        },
        "wrong": len(soak.wrong),
        "first_wrong": soak.wrong[:20],
        "policy_versions_seen": len(soak.seen),
        "reloads": reloads,
        "idle_before": start,
        "idle_after": end,
        "second_half": {name: slope(soak.samples, name) for name in ("memory_mb", "files", "threads")},
        "samples": soak.samples[:: max(1, len(soak.samples) // 120)],
    }


def table(found: dict[str, Any]) -> str:
    """What was found, in Markdown."""
    lines = ["| what | answers | p50 s | max s |", "|---|---:|---:|---:|"]
    for name, seconds in found["by_kind"].items():
        lines += [f"| {name} | {seconds['n']} | {seconds['p50']:.3f} | {seconds['max']:.3f} |"]
    lines += ["", f"{found['answers']} answers in {found['minutes']:.1f} minutes, {found['wrong']} wrong"]
    lines += [*found["first_wrong"], "", "| second half | first | last | per hour | 95 % |"]
    lines += ["|---|---:|---:|---:|---|"]
    for name, row in found["second_half"].items():
        first, last, change, low, high = (row[key] for key in ("first", "last", "per_hour", "low", "high"))
        lines += [f"| {name} | {first:.1f} | {last:.1f} | {change:+.1f} | {low:+.1f} … {high:+.1f} |"]
    idle = [f"idle {when}: {found[f'idle_{when}']}" for when in ("before", "after")]
    return "\n".join([*lines, "", *idle, *found["reloads"]])


def main() -> None:
    """Run, print a short table, write the numbers. Exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--rows", type=int, default=300, help="texts in use")
    parser.add_argument("--data", type=Path, action="append", help="default: data/dev.jsonl.gz")
    parser.add_argument("--out", type=Path, default=Path("bench/soak.json"))
    arguments = parser.parse_args()
    about = surroundings()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(measure(arguments, Path(directory)))
    arguments.out.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
