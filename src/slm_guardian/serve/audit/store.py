"""Where audit entries are kept: SQLite or PostgreSQL, with migrations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from slm_guardian.errors import GuardianError, InputError

# Statement n brings a database of version n - 1 to version n; only ever add at the end. Both databases
# read them: SQLite takes any name for a type.
MIGRATIONS = (
    """CREATE TABLE guardian_audit (
        id TEXT PRIMARY KEY,
        at TIMESTAMP WITH TIME ZONE NOT NULL,
        route TEXT NOT NULL,
        target TEXT NOT NULL,
        caller TEXT NOT NULL,
        policy TEXT NOT NULL,
        policy_version TEXT NOT NULL,
        model TEXT NOT NULL,
        label TEXT NOT NULL,
        category TEXT,
        harm DOUBLE PRECISION,
        action TEXT NOT NULL,
        query_sha256 TEXT NOT NULL,
        text TEXT
    )""",
    "CREATE INDEX guardian_audit_at ON guardian_audit (at)",
    "CREATE INDEX guardian_audit_query ON guardian_audit (query_sha256)",
)
_LOCK = 0x677561726469616E  # any number that is ours: "guardian"
_POSTGRES = {"connect_timeout": 5, "tcp_user_timeout": 10_000}  # s, ms: a dead network is noticed
_NAMES = [
    "id",
    "route",
    "target",
    "caller",
    "policy",
    "policy_version",
    "model",
    "label",
    "category",
    "harm",
    "action",
    "query_sha256",
    "text",
]
_AUDIT = sa.table(
    "guardian_audit",
    sa.column("at", sa.DateTime(timezone=True)),
    *(sa.column(name) for name in _NAMES),
)


class Store:
    """The table of entries in one database.

    Raises InputError if it cannot be used at all, GuardianError if it does not work now.
    """

    def __init__(self, url: str) -> None:
        self._engine, where = _engine(url)
        try:
            self._migrate(where)
        except SQLAlchemyError as error:
            self.close()
            raise InputError(
                f"audit: {where} cannot be used ({_kind(error)}): check audit.url and its rights"
            ) from None
        except InputError:
            self.close()
            raise

    def insert(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows; those that are there already (a commit whose answer was lost) are left alone."""
        make = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        self._run(make(_AUDIT).on_conflict_do_nothing(), list(rows))

    def purge(self, before: datetime) -> int:
        """Delete what is older; how many rows that were."""
        return self._run(sa.delete(_AUDIT).where(_AUDIT.c.at < before))

    def close(self) -> None:
        """Let the connections go."""
        self._engine.dispose()

    def _run(self, statement: sa.Executable, rows: list[dict[str, Any]] | None = None) -> int:
        try:
            with self._engine.begin() as connection:
                return connection.execute(statement, rows).rowcount
        except Exception as error:  # also what a driver raises past SQLAlchemy: the writer must live
            raise GuardianError(f"the database refused ({_kind(error)})") from None

    def _migrate(self, where: str) -> None:
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # several workers may start at once
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            connection.exec_driver_sql(
                "CREATE TABLE IF NOT EXISTS guardian_audit_version (version INTEGER NOT NULL)"
            )
            version = (
                connection.exec_driver_sql("SELECT max(version) FROM guardian_audit_version").scalar() or 0
            )
            if version > len(MIGRATIONS):
                raise InputError(f"audit: {where} was written by a newer slm-guardian: update this one")
            for number, statement in enumerate(MIGRATIONS[version:], version + 1):
                connection.exec_driver_sql(statement)
                connection.exec_driver_sql(f"INSERT INTO guardian_audit_version VALUES ({number})")


def _engine(url: str) -> tuple[sa.Engine, str]:
    """An engine and what to call the database in a message (never its password)."""
    try:
        place = sa.make_url(url)
    except ArgumentError:
        raise InputError(
            "audit.url is no database address: write sqlite:///audit.db or postgresql://..."
        ) from None
    if place.drivername == "sqlite":
        return _sqlite(place), place.render_as_string()
    if place.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return _postgres(place.set(drivername="postgresql+psycopg")), place.render_as_string()
    raise InputError("audit.url names another database: SQLite and PostgreSQL (postgresql://...) work")


def _sqlite(url: sa.URL) -> sa.Engine:
    if not url.database or ":memory:" in url.database:
        raise InputError("audit.url names no file: write sqlite:///audit.db")
    path = Path(url.database)
    if not path.parent.is_dir():
        raise InputError(f"audit: there is no directory {path.parent}: make it, or change audit.url")
    if not path.exists():  # nobody else's to read, like SQLite's own files beside it, which copy its mode
        os.close(os.open(path, os.O_CREAT, 0o600))
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": 10})
    event.listen(engine, "connect", _prepare)
    # The driver would begin no transaction before CREATE, and two workers could migrate at once.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _prepare(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    for setting in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
        connection.execute(f"PRAGMA {setting}")


def _postgres(url: sa.URL) -> sa.Engine:
    arguments = {key: value for key, value in _POSTGRES.items() if key not in url.query}
    try:
        return sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
    except ImportError:
        raise InputError("audit on PostgreSQL needs: pip install 'slm-guardian[postgres]'") from None


def _kind(error: Exception) -> str:
    """The kind of an error, without its message: that may hold what was to be written."""
    return type(getattr(error, "orig", None) or error).__name__
