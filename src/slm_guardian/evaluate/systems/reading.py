"""How P(harm) is read from what a guard wrote: one rule for all generative guards.

The label is not always the first token (newlines, JSON, reasoning come before it), and the first token of a
label is not always the whole label ("un" of "unsafe"). So: find the decision position, then renormalise the
probability of the tokens that begin, or are, a label of exactly one side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One generated token: its text, and the log-probabilities of the candidates' texts at its place."""

    text: str
    logprobs: dict[str, float]
    """Empty where the server gives none: then `text` may be the whole answer."""

    @classmethod
    def of(cls, text: str, candidates: Iterable[tuple[str, float]]) -> Step:
        """A step of (text, log-prob) pairs; tokens of the same text count together."""
        mass: dict[str, float] = {}
        for candidate, logprob in candidates:
            mass[candidate] = mass.get(candidate, 0.0) + math.exp(logprob)
        return cls(text, {candidate: math.log(p) for candidate, p in mass.items() if p > 0})


@dataclass(frozen=True)
class Reading:
    """The labels of both sides, and where they stand. Case and surrounding white space do not count.

    `anchor` is a regular expression; the label is what comes after its first match (write `(?s).*X` for the
    last). Without one it is the first thing that is written. `least` is the share of the probability that the
    labels need to hold at the decision position; with less, the answer is something else (a refusal, a question).
    """

    unsafe: tuple[str, ...]
    safe: tuple[str, ...]
    anchor: str | None = None
    least: float = 0.1

    def probability(self, steps: Sequence[Step]) -> float | None:
        """P(harm) at the decision position; None without one, without log-probs or without mass on the labels."""
        found = self._decision(steps)
        if found is None:
            return None
        step, cut, written = found
        mass = {"unsafe": 0.0, "safe": 0.0}
        for token, logprob in step.logprobs.items():
            if token.startswith(cut) and (side := self._side(written + token[len(cut) :])):
                mass[side] += math.exp(logprob)
        total = mass["unsafe"] + mass["safe"]
        return mass["unsafe"] / total if total > 0 and total >= self.least else None

    def label(self, steps: Sequence[Step]) -> str | None:
        """The label that was written, as `safe` or `unsafe`; None where none stands at the decision position."""
        text = "".join(step.text for step in steps)
        start = self._start(text)
        if start is None:
            return None
        for side, labels in (("unsafe", self.unsafe), ("safe", self.safe)):
            words = "|".join(map(re.escape, labels))
            if re.match(rf"\s*(?:{words})(?!\w)", text[start:], re.IGNORECASE):
                return side
        return None

    def _start(self, text: str) -> int | None:
        """Where the label may begin: after the anchor."""
        if self.anchor is None:
            return 0
        match = re.search(self.anchor, text)
        return match.end() if match else None

    def _decision(self, steps: Sequence[Step]) -> tuple[Step, str, str] | None:
        """The step that decides, what of its text belongs to the anchor, and what of the label was written before.

        The first step with something to read after the anchor, or a later one while what was written could still
        become a label of either side ("<" of "<SAFE>" and "<UNSAFE>").
        """
        start, end, written = self._start("".join(step.text for step in steps)), 0, ""
        if start is None:
            return None
        for step in steps:
            begin, end = end, end + len(step.text)
            cut = step.text[: max(0, start - begin)]
            said = (written + step.text[len(cut) :]).lstrip()
            if end <= start or not said:
                continue
            if not (self._begins(said, self.unsafe) and self._begins(said, self.safe)):
                return step, cut, written
            written = said
        return None

    def _side(self, text: str) -> str | None:
        """The side that a text belongs to; None for neither and for both."""
        unsafe, safe = self._fits(text, self.unsafe), self._fits(text, self.safe)
        return None if unsafe == safe else "unsafe" if unsafe else "safe"

    def _fits(self, text: str, labels: tuple[str, ...]) -> bool:
        """Whether a text begins a label or begins with one."""
        text = text.strip().casefold()
        return self._begins(text, labels) or text.startswith(tuple(label.casefold() for label in labels))

    def _begins(self, text: str, labels: tuple[str, ...]) -> bool:
        """Whether a text is a beginning of a label."""
        text = text.strip().casefold()
        return bool(text) and any(label.casefold().startswith(text) for label in labels)
