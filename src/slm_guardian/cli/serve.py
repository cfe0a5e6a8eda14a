"""guardian serve: the gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from socket import socket

    from slm_guardian.serve.settings import Settings


def serve(
    upstream: Annotated[
        str | None, typer.Option(help="The main LLM: any OpenAI-compatible URL, up to and with /v1.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, see docs/GATEWAY.md.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the model loaded.")] = 1,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="Policy name or file, one a language; repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model directory; default: the shipped one.")
    ] = None,
    audit: Annotated[
        str | None, typer.Option(help="Audit log: sqlite:///audit.db or postgresql+psycopg://...")
    ] = None,
    judge_answers: Annotated[
        bool, typer.Option("--judge-answers", help="Judge the upstream's answers, too.")
    ] = False,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print a new API key and its settings, and stop.")
    ] = None,
) -> None:
    """Serve moderations, verdicts and a chat proxy over HTTP.

    Examples: guardian serve --upstream http://localhost:8000/v1

    guardian serve --config gateway.yaml --workers 2

    guardian serve --new-key web-shop

    SIGHUP, or a changed file, reloads the policies; SIGTERM lets running requests finish.
    """
    if new_key is not None:
        return _print_key(new_key)
    from slm_guardian.serve.settings import Settings

    settings = Settings.load(
        config,
        upstream={"url": upstream} if upstream else None,
        policies={"default": {"files": policy}} if policy else None,
        model=model,
        audit={"url": audit} if audit else None,
        answers={"judge": True} if judge_answers else None,
    )
    _serve(settings, host, port, workers)


def _print_key(name: str) -> None:
    from slm_guardian.serve.access import new_key

    made = new_key()
    print(f"{made['key']}\n\n# The key is shown this once. In the settings:\nkeys:")
    print(f'  - name: {json.dumps(name, ensure_ascii=False)}\n    sha256: "{made["sha256"]}"')


def _serve(settings: Settings, host: str, port: int, workers: int) -> None:
    from slm_guardian.serve.app import preflight
    from slm_guardian.serve.process import listen, run, run_workers

    guards = preflight(settings)
    with listen(host, port) as socket:
        print(_line(settings, guards.model, socket, workers), flush=True)
        if workers == 1:
            run(settings, guards, socket)
        else:
            run_workers(settings, socket, workers)


def _line(settings: Settings, model: str, socket: socket, workers: int) -> str:
    """Where the gateway is and what is on, in one line."""
    from urllib.parse import urlsplit

    host, port = socket.getsockname()[:2]
    upstream = urlsplit(settings.upstream.url) if settings.upstream else None
    on = [
        f"http://{f'[{host}]' if ':' in host else host}:{port}",
        f"model {model}",
        f"policies {', '.join(settings.policies)}",
        f"upstream {upstream.scheme}://{upstream.netloc.rpartition('@')[2]}" if upstream else "no upstream",
        f"keys {len(settings.keys)}" if settings.keys else "no keys",
        *(["answers judged"] if settings.answers.judge else []),
        *([f"audit {settings.audit.url.partition(':')[0]}"] if settings.audit else []),
        *(["tracing"] if settings.tracing else []),
        *(["playground at /"] if settings.playground else []),
        *([f"{workers} workers"] if workers > 1 else []),
    ]
    return "guardian: " + " | ".join(on)
