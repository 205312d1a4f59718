"""Which checkpoints stay: the newest, the best by held-out accuracy, every m-th. Decided from a
scan of the disk, never from memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cero_rl.checkpoint.manifest import read_manifest, step_dirs
from cero_rl.errors import CheckpointError
from cero_rl.job import faults


@dataclass(frozen=True)
class Score:
    """Held-out accuracy, and how it was measured: two are compared only where that is the same."""

    value: float
    of: str


def superfluous(
    found: Sequence[tuple[int, Score | None]],
    *,
    keep_last: int,
    keep_best: int = 0,
    keep_every_steps: int = 0,
) -> list[int]:
    """Steps to remove of `found`. The best are those of each way of measuring; ties go to the older
    step."""
    by_age = sorted((step for step, _ in found), reverse=True)
    kept = set(by_age[:keep_last])
    for kind in {score.of for _, score in found if score is not None}:
        alike = [(-s.value, step) for step, s in found if s is not None and s.of == kind]
        kept |= {step for _, step in sorted(alike)[:keep_best]}
    if keep_every_steps:
        kept |= {step for step in by_age if step % keep_every_steps == 0}
    return sorted(set(by_age) - kept)


def score_of(manifest: Mapping[str, Any]) -> Score | None:
    """What a manifest says that its checkpoint is worth."""
    value = manifest.get("score")
    return None if value is None else Score(value, str(manifest.get("score_of")))


def unfinished(run_dir: Path) -> list[Path]:
    """What a killed writer left behind: directories that never became a checkpoint."""
    return sorted((run_dir / "checkpoints").glob("tmp.*"))


def prune(
    run_dir: Path,
    *,
    keep_last: int,
    keep_best: int = 0,
    keep_every_steps: int = 0,
    dry_run: bool = False,
) -> list[Path]:
    """Remove superfluous checkpoints; returns those removed. One whose manifest cannot be read
    is left for a person to look at."""
    where: dict[int, Path] = {}
    found: list[tuple[int, Score | None]] = []
    for directory in step_dirs(run_dir):
        try:
            manifest = read_manifest(directory)
        except CheckpointError:
            continue
        where[manifest["step"]] = directory
        found.append((manifest["step"], score_of(manifest)))
    removed = [
        where[s]
        for s in superfluous(
            found, keep_last=keep_last, keep_best=keep_best, keep_every_steps=keep_every_steps
        )
    ]
    for directory in [] if dry_run else removed:
        # at no time a checkpoint with half its files
        doomed = directory.with_name(f"tmp.prune_{directory.name}")
        directory.rename(doomed)
        faults.point("checkpoint.prune")
        shutil.rmtree(doomed)
    return removed
