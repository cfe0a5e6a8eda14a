"""Judging for many requests at once: a bounded queue, one thread that takes what waits, and the fail modes.

While the model is at work new texts gather; the next batch is what has gathered, so nobody waits for company.
Requests take turns, a text each, so that one with many does not hold up the others. A text whose deadline has
passed in the queue is dropped, not judged.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count

from slm_guardian import answers
from slm_guardian.guardian import NO_NUMBER, Verdict
from slm_guardian.serve.faults import Broken, JudgeTimeout, Overloaded, ServeError
from slm_guardian.serve.guards import Guard, forced_category
from slm_guardian.serve.metrics import Metrics
from slm_guardian.serve.settings import FailMode, Settings
from slm_guardian.text import language

log = logging.getLogger("slm_guardian.serve")
_CHARACTERS = 4000  # of a batch, the last text's not counted: a long one does not hold up many short ones
_UNREADABLE = {
    "ko": "메시지를 읽을 수 없어 답해 드릴 수 없습니다. 다르게 써서 다시 보내 주세요.",
    "en": "I could not read this message, so I cannot answer it. Please write it in another way.",
}
_PROBES = ("hello", "안녕하세요")


@dataclass(eq=False)
class _Waiting:
    """A text in the queue."""

    text: str
    guard: Guard
    force: bool
    deadline: float
    verdict: asyncio.Future[Verdict] = field(repr=False)


class Judge:
    """Judges texts and writes answers for all requests of a process. Use it in one event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._limits, self._fail, self._metrics = settings.limits, settings.fail, metrics
        self._queue: list[tuple[int, int, _Waiting]] = []  # a heap: turn, order of arrival
        self._turn, self._arrivals = 0, count()
        self._writing = 0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._writers = ThreadPoolExecutor(2, thread_name_prefix="answer")
        self._worker: asyncio.Task[None] | None = None
        self.ready = False

    @property
    def depth(self) -> int:
        """Texts that wait to be judged."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to take texts from the queue."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def probe(self, guards: Sequence[Guard]) -> None:
        """Judge a text in each language by each set; ready when that gave numbers. Raises Broken."""
        for guard in guards:
            verdicts = await self._judged(_PROBES, guard, False, time.monotonic() + 60)
            if any(verdict.harm is None for verdict in verdicts):
                raise Broken("the model gives no numbers: export it again")
        self.ready = True

    async def stop(self) -> None:
        """Let go of the threads; what waits is refused."""
        if self._worker:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for *_, one in self._queue:
            _settle(one, Broken("the server is stopping: try again later"))
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)

    async def check(
        self, texts: Sequence[str], guard: Guard, *, force: bool = False, deadline_s: float | None = None
    ) -> list[Verdict]:
        """Verdicts of texts, in order, without answers; forced topics are applied.

        Where a fail mode is open the verdict that could not be had is `safe` with its `error` set; where it
        is closed this raises Overloaded, JudgeTimeout or Broken.
        """
        deadline = time.monotonic() + (deadline_s or self._limits.deadline_s)
        try:
            return await self._judged(texts, guard, force, deadline)
        except ServeError as error:
            self._metrics.shed(error.code)
            if self._mode(error) == "closed":
                raise
            return [_passed(text, guard, str(error)) for text in texts]

    async def answer(self, verdict: Verdict, guard: Guard) -> AsyncIterator[str]:
        """The safeguard answer, sentence by sentence; the category's fallback where nothing else will do."""
        if verdict.category is None:
            yield _UNREADABLE[language(verdict.text[:1000])]
            return
        shown = False
        if verdict.action != "block" and self._writing < self._limits.queue:
            async for sentence in self._written(verdict, guard):
                shown = True
                yield sentence
        if not shown:
            policy = guard.guardian.policy_for(verdict.text)
            yield answers.fallback(policy, policy.by_id[verdict.category], verdict.text)

    async def respond(self, verdict: Verdict, guard: Guard) -> Verdict:
        """The verdict with its answer."""
        return replace(verdict, response="".join([part async for part in self.answer(verdict, guard)]))

    async def _written(self, verdict: Verdict, guard: Guard) -> AsyncIterator[str]:
        """What the model writes; it ends early when the model fails."""
        sentences = guard.guardian.stream(verdict.text, verdict.category)
        run = asyncio.get_running_loop().run_in_executor
        self._writing += 1
        try:
            while sentence := await run(self._writers, next, sentences, None):
                yield sentence
        except Exception as error:  # the model's own: its message may hold anything
            log.error("an answer could not be written: %s", type(error).__name__)
        finally:
            self._writing -= 1

    async def _judged(
        self, texts: Sequence[str], guard: Guard, force: bool, deadline: float
    ) -> list[Verdict]:
        if self.depth + len(texts) > max(self._limits.queue, len(texts)):
            raise Overloaded("too many texts wait to be judged: try again later", retry_after=1)
        create = asyncio.get_running_loop().create_future
        waiting = [_Waiting(text, guard, force, deadline, create()) for text in texts]
        for i, one in enumerate(waiting):
            heapq.heappush(self._queue, (self._turn + 1 + i, next(self._arrivals), one))
        self._wake.set()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                verdicts = await asyncio.gather(*(one.verdict for one in waiting))
        except TimeoutError:
            raise JudgeTimeout("the guardian did not judge in time: try again later", retry_after=1) from None
        finally:
            for one in waiting:
                one.verdict.cancel()  # what is still queued will be skipped
        if any(verdict.error == NO_NUMBER for verdict in verdicts):
            self.ready = False
            raise Broken(NO_NUMBER)
        return [self._unreadable(verdict) for verdict in verdicts]

    async def _work(self) -> None:
        run = asyncio.get_running_loop().run_in_executor
        while True:
            await self._wake.wait()
            batch = self._take()
            self._metrics.queue(self.depth)
            if not batch:
                self._wake.clear()
                continue
            started = time.perf_counter()
            found = await run(self._thread, _judge, batch)
            self._metrics.judged(time.perf_counter() - started, len(batch))
            for one, result in zip(batch, found, strict=True):
                self.ready &= isinstance(result, Verdict)
                _settle(one, result)

    def _take(self) -> list[_Waiting]:
        """The next texts that somebody still waits for."""
        batch: list[_Waiting] = []
        room = _CHARACTERS
        while self._queue and len(batch) < self._limits.batch and room > 0:
            self._turn, _, one = heapq.heappop(self._queue)
            if not one.verdict.done() and one.deadline > time.monotonic():
                batch.append(one)
                room -= len(one.text)
        return batch

    def _mode(self, error: ServeError) -> FailMode:
        if isinstance(error, Overloaded):
            return self._fail.overloaded
        return self._fail.timeout if isinstance(error, JudgeTimeout) else self._fail.broken

    def _unreadable(self, verdict: Verdict) -> Verdict:
        if verdict.error is None or self._fail.unreadable == "closed":
            return verdict
        return replace(verdict, label="safe", action="pass")


def is_forced(verdict: Verdict) -> bool:
    """Whether a verdict is unsafe by order, not by the model."""
    known = verdict.harm is not None and verdict.threshold is not None
    return known and verdict.label == "unsafe" and verdict.harm < verdict.threshold  # type: ignore[operator]


def _judge(batch: list[_Waiting]) -> list[Verdict | Broken]:
    """Judge a batch, one call for each guard in it."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, one in enumerate(batch):
        groups.setdefault((id(one.guard), one.force), []).append(i)
    found: dict[int, Verdict | Broken] = {}
    for places in groups.values():
        found |= zip(places, _group([batch[i] for i in places]), strict=True)
    return [found[i] for i in range(len(batch))]


def _group(group: list[_Waiting]) -> list[Verdict | Broken]:
    """Judge texts of one guard; where the model fails, each by itself, so that no text spoils another's verdict."""
    guard = group[0].guard
    try:
        verdicts = guard.guardian.check([one.text for one in group], False, group[0].force)
        return [_forced(verdict, guard) for verdict in verdicts]
    except Exception as error:  # the model's own: its message may hold anything
        if len(group) > 1:
            return [result for one in group for result in _group([one])]
        log.error("a text could not be judged: %s", type(error).__name__)
        return [Broken("the model cannot judge: see the server's log")]


def _forced(verdict: Verdict, guard: Guard) -> Verdict:
    """The verdict, unsafe by order where a forced topic is touched."""
    topic = None if verdict.error else guard.topic(verdict.text)
    if topic is None:
        return verdict
    category = forced_category(guard, topic, verdict.text)
    action = "block" if category.action == "block" else "answer"
    return replace(verdict, label="unsafe", category=category.id, group=category.group, action=action)


def _passed(text: str, guard: Guard, error: str) -> Verdict:
    """A text let through unjudged, as an open fail mode wants it."""
    policy = guard.guardian.policy_for(text).id
    return Verdict(text, "safe", None, None, None, None, policy, guard.guardian.name, error=error)


def _settle(one: _Waiting, result: Verdict | Broken) -> None:
    if one.verdict.done():  # nobody waits any more
        return
    if isinstance(result, Broken):
        one.verdict.set_exception(result)
    else:
        one.verdict.set_result(result)
