"""Systems: everything that can be compared, each behind one method that judges texts.

A *spec* names a system as a user types it: `KIND[:TARGET][?key=value&key=value]`, for example `guardian`,
`guardian:runs/mini`, `runs/mini` (a bare path is a guardian), `keywords`, `chat:gpt-4-turbo?shots=ic`,
`llama-guard-3`, `wildguard:wildguard?base_url=http://127.0.0.1:8000/v1`. TARGET is a directory, a hub id, or
the name of a served model where `base_url` is given.

A kind is a function `load(name, target=None, *, key=default, ...)` that returns a System; its keyword-only
parameters are the keys of its spec.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, urlencode

from slm_guardian.errors import InputError

if TYPE_CHECKING:
    from slm_guardian.policy import Policy

_HERE = "slm_guardian.evaluate.systems"
KINDS: dict[str, str] = {
    "guardian": f"{_HERE}.guardian:load",
    "tfidf": "slm_guardian.evaluate.baseline:load",
    "keywords": f"{_HERE}.floors:load_keywords",
    "constant": f"{_HERE}.floors:load_constant",
    "chat": f"{_HERE}.chat:load",
    "llama-guard-1": f"{_HERE}.llama_guard:load_1",
    "llama-guard-2": f"{_HERE}.llama_guard:load_2",
    "llama-guard-3": f"{_HERE}.llama_guard:load_3",
    "llama-guard-4": f"{_HERE}.llama_guard:load_4",
    "aegis-d": f"{_HERE}.aegis:load_defensive",
    "aegis-p": f"{_HERE}.aegis:load_permissive",
    "wildguard": f"{_HERE}.wildguard:load",
    "openai-moderation": f"{_HERE}.openai_moderation:load",
    "perspective": f"{_HERE}.perspective:load",
    "qwen3guard": f"{_HERE}.qwen3guard:load",
    "polyguard": f"{_HERE}.polyguard:load",
    "shieldgemma": f"{_HERE}.shieldgemma:load",
    "granite-guardian": f"{_HERE}.granite:load",
    "kanana-safeguard": f"{_HERE}.kanana:load",
    "sguard": f"{_HERE}.sguard:load",
    "nemotron": f"{_HERE}.nemotron:load",
    "gpt-oss-safeguard": f"{_HERE}.gpt_oss:load",
    "harmaug": f"{_HERE}.harmaug:load",
    "duoguard": f"{_HERE}.duoguard:load",
}
# Where and how fast a system runs says nothing about what it answers: not part of its name.
_PLACE = ("base_url", "batch_size", "threads", "qps", "cache")


@dataclass(frozen=True)
class Judged:
    """What a system says about one text: P(harm), or a hard label, or why neither.

    A row with an `error` was not judged; it fails closed (counts as unsafe) and is counted by its reason.
    """

    harm: float | None
    """P(harm), 0 to 1; None where there is no probability (a hard label only, or not judged)."""
    category: str | None = None
    """Of our policy where a mapping exists, else the system's own code ("S2")."""
    error: str | None = None
    """Why it was not judged: "unparsed", "refused", "http 500", "too long" ...; never a text."""
    threshold: float | None = None
    """The system's own threshold for this text, where it has one."""
    label: str | None = None
    """`safe` or `unsafe` of a system that gives no probability (then harm and error are None)."""
    raw: str | None = None
    """The raw output as text (what was generated, or JSON), kept for the cache."""


class System(Protocol):
    """Anything that can be evaluated."""

    @property
    def name(self) -> str:
        """As it appears in tables."""
        ...

    @property
    def revision(self) -> str:
        """What identifies weights and prompt: hub revision, hash of the weights or API model, hash of the prompt."""
        ...

    def judge(self, texts: list[str]) -> list[Judged]:
        """Judge a batch, in order, one answer a text.

        Raises GuardianError where no text can be judged (wrong key, unreachable server).
        """
        ...


def load_system(
    spec: str | None = None, policy: str | Path | Policy | None = None, threshold: float | str | None = None
) -> System:
    """The system that a spec names; None is the shipped guardian.

    `policy` and `threshold` are those of a guardian, as on the command line; other kinds take theirs from the
    spec. The key `name` of any kind overrides its name in tables. Raises InputError for an unknown kind or key.
    """
    kind, target, options = _parse(spec or "guardian")
    load = _loader(kind)
    name = options.pop("name", None) or _name(spec or kind, options)
    if kind != "guardian" and isinstance(threshold, str):
        raise InputError(f"the threshold '{threshold}' is one of a guardian: give a number for other systems")
    if kind == "guardian":
        given = {"policy": policy, "threshold": threshold}
        options = {key: value for key, value in given.items() if value is not None} | options
    return load(name, target, **_checked(kind, load, options))


def mended(text: str) -> str:
    """A text that any tokenizer and server takes: U+FFFD for lone surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def digest(*parts: object) -> str:
    """Twelve hex digits that change when a part does."""
    return hashlib.sha256("\x00".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def hash_files(path: str | os.PathLike[str]) -> str:
    """Twelve hex digits of a file, or of the names and contents of a directory's files (not of those below)."""
    path = Path(path)
    whole = hashlib.sha256()
    for file in sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]:
        whole.update(file.name.encode() + b"\x00")
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()[:12]


def _parse(spec: str) -> tuple[str, str | None, dict[str, Any]]:
    """Kind, target and options of a spec."""
    head, _, query = spec.partition("?")
    kind, _, target = head.partition(":")
    if kind not in KINDS and (os.path.exists(head) or "/" in kind or os.sep in kind):
        kind, target = "guardian", head
    if kind not in KINDS:
        raise InputError(f"no system '{kind}': use a model directory or one of {', '.join(KINDS)}")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        raise InputError(f"{kind}: write options as ?key=value&key=value") from None
    return kind, target or None, options


def _name(spec: str, options: dict[str, Any]) -> str:
    """The spec without the options that change no answer."""
    kept = {key: value for key, value in options.items() if key not in _PLACE}
    return spec.partition("?")[0] + ("?" + urlencode(kept, safe="/:") if kept else "")


def _loader(kind: str) -> Callable[..., System]:
    module, _, attribute = KINDS[kind].partition(":")
    return getattr(import_module(module), attribute)


def _checked(kind: str, load: Callable[..., System], options: dict[str, Any]) -> dict[str, Any]:
    """Options with the types of the loader's keyword-only parameters; InputError for any other."""
    from pydantic import TypeAdapter, ValidationError

    keys = {p.name: p for p in inspect.signature(load, eval_str=True).parameters.values()}
    keys = {name: p for name, p in keys.items() if p.kind is p.KEYWORD_ONLY}
    checked = {}
    for key, value in options.items():
        if key not in keys:
            raise InputError(f"{kind}: no option '{key}': it has {', '.join(['name', *keys])}")
        try:
            checked[key] = TypeAdapter(keys[key].annotation).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InputError(f"{kind}: the option '{key}' cannot be used: {reason}") from None
    return checked
