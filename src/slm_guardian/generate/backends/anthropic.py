"""Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pydantic import BaseModel, NonNegativeInt

from slm_guardian.errors import GuardianError
from slm_guardian.generate.backends import Completion, Request
from slm_guardian.generate.backends.http import HTTPBackend


@dataclass
class AnthropicBackend(HTTPBackend):
    """Chats through the `anthropic` SDK (extra `anthropic`)."""

    name = "anthropic"
    key_variable = "ANTHROPIC_API_KEY"
    path = "/v1/messages"

    def _sdk(self) -> tuple[ModuleType, Callable[..., Any]]:
        try:
            import anthropic
        except ImportError:
            raise GuardianError(
                "the backend 'anthropic' needs its SDK: pip install 'slm-guardian[anthropic]'"
            ) from None
        return anthropic, anthropic.AsyncAnthropic

    def _body(self, request: Request) -> dict[str, Any]:
        *system, user = request.messages
        body: dict[str, Any] = {"model": self.model, "max_tokens": request.max_tokens, "messages": [user]}
        if system:
            body["system"] = system[0]["content"]
        if request.temperature != 1:  # the default
            body["temperature"] = request.temperature
        return body

    def _read(self, custom_id: str, answer: bytes) -> Completion:
        return Answer.model_validate_json(answer).completion(custom_id)


class Block(BaseModel):
    """A part of an answer; thinking and tool calls have no text."""

    text: str = ""


class Usage(BaseModel):
    """Tokens that were paid."""

    input_tokens: NonNegativeInt = 0
    output_tokens: NonNegativeInt = 0


class Answer(BaseModel):
    """The part of a `/v1/messages` answer that we read."""

    content: list[Block]
    stop_reason: str | None = None
    usage: Usage = Usage()

    def completion(self, custom_id: str) -> Completion:
        """All its text, or that it was refused, empty or cut off (with the text so far)."""
        text, error = "".join(block.text for block in self.content), None
        if self.stop_reason == "refusal":
            text, error = None, "refused"
        elif self.stop_reason in ("max_tokens", "model_context_window_exceeded"):
            error = "cut off"
        if not (text and text.strip()):
            text, error = None, error or "empty"
        return Completion(custom_id, text, error, self.usage.input_tokens, self.usage.output_tokens)
