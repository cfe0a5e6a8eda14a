"""The policy sets of one server over one loaded model, loaded again when their files change."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slm_guardian.errors import GuardianError, InputError
from slm_guardian.guardian import Guardian
from slm_guardian.policy import Category, Policy, sources
from slm_guardian.serve.faults import BadRequest
from slm_guardian.serve.settings import ForcedTopic, PolicySet, Settings
from slm_guardian.text import shadow

log = logging.getLogger("slm_guardian.serve")
_HANGUL = re.compile("[가-힣]")


@dataclass(frozen=True)
class Guard:
    """One policy set, ready to judge. `version` changes with anything that may change a verdict."""

    name: str
    guardian: Guardian
    forced: list[ForcedTopic]
    version: str

    def topic(self, text: str) -> ForcedTopic | None:
        """The first forced topic that a text touches."""
        if not self.forced:
            return None
        seen = shadow(text).casefold()
        squeezed = "".join(seen.split())
        return next((t for t, phrases in self._phrases if any(p(seen, squeezed) for p in phrases)), None)

    @cached_property
    def _phrases(self) -> list[tuple[ForcedTopic, list[_Phrase]]]:
        return [(topic, [_Phrase(phrase) for phrase in topic.phrases]) for topic in self.forced]


class _Phrase:
    """A phrase to look for: Korean whatever the spacing, other scripts as whole words."""

    def __init__(self, phrase: str) -> None:
        seen = shadow(phrase).casefold()
        self._squeezed = "".join(seen.split()) if _HANGUL.search(seen) else None
        self._words = re.compile(rf"(?<!\w){re.escape(seen)}(?!\w)")

    def __call__(self, seen: str, squeezed: str) -> bool:
        return self._squeezed in squeezed if self._squeezed else bool(self._words.search(seen))


@dataclass(frozen=True)
class Reloaded:
    """What loading again did: the sets that differ now, or why all stayed as they were."""

    changed: list[str]
    error: str | None = None


class Guards:
    """The policy sets by name. Loads the model once. Raises InputError, ModelError or PolicyError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        first = settings.policies["default"]
        policies = _policies("default", first)
        self._base = Guardian.load(settings.model, policies, first.threshold, settings.threads)
        self._stamps = {path: _changed_at(path) for path in _files(settings)}
        self._guards = self._built(settings.policies)

    def all(self) -> list[Guard]:
        """All sets, `default` among them."""
        return list(self._guards.values())

    def get(self, name: str | None = None) -> Guard:
        """The set of a name, or the default one. Raises BadRequest for a name that no set has."""
        guard = self._guards.get(name or "default")
        if guard is None:
            raise BadRequest(f"no such policy set: use one of {', '.join(self._guards)}", param="policy")
        return guard

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._base.name

    def reload(self) -> Reloaded:
        """Read settings and policies again; a broken file leaves the old sets in force and says so."""
        self._stamps = {
            path: _changed_at(path) for path in self._stamps
        }  # first: what changes now is seen later
        try:
            settings = self._settings.reread()
            guards, files = self._built(settings.policies), _files(settings)
        except GuardianError as error:
            log.error("policies not reloaded, the old ones stay in force: %s", error)
            return Reloaded([], str(error))
        self._stamps = {path: _changed_at(path) for path in files} | self._stamps
        before = {name: guard.version for name, guard in self._guards.items()}
        after = {name: guard.version for name, guard in guards.items()}
        self._settings, self._guards = settings, guards
        changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
        log.info("policies reloaded: %s", ", ".join(changed) or "no change")
        return Reloaded(changed)

    def stale(self) -> bool:
        """Whether a file has changed since it was read."""
        return any(_changed_at(path) != stamp for path, stamp in self._stamps.items())

    def _built(self, sets: Mapping[str, PolicySet]) -> dict[str, Guard]:
        return {name: self._guard(name, chosen) for name, chosen in sets.items()}

    def _guard(self, name: str, chosen: PolicySet) -> Guard:
        policies = _policies(name, chosen)
        guardian = self._base.with_policies(policies, chosen.threshold)
        for topic in chosen.forced:
            if missing := [p.id for p in policies if topic.category not in p.by_id]:
                raise InputError(
                    f"policies.{name}.forced: {topic.name}: policy {missing[0]} has no category {topic.category}"
                )
        return Guard(name, guardian, chosen.forced, _version(policies, chosen))


def forced_category(guard: Guard, topic: ForcedTopic, text: str) -> Category:
    """The category that a forced topic stands for, in the language of a text."""
    return guard.guardian.policy_for(text).by_id[topic.category]


def _policies(name: str, chosen: PolicySet) -> list[Policy]:
    policies = [Policy.load(file) for file in chosen.files]
    languages = [policy.language for policy in policies]
    if len(set(languages)) < len(languages):
        raise InputError(
            f"policies.{name}.files: two of them are for the same language: make another set of one"
        )
    return policies


def _version(policies: list[Policy], chosen: PolicySet) -> str:
    """A hash over all that the set says, inherited parts too."""
    parts = [policy.model_dump_json() for policy in policies]
    parts.append(chosen.model_dump_json(exclude={"files"}))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _files(settings: Settings) -> set[Path]:
    """All files that the policy sets are made of."""
    files = {source for s in settings.policies.values() for name in s.files for source in sources(name)}
    return files | ({settings.file} if settings.file else set())


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1
