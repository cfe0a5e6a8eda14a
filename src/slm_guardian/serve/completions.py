"""The guardian's answer as a chat completion, whole or as a stream: what an OpenAI client expects, and more.

The extension field `guardian` holds the verdict. No token of the upstream was used, and the usage says so.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

DONE = b"data: [DONE]\n\n"
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_FINISH = "content_filter"


@dataclass(frozen=True)
class Completion:
    """One answer: who gives it, and what the extension field says."""

    model: str
    guardian: dict[str, Any]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH}
        return self._body("chat.completion", [choice]) | {"usage": _USAGE, "guardian": self.guardian}

    async def stream(
        self, sentences: AsyncIterator[str], usage: bool = False, shown: bool = False
    ) -> AsyncIterator[bytes]:
        """The events of a streamed answer, one a sentence. `shown`: it ends an answer that has begun."""
        if not shown:
            yield self._chunk({"role": "assistant", "content": ""})
        async for sentence in sentences:
            yield self._chunk({"content": f"\n\n{sentence}" if shown else sentence})
            shown = False
        yield self._chunk({}, _FINISH, guardian=self.guardian)
        if usage:
            yield event(self._body("chat.completion.chunk", []) | {"usage": _USAGE})
        yield DONE

    def remark(self) -> bytes:
        """An event without text that brings the extension field."""
        return event(self._body("chat.completion.chunk", []) | {"guardian": self.guardian})

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(self._body("chat.completion.chunk", [choice]) | more)

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"
