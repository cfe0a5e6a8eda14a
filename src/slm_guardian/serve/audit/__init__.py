"""The audit log: who asked what kind of thing, what was said and by which policy; the text only if wanted."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from slm_guardian.errors import GuardianError
from slm_guardian.serve.settings import AuditSettings

if TYPE_CHECKING:
    from slm_guardian.serve.audit.store import Store

QUEUE = 10_000  # entries that wait for the database
CHARACTERS = 50_000_000  # and their texts together
BATCH = 500
_PURGE_S = 3600
_RETRY_S = (0.1, 0.5, 1, 2, 5)
_CLOSE_S = 15
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One judged text; `target` says whether it went to the LLM (`input`) or came from it (`output`)."""

    route: str
    caller: str
    policy: str
    policy_version: str
    model: str
    label: str
    category: str | None
    harm: float | None
    action: str
    text: str = field(repr=False)
    target: str = "input"


class Audit:
    """Writes entries in a thread of its own. Build one with `Audit.open`, end it with `close`.

    While the database is away, entries wait in a queue; what does not fit there is counted in `dropped`
    and told to `on_drop`, never waited for.
    """

    def __init__(
        self, store: Store, settings: AuditSettings, on_drop: Callable[[int], None] | None = None
    ) -> None:
        self.dropped = 0
        self._store = store
        self._settings = settings
        self._on_drop = on_drop
        self._salt = _salt(settings.salt_env)
        self._rows: deque[dict[str, Any]] = deque()
        self._characters = 0
        self._changed = threading.Condition()
        self._closing = False
        self._failures = 0
        self._purge_at = time.monotonic()
        self._writer = threading.Thread(target=self._write, name="audit", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, settings: AuditSettings, on_drop: Callable[[int], None] | None = None) -> Audit:
        """Connect and bring the tables up to date. Raises InputError with what to do."""
        from slm_guardian.serve.audit.store import Store

        return cls(Store(settings.url), settings, on_drop)

    def record(self, entry: Entry) -> None:
        """Take an entry to be written; never blocks and never fails."""
        row = self._row(entry)
        with self._changed:
            room = len(self._rows) < QUEUE and self._characters + _size(row) <= CHARACTERS
            if room and not self._closing:
                self._rows.append(row)
                self._characters += _size(row)
                self._changed.notify()
                return
        self._drop(1)

    def purge(self) -> int:
        """Delete what is older than the settings' `days`; how many entries that were.

        Raises GuardianError while the database is away.
        """
        return self._store.purge(datetime.now(UTC) - timedelta(days=self._settings.days))

    def close(self) -> None:
        """Write what waits, then stop; what the database does not take now is lost and counted."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join(_CLOSE_S)
        if self._rows:
            self._drop(len(self._rows))
            self._rows.clear()
        self._store.close()

    def _row(self, entry: Entry) -> dict[str, Any]:
        # Only what every database can hold: no NUL, no half of a surrogate pair.
        values = {k: _storable(v) if isinstance(v, str) else v for k, v in asdict(entry).items()}
        digest = hmac.new(self._salt, entry.text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        values["text"] = values["text"] if self._settings.text else None
        return values | {"id": uuid.uuid4().hex, "at": datetime.now(UTC), "query_sha256": digest.hexdigest()}

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._due, self._pause())
                batch, closing = list(islice(self._rows, BATCH)), self._closing
            if closing and not batch:
                return
            if not self._inserted(batch) and closing:
                return
            if time.monotonic() >= self._purge_at:
                self._purge_at = time.monotonic() + self._purged()

    def _due(self) -> bool:
        return self._closing or (bool(self._rows) and not self._failures)

    def _pause(self) -> float:
        """Seconds until there is something to do but for new entries: another try, or a purge."""
        if self._failures:
            return _RETRY_S[min(self._failures, len(_RETRY_S)) - 1]
        return max(0.0, self._purge_at - time.monotonic())

    def _inserted(self, batch: list[dict[str, Any]]) -> bool:
        try:
            if batch:
                self._store.insert(batch)
        except GuardianError as error:
            self._failures += 1
            if self._failures == 1:
                _log.warning("audit: entries wait in memory: %s", error)
            return False
        if batch and self._failures:
            _log.warning("audit: entries are written again; lost since the start: %d", self.dropped)
            self._failures = 0
        self._forget(batch)
        return True

    def _purged(self) -> float:
        """Purge; seconds until the next time."""
        try:
            self.purge()
        except GuardianError as error:
            _log.warning("audit: old entries are not deleted, next try in a minute: %s", error)
            return _PURGE_S / 60
        return _PURGE_S

    def _forget(self, batch: list[dict[str, Any]]) -> None:
        with self._changed:
            for _ in batch:
                self._characters -= _size(self._rows.popleft())

    def _drop(self, n: int) -> None:
        with self._changed:
            self.dropped += n
        if self._on_drop:
            self._on_drop(n)


def _salt(name: str) -> bytes:
    """The salt of the environment; a random one is put there, for the worker processes to share."""
    if not os.environ.get(name):
        _log.warning("audit: %s is not set: query hashes will not match across restarts", name)
        os.environ[name] = secrets.token_hex(32)
    return os.environ[name].encode()


def _size(row: dict[str, Any]) -> int:
    return len(row["text"] or "")


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
