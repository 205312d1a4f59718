"""A program in a file, moved behind links, and what a command makes of it: for the tests of this
folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cero_rl.commands.common import guard
from cero_rl.config import load_config

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "recipes/assets/tiny_digits"
Moved = Callable[[Path], None]  # what the fixture `elsewhere` gives


class Payload:
    """Unpickling this makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def action(run: Callable[[], Any]) -> int:
    """What a command makes of an action: its exit code, and the error's line on stderr."""

    def returning() -> int:
        run()
        return 0

    return guard(returning, debug=False)


def settings(*overrides: str) -> Any:
    return load_config(ROOT / "recipes/digits_cpu.yaml", list(overrides))
