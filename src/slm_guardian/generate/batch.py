"""Batch backend: OpenAI-Batch request files out, response files in; whoever runs the model is elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slm_guardian.example import write_jsonl


@dataclass(frozen=True)
class Request:
    """One chat request. `custom_id` is a content hash: writing the same request again changes nothing."""

    custom_id: str
    system: str
    user: str


def write_requests(path: Path, requests: Iterable[Request], model: str) -> int:
    """Write an OpenAI-Batch request file (one `/v1/chat/completions` call a line); returns the count."""
    return write_jsonl(path, (_line(request, model) for request in requests))


def _line(request: Request, model: str) -> dict[str, object]:
    messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
    body = {"model": model, "messages": messages}
    return {"custom_id": request.custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def read_responses(paths: Iterable[Path]) -> tuple[dict[str, str], int]:
    """Read OpenAI-Batch response files, in any order and also when cut off.

    Returns the answers by `custom_id` and the number of lines that carried no answer.
    """
    answers: dict[str, str] = {}
    failed = 0
    for path in paths:
        # Not splitlines: an answer may hold U+2028.
        for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                content = row["response"]["body"]["choices"][0]["message"]["content"]
                if not isinstance(content, str):  # a refusal has no content
                    raise TypeError("no text")
                answers[row["custom_id"]] = content
            except (ValueError, KeyError, TypeError, IndexError, RecursionError):
                failed += 1
    return answers, failed
