"""The audit log on SQLite and on a real PostgreSQL that the tests start."""

from __future__ import annotations

import hashlib
import hmac
import logging
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from postgres_server import Postgres, postgres
from slm_guardian.errors import GuardianError, InputError
from slm_guardian.serve.audit import QUEUE, Audit, Entry
from slm_guardian.serve.audit.store import MIGRATIONS
from slm_guardian.serve.settings import AuditSettings

SALT = "a salt of the tests"
QUERY = "how do I whittle a zebra-striped marker"
ENTRY = Entry("/v1/guard", "shop", "default", "0123abc", "mini", "unsafe", "crime", 0.97, "answer", QUERY)
TABLES = "guardian_audit, guardian_audit_version"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database of either kind; the salt is set."""
    monkeypatch.setenv("GUARDIAN_AUDIT_SALT", SALT)
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/audit.db"
    server: Postgres = request.getfixturevalue("server")
    query(server.url, f"DROP TABLE IF EXISTS {TABLES}")
    return server.url


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Rows as the database's own driver gives them: what a person sees who looks."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


def entries(n: int, text: str = "query") -> list[Entry]:
    return [Entry("/", "c", "p", "1", "m", "safe", None, 0.1, "pass", f"{text} {i}") for i in range(n)]


def test_an_entry_is_written_without_its_text(url: str) -> None:
    audit = Audit.open(AuditSettings(url=url))
    audit.record(ENTRY)
    audit.close()
    [row] = query(url, "SELECT * FROM guardian_audit")
    said = ("/v1/guard", "input", "shop", "default", "0123abc", "mini", "unsafe", "crime", 0.97, "answer")
    digest = hmac.new(SALT.encode(), QUERY.encode(), hashlib.sha256).hexdigest()
    assert row[2:] == (*said, digest, None)
    assert not any("zebra" in str(value) for value in row)


def test_the_time_is_utc(url: str) -> None:
    audit = Audit.open(AuditSettings(url=url))
    audit.record(ENTRY)
    audit.close()
    [(at,)] = query(url, "SELECT at FROM guardian_audit")
    written = datetime.fromisoformat(f"{at}+00:00") if isinstance(at, str) else at
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)


def test_the_text_is_written_when_switched_on_whatever_it_holds(url: str) -> None:
    audit = Audit.open(AuditSettings(url=url, text=True))
    for text in ("안녕 🙂", "a\0b", "half \ud800 pair", "", "x" * 1_000_000):
        audit.record(Entry("/", "c", "p", "1", "m", "safe", None, None, "pass", text))
    audit.close()
    rows = {text for (text,) in query(url, "SELECT text FROM guardian_audit")}
    assert rows == {"안녕 🙂", "a�b", "half ? pair", "", "x" * 1_000_000}


def test_many_threads_lose_and_repeat_nothing(url: str) -> None:
    audit = Audit.open(AuditSettings(url=url, text=True))
    threads = [
        threading.Thread(target=lambda part=part: [audit.record(e) for e in entries(500, part)])
        for part in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit.close()
    assert query(url, "SELECT count(*), count(DISTINCT text) FROM guardian_audit") == [(2000, 2000)]
    assert audit.dropped == 0


def test_old_entries_are_purged_at_start_and_on_demand(url: str) -> None:
    audit = Audit.open(AuditSettings(url=url, days=7))
    for entry in entries(3):
        audit.record(entry)
    audit.close()
    week, day = datetime.now(UTC) - timedelta(days=7, minutes=1), datetime.now(UTC) - timedelta(days=6)
    first, second = query(url, "SELECT id FROM guardian_audit ORDER BY id LIMIT 2")
    query(url, f"UPDATE guardian_audit SET at = '{week:%Y-%m-%d %H:%M:%S.%f}' WHERE id = '{first[0]}'")
    query(url, f"UPDATE guardian_audit SET at = '{day:%Y-%m-%d %H:%M:%S.%f}' WHERE id = '{second[0]}'")
    audit = Audit.open(AuditSettings(url=url, days=7))
    until(lambda: query(url, "SELECT count(*) FROM guardian_audit") == [(2,)])
    audit.close()
    audit = Audit.open(AuditSettings(url=url, days=1))
    until(lambda: query(url, "SELECT count(*) FROM guardian_audit") == [(1,)])
    assert audit.purge() == 0
    audit.close()


def test_a_database_of_the_first_version_is_brought_up_to_date(url: str) -> None:
    query(url, MIGRATIONS[0])
    query(url, "CREATE TABLE guardian_audit_version (version INTEGER NOT NULL)")
    query(url, "INSERT INTO guardian_audit_version VALUES (1)")
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    query(
        url,
        "INSERT INTO guardian_audit VALUES ('old', "
        f"'{now}', '/', 'input', 'c', 'p', '1', 'm', 'safe', NULL, 0.5, 'pass', 'hash', NULL)",
    )
    audit = Audit.open(AuditSettings(url=url))
    audit.record(ENTRY)
    audit.close()
    versions = query(url, "SELECT version FROM guardian_audit_version ORDER BY version")
    assert versions == [(number + 1,) for number in range(len(MIGRATIONS))]
    assert query(url, "SELECT count(*) FROM guardian_audit") == [(2,)]
    indexes = "SELECT name FROM sqlite_master" if "sqlite" in url else "SELECT indexname FROM pg_indexes"
    assert {"guardian_audit_at", "guardian_audit_query"} <= {name for (name,) in query(url, indexes)}


def test_workers_that_start_together_migrate_once(url: str) -> None:
    opened: list[Audit] = []
    threads = [
        threading.Thread(target=lambda: opened.append(Audit.open(AuditSettings(url=url)))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for audit in opened:
        audit.record(ENTRY)
        audit.close()
    assert len(opened) == 6
    assert query(url, "SELECT count(*) FROM guardian_audit_version") == [(len(MIGRATIONS),)]
    assert query(url, "SELECT count(*) FROM guardian_audit") == [(6,)]


def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    query(url, "CREATE TABLE guardian_audit_version (version INTEGER NOT NULL)")
    query(url, "INSERT INTO guardian_audit_version VALUES (999)")
    with pytest.raises(InputError, match="newer slm-guardian"):
        Audit.open(AuditSettings(url=url))


def test_without_a_salt_hashes_match_until_the_next_start(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # two starts
        monkeypatch.delenv("GUARDIAN_AUDIT_SALT")
        audit = Audit.open(AuditSettings(url=url))
        audit.record(ENTRY)
        audit.record(ENTRY)
        audit.close()
    assert query(url, "SELECT count(DISTINCT query_sha256) FROM guardian_audit") == [(2,)]
    assert len(caplog.messages) == 2 and all("GUARDIAN_AUDIT_SALT is not set" in m for m in caplog.messages)
    Audit.open(AuditSettings(url=url)).close()  # another worker of the second start
    assert len(caplog.messages) == 2
    plain = hashlib.sha256(QUERY.encode()).hexdigest()
    assert not query(url, f"SELECT 1 FROM guardian_audit WHERE query_sha256 = '{plain}'")


def test_entries_wait_while_postgresql_is_away(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    query(server.url, f"DROP TABLE IF EXISTS {TABLES}")
    lost: list[int] = []
    audit = Audit.open(AuditSettings(url=server.url, text=True), lost.append)
    audit.record(ENTRY)
    until(lambda: query(server.url, "SELECT count(*) FROM guardian_audit") == [(1,)])
    server.stop()
    try:
        began = time.monotonic()
        for entry in entries(QUEUE + 50):
            audit.record(entry)
        assert time.monotonic() - began < 5, "recording waited for the database"
        until(lambda: any("entries wait" in message for message in caplog.messages))
        with pytest.raises(GuardianError, match="refused"):
            audit.purge()
    finally:
        server.start()
    until(lambda: query(server.url, "SELECT count(*) FROM guardian_audit") == [(QUEUE + 1,)])
    until(lambda: any("lost since the start: 50" in message for message in caplog.messages))
    audit.close()
    assert audit.dropped == sum(lost) == 50
    assert query(server.url, "SELECT count(DISTINCT text) FROM guardian_audit") == [(QUEUE + 1,)]


def test_what_a_database_that_is_gone_never_took_is_counted_at_the_end(server: Postgres) -> None:
    query(server.url, f"DROP TABLE IF EXISTS {TABLES}")
    audit = Audit.open(AuditSettings(url=server.url))
    server.stop()
    try:
        for entry in entries(3):
            audit.record(entry)
        audit.close()
    finally:
        server.start()
    assert audit.dropped == 3
    audit.record(ENTRY)
    assert audit.dropped == 4


def test_a_locked_file_blocks_nobody(tmp_path: Path) -> None:
    audit = Audit.open(AuditSettings(url=f"sqlite:///{tmp_path}/audit.db"))
    other = sqlite3.connect(tmp_path / "audit.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    for entry in entries(100):
        audit.record(entry)
    assert time.monotonic() - began < 1
    other.execute("ROLLBACK")
    other.close()
    audit.close()
    assert query(f"sqlite:///{tmp_path}/audit.db", "SELECT count(*) FROM guardian_audit") == [(100,)]
    assert audit.dropped == 0


def test_texts_that_wait_are_bounded_together(tmp_path: Path) -> None:
    audit = Audit.open(AuditSettings(url=f"sqlite:///{tmp_path}/audit.db", text=True))
    other = sqlite3.connect(tmp_path / "audit.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for _ in range(30):
        audit.record(Entry("/", "c", "p", "1", "m", "safe", None, 0.1, "pass", "x" * 2_000_000))
    other.execute("ROLLBACK")
    other.close()
    audit.close()
    assert audit.dropped == 5


def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    Audit.open(AuditSettings(url=f"sqlite:///{tmp_path}/audit.db")).close()
    assert stat.S_IMODE((tmp_path / "audit.db").stat().st_mode) == 0o600


def test_purged_texts_are_gone_from_the_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    audit = Audit.open(AuditSettings(url=url, text=True))
    audit.record(ENTRY)
    audit.close()
    query(url, "UPDATE guardian_audit SET at = '2001-01-01 00:00:00'")
    audit = Audit.open(AuditSettings(url=url, text=True))
    until(lambda: query(url, "SELECT count(*) FROM guardian_audit") == [(0,)])
    audit.close()
    assert b"zebra" not in (tmp_path / "audit.db").read_bytes()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://root:hunter2@127.0.0.1/x", "another database"),
        ("not an address", "no database address"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////nowhere/at/all/audit.db", "no directory"),
        ("postgresql://me:hunter2@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_an_address_that_does_not_work_says_what_to_do(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Audit.open(AuditSettings(url=address))
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.db").write_text("this is a letter, not a database " * 100)
    with pytest.raises(InputError, match="cannot be used"):
        Audit.open(AuditSettings(url=f"sqlite:///{tmp_path}/audit.db"))


def test_neither_log_nor_entry_shows_a_text(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    query(server.url, f"DROP TABLE IF EXISTS {TABLES}")
    audit = Audit.open(AuditSettings(url=server.url, text=True))
    query(server.url, "ALTER TABLE guardian_audit ADD CONSTRAINT never CHECK (text IS NULL)")
    audit.record(ENTRY)
    until(lambda: any("entries wait" in message for message in caplog.messages))
    audit.close()
    assert audit.dropped == 1
    assert "zebra" not in caplog.text + repr(ENTRY)
