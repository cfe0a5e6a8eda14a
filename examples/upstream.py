"""A tiny OpenAI-compatible server to try the gateway with: it gives every chat the same short answer.

python examples/upstream.py --port 9000
guardian serve --upstream http://127.0.0.1:9000/v1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

ANSWER = "Hello! I am the main LLM behind the guardian."
MODEL = "tiny-upstream"
_HEAD = {"id": "chatcmpl-tiny", "created": 0, "model": MODEL}

app = FastAPI()


@app.get("/v1/models")
def models() -> dict[str, Any]:
    """The one model."""
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "example"}]}


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """The answer, whole or streamed word by word."""
    asked = await request.json()
    if asked.get("stream"):
        return StreamingResponse(events(ANSWER), media_type="text/event-stream")
    return JSONResponse(completion(ANSWER))


def completion(text: str, **message: Any) -> dict[str, Any]:
    """A chat completion with a text."""
    said = {"role": "assistant", "content": text} | message
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    return _HEAD | {"object": "chat.completion", "choices": [choice], "usage": usage}


def events(text: str) -> Iterator[bytes]:
    """The server-sent events of a streamed completion, one a word."""
    yield event({"role": "assistant", "content": ""})
    for i, word in enumerate(text.split(" ")):
        yield event({"content": f" {word}" if i else word})
    yield event({}, "stop")
    yield b"data: [DONE]\n\n"


def event(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> bytes:
    """One event of a streamed completion."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    body = _HEAD | {"object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def main() -> None:
    """Serve on loopback."""
    import uvicorn

    parser = argparse.ArgumentParser(description="A tiny OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=9000)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)


if __name__ == "__main__":
    main()
