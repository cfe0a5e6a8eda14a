"""The `guardian` command: registers one small file per command and turns errors into exit codes."""

from __future__ import annotations

import os
import sys

import typer

from slm_guardian.cli import policy, translate
from slm_guardian.cli.answers import answers
from slm_guardian.cli.card import card
from slm_guardian.cli.check import check
from slm_guardian.cli.evaluate import baseline, evaluate
from slm_guardian.cli.export import calibrate, export
from slm_guardian.cli.train import train, transfer
from slm_guardian.errors import GuardianError

app = typer.Typer(
    help="A small language model that judges queries by your policy and answers the harmful ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (check, transfer, train, calibrate, evaluate, export, answers, card, baseline):
    app.command()(command)
app.add_typer(policy.app, name="policy")
app.add_typer(translate.app, name="translate")


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 the work failed, 2 the call or an input was wrong."""
    try:
        app()
    except GuardianError as error:
        print(f"guardian: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("guardian: stopped", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        print(f"guardian: {error.name} is not installed: pip install 'slm-guardian[train]'", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            where = error.filename or "the output"
            print(f"guardian: cannot read or write {where}: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left cannot be written
        sys.exit(1)
