"""Where a conversion writes: a temporary directory beside the target, made durable and renamed when
all is there.

A kill at any point leaves the target as it was. A target that holds something is refused, unless
`force` says that it may go and all of it is an earlier export or conversion.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cero_rl.checkpoint.ownership import foreign_in_output
from cero_rl.errors import CheckpointError
from cero_rl.files.durable import fsync


def refuse_full(target: Path, *, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raises CheckpointError where writing to `target` would cost something that is there.

    With `force` an earlier export or conversion may go, and nothing else; `sources`, what the
    conversion reads, may never be, hold or lie in the target.
    """
    if target.is_symlink():
        raise CheckpointError(f"{target}: is a link; give the directory itself")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target}: is a file; --out wants a directory")
    own = target.resolve()
    for source in sources:
        read = source.resolve()
        if own.is_relative_to(read) or read.is_relative_to(own):
            how = "is" if own == read else "lies in" if own.is_relative_to(read) else "holds"
            raise CheckpointError(
                f"{target}: {how} {source}, which is read here; choose another --out"
            )
    if not target.is_dir() or not any(target.iterdir()):
        return
    if (foreign := foreign_in_output(target)) is not None:
        raise CheckpointError(
            f"{target}: holds {foreign}, which no export or conversion wrote (--force replaces "
            "theirs alone); choose another --out"
        )
    if not force:
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
