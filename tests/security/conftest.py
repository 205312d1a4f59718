"""Links that lead out of a directory, for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[[Path], None]:
    """Moves what is at a path out of its directory, and leaves a link to it."""

    def move(path: Path) -> None:
        away = tmp_path / "elsewhere"
        away.mkdir(exist_ok=True)
        shutil.move(path, away / path.name)
        path.symlink_to(away / path.name)

    return move
