"""Any endpoint that speaks the OpenAI chat protocol: OpenAI, vLLM, llama-server, Ollama, CLOVA Studio."""

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
class OpenAIBackend(HTTPBackend):
    """Chats through the `openai` SDK (extra `generate`); without `base_url`, OpenAI itself."""

    name = "openai"
    key_variable = "OPENAI_API_KEY"
    path = "/chat/completions"

    def _sdk(self) -> tuple[ModuleType, Callable[..., Any]]:
        try:
            import openai
        except ImportError:
            raise GuardianError(
                "the backend 'openai' needs its SDK: pip install 'slm-guardian[generate]'"
            ) from None
        return openai, openai.AsyncOpenAI

    def _body(self, request: Request) -> dict[str, Any]:
        # OpenAI's newer models refuse the name that most other servers know alone.
        return chat_body(self.model, request, "max_tokens" if self.base_url else "max_completion_tokens")

    def _read(self, custom_id: str, answer: bytes) -> Completion:
        return Chat.model_validate_json(answer).completion(custom_id)


def chat_body(model: str, request: Request, limit: str = "max_completion_tokens") -> dict[str, Any]:
    """The body of a `/v1/chat/completions` call; `limit` names the field for the longest answer."""
    body = {"model": model, "messages": request.messages, limit: request.max_tokens}
    if request.temperature != 1:  # the default, and all that some reasoning models take
        body["temperature"] = request.temperature
    return body


class Message(BaseModel):
    """What the model said, or that it refused to."""

    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    """One answer of a chat."""

    message: Message
    finish_reason: str | None = None


class Usage(BaseModel):
    """Tokens that were paid."""

    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0


class Chat(BaseModel):
    """The part of a `/v1/chat/completions` answer that we read; anything else in it is ignored."""

    choices: list[Choice] = []
    usage: Usage | None = None

    def completion(self, custom_id: str) -> Completion:
        """The first choice: its text, or that it was refused, empty or cut off (with the text so far)."""
        usage = self.usage or Usage()
        text, error = self._outcome()
        return Completion(custom_id, text, error, usage.prompt_tokens, usage.completion_tokens)

    def _outcome(self) -> tuple[str | None, str | None]:
        if not self.choices:
            return None, "empty"
        choice = self.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return None, "refused"
        text = choice.message.content or ""
        error = "cut off" if choice.finish_reason == "length" else None
        return (text, error) if text.strip() else (None, error or "empty")
