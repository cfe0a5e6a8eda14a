"""The readers of what models answer to the requests of `prompts`: examples with provenance, rejects with reasons."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from slm_guardian.example import Example, Reject
from slm_guardian.generate.backends import Request
from slm_guardian.generate.parse import numbered
from slm_guardian.policy import Policy
from slm_guardian.text import display

KINDS = (
    "homonym", "figurative", "safe_target", "safe_context", "definition", "historical", "fiction", "public_info",
    "legal_info", "victim_help", "professional", "educational", "past_results", "both_sides", "everyday",
)  # fmt: skip
_VERDICT = re.compile(r"\W*(?:safe\b|unsafe\W+([a-z][a-z0-9_]*))", re.IGNORECASE)
_SKIPPED = {"-", "–", "—"}


def read(request: Request, text: str, policies: Mapping[str, Policy]) -> tuple[list[Example], list[Reject]]:
    """Examples of an answer, with their provenance in `extra`, and a reject for each item that gave none.

    `policies` by language. What comes back depends on `request.meta["task"]`: new queries; twins, which share the
    pair id of their harmful rows; rewritten or translated rows; the given rows with a response; or the given rows
    with the label and category that the judge chose.
    """
    if request.meta["task"] in _READERS:
        return _read_items(request, _items(text), policies[request.meta["lang"]])
    return _read_queries(request, text)


def _items(text: str) -> dict[int, str]:
    return {number: item for number, raw in numbered(text).items() if (item := display(raw))}


def _read_queries(request: Request, text: str) -> tuple[list[Example], list[Reject]]:
    """New queries; an answer that goes on right behind the number where the prompt broke off is read as such."""
    meta, where = request.meta, request.custom_id
    items = _items(text)
    if meta["first"] not in items and meta["first"] + 1 in items:
        items = _items(f"{meta['first']}. {text.lstrip()}")
    kept: list[Example] = []
    rejects: list[Reject] = []
    for number, item in sorted(items.items()):
        row = _query(request, number, item)
        if row.id in meta["seeds"]:
            continue  # the list was begun anew, seeds first
        reason = "skipped by the model" if item in _SKIPPED else None
        if reason is None and len(kept) + len(rejects) >= meta["count"]:
            reason = "more than asked for"
        if reason:
            rejects.append(Reject(f"{where}#{number}", reason))
        else:
            kept.append(row)
    missing = max(0, meta["count"] - len(kept) - len(rejects))
    return kept, rejects + [Reject(where, "missing")] * missing


def _query(request: Request, number: int, item: str) -> Example:
    meta, cell = request.meta, request.meta["cell"]
    is_harmful = meta["label"] == "unsafe"
    return Example(
        text=item,
        label=meta["label"],
        category=cell.category if is_harmful else None,
        lang=meta["lang"],
        kind=meta.get("kind", cell.frame),
        source=f"generated/{meta['task']}",
        pair=f"{request.custom_id}#{number}" if is_harmful else None,
        extra=_provenance(request, cell.category) | {"seeds": meta["seeds"]},
    )


def _read_items(
    request: Request, items: Mapping[int, str], policy: Policy
) -> tuple[list[Example], list[Reject]]:
    """One result for each row that the request was about."""
    kept: list[Example] = []
    rejects: list[Reject] = []
    reader = _READERS[request.meta["task"]]
    for number, row in enumerate(request.meta["rows"], 1):
        item = items.get(number, "")
        if not item or item in _SKIPPED:
            made = "skipped by the model" if item else "missing"
        else:
            made = reader(request, policy, row, item)
        if isinstance(made, Example):
            kept.append(made)
        else:
            rejects.append(Reject(f"{request.custom_id}#{number}", made))
    return kept, rejects


def _read_twin(request: Request, policy: Policy, row: Example, item: str) -> Example | str:
    kind, bar, text = (part.strip(" \"'`*“”") for part in item.partition("|"))
    if not bar or not text:
        return "not 'kind | query'"
    extra = _provenance(request, row.category) | {"twin_of": row.id}
    return Example(
        text=text,
        label="safe",
        lang=policy.language,
        kind=kind if kind in KINDS else "contrast",
        source="generated/twins",
        pair=_pair(row),
        extra=extra,
    )


def _read_rewritten(request: Request, policy: Policy, row: Example, item: str) -> Example | str:
    """A paraphrase or a translation: label, category and kind stay, and the pair keeps both in one split."""
    if row.category and row.category not in policy.by_id:
        return "category unknown to the policy"
    task = request.meta["task"]
    origin = {"paraphrase": "paraphrase_of", "translate": "translation_of"}[task]
    extra = _provenance(request, row.category) | {origin: row.id, "original": row.text}
    source = f"generated/{task}"
    made = replace(
        row, text=item, lang=policy.language, response=None, source=source, pair=_pair(row), extra=extra
    )
    return "repeats the original" if made.id == row.id else made


def _read_response(request: Request, policy: Policy, row: Example, item: str) -> Example | str:
    answer = {"response_prompt": request.custom_id, "response_policy": request.meta["policy"]}
    return replace(row, response=policy.to_slots(item), extra=row.extra | answer)


def _read_verdict(request: Request, policy: Policy, row: Example, item: str) -> Example | str:
    verdict = _VERDICT.match(item)
    if not verdict:
        return "not a verdict"
    category = verdict[1].lower() if verdict[1] else None
    if category and category not in policy.by_id:
        return "category unknown to the policy"
    return replace(row, label="unsafe" if category else "safe", category=category)


_READERS: dict[str, Callable[[Request, Policy, Example, str], Example | str]] = {
    "twins": _read_twin,
    "paraphrase": _read_rewritten,
    "translate": _read_rewritten,
    "respond": _read_response,
    "judge": _read_verdict,
}


def _provenance(request: Request, clause: str | None) -> dict[str, Any]:
    meta = request.meta
    extra = {"policy": meta["policy"], "clause": clause, "task": meta["task"], "prompt": request.custom_id}
    return extra | ({"cell": meta["cell"].to_dict()} if meta["cell"] else {})


def _pair(row: Example) -> str:
    """The id that a row shares with its twin, paraphrases and translations."""
    return row.pair or f"{row.source or ''}#{row.id}"
