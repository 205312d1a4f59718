"""Files that are whole and on the disk, or not there: sha256, fsync, atomic replacement. Standard
library only."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Make a file, or a directory's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe_file(path: Path) -> dict[str, Any]:
    """A manifest's entry, of a file that is durable from here on."""
    fsync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def beside(path: Path, text: str) -> Path:
    """A durable file beside `path` that is to take its place. What was read as surrogateescape is
    written back as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        fsync(temporary)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def replace(path: Path, temporary: Path) -> None:
    """Put `temporary` in the place of `path`, durably and at once."""
    temporary.replace(path)
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically and durably."""
    replace(path, beside(path, json.dumps(value, indent=1, sort_keys=True)))
