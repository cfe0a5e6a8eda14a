"""SGuard ContentFilter: five safe/unsafe decisions in five tokens, one a category (Samsung SDS, arXiv 2511.12497).

Each decision is a token of its own ("Crime: safe", "Crime: unsafe"); P(harm) is the highest of the five. The chat
template takes the text under the key `prompt`, which the chat protocol of servers lacks: it runs here only.
"""

from __future__ import annotations

import json

from slm_guardian.evaluate.systems import Judged
from slm_guardian.evaluate.systems.generative import GenerativeGuard, Prompt, load_runner
from slm_guardian.evaluate.systems.reading import Reading, Step

MODEL = "SamsungSDS-Research/SGuard-ContentFilter-2B-v1"
# In the order in which the model writes them, with the category of ours that covers most of it.
CATEGORIES = {
    "Crime": "crime_advice",
    "Manipulation": "Manipulation",
    "Privacy": "privacy_violation",
    "Sexual": "sexual_harmful_to_minors",
    "Violence": "Violence",
}
READINGS = tuple(Reading((f"{name}: unsafe",), (f"{name}: safe",)) for name in CATEGORIES)


def prompt(text: str) -> Prompt:
    """The text under the key of the model's own chat template."""
    return Prompt([{"role": "user", "prompt": text}])


class SGuard(GenerativeGuard):
    """A generative guard that writes one decision a category."""

    def read(self, answer: list[Step] | str) -> Judged:
        """The highest of the five probabilities and its category; unparsed unless there are all five."""
        if isinstance(answer, str):
            return super().read(answer)
        raw = "".join(step.text for step in answer)
        found = [reading.probability([step]) for reading, step in zip(READINGS, answer, strict=False)]
        harms = [harm for harm in found if harm is not None]
        if len(harms) < len(READINGS):
            return Judged(None, error="unparsed", threshold=self.threshold, raw=raw)
        scores = dict(zip(CATEGORIES, harms, strict=True))
        worst = max(scores, key=lambda category: scores[category])
        return Judged(scores[worst], CATEGORIES[worst], None, self.threshold, raw=json.dumps(scores))


def load(name: str, target: str | None = None, *, batch_size: int = 8) -> SGuard:
    """The guard `target`: a directory or hub id."""
    runner = load_runner(target or MODEL, batch_size=batch_size)
    return SGuard(name, runner, prompt, READINGS[0], max_new_tokens=len(READINGS))
