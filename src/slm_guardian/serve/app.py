"""The application: routes, errors and access put together, and what lives as long as the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse

from slm_guardian.errors import GuardianError
from slm_guardian.serve import tracing
from slm_guardian.serve.access import Access, Traffic, fault_response
from slm_guardian.serve.audit import Audit
from slm_guardian.serve.faults import BadRequest, Broken, ServeError, TooLarge, error_body
from slm_guardian.serve.gateway import Gateway
from slm_guardian.serve.guards import Guards
from slm_guardian.serve.judge import Judge
from slm_guardian.serve.metrics import Metrics
from slm_guardian.serve.routes import chat, guard, info, litellm, moderations, playground
from slm_guardian.serve.settings import Settings

_log = logging.getLogger("slm_guardian.serve")
_WATCH_S = 1.0
_RETRY_S = 3.0
_MESSAGES = {
    400: "the body is not JSON that can be read",
    404: "nothing is here: see /openapi.json for the routes",
    405: "not with this method: see /openapi.json for the routes",
}
_HEADERS = ["Verdict", "Category", "Harm", "Policy"]


def create_app(settings: Settings, guards: Guards | None = None) -> FastAPI:
    """The gateway as an ASGI application; `guards` where they are loaded already."""
    app = FastAPI(
        title="SLM Guardian gateway",
        version="1",
        lifespan=_lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.settings, app.state.guards = settings, guards
    app.state.metrics, app.state.traffic = Metrics(), Traffic()
    shown = [playground] if settings.playground else []
    for module in (moderations, guard, chat, litellm, info, *shown):
        app.include_router(module.router)
    app.add_exception_handler(ServeError, _fault)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(GuardianError, _fault)
    app.add_middleware(Access, settings=settings, traffic=app.state.traffic, metrics=app.state.metrics)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[*(f"X-Guardian-{name}" for name in _HEADERS), "X-Request-Id"],
        )
    app.openapi = _openapi(app)
    return app


def preflight(settings: Settings) -> Guards:
    """The loaded policy sets, after all else that can fail was tried once. Raises InputError with what to do."""
    tracing.setup(settings)
    tracing.shutdown()
    if settings.audit:
        Audit.open(settings.audit).close()
    return Guards(settings)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the process serves with. What cannot be opened leaves a server that says so and refuses all."""
    async with contextlib.AsyncExitStack() as stack:
        if not await _open(app, stack):
            again = asyncio.create_task(_open_later(app, stack))
            stack.callback(again.cancel)
        stack.enter_context(_signals(app))
        yield


async def _open(app: FastAPI, stack: contextlib.AsyncExitStack) -> bool:
    """Try to open everything; whether that worked. What did not is said once, and to who asks /readyz."""
    traffic: Traffic = app.state.traffic
    try:
        async with contextlib.AsyncExitStack() as opened:
            app.state.gateway = await _opened(app, opened)
            stack.push_async_exit(opened.pop_all())
    except GuardianError as error:
        if traffic.broken != str(error):
            _log.error("cannot serve: %s", error)
        traffic.broken = str(error)
        return False
    traffic.broken = None
    return True


async def _open_later(app: FastAPI, stack: contextlib.AsyncExitStack) -> None:
    """Try again until it works: a file may be put right."""
    while True:
        await asyncio.sleep(_RETRY_S)
        if await _open(app, stack):
            return


async def _opened(app: FastAPI, stack: contextlib.AsyncExitStack) -> Gateway:
    settings, metrics = app.state.settings, app.state.metrics
    tracing.setup(settings)
    stack.callback(tracing.shutdown)
    guards = app.state.guards or await asyncio.to_thread(Guards, settings)
    gateway = Gateway(settings, guards, Judge(settings, metrics), metrics)
    if settings.audit:
        gateway.audit = await asyncio.to_thread(Audit.open, settings.audit, metrics.audit_dropped)
        stack.callback(gateway.audit.close)
    if settings.upstream:
        from slm_guardian.serve.upstream import Upstream

        gateway.upstream = upstream = Upstream(settings, metrics)
        stack.push_async_callback(upstream.aclose)
    gateway.judge.start()
    stack.push_async_callback(gateway.judge.stop)
    await gateway.judge.probe(guards.all())
    watcher = asyncio.create_task(_watch(gateway))
    stack.callback(watcher.cancel)
    return gateway


async def _watch(gateway: Gateway) -> None:
    """Reload policies whose files changed; try again to judge where that failed."""
    while True:
        await asyncio.sleep(_WATCH_S)
        if gateway.guards.stale():
            await _reload(gateway)
        if not gateway.judge.ready:
            with contextlib.suppress(ServeError):
                await gateway.judge.probe(gateway.guards.all())


async def _reload(gateway: Gateway) -> None:
    reloaded = await asyncio.to_thread(gateway.guards.reload)
    gateway.metrics.reload(reloaded.error is None)


@contextlib.contextmanager
def _signals(app: FastAPI):
    """SIGHUP reloads the policies; SIGTERM and SIGINT drain before the server may stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def run(what: Callable[..., object], *values: object) -> None:
        task = loop.create_task(what(*values))  # type: ignore[arg-type]
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def reload() -> None:
        if not app.state.traffic.broken:
            await _reload(app.state.gateway)

    servers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, server in servers.items():
        loop.add_signal_handler(number, run, _drained, app, number, server)
    loop.add_signal_handler(signal.SIGHUP, run, reload)
    yield


async def _drained(app: FastAPI, number: int, server: Callable[..., object]) -> None:
    """Take no more requests, wait for those that run, then hand the signal on; a second one does so at once."""
    traffic: Traffic = app.state.traffic
    patience = 0 if traffic.draining else app.state.settings.limits.drain_s
    traffic.draining = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while traffic.running:
                await asyncio.sleep(0.02)
    server(number, None)


async def _fault(request: Request, error: Exception) -> JSONResponse:
    return fault_response(error if isinstance(error, ServeError) else Broken(str(error)))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = _MESSAGES.get(error.status_code, str(error.detail))
    known = {fault.status: fault.code for fault in (BadRequest, TooLarge)}
    code = known.get(error.status_code, f"http_{error.status_code}")
    body = error_body(message, "invalid_request_error", None, code)
    return JSONResponse(body, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a body, in words and by field; never what it holds."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    names = [str(part) for part in first["loc"][1:] if first["type"] != "json_invalid"]
    message = first["msg"].removeprefix("Value error, ") if names else _MESSAGES[400]
    if isinstance(error.body, bytes):
        message = "the body is not read as JSON: send it with Content-Type: application/json"
    where = f"{'.'.join(names)}: " if names else ""
    return fault_response(BadRequest(where + message, param=names[0] if names else None))


def _openapi(app: FastAPI) -> Callable[[], dict]:
    """The document without FastAPI's own 422: a body that does not fit is a 400 here."""
    made = app.openapi

    def openapi() -> dict:
        document = made()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return document

    return openapi
