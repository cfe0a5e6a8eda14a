"""How good are the answers: the share that passed every check, why the others fell back, and samples to read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_guardian import answers
from slm_guardian.evaluate.resample import wilson
from slm_guardian.example import Example, write_json
from slm_guardian.guardian import Guardian


@dataclass(frozen=True)
class Answered:
    """One harmful query, what was shown for it, and why the model's own answer was not (if so)."""

    query: str
    category: str
    shown: str
    fault: str | None


def answer_all(guardian: Guardian, examples: Sequence[Example]) -> list[Answered]:
    """Answer every query under the category that the model finds (not the labelled one)."""
    rows = []
    for example in examples:
        verdict = guardian.check(example.text, respond=True, force=True)
        category = verdict.category or ""
        _, fault = guardian.draft(example.text, category)
        rows.append(Answered(example.text, category, verdict.response or "", fault))
    return rows


def still_faulty(guardian: Guardian, row: Answered) -> str | None:
    """The checks once more on what was shown: nothing may fail here."""
    policy = guardian.policy_for(row.query)
    category = policy.by_id[row.category]
    slots = policy.to_slots(row.shown)
    fault = answers.fault(slots, row.query, policy, category)
    # The policy's own fallback may name any of its facts.
    return None if fault == "a fact of another category" else fault


def report(
    guardian: Guardian, examples: Sequence[Example], n: int, printed: int, seed: int, out: Path
) -> dict[str, Any]:
    """Answer `n` random harmful rows, write a page with `printed` of them and its numbers; returns the numbers."""
    harmful = [e for e in examples if e.label == "unsafe"]
    chosen = random.Random(seed).sample(harmful, min(n, len(harmful)))
    rows = answer_all(guardian, chosen)
    fallbacks = Counter(row.fault for row in rows if row.fault)
    faults = Counter(fault for row in rows if (fault := still_faulty(guardian, row)))
    share = sum(fallbacks.values())
    numbers = {
        "n": len(rows),
        "fallback": {"rate": share / len(rows), "ci95": wilson(share, len(rows))},
        "fallback_reasons": dict(fallbacks.most_common()),
        "shown_with_fault": dict(faults),
        "distinct": len({row.shown for row in rows}) / len(rows),
        "seed": seed,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_page(numbers, rows[:printed], guardian.name), encoding="utf-8")
    write_json(out.with_suffix(".json"), numbers)
    return numbers


def _page(numbers: dict[str, Any], rows: Sequence[Answered], model: str) -> str:
    low, high = numbers["fallback"]["ci95"]
    reasons = ", ".join(f"{reason}: {n}" for reason, n in numbers["fallback_reasons"].items()) or "none"
    lines = [
        "# Answers to harmful queries",
        "",
        f"{numbers['n']} random harmful queries of the dev split (seed {numbers['seed']}), model `{model}`. ",
        f"Fell back to the policy's own text: {numbers['fallback']['rate']:.1%} "
        f"(95 % interval {low:.1%} to {high:.1%}; {reasons}). ",
        f"Shown with a fault: {sum(numbers['shown_with_fault'].values())}. "
        f"Distinct answers: {numbers['distinct']:.0%}.",
        "",
        "The first rows, as they come, for people to judge. `*` marks a fallback text.",
        "",
        "| query | category found | answer |",
        "|---|---|---|",
    ]
    for row in rows:
        cells = (row.query, row.category, ("* " if row.fault else "") + row.shown)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
