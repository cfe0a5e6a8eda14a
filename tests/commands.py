"""The `guardian` command as tests run it, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

from slm_guardian.cli import main as cli
from tiny import write_policies


def guardian(*arguments: object) -> None:
    """Run the command as a person would; raises SystemExit with its exit code unless it is 0."""
    before = sys.argv
    sys.argv = ["guardian", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.argv = before


def policies(root: Path) -> list[object]:
    """Command-line options for the tiny policies."""
    return [option for path in write_policies(root) for option in ("--policy", path)]
