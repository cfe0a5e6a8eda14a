"""A small HTTP/1.1 client over a plain connection, so that a benchmark can hang up wherever it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Reply:
    """An answer: its head, and its body as it comes in."""

    status: int
    headers: dict[str, str]
    _reader: asyncio.StreamReader

    async def parts(self) -> AsyncIterator[bytes]:
        """The pieces of the body, as they were sent."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            yield await self._reader.readexactly(int(self.headers["content-length"]))
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)

    async def read(self) -> bytes:
        """All of the body."""
        return b"".join([part async for part in self.parts()])


class Client:
    """One connection, opened again when it was dropped or closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, body: dict[str, Any]) -> Reply:
        """Send a request; comes back with the head of the answer."""
        reader = await self.send(path, body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
        return Reply(int(first.split()[1]), headers, reader)

    async def send(self, path: str, body: dict[str, Any], cut: int = 0) -> asyncio.StreamReader:
        """Send a request, without its last `cut` bytes."""
        if self._writer is None or self._writer.is_closing() or self._reader.at_eof():
            self.drop()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        content = json.dumps(body, ensure_ascii=False).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        self._writer.write(request[: len(request) - cut])
        await self._writer.drain()
        return self._reader

    def drop(self) -> None:
        """Hang up."""
        if self._writer:
            self._writer.transport.abort()
            self._writer = None
