"""What the backends over HTTP share: calls at the same time, retries by the SDK, which errors end a run."""

from __future__ import annotations

import asyncio
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from threading import Thread
from types import ModuleType
from typing import Any

from slm_guardian.errors import GuardianError, InputError
from slm_guardian.generate.backends import Completion, Request

NO_CONNECTION = "no connection"


@dataclass
class HTTPBackend(ABC):
    """Chats over HTTP, through an SDK that retries 429, 5xx, timeouts and lost connections with growing pauses.

    `concurrency` calls run at the same time; `timeout` is in seconds and for one try. Where the server asks to wait
    (Retry-After), the SDK waits that long.
    """

    name = key_variable = path = ""  # not fields: each backend sets its own

    model: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    timeout: float = 60
    retries: int = 5

    @abstractmethod
    def _sdk(self) -> tuple[ModuleType, Callable[..., Any]]:
        """The SDK and its asynchronous client class. Raises GuardianError where it is not installed."""

    @abstractmethod
    def _body(self, request: Request) -> dict[str, Any]:
        """What is posted."""

    @abstractmethod
    def _read(self, custom_id: str, answer: bytes) -> Completion:
        """The completion in the body of an answer. Raises ValueError where it is none."""

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they come; the next call starts when the consumer takes the next one.

        Raises GuardianError for a wrong key, an unknown model, an account without credit, and where the
        server cannot be reached: with the first request, or later for more than `concurrency` in a row.
        """
        sdk, client = self._connect()
        lost, patience = 0, 0
        calls = _concurrently(
            lambda request: self._call(sdk, client, request), client.close, requests, self.concurrency
        )
        with closing(calls):  # a traceback would keep it open
            for completion in calls:
                if completion.error != NO_CONNECTION:
                    lost, patience = 0, self.concurrency
                elif (lost := lost + 1) > patience:
                    raise GuardianError(
                        f"no connection to {_address(client)}: check the address, and that the server is running"
                    )
                yield completion

    def _connect(self) -> tuple[ModuleType, Any]:
        sdk, client_class = self._sdk()
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise InputError("the address of the endpoint must start with http:// or https://")
        key = (self.api_key or os.environ.get(self.key_variable, "")).strip()
        if not (key or self.base_url):
            raise InputError(f"the backend '{self.name}' needs a key: set {self.key_variable}")
        client = client_class(
            api_key=key or "none",  # a local server asks for none; the SDK does
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=self.retries,
        )
        return sdk, client

    async def _call(self, sdk: Any, client: Any, request: Request) -> Completion:
        import httpx2

        try:
            response = await client.post(self.path, cast_to=httpx2.Response, body=self._body(request))
            return self._read(request.custom_id, response.content)
        except ValueError:
            return Completion(request.custom_id, None, "not a completion")
        except sdk.APITimeoutError as error:
            unreached = isinstance(error.__cause__, httpx2.ConnectTimeout)
            return Completion(request.custom_id, None, NO_CONNECTION if unreached else "timeout")
        except sdk.APIConnectionError:
            return Completion(request.custom_id, None, NO_CONNECTION)
        except sdk.APIStatusError as error:
            self._raise_if_hopeless(error, client)
            return Completion(request.custom_id, None, f"http {error.status_code}")

    def _raise_if_hopeless(self, error: Any, client: Any) -> None:
        server = _address(client)
        if error.status_code == 401:
            raise GuardianError(f"{server} refused the key: check {self.key_variable}") from None
        if error.status_code == 404:
            raise GuardianError(
                f"{server} has no model '{self.model}': check its name and the address"
            ) from None
        if error.status_code == 402 or getattr(error, "code", None) == "insufficient_quota":
            raise GuardianError(
                f"the account at {server} has no credit left: top it up, then go on"
            ) from None


def _address(client: Any) -> str:
    """Scheme, host and port of the server, without a password in the URL."""
    return f"{client.base_url.scheme}://{client.base_url.netloc.decode()}"


def _concurrently(
    call: Callable[[Request], Coroutine[Any, Any, Completion]],
    close: Callable[[], Awaitable[None]],
    requests: Sequence[Request],
    limit: int,
) -> Generator[Completion, None, None]:
    """Results of `call` as they come, at most `limit` calls at a time.

    A call starts only when the result before it was taken, so that a consumer that stores each result has at
    most `limit` paid calls unstored when it is killed.
    """
    waiting = iter(requests)
    with _event_loop(close) as loop:

        def start(count: int) -> set[Future[Completion]]:
            return {asyncio.run_coroutine_threadsafe(call(r), loop) for r in islice(waiting, count)}

        running = start(limit)
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    running |= start(1)
        finally:
            for future in running:
                future.cancel()


@contextmanager
def _event_loop(close: Callable[[], Awaitable[None]]) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in its own thread: it goes on while the consumer works, and works in a notebook.

    Leaving waits for what still runs and calls `close`.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        if not sys.is_finalizing():  # then the thread is dead, and waiting for it would never end
            asyncio.run_coroutine_threadsafe(_finish(close), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _finish(close: Callable[[], Awaitable[None]]) -> None:
    # Not cancelled here: the tasks inside a call are the HTTP client's own, and it cancels them in order.
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
    await close()
