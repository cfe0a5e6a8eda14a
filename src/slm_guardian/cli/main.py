"""The `guardian` command: registers one small file per command and turns errors into exit codes."""

from __future__ import annotations

import os
import sys

import typer
from typer.exceptions import TyperException

from slm_guardian.cli import data, policy, sets, translate
from slm_guardian.cli.answers import answers
from slm_guardian.cli.card import card
from slm_guardian.cli.check import check
from slm_guardian.cli.compare import compare
from slm_guardian.cli.evaluate import baseline, evaluate
from slm_guardian.cli.export import average, calibrate, export
from slm_guardian.cli.extend import extend
from slm_guardian.cli.generate import generate
from slm_guardian.cli.judge import judge_answers
from slm_guardian.cli.labels import labels
from slm_guardian.cli.serve import serve
from slm_guardian.cli.train import bases, train
from slm_guardian.cli.transfer import transfer
from slm_guardian.errors import GuardianError

app = typer.Typer(
    help="A small language model that judges queries by your policy and answers the harmful ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    check,
    serve,
    generate,
    transfer,
    extend,
    train,
    bases,
    labels,
    average,
    calibrate,
    evaluate,
    compare,
    export,
    answers,
    judge_answers,
    card,
    baseline,
):
    app.command()(command)
app.add_typer(policy.app, name="policy")
app.add_typer(data.app, name="data")
app.add_typer(sets.app, name="sets")
app.add_typer(translate.app, name="translate")


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 the work failed, 2 the call or an input was wrong."""
    try:
        sys.exit(app(standalone_mode=False))
    except GuardianError as error:
        print(f"guardian: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except TyperException as error:
        message = getattr(error, "format_message", error.__str__)().rstrip(".")
        print(f"guardian: {message}: see guardian --help", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
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
    except Exception as error:
        if os.environ.get("GUARDIAN_DEBUG"):
            raise
        # Its message and traceback may hold the user's text: a log must not.
        print(
            f"guardian: internal error ({type(error).__name__}): run with GUARDIAN_DEBUG=1 to see it",
            file=sys.stderr,
        )
        sys.exit(1)
