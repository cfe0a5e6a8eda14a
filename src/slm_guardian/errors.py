"""Every error that this package raises on purpose.

GuardianError                the work failed (exit code 1)
└── InputError               the call or an input was wrong (exit code 2)
    ├── PolicyError          a policy file breaks the schema, or does not fit the model
    ├── DataError            a data file cannot be used
    └── ModelError           a model directory is missing, broken or of another version

A message says what to do next. It never contains the text of a query: messages end up in logs.
"""


class GuardianError(Exception):
    """The work failed. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(GuardianError):
    """The call or one of its inputs was wrong; nothing was done."""

    exit_code = 2


class PolicyError(InputError):
    """A policy file breaks the schema, or does not fit the model. Names file, line and key."""


class DataError(InputError):
    """A data file is missing, broken or has none of the needed columns."""


class ModelError(InputError):
    """A model directory is missing, truncated or of another version."""
