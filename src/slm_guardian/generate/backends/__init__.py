"""What every LLM backend speaks: chat requests in, completions out, in any order.

A backend never raises because of one request: what went wrong with it is the completion's `error`. It raises a
GuardianError where no request can work: a wrong key, an unknown model, a server that is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """One chat call."""

    custom_id: str
    """A hash of the content: the same request has the same id."""
    system: str
    user: str
    max_tokens: int = 2048
    temperature: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict, compare=False)
    """Never sent: task, cell, ids of seeds and rows; readers of the answer need it."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat as OpenAI writes it; no system message where there is none, U+FFFD for lone surrogates."""
        said = {"system": self.system, "user": self.user}
        return [
            {"role": role, "content": _mended(text)} for role, text in said.items() if text or role == "user"
        ]


@dataclass(frozen=True)
class Completion:
    """The answer to one request, or why there is none."""

    custom_id: str
    text: str | None
    """None: nothing usable came."""
    error: str | None = None
    """Short and machine-like: "http 500", "timeout", "budget", "cut off", "refused", "pending" ..."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Backend(Protocol):
    """Something that completes chats with one model."""

    name: str
    model: str

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """One completion a request, in any order, each as soon as it is there.

        Raises GuardianError where no request can work (wrong key, unknown model, unreachable server).
        """
        ...


def request(
    task: str, system: str, user: str, *, max_tokens: int = 2048, temperature: float = 1.0, **meta: Any
) -> Request:
    """A request whose id is its task and a hash of what is said; `task` and `meta` travel along unsent."""
    digest = hashlib.sha256((system + user).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Request(f"{task}-{digest}", system, user, max_tokens, temperature, {"task": task, **meta})


def _mended(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
