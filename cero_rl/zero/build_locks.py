"""Torch's locks on compiling DeepSpeed's operators: a file that a killed compilation leaves behind,
and for which torch waits without an end and without a word."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch.utils import cpp_extension


def build_locks() -> str:
    """What is locked and since when, with the remedy, in one line; empty where nothing is."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    for lock in sorted([*root.glob("*/lock"), *root.glob("*/*/lock")]):
        try:
            minutes = (time.time() - lock.stat().st_mtime) / 60
        except OSError:  # it has just been given back
            continue
        return (
            f"torch's build lock {lock} is {minutes:.0f} min old; if no other job is compiling, "
            "a killed one has left it: delete it"
        )
    return ""
