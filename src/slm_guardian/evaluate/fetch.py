"""Published data sets from their homes: each file once, into the cache, with a lock beside it that says what was got.

Homes are GitHub and the Hugging Face hub, or mirrors of them that GITHUB_RAW and HF_ENDPOINT name. A set without a
revision is got as it is now; its lock pins it from then on. Remove the lock to get a newer one.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from slm_guardian.errors import DataError, GuardianError
from slm_guardian.evaluate.registry import DataSource, cache_directory
from slm_guardian.example import write_json

LIMIT = 200 * 2**20  # bytes of a file; the largest known one has under 30 MB
_TIMEOUT = 30.0  # seconds without a byte
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Lock:
    """What was got: `revision` is the commit, where the home says it, else the name that was asked for."""

    url: str
    revision: str
    sha256: str
    bytes: int


def fetch(source: DataSource, limit: int = LIMIT) -> list[Path]:
    """The files of a set: those that are here, else got from their home.

    Raises DataError for a set that nobody publishes as a file, and GuardianError where a file cannot be got or is not
    the known one; the message says how to get it by hand. Nothing but whole files is left in the cache.
    """
    if found := source.find():
        return found
    if not source.fetch:
        raise DataError(source.missing())
    if source.gated and not os.environ.get("HF_TOKEN"):
        raise _error(source, "is gated: accept its terms at its home and set HF_TOKEN")
    return [_get(source, path, name, limit) for path, name in zip(source.fetch, source.names, strict=True)]


def read_lock(path: Path) -> Lock | None:
    """What is known of a fetched file; None for one that was not fetched."""
    try:
        return Lock(**json.loads(_lock_of(path).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise DataError(f"{_lock_of(path)} is damaged: remove it and fetch again") from None


def _get(source: DataSource, path: str, name: str, limit: int) -> Path:
    """One file, by way of a partial one that only a file with the right hash outlives."""
    target = cache_directory() / name
    partial = target.with_name(name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    known = read_lock(target)
    url = _url(source.home, source.revision or (known.revision if known else None), path)
    try:
        got = _download(source, url, partial, limit)
        pinned = known.sha256 if known and known.revision == got.revision else None
        expected = source.sha256.get(name, pinned)
        if expected and got.sha256 != expected:
            raise _error(source, f"is not the known file: {name} has another sha256 than {expected[:16]}")
        write_json(_lock_of(target), asdict(got))
        return partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _download(source: DataSource, url: str, partial: Path, limit: int) -> Lock:
    """Write what a URL holds to a file. Raises GuardianError that says why it cannot be got."""
    try:
        import httpx2
    except ImportError:
        raise GuardianError("fetching needs httpx2: pip install 'slm-guardian[evaluate]'") from None
    # Bytes as they are stored: a .gz file stays one, and the length is that of the file.
    headers = {"Accept-Encoding": "identity", **_authorisation(source)}
    try:
        with httpx2.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
            _check(source, response.status_code, urlsplit(url))
            sha256, size = _write(source, response, partial, limit)
    except httpx2.HTTPError as error:  # no network, a proxy that refuses, a connection that breaks
        raise _error(
            source, f"cannot be got: no answer from {urlsplit(url).netloc} ({type(error).__name__})"
        ) from None
    commits = [answer.headers.get("x-repo-commit") for answer in (*response.history, response)]
    revision = next(filter(None, commits), None) or source.revision or "latest"
    return Lock(url, revision, sha256, size)


def _write(source: DataSource, response: Any, partial: Path, limit: int) -> tuple[str, int]:
    """Hash and size of what was written, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn()
    whole, size, length = hashlib.sha256(), 0, response.headers.get("content-length")
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        partial.open("wb") as file,
    ):
        task = bar.add_task(source.name, total=int(length) if length else None)
        for chunk in response.iter_bytes():
            size += len(chunk)
            if size > limit:
                raise _error(source, f"is larger than {limit / 2**20:.0f} MB, which no known set is")
            whole.update(chunk)
            file.write(chunk)
            bar.update(task, completed=size)
    return whole.hexdigest(), size


def _check(source: DataSource, status: int, url: Any) -> None:
    """Raises GuardianError for an answer that is not the file."""
    reasons = {
        401: "is gated: accept its terms at its home and set HF_TOKEN to a token that is valid",
        403: "is gated: accept its terms at its home with the account of HF_TOKEN",
        404: f"is not at its known place any more ({url.netloc} has no {url.path})",
    }
    if status != 200:
        raise _error(source, reasons.get(status, f"cannot be got: {url.netloc} answered {status}"))


def _url(home: str, revision: str | None, path: str) -> str:
    """Where a file of a home is; without a revision the newest one."""
    place = urlsplit(home)
    if home.startswith(_HUB):
        return f"{_base('HF_ENDPOINT', _HUB)}{place.path}/resolve/{revision or 'main'}/{quote(path)}"
    base = _base("GITHUB_RAW", "https://raw.githubusercontent.com")
    return f"{base}{place.path}/{revision or 'HEAD'}/{quote(path)}"


def _base(variable: str, default: str) -> str:
    return (os.environ.get(variable) or default).rstrip("/")


def _authorisation(source: DataSource) -> dict[str, str]:
    """The hub's token for the hub alone; httpx2 drops it where a redirect leads to another host."""
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and source.home.startswith(_HUB) else {}


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock.json")


def _error(source: DataSource, reason: str) -> GuardianError:
    return GuardianError(f"{source.name} {reason}; or {source.by_hand()}")
