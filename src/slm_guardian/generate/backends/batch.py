"""Batch backend: OpenAI-Batch request files out, response files in; whoever runs the model is elsewhere."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from slm_guardian.example import write_jsonl
from slm_guardian.generate.backends import Completion, Request
from slm_guardian.generate.backends.openai import Chat, chat_body


class BatchBackend:
    """Answers from response files; what has none yet is written to a request file.

    `responses` are paths or globs; files may come later, in any order, cut off, with error lines (those requests
    are written again). After each call of `complete` the request file holds all that this object was asked and
    that has no answer.
    """

    name = "batch"

    def __init__(self, requests_file: str | Path, responses: Sequence[str], model: str) -> None:
        self.requests_file, self.responses, self.model = Path(requests_file), list(responses), model
        self._pending: dict[str, Request] = {}

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """The completions that have come; the error "pending" for the rest, which is in the request file."""
        paths = {Path(name) for pattern in self.responses for name in glob.glob(pattern, recursive=True)}
        answers = read_completions(sorted(paths))[0]
        self._pending |= {r.custom_id: r for r in requests}
        self._pending = {i: r for i, r in self._pending.items() if i not in answers}
        write_requests(self.requests_file, self._pending.values(), self.model)
        for request in requests:
            yield answers.get(request.custom_id) or Completion(request.custom_id, None, "pending")


def write_requests(path: Path, requests: Iterable[Request], model: str) -> int:
    """Write an OpenAI-Batch request file (one `/v1/chat/completions` call a line); returns the count."""
    return write_jsonl(path, (_line(request, model) for request in requests))


def _line(request: Request, model: str) -> dict[str, object]:
    body = chat_body(model, request)
    return {"custom_id": request.custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


class Response(BaseModel):
    """What the batch got from the model's server."""

    body: Chat


class ResponseLine(BaseModel):
    """A line of a response file that carries an answer."""

    custom_id: str
    response: Response


def read_completions(paths: Iterable[Path]) -> tuple[dict[str, Completion], int]:
    """Read OpenAI-Batch response files, in any order and also when cut off.

    Returns the completions by `custom_id` and the number of lines that carried none. A refusal is a completion;
    where an id comes more than once, one with text counts.
    """
    found: dict[str, Completion] = {}
    failed = 0
    for path in paths:
        # Not splitlines: an answer may hold U+2028.
        for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
            if not line.strip():
                continue
            try:
                row = ResponseLine.model_validate_json(line)
            except ValidationError:
                failed += 1
                continue
            completion = row.response.body.completion(row.custom_id)
            if completion.text is not None:
                found[row.custom_id] = completion
            elif completion.error == "refused":
                found.setdefault(row.custom_id, completion)
            else:
                failed += 1
    return found, failed


def read_responses(paths: Iterable[Path]) -> tuple[dict[str, str], int]:
    """The answers of response files by `custom_id`, and the number of lines that carried no text."""
    completions, failed = read_completions(paths)
    answers = {name: c.text for name, c in completions.items() if c.text is not None}
    return answers, failed + len(completions) - len(answers)
