"""Offline queries without a model: slot grammars with lexicons, one YAML file a language.

A file holds `lexicons` (name -> alternatives, separated by `|` or line ends) and `rules`
(category -> safe or unsafe -> name -> kind and patterns, one a line). In a pattern `{name}` stands for one entry
of a lexicon and `[a|b|]` for one of the alternatives. `을/를`, `으로/로` ... join to the word before and are written
out by its last sound, `a/an` by the letter after it; `~` joins any other word to the one before. Rules of the
category `everyday` are safe and look like no category.

Grammar rows widen wording at no cost; they repeat a few hundred patterns, so never count them as LLM data.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slm_guardian.errors import InputError, PolicyError
from slm_guardian.example import Example

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is 8 x faster

Label = Literal["safe", "unsafe"]
Pattern = tuple["str | Choice", ...]

_TOKEN = re.compile(r"\{(\w+)\}|\[([^\[\]]*)\]|([^\[\]{}]+)|(.)")
_BAR = re.compile(r"[|\n](?![^\[\]]*\])")  # outside of brackets
_PARTICLES = (
    "을/를|이/가|은/는|과/와|으로/로|이랑/랑|이나/나|이야/야|이에요/예요|으면/면|으려면/려면|"
    "이라고/라고|이라는/라는|이라/라"
)
_AGREEING = re.compile(f"(\\S) ?({_PARTICLES})")
_RIEUL_AS_OPEN = {"으로/로", "으려면/려면", "으면/면"}
_ARTICLE = re.compile(r"\b([Aa])/an(?= (\w))")
_SPACE_BEFORE_MARK = re.compile(r" +(?=[?!.,])")
_NOT_LETTERS = re.compile(r"[\W_]+")
# Last sounds of what is read aloud letter by letter or digit by digit: 3 (삼), L (엘).
_CLOSED = frozenset("013678lmnrLMNR")
_RIEUL = frozenset("178lrLR")
_SPENT = 60  # so many repeats in a row, and a rule counts as used up


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Rule(_Strict):
    kind: str = Field(min_length=1)
    patterns: str = Field(min_length=1)


class _File(_Strict):
    language: str
    lexicons: dict[str, str] = {}
    rules: dict[str, dict[Label, dict[str, _Rule]]] = Field(min_length=1)


@dataclass(eq=False)
class Choice:
    """Alternatives of which an expansion takes one."""

    options: list[Pattern] = field(default_factory=list)


@dataclass(frozen=True)
class Rule:
    """Patterns with one label. `category` is what unsafe rows are and what safe ones only look like."""

    id: str
    category: str
    label: Label
    kind: str
    patterns: Choice


@dataclass(frozen=True)
class Grammar:
    """A language's rules. Build one with `load`."""

    language: str
    rules: tuple[Rule, ...]


def generate(
    lang: str | Path,
    n: int,
    seed: int = 0,
    unsafe_share: float = 0.45,
    categories: Sequence[str] | None = None,
) -> Iterator[Example]:
    """`n` rows that differ in more than case and punctuation; the same seed gives the same rows.

    `lang` is a shipped language (`ko`, `en`) or a grammar file. `unsafe_share` is kept to the row; categories come
    equally often until one of them is used up. `categories` limits the rows to those, both sides. Raises
    InputError for an unknown category, and where the grammar cannot give so many rows, after all it has.
    """
    grammar = load(lang)
    chosen = _chosen(grammar, categories)
    rng = random.Random(seed)
    seen: set[str] = set()
    if not 0 <= unsafe_share <= 1:
        raise InputError("the share of unsafe rows is out of range: use a number from 0 to 1")
    unsafe = round(n * unsafe_share)
    sides: tuple[Label, Label] = ("unsafe", "safe")
    labels = [sides[place >= unsafe] for place in range(n)]
    rng.shuffle(labels)
    decks = {label: _Deck(rng, [r for r in chosen if r.label == label], seen) for label in sides}
    for label in labels:
        drawn = decks[label].draw()
        if drawn is None:
            raise InputError(
                f"the {grammar.language} grammar has no more distinct {label} rows: ask for fewer"
            )
        yield _example(grammar.language, *drawn)


def count(lang: str | Path, limit: int = 250_000) -> int:
    """How many distinct rows the grammar gives, counted by writing them: a lower bound, at most `limit`."""
    total = 0
    try:
        for _ in generate(lang, limit):
            total += 1
    except InputError:
        pass
    return total


@cache
def load(lang: str | Path) -> Grammar:
    """Load a shipped grammar by language, or a YAML file. Raises PolicyError naming file and rule."""
    path = _find(lang)
    file = _read(path)
    lexicons = {name: Choice() for name in file.lexicons}
    for name, text in file.lexicons.items():
        lexicons[name].options += _compile(text, lexicons, f"{path}: lexicons.{name}")
    _refuse_circles(lexicons, path)
    rules = []
    for category, sides in file.rules.items():
        for label, named in sides.items():
            for name, rule in named.items():
                place = f"{path}: rules.{category}.{label}.{name}"
                if category == "everyday" and label == "unsafe":
                    raise PolicyError(f"{place}: everyday rules are safe: move the rule to a category")
                patterns = Choice(_compile(rule.patterns, lexicons, place))
                rules.append(Rule(f"{category}/{name}", category, label, rule.kind, patterns))
    return Grammar(file.language, tuple(rules))


def agree(text: str) -> str:
    """Write out particles by the sound before them and articles by the letter after them; tidy spaces, join at `~`.

    >>> agree("칼을/를 든 도둑이/가 서울으로/로"), agree("a/an old car")
    ('칼을 든 도둑이 서울로', 'an old car')
    """
    text = " ".join(text.split()).replace(" ~", "")
    if "/" in text:
        text = _AGREEING.sub(_particle, text)
        text = _ARTICLE.sub(lambda m: m[1] + "n" * (m[2] in "aeioAEIO"), text)
    return _SPACE_BEFORE_MARK.sub("", text)


class _Deck:
    """Draws rows: a category by turns, then one of its rules, then an expansion that nobody has seen."""

    def __init__(self, rng: random.Random, rules: Sequence[Rule], seen: set[str]) -> None:
        self._rng = rng
        self._seen = seen
        self._rules = {c: [r for r in rules if r.category == c] for c in sorted({r.category for r in rules})}
        self._turns: list[str] = []

    def draw(self) -> tuple[Rule, str] | None:
        """A rule and its next text; None when every rule is used up."""
        while self._rules:
            category = self._next_category()
            rules = self._rules[category]
            while rules:
                rule = self._rng.choice(rules)
                if text := self._new_text(rule):
                    return rule, text
                rules.remove(rule)
            del self._rules[category]
        return None

    def _next_category(self) -> str:
        self._turns = [c for c in self._turns if c in self._rules]
        if not self._turns:
            self._turns = self._rng.sample(list(self._rules), len(self._rules))
        return self._turns.pop()

    def _new_text(self, rule: Rule) -> str | None:
        for _ in range(_SPENT):
            text = _typed(agree(_expand((rule.patterns,), self._rng)), self._rng)
            key = _NOT_LETTERS.sub("", text.casefold())
            if key not in self._seen:
                self._seen.add(key)
                return text
        return None


def _expand(pattern: Pattern, rng: random.Random) -> str:
    return "".join(p if isinstance(p, str) else _expand(_pick(p.options, rng), rng) for p in pattern)


def _pick(options: Sequence[Pattern], rng: random.Random) -> Pattern:
    return options[int(rng.random() * len(options))]  # three times as fast as rng.choice


def _typed(text: str, rng: random.Random) -> str:
    """The text as people type: with a capital and a mark at the end, or with neither."""
    if rng.random() < 0.5:
        return text[:1].upper() + text[1:]
    return text.rstrip("?.") if rng.random() < 0.7 else text


def _example(lang: str, rule: Rule, text: str) -> Example:
    category = rule.category if rule.label == "unsafe" else None
    extra = {"rule": rule.id, "backend": "grammar"}
    source = f"grammar/{lang}"
    return Example(text, rule.label, category, lang, rule.kind, source=source, licence="CC0", extra=extra)


def _chosen(grammar: Grammar, categories: Sequence[str] | None) -> list[Rule]:
    known = {rule.category for rule in grammar.rules}
    if unknown := set(categories or ()) - known:
        raise InputError(
            f"the grammar has no category {', '.join(sorted(unknown))}: use some of {', '.join(sorted(known))}"
        )
    return [rule for rule in grammar.rules if categories is None or rule.category in categories]


def _particle(match: re.Match[str]) -> str:
    before, pair = match[1], match[2]
    after_closed, after_open = pair.split("/")
    final = (ord(before) - 0xAC00) % 28 if "가" <= before <= "힣" else None
    rieul = before in _RIEUL if final is None else final == 8
    closed = before in _CLOSED if final is None else final > 0
    if rieul and pair in _RIEUL_AS_OPEN:
        closed = False
    return before + (after_closed if closed else after_open)


def _find(lang: str | Path) -> Path:
    folder = Path(str(files("slm_guardian.generate").joinpath("grammars")))
    shipped = sorted(path.stem for path in folder.glob("*.yaml"))
    path = folder / f"{lang}.yaml" if str(lang) in shipped else Path(lang)
    if path.suffix != ".yaml" or not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise PolicyError(f"no grammar '{lang}': use one of {', '.join(shipped)} or the path of a YAML file")
    return path


def _read(path: Path) -> _File:
    try:
        return _File.model_validate(yaml.load(path.read_text(encoding="utf-8"), _Loader))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "grammar"
        raise PolicyError(f"{path}: {key}: {first['msg']}") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise PolicyError(f"{path}:{line}: not readable as YAML: check the indentation and quotes") from None


def _compile(text: str, lexicons: dict[str, Choice], place: str) -> list[Pattern]:
    entries = list(filter(None, map(str.strip, _BAR.split(text))))
    if not entries:
        raise PolicyError(f"{place}: nothing to choose from: write at least one entry")
    return [_pattern(entry, lexicons, place) for entry in entries]


def _pattern(text: str, lexicons: dict[str, Choice], place: str) -> Pattern:
    parts: list[str | Choice] = []
    for slot, inline, plain, stray in _TOKEN.findall(text):
        if stray:
            raise PolicyError(f"{place}: a {stray} without its partner: close every bracket and brace")
        if slot and slot not in lexicons:
            raise PolicyError(f"{place}: unknown lexicon {slot}: add it to lexicons")
        if slot:
            parts.append(lexicons[slot])
        elif plain:
            parts.append(plain)
        else:
            parts.append(Choice([_pattern(option, lexicons, place) for option in inline.split("|")]))
    return tuple(parts)


def _refuse_circles(lexicons: dict[str, Choice], path: Path) -> None:
    """Raise PolicyError if a lexicon holds itself, directly or through others."""
    names = {id(choice): name for name, choice in lexicons.items()}
    safe: set[int] = set()

    def visit(choice: Choice, above: frozenset[int]) -> None:
        if id(choice) in above:
            raise PolicyError(f"{path}: lexicons.{names[id(choice)]}: holds itself: break the circle")
        if id(choice) not in safe:
            for part in (part for option in choice.options for part in option):
                if isinstance(part, Choice):
                    visit(part, above | {id(choice)})
            safe.add(id(choice))

    for choice in lexicons.values():
        visit(choice, frozenset())
