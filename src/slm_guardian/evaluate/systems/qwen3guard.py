"""Qwen3Guard-Gen: safe, controversial or unsafe, in 119 languages (Qwen3Guard report, arXiv 2510.14276).

The task, the policy and the format are in the model's own chat template. It writes

    Safety: Unsafe
    Categories: Violent
"""

from __future__ import annotations

from typing import Literal

from slm_guardian.evaluate.systems.generative import GenerativeGuard, load_runner, user_turn
from slm_guardian.evaluate.systems.parsing import category_reader
from slm_guardian.evaluate.systems.reading import Reading

MODEL = "Qwen/Qwen3Guard-Gen-8B"
# Which levels count as unsafe; the report picks the better mode for each benchmark, we name it in the table.
READINGS = {
    "strict": Reading(("Unsafe", "Controversial"), ("Safe",), anchor="Safety:"),
    "loose": Reading(("Unsafe",), ("Safe", "Controversial"), anchor="Safety:"),
}
_OURS = {
    "Violent": "crime_advice",
    "Non-violent Illegal Acts": "crime_advice",
    "Sexual Content or Sexual Acts": "sexual_harmful_to_minors",
    "PII": "privacy_violation",
    "Suicide & Self-Harm": "self_harm_suicide",
    "Politically Sensitive Topics": "sensitive_biased_topic",
    "Copyright Violation": "copyright_infringement",
}


def load(
    name: str,
    target: str | None = None,
    *,
    mode: Literal["strict", "loose"] = "strict",
    base_url: str | None = None,
    batch_size: int = 8,
) -> GenerativeGuard:
    """The guard `target` (a directory, hub id or served model), where `mode` says if controversial is unsafe."""
    return GenerativeGuard(
        name,
        load_runner(target or MODEL, base_url, batch_size),
        user_turn,
        READINGS[mode],
        category=category_reader(r"Categories:[ \t]*(.*)", _OURS),
        max_new_tokens=32,
    )
