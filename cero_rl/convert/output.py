"""Where a conversion writes: a temporary directory beside the target, made durable and renamed when
all is there.

A kill at any point leaves the target as it was. A target that holds something is refused unless
`force` says that it may go.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cero_rl.errors import CheckpointError
from cero_rl.files.durable import fsync


def refuse_full(target: Path, *, force: bool) -> None:
    """Raises CheckpointError where writing to `target` would cost something that is there."""
    if target.is_symlink():
        raise CheckpointError(f"{target}: is a link; give the directory itself")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: is a file; --out wants a directory")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise CheckpointError(
            f"{target}: is not empty; choose another --out, or give --force to replace it"
        )


@contextmanager
def staged(target: Path, *, force: bool) -> Iterator[Path]:
    """A fresh directory to fill; it becomes `target` when the block ends well, and goes away when
    it does not."""
    refuse_full(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    old = fresh.with_name(fresh.name + ".old")
    try:
        fresh.chmod(0o755)
        yield fresh
        for path in [p for p in fresh.rglob("*") if p.is_file()]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        refuse_full(target, force=force)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        fsync(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
