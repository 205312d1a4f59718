"""Directories that come from elsewhere, taken only as they lie: no link leads out of one, and
nothing in it is a pipe, a socket or a device.

What a person names is followed wherever it leads; what lies below it is not. A loader that opens a
file later (torch, DeepSpeed, vLLM, transformers) follows every link it meets, so the directory is
looked through before it is handed over. docs/security.md says where each function is used. Standard
library only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cero_rl.errors import CeroError, CheckpointError

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def _refuse_special(path: Path, mode: int, raises: type[CeroError]) -> None:
    for is_kind, what in _KINDS:
        if is_kind(mode):
            raise raises(f"{path}: is {what}; wanted plain files and directories only")


def refuse_link(path: Path, raises: type[CeroError] = CheckpointError) -> None:
    """`path` itself, looked at without following it; one that is not there is nobody's fault.
    Raises `raises` where it is a link or no file or directory."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise raises(
            f"{path}: is a symbolic link (to {path.readlink()}), which is not followed; put "
            "the file or directory itself there"
        )
    _refuse_special(path, mode, raises)


def _below(place: Path, raises: type[CeroError]) -> Iterator[Path]:
    """Everything below a directory, links to directories not entered."""

    def unreadable(error: OSError) -> None:
        raise raises(f"{error.filename}: cannot be looked through ({error.strerror})")

    for folder, directories, files in os.walk(place, onerror=unreadable, followlinks=False):
        yield from (Path(folder, name) for name in sorted([*directories, *files]))


def plain_files(directory: Path, raises: type[CeroError] = CheckpointError) -> list[Path]:
    """Every file below `directory`, sorted. Raises `raises` naming the first link, pipe, socket,
    device or unreadable directory."""
    files = []
    for path in _below(directory, raises):
        refuse_link(path, raises)
        if path.is_file():
            files.append(path)
    return sorted(files)


def refuse_links_beside(directory: Path, raises: type[CeroError] = CheckpointError) -> None:
    """The same for what stands in `directory` itself, and not deeper: trackers keep links of their
    own in a run's directory."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        refuse_link(path, raises)


def trusted_root(directory: Path) -> Path:
    """Where a model directory's links may lead: itself; for snapshots/REVISION of a hub cache,
    whose files are links to ../../blobs, the model's own folder in that cache."""
    root = directory.resolve()
    return root.parent.parent if root.parent.name == "snapshots" else root


def refuse_links_out(directory: Path, raises: type[CeroError] = CheckpointError) -> None:
    """For model directories. Raises `raises` naming a link that leads out of `trusted_root`, or
    what is no plain file. What is hidden (.git, .cache) is not looked into: no loader reads it."""
    root = trusted_root(directory)
    for path in _below(directory, raises):
        if any(part.startswith(".") for part in path.relative_to(directory).parts):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise raises(
                f"{path}: is a symbolic link to outside of the model's directory (to "
                f"{path.readlink()}); copy the file itself there"
            )
        if path.exists():
            _refuse_special(path, path.stat().st_mode, raises)
