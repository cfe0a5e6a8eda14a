"""Running the gateway: one process, or several that share a socket under uvicorn's supervisor."""

from __future__ import annotations

import logging
import os
import signal
import socket
from functools import partial

from fastapi import FastAPI
from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess

from slm_guardian.errors import InputError
from slm_guardian.serve.app import create_app
from slm_guardian.serve.guards import Guards
from slm_guardian.serve.metrics import across_processes
from slm_guardian.serve.settings import Settings

_BACKLOG = 2048
_CLOSE_S = 2  # for connections still open once `drain_s` is over; the requests have had their time


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"cannot listen on {host}:{port} ({reason}): choose another --host or --port"
        ) from None


def run(settings: Settings, guards: Guards, listening: socket.socket) -> None:
    """Serve in this process until a signal ends it."""
    log_to_stderr()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises it once more when all is done
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the application takes it
    Server(_config(partial(create_app, settings, guards))).run([listening])


def run_workers(settings: Settings, listening: socket.socket, workers: int) -> None:
    """Serve in several processes, each with its own model, until a signal ends them."""
    threads = settings.threads or max(1, (os.cpu_count() or 1) // workers)
    shared = settings.model_copy(update={"threads": threads})
    with across_processes():
        _Supervisor(_config(partial(_worker, shared), workers), [listening]).run()


class _Supervisor(Multiprocess):
    """uvicorn's, but SIGHUP reloads the policies in the workers: a restart would fail on a broken file."""

    def handle_hup(self) -> None:
        for process in self.processes:
            if process.pid:
                os.kill(process.pid, signal.SIGHUP)


def _worker(settings: Settings) -> FastAPI:
    log_to_stderr()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the application takes it
    return create_app(settings)


def _config(app: object, workers: int = 1) -> Config:
    return Config(
        app,  # type: ignore[arg-type]
        factory=True,
        workers=workers,
        ws="none",
        access_log=False,  # uvicorn's holds query strings
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_CLOSE_S,
    )


def log_to_stderr() -> None:
    """The gateway's log lines on stderr: GUARDIAN_LOG=info shows one a request, without any text."""
    level = os.environ.get("GUARDIAN_LOG", "warning").upper()
    logging.basicConfig(level=logging.WARNING, format="guardian: %(levelname)s %(name)s: %(message)s")
    logging.getLogger("slm_guardian").setLevel(
        level if level in logging.getLevelNamesMapping() else "WARNING"
    )
