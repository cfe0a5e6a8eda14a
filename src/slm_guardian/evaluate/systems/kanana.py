"""Kanana Safeguard: one special token, `<SAFE>` or `<UNSAFE-S4>`; Korean first (Kakao, 2025).

Siren (I1 to I4) and Prompt (A1, A2) speak the same way: give their hub id as the target.
"""

from __future__ import annotations

from slm_guardian.evaluate.systems.generative import GenerativeGuard, load_runner, user_turn
from slm_guardian.evaluate.systems.parsing import category_reader
from slm_guardian.evaluate.systems.reading import Reading

MODEL = "kakaocorp/kanana-safeguard-8b"
READING = Reading(("<UNSAFE-",), ("<SAFE>",))
_OURS = {
    "S1": "discrimination_hate",
    "S2": "insult_offensiveness",
    "S3": "sexual_harmful_to_minors",
    "S4": "crime_advice",
    "S5": "sexual_harmful_to_minors",
    "S6": "self_harm_suicide",
    "I3": "privacy_violation",
    "I4": "copyright_infringement",
}


def load(
    name: str, target: str | None = None, *, base_url: str | None = None, batch_size: int = 8
) -> GenerativeGuard:
    """The guard `target`: a directory, hub id or served model."""
    return GenerativeGuard(
        name,
        load_runner(target or MODEL, base_url, batch_size),
        user_turn,
        READING,
        category=category_reader(r"<UNSAFE-(\w+)>", _OURS),
    )
