"""Policy diff -> data diff: what changes between two policies, in words, and which rows of a corpus that concerns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from slm_guardian.example import Example
from slm_guardian.generate.duplicates import THRESHOLD, grams, jaccard, squeezed
from slm_guardian.policy import Category, Policy

Effect = Literal["at once", "labels", "training"]
EFFECTS: dict[Effect, str] = {
    "at once": "works at once, with the model you have",
    "labels": "check the labels of the rows below, then train on them",
    "training": "write rows for it and train: the model does not know it",
}
_WHOLE = ("id", "version", "language", "culture", "threshold")
_VALUES = ("name", "group", "action", "threshold", "guidance")
_LINES: dict[str, Effect] = {
    **dict.fromkeys(("covers", "excludes", "harmful", "safe"), "labels"),
    **dict.fromkeys(("rules", "facts", "fallback"), "at once"),
}
_WORD = re.compile(r"[^\W\d_]{2,}")
_NEW_LATIN, _NEW_HANGUL = 4, 2  # letters of the shortest keyword, and of what endings leave of a longer one


@dataclass(frozen=True)
class Change:
    """One change of a policy's key; `category` is None for the whole policy's. Lists hold the lines that differ."""

    key: str
    effect: Effect
    category: str | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def words(self) -> str:
        """The change in one line of plain words."""
        if self.key == "category":
            return f"{self.category} is {'a new category' if self.after else 'no category any more'}"
        where = f"{self.category}: {self.key}" if self.category else self.key
        if self.key not in _LINES:
            return f"{where}: {_quoted(self.before)} becomes {_quoted(self.after)}"
        sides = {"no longer": self.before, "now also": self.after}
        return f"{where}: " + "; ".join(f"{word} {_quoted(lines)}" for word, lines in sides.items() if lines)


def changes(before: Policy, after: Policy) -> list[Change]:
    """All changes from one policy to another: the whole policy's first, then by category."""
    found = list(_values(before, after, _WHOLE))
    for key in sorted(before.facts.keys() | after.facts.keys()):
        old, new = _tuple(before.facts.get(key)), _tuple(after.facts.get(key))
        if old != new:
            found.append(Change(f"fact {key}", "at once", None, old, new))
    for name in dict.fromkeys([*before.by_id, *after.by_id]):
        found += _category(name, before.by_id.get(name), after.by_id.get(name))
    return found


def _category(name: str, old: Category | None, new: Category | None) -> Iterator[Change]:
    if new is None:
        yield Change("category", "labels", name, before=(name,))
        return
    if old is None:
        yield Change("category", "training", name, after=(name,))
    else:
        yield from _values(old, new, _VALUES, name)
    for key, effect in _LINES.items():
        lines, others = getattr(new, key), getattr(old, key) if old else []
        removed, added = (tuple(x for x in a if x not in b) for a, b in ((others, lines), (lines, others)))
        if removed or added:
            yield Change(key, effect, name, removed, added)


def _values(old: Any, new: Any, keys: Sequence[str], category: str | None = None) -> Iterator[Change]:
    for key in keys:
        a, b = getattr(old, key), getattr(new, key)
        if a != b:
            yield Change(key, "at once", category, _tuple(a), _tuple(b))


def _tuple(value: object) -> tuple[str, ...]:
    return () if value in (None, "") else (str(value),)


def _quoted(lines: Sequence[str]) -> str:
    return ", ".join(f'"{line}"' for line in lines) or "nothing"


@dataclass(frozen=True)
class Affected:
    """A row that a change concerns, why, and the label that follows; None where somebody has to decide."""

    row: Example
    change: Change
    reason: str
    label: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row with what concerns it, for a file that is judged or read again."""
        why = {"change": self.change.words(), "reason": self.reason, "label": self.label}
        return self.row.to_dict() | {"policy_change": why}


Hit = tuple[str, str | None]  # reason, label that follows
Test = Callable[[Example], Hit | None]


def affected(before: Policy, after: Policy, rows: Iterable[Example]) -> list[Affected]:
    """The rows that the changes between two policies concern, each with the first change that does.

    A row is concerned when its category is gone or has another threshold or action, when it says what a golden
    example says that was added or taken out, and when it holds a word of a clause that was: one that stands in no
    clause that stayed. The last kind only points where to look, so it names no label.
    """
    stayed = {word for text in _clauses(before) & _clauses(after) for word in _words(text)}
    tests = [(change, _test(change, stayed)) for change in changes(before, after) if change.category]
    result = []
    for row in rows:
        found = next(((change, hit) for change, test in tests if (hit := test(row))), None)
        if found:
            result.append(Affected(row, found[0], *found[1]))
    return result


def _clauses(policy: Policy) -> set[str]:
    return {line for c in policy.categories for line in (*c.covers, *c.excludes)}


def _test(change: Change, stayed: set[str]) -> Test:
    is_own: Callable[[Example], bool] = lambda row: row.category == change.category  # noqa: E731
    if change.key == "category" and change.before:
        return lambda row: ("its category is gone", None) if is_own(row) else None
    if change.key in ("threshold", "action"):
        return lambda row: (f"another {change.key} for its category", row.label) if is_own(row) else None
    if change.key in ("harmful", "safe"):
        return _like_an_example(change)
    if change.key == "covers":  # a row of another category may belong here now
        return _with_a_word(change, stayed, lambda row: True)
    if change.key == "excludes":
        return _with_a_word(change, stayed, lambda row: row.category is None or is_own(row))
    return lambda row: None


def _like_an_example(change: Change) -> Test:
    label = "unsafe" if change.key == "harmful" else "safe"
    known = [(grams(squeezed(text)), "was added", label) for text in change.after]
    known += [(grams(squeezed(text)), "was taken out", None) for text in change.before]

    def test(row: Example) -> Hit | None:
        own = grams(squeezed(row.text))
        near = (item for item in known if jaccard(own, item[0]) >= THRESHOLD)
        return next(((f"like an example that {what}", label) for _, what, label in near), None)

    return test


def _with_a_word(change: Change, stayed: set[str], concerns: Callable[[Example], bool]) -> Test:
    words = sorted(_words(" ".join((*change.before, *change.after))) - stayed)
    stems = {_stem(word): word for word in words}

    def test(row: Example) -> Hit | None:
        if not concerns(row):
            return None
        hit = next(
            (stems[s] for word in _WORD.findall(row.text.lower()) if (s := _stem(word)) in stems), None
        )
        return (f"has the word '{hit}' of a clause that changed", None) if hit else None

    return test


def _words(text: str) -> set[str]:
    found = (word.lower() for word in _WORD.findall(text))
    return {word for word in found if len(word) >= (_NEW_HANGUL if _is_hangul(word) else _NEW_LATIN)}


def _stem(word: str) -> str:
    """What a word keeps under another ending: forg(ed), forg(ery); 위조(를), 위조(한)."""
    return word[:_NEW_HANGUL] if _is_hangul(word) else word[: max(_NEW_LATIN, len(word) - 3)]


def _is_hangul(word: str) -> bool:
    return "가" <= word[0] <= "힣"


def as_json(before: Policy, after: Policy, hits: Sequence[Affected] | None = None) -> dict[str, Any]:
    """Changes, and the rows that they concern by id, for programs."""
    found = changes(before, after)
    values: dict[str, Any] = {"changes": [asdict(change) | {"words": change.words()} for change in found]}
    if hits is not None:
        values["rows"] = [
            {"id": hit.row.id, "change": found.index(hit.change), "reason": hit.reason, "label": hit.label}
            for hit in hits
        ]
    return values
