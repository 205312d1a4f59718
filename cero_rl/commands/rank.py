"""What every launcher starts as a rank: `python -m cero_rl.commands.rank`, and
recipes/train_cero.py. Signals and the launcher are looked after before anything slow is imported.
"""

from __future__ import annotations

from typing import NoReturn

from cero_rl.job.parent import watch_launcher
from cero_rl.job.process import run_and_exit
from cero_rl.job.stopping import leave_at_once


def main() -> NoReturn:
    leave_at_once()
    watch_launcher()
    from cero_rl.commands.training import train_main

    run_and_exit(train_main)


if __name__ == "__main__":
    main()
