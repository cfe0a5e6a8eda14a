"""Judging the upstream's answers: nothing of one is shown before it was judged with what follows it.

A streamed answer is judged whenever `window` more characters have come in. Its events are passed on as they
came, all but those of the last `hold` characters, which wait for the next judgement or the end. A
harmful answer ends there, with the guardian's own. Only the text of the first choice is judged; whatever
else an answer holds is passed on and listed as unjudged.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from slm_guardian.guardian import Verdict
from slm_guardian.serve.completions import Completion
from slm_guardian.serve.dialogue import stops
from slm_guardian.serve.faults import UpstreamDown
from slm_guardian.serve.settings import AnswerSettings

_BEFORE = 320  # characters already shown that are judged again with what is new: a window of the model
_EVENT_END = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_UNREADABLE = "the upstream's answer cannot be read, so it cannot be judged: check answers.judge"

Judge = Callable[[str], Awaitable[Verdict]]
Ending = Callable[[Verdict, Completion, bool], AsyncIterator[bytes]]


@dataclass
class Whole:
    """An answer that is not streamed: its text, and the paths of what else it holds."""

    text: str
    unjudged: list[str]


def read_whole(body: bytes) -> Whole:
    """What of an answer can be judged. Raises UpstreamDown where it is no chat completion."""
    choices = _choices(_loaded(body))
    text = "".join(_text(choice, "message") for choice in choices if _first(choice))
    return Whole(text, _others(choices, "message"))


@dataclass
class Hold:
    """One streamed answer on its way. `ending` gives the guardian's answer to a harmful one."""

    settings: AnswerSettings
    judge: Judge
    ending: Ending
    _text: str = ""
    _judged: int = 0
    _cleared: int = 0
    _shown: int = 0
    _waiting: deque[tuple[int, bytes]] = field(default_factory=deque)
    _unjudged: dict[str, None] = field(default_factory=dict)
    _last: dict[str, Any] = field(default_factory=dict)

    async def passed(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The events that may be shown, each as it came in."""
        done = b""
        async with aclosing(_events(chunks)) as events:
            async for raw in events:
                if (data := _data(raw)) == b"[DONE]":
                    done = raw
                    break
                self._take(raw, data)
                due = len(self._text) - self._judged >= self.settings.window
                verdict = await self._stopped(self.settings.hold) if due else None
                async for part in self._released(verdict):
                    yield part
                if verdict:
                    return
        verdict = await self._stopped(0) if len(self._text) > self._judged else None
        self._cleared = len(self._text)
        async for part in self._released(verdict):
            yield part
        if not verdict:
            yield self._remark() + done

    def _take(self, raw: bytes, data: bytes) -> None:
        if data:
            self._last = _loaded(data)
            choices = _choices(self._last)
            self._text += "".join(_text(choice, "delta") for choice in choices if _first(choice))
            self._unjudged |= dict.fromkeys(_others(choices, "delta"))
        self._waiting.append((len(self._text), raw))

    async def _stopped(self, hold: int) -> Verdict | None:
        """Judge what came in and clear all but the last `hold` characters, or give the verdict against it."""
        verdict = await self.judge(self._text[max(0, self._cleared - _BEFORE) :])
        if stops(verdict):
            return verdict
        if verdict.error:
            self._unjudged["choices[0].delta.content"] = None
        self._judged = len(self._text)
        self._cleared = max(self._cleared, self._judged - hold)
        return None

    async def _released(self, verdict: Verdict | None) -> AsyncIterator[bytes]:
        """What may be shown now: the guardian's answer, or events whose text is cleared."""
        if verdict:
            async for part in self.ending(verdict, self._completion({}), self._shown > 0):
                yield part
            return
        while self._waiting and self._waiting[0][0] <= self._cleared:
            self._shown, raw = self._waiting.popleft()
            yield raw

    def _remark(self) -> bytes:
        return self._completion({"unjudged": list(self._unjudged)}).remark() if self._unjudged else b""

    def _completion(self, guardian: dict[str, Any]) -> Completion:
        """A completion that goes on with the upstream's."""
        known = {name: self._last[name] for name in ("id", "created") if name in self._last}
        return Completion(str(self._last.get("model", "")), guardian, **known)


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The raw server-sent events of a stream; the last one may lack its end."""
    rest = b""
    async for chunk in chunks:
        rest += chunk
        while end := _EVENT_END.search(rest):
            yield rest[: end.end()]
            rest = rest[end.end() :]
    if rest:
        yield rest


def _data(raw: bytes) -> bytes:
    """What an event says; nothing for a comment."""
    lines = [line[5:].removeprefix(b" ") for line in raw.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines).strip()


def _loaded(data: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError):
        loaded = None
    if not isinstance(loaded, dict):
        raise UpstreamDown(_UNREADABLE)
    return loaded


def _choices(data: dict[str, Any]) -> list[dict[str, Any]]:
    choices = data.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamDown(_UNREADABLE)
    return choices


def _first(choice: dict[str, Any]) -> bool:
    return choice.get("index", 0) == 0


def _said(choice: dict[str, Any], where: str) -> dict[str, Any]:
    said = choice.get(where)
    return said if isinstance(said, dict) else {}


def _text(choice: dict[str, Any], where: str) -> str:
    content = _said(choice, where).get("content")
    return content if isinstance(content, str) else ""


def _others(choices: list[dict[str, Any]], where: str) -> list[str]:
    """Paths of what an answer holds besides the text of its first choice."""
    paths = [f"choices[{choice.get('index')}]" for choice in choices if not _first(choice)]
    for choice in filter(_first, choices):
        judged = {"role", "content"} if _text(choice, where) else {"role"}
        names = [name for name, value in _said(choice, where).items() if value and name not in judged]
        paths += [f"choices[0].{where}.{name}" for name in names]
    return paths
