"""An upstream that misbehaves as each request asks, in the field `soak`, and keeps count. For bench/soak.py.

`soak` is {"id", "fault", "chunks"}. Chunk i of a streamed answer says "id:i ". /report gives, for each id, how often
it came, how many chunks were sent, and how that ended: `done`, `gone` (the caller hung up) or the fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any

SLOW_S = 0.1
_HEAD = "HTTP/1.1 {} OK\r\nContent-Type: {}\r\n{}\r\n"
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
REPORT: dict[str, dict[str, Any]] = {}


class Gone(Exception):
    """The caller hung up."""


@dataclass
class Exchange:
    """One request and its answer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asked: dict[str, Any]

    async def answer(self) -> str:
        """Answer as asked; how it ended."""
        soak = self.asked["soak"]
        name, fault = soak["id"], soak.get("fault")
        entry = REPORT.setdefault(name, {"calls": 0, "sent": 0, "end": None})
        entry["calls"] += 1
        try:
            entry["end"] = await self._as_told(name, fault, soak["chunks"], entry)
        except (Gone, ConnectionError):
            entry["end"] = "gone"
        return entry["end"]

    async def _as_told(self, name: str, fault: str | None, chunks: int, entry: dict[str, Any]) -> str:
        if fault in ("500", "429"):
            self._whole(int(fault), error(name))
            return "done"
        if fault == "silent":
            await self._pause(3600)
        if fault in ("reset", "empty"):
            return fault
        if not self.asked.get("stream"):
            self._whole(200, completion(name, chunks))
            return "done"
        self.writer.write(_HEAD.format(200, "text/event-stream", "Transfer-Encoding: chunked\r\n").encode())
        for i in range(chunks):
            self._chunk(event(name, i))
            entry["sent"] += 1
            await self._pause(SLOW_S if fault == "slow" else 0)
        if fault == "stall":
            await self._pause(3600)
        if fault in ("cut", "rst"):
            return fault
        self._chunk(b"data: [DONE]\n\n")
        self.writer.write(b"0\r\n\r\n")
        return "done"

    async def _pause(self, seconds: float) -> None:
        """Wait. Raises Gone when the caller hangs up meanwhile."""
        await self.writer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.reader.read(1), seconds or 0.001)
            raise Gone

    def _whole(self, status: int, body: bytes) -> None:
        self.writer.write(
            _HEAD.format(status, "application/json", f"Content-Length: {len(body)}\r\n").encode() + body
        )

    def _chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def event(name: str, i: int) -> bytes:
    """Event i of a streamed answer."""
    choice = {"index": 0, "delta": {"content": f"{name}:{i} "}, "finish_reason": None}
    body = {"id": name, "object": "chat.completion.chunk", "created": 0, "model": "soak", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n".encode()


def completion(name: str, chunks: int) -> bytes:
    """An answer that is not streamed."""
    message = {"role": "assistant", "content": "".join(f"{name}:{i} " for i in range(chunks))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": name, "object": "chat.completion", "created": 0, "model": "soak", "choices": [choice]}
    return json.dumps(body).encode()


def error(name: str) -> bytes:
    """The body of an error."""
    return json.dumps({"error": {"message": name, "type": "soak", "param": None, "code": "soak"}}).encode()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            if head.startswith(b"GET"):
                answer = json.dumps(REPORT if b"/report" in head else {"data": []}).encode()
                kind = _HEAD.format(200, "application/json", f"Content-Length: {len(answer)}\r\n")
                writer.write(kind.encode() + answer)
            elif (end := await Exchange(reader, writer, json.loads(body)).answer()) != "done":
                return _close(writer, reset=end in ("reset", "rst"))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _close(writer: asyncio.StreamWriter, reset: bool) -> None:
    if reset:
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def main() -> None:
    """Serve on a free port of loopback."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
