"""The bodies that the gateway takes and gives, as its OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator

from slm_guardian.guardian import Verdict
from slm_guardian.text import views

_T = TypeVar("_T")
_Some = Annotated[list[_T], Field(min_length=1)]


class _Body(BaseModel):
    """A request. Fields that are not known are left alone: clients send their own."""

    model_config = ConfigDict(extra="ignore")


class TextPart(_Body):
    """A text part of a multi-modal input."""

    type: Literal["text"]
    text: str


class ModerationRequest(_Body):
    """What `client.moderations.create` sends. Parts are one input together, as OpenAI has it."""

    input: str | _Some[str] | _Some[TextPart] = Field(description="A text, texts, or the parts of one text.")
    model: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        parts = [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
        if any(part.get("type") != "text" for part in parts):
            raise ValueError("only texts can be judged: leave out images and other parts")
        if parts and len(parts) == len(value) and all(isinstance(part.get("text"), str) for part in parts):
            return value
        return _texts(value)

    @property
    def texts(self) -> list[str]:
        """The texts to judge, one for each result."""
        if isinstance(self.input, str):
            return [self.input]
        texts = [part for part in self.input if isinstance(part, str)]
        return texts or ["\n".join(part.text for part in self.input if isinstance(part, TextPart))]


class GuardRequest(_Body):
    """The native call."""

    input: str | _Some[str] = Field(description="A text or texts.")
    policy: str | None = Field(default=None, description="A policy set, see /v1/policy.")
    respond: StrictBool = Field(default=False, description="Write the safeguard answers of harmful texts.")
    force: StrictBool = Field(default=False, description="Answer every text as if it were harmful.")
    stream: StrictBool = Field(default=False, description="Server-sent events; for one text.")

    @field_validator("input", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        return _texts(value)

    @property
    def texts(self) -> list[str]:
        """The texts to judge."""
        return [self.input] if isinstance(self.input, str) else self.input


class GuardrailRequest(_Body):
    """LiteLLM's generic guardrail request, as far as it is used here."""

    texts: list[str] | None = None
    images: list[Any] | None = None
    tools: list[Any] | None = None
    tool_calls: list[Any] | None = None
    input_type: Literal["request", "response"] = "request"
    additional_provider_specific_params: dict[str, Any] | None = None


class Judged(BaseModel):
    """What was judged, beside OpenAI's own fields."""

    harm: float | None
    threshold: float | None
    category: str | None
    action: str
    policy: str
    error: str | None = None


class ModerationResult(BaseModel):
    """One text, in OpenAI's shape."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    guardian: Judged


class Moderation(BaseModel):
    """The answer to /v1/moderations."""

    id: str
    model: str
    results: list[ModerationResult]


class GuardVerdict(BaseModel):
    """A verdict, as `guardian check --json` prints it, and more."""

    text: str
    label: Literal["safe", "unsafe"]
    harm: float | None
    category: str | None
    group: str | None
    response: str | None
    policy: str
    model: str
    error: str | None = None
    scores: dict[str, float] | None
    threshold: float | None
    action: str
    shadow: str | None = Field(
        default=None, description="The text as read with disguises undone, if it differs."
    )


class Guarded(BaseModel):
    """The answer to /v1/guard."""

    verdicts: list[GuardVerdict]
    policy: str
    version: str


class GuardrailResponse(BaseModel):
    """LiteLLM's generic guardrail answer."""

    action: Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]
    blocked_reason: str | None = None
    unjudged: list[str] | None = Field(
        default=None, description="What the request holds that was not judged."
    )


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every error, in OpenAI's shape."""

    error: ErrorDetail


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for these statuses."""
    return {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in statuses}


def judged(verdict: Verdict) -> dict[str, Any]:
    """The extension field `guardian` of an answer."""
    names = ("harm", "threshold", "category", "action", "policy", "error")
    values = {name: getattr(verdict, name) for name in names}
    return values if verdict.error else {name: values[name] for name in names[:-1]}


def native(verdict: Verdict) -> dict[str, Any]:
    """A verdict of /v1/guard."""
    more = {"scores": verdict.scores, "threshold": verdict.threshold, "action": verdict.action}
    seen = views(verdict.text)
    return verdict.to_dict() | more | ({"shadow": seen[1]} if len(seen) > 1 else {})


def _texts(value: Any) -> Any:
    """A text or texts. One sentence for all that is neither: a union's errors name every branch."""
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("give a text, or a list of texts that is not empty")
    return value


_ERRORS = {
    400: "The request is wrong.",
    401: "No valid API key.",
    403: "The key may not do this.",
    413: "The body, the number of texts or their length is over the limit.",
    429: "The key's rate or the queue is used up; see Retry-After.",
    502: "The upstream cannot be reached, or broke off.",
    503: "The guardian cannot judge (now), or there is no upstream.",
    504: "The upstream took too long.",
}
JUDGING = errors(400, 401, 403, 413, 429, 503)
