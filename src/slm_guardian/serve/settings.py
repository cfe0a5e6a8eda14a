"""What a person can set about the gateway: one YAML file, checked key by key, and the command line over it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from slm_guardian.errors import InputError

FailMode = Literal["closed", "open"]
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_VARIABLE = re.compile(r"\$\{(\w+)(?::([^}]*))?\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UpstreamSettings(_Strict):
    """The main LLM, any OpenAI-compatible server. With `key_env` it gets that key, never the client's."""

    url: str = Field(pattern=r"^https?://[^\s/]")
    key_env: str | None = None
    connect_s: float = Field(default=5, gt=0)
    first_byte_s: float = Field(default=60, gt=0)
    idle_s: float = Field(default=30, gt=0)
    max_connections: int = Field(default=100, gt=0)


class KeySettings(_Strict):
    """An API key, by its SHA-256: `guardian serve --new-key NAME` makes one."""

    name: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    policy: str | None = None
    per_minute: int | None = Field(default=None, gt=0)


class Limits(_Strict):
    """What one request, and all that wait, may take. `characters` and `texts` are of one request."""

    body_bytes: int = Field(default=2_000_000, gt=0)
    texts: int = Field(default=256, gt=0)
    characters: int = Field(default=100_000, gt=0)
    queue: int = Field(default=256, gt=0)
    deadline_s: float = Field(default=2.0, gt=0)
    batch: int = Field(default=16, gt=0)
    drain_s: float = Field(default=20, ge=0)


class FailModes(_Strict):
    """What to do when the guardian cannot judge: `closed` refuses, `open` lets through, marked unjudged."""

    overloaded: FailMode = "closed"
    timeout: FailMode = "closed"
    broken: FailMode = "closed"
    unreadable: FailMode = "closed"
    unjudged: FailMode = "closed"


class AnswerSettings(_Strict):
    """Judging the upstream's answers: `window` and `hold` are characters."""

    judge: bool = False
    window: int = Field(default=400, gt=0)
    hold: int = Field(default=160, ge=0)


class AuditSettings(_Strict):
    """The audit log. The salt of the query hashes comes from the environment."""

    url: str = "sqlite:///audit.db"
    text: bool = False
    days: int = Field(default=30, gt=0)
    salt_env: str = "GUARDIAN_AUDIT_SALT"


class ForcedTopic(_Strict):
    """A query that holds one of the phrases gets the safeguard of `category`, whatever the model says."""

    name: str
    category: str
    phrases: list[str] = Field(min_length=1)


class PolicySet(_Strict):
    """Policies that are served together, one a language, with what is forced and the threshold over all."""

    files: list[str] = Field(default=["ko", "en"], min_length=1)
    forced: list[ForcedTopic] = []
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["strict", "loose"] | None = None


class Settings(_Strict):
    """All of it. Build one with `Settings.load`."""

    model: str | None = None
    threads: int | None = Field(default=None, gt=0)
    policies: dict[str, PolicySet] = {"default": PolicySet()}
    upstream: UpstreamSettings | None = None
    keys: list[KeySettings] = []
    limits: Limits = Limits()
    fail: FailModes = FailModes()
    answers: AnswerSettings = AnswerSettings()
    audit: AuditSettings | None = None
    cors: list[str] = []
    context_turns: int = Field(default=2, ge=0)
    tracing: bool = False
    playground: bool = True
    _origin: tuple[Path | None, dict[str, Any]] = PrivateAttr((None, {}))

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if "default" not in self.policies:
            raise ValueError("policies: one of the sets must be called default")
        if odd := [name for name in self.policies if not _NAME.fullmatch(name)]:
            raise ValueError(
                f"policies: {odd[0]}: a name is of letters, digits, dots and dashes"
            )  # it is in headers
        names = [key.name for key in self.keys]
        if len(names) != len(set(names)):
            raise ValueError("keys: two keys have the same name")
        for key in self.keys:
            if key.policy and key.policy not in self.policies:
                raise ValueError(f"keys: {key.name}: no policy set is called {key.policy}")
        return self

    @classmethod
    def load(cls, path: Path | None = None, **overrides: Any) -> Settings:
        """Read a YAML file, if any; `overrides` win over it, key by key. Raises InputError with file and key."""
        values = _merged(_beside(_read(path), path) if path else {}, overrides)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{path or 'settings'}: {key}{': ' if key else ''}{message}") from None
        settings._origin = (path, overrides)
        return settings

    @property
    def file(self) -> Path | None:
        """The file that they came from."""
        return self._origin[0]

    def reread(self) -> Settings:
        """The same file and overrides, read again."""
        path, overrides = self._origin
        return type(self).load(path, **overrides) if path else self


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): check --config") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise InputError(f"{path}:{line}: not readable as YAML: check the indentation and quotes") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}:1: the settings are a mapping of keys (upstream, policies, keys, ...)")
    return {key: _filled(value, f"{path}: {key}") for key, value in values.items()}


def _filled(value: Any, place: str) -> Any:
    """`${NAME}` and `${NAME:default}` in texts replaced from the environment."""
    if isinstance(value, Mapping):
        return {key: _filled(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, f"{place}.{i}") for i, item in enumerate(value)]
    return _VARIABLE.sub(lambda m: _variable(m, place), value) if isinstance(value, str) else value


def _variable(match: re.Match[str], place: str) -> str:
    value = os.environ.get(match[1], match[2])
    if value is None:
        raise InputError(
            f"{place}: the environment has no {match[1]}: set it, or write ${{{match[1]}:default}}"
        )
    return value


def _beside(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Policy files named in the settings may lie beside them."""

    def placed(name: Any) -> Any:
        beside = path.parent / name if isinstance(name, str) else None
        return str(beside) if beside and beside.is_file() else name

    for chosen in _mappings(values.get("policies")):
        if isinstance(chosen.get("files"), list):
            chosen["files"] = [placed(name) for name in chosen["files"]]
    return values


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in value.values() if isinstance(item, dict)] if isinstance(value, dict) else []


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base`, mapping by mapping; None sets nothing."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = _merged(below if isinstance(below, dict) else {}, value)
        elif value is not None:
            merged[key] = value
    return merged
