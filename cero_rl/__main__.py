# PYTHON_ARGCOMPLETE_OK
"""`python -m cero_rl` and the `cero-rl` script."""

from typing import NoReturn

from cero_rl.commands.main import main
from cero_rl.job.process import run_and_exit


def entry() -> NoReturn:
    run_and_exit(main)


if __name__ == "__main__":
    entry()
