"""Errors that end a run with one clear line, and the documented exit code of each.

Every message says: which field or file, what was found, what was wanted, and the remedy. A
traceback is printed only under --debug.
"""

from __future__ import annotations

import sys


class CeroError(ValueError):
    """Base of all errors a user can cause or must hear about; `exit_code` is the process's exit
    status."""

    exit_code = 1


class ConfigError(CeroError):
    """A key, a value, a path or a combination of them that cannot be run; exit code 2."""

    exit_code = 2


class DataError(CeroError):
    """Prompts, answers or files that cannot be used as they are; exit code 3."""

    exit_code = 3


class CheckpointError(CeroError):
    """A checkpoint that is damaged, another run's, or of other settings; exit code 4."""

    exit_code = 4


class RewardError(CeroError):
    """A reward function that cannot be called, or that judged too few rollouts; exit code 5."""

    exit_code = 5


class EngineError(CeroError):
    """What samples or trains failed: a model, a server, a rank, a package; exit code 6."""

    exit_code = 6


class DivergedError(CeroError):
    """The loss or the weights are no numbers any more; exit code 7."""

    exit_code = 7


class NoProgressError(CeroError):
    """Restarted again and again without a new committed step; exit code 93."""

    exit_code = 93


EXIT_REQUEUE = 75  # saved; the cluster may start the job again
EXIT_INTERRUPT = 130  # Ctrl-C; saved
# restarted again and again without a new committed step; do not start it again
EXIT_NO_PROGRESS = NoProgressError.exit_code


def tell(text: str) -> None:
    """One line on standard error, in one write: ranks share it, and a line of one must not end up
    in the middle of another's."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its text (with the next, where it ends in a colon), or its
    type where it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    count = 2 if lines[0].rstrip().endswith(":") else 1
    return " ".join(line.strip() for line in lines[:count])
