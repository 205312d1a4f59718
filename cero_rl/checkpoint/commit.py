"""One commit for weights, optimizer, scheduler, ledger, cursor, unlearned rollouts and random
state.

Everything is written into tmp.step_N.JOB/, hashed and made durable by the rank that wrote it; when
all ranks are done, rank 0 looks that every part is there, writes the manifest, renames the
directory to step_N and replaces latest.json. A kill at any point leaves the previous checkpoint
valid. With `checkpoint.asynchronous` the writing happens in a thread on a copy of the state, and
the commit at the edge of a later step; an error then surfaces there.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from cero_rl import __version__
from cero_rl.checkpoint.lineage import LOGS, REPLACED, origin_of, put_back
from cero_rl.checkpoint.manifest import (
    ARRAYS,
    LATEST,
    MANIFEST,
    SHARDS,
    STATE,
    files_of,
    lacks,
    parent_of,
    rank_file,
    read_manifest,
    write_latest,
)
from cero_rl.checkpoint.retention import Score, prune, unfinished
from cero_rl.config.run import CheckpointConfig
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError, first_line
from cero_rl.files.durable import describe_file, fsync, write_json
from cero_rl.job import faults
from cero_rl.zero.shards import ShardFiles, save_shards

_LITTLE_ROOM_BYTES = 2**26


@dataclass(frozen=True)
class RunState:
    """What the loop needs to go on: JSON scalars and named arrays, the same on every rank, and
    arrays that are this rank's own."""

    scalars: dict[str, Any]
    arrays: dict[str, np.ndarray]
    own: dict[str, np.ndarray] = field(default_factory=dict)


def _rng_state() -> dict[str, np.ndarray]:
    states = {"rng.cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        states["rng.cuda"] = torch.cuda.get_rng_state().numpy()
    return states


def _why_not_written(error: Exception, directory: Path) -> CheckpointError:
    """A writer's error in words. Of a full disk torch says "unexpected pos": the room is said."""
    words = f"{type(error).__name__}: {first_line(error)}"
    free = shutil.disk_usage(directory).free if directory.exists() else _LITTLE_ROOM_BYTES
    if free < _LITTLE_ROOM_BYTES:
        words += f"; the disk has {free / 1e6:.1f} MB left ({directory.parent})"
    return CheckpointError(words)


class _Writing:
    """One rank's files of one checkpoint on their way to the disk. expected: their names."""

    def __init__(
        self,
        step: int,
        directory: Path,
        score: Score | None,
        expected: list[str],
        write: Callable[[], dict[str, Any]],
    ) -> None:
        self.step, self.directory, self.score, self.expected = step, directory, score, expected
        self.files: dict[str, Any] = {}
        self.failure: CheckpointError | None = None
        self._write = write
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        try:
            self.files = self._write()
        except Exception as error:  # whatever it is: safetensors' own class is a bare Exception
            self.failure = _why_not_written(error, self.directory)

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()


class Checkpoints:
    """The checkpoints of one run. Every method is a collective, and raises CheckpointError on all
    ranks if one of them fails."""

    def __init__(
        self,
        run_dir: Path,
        group: Group,
        ds_engine: Any,
        settings: CheckpointConfig,
        identity: Mapping[str, Any],
    ) -> None:
        self.identity = identity
        self._run_dir, self._root = run_dir, run_dir / "checkpoints"
        self._group, self._engine, self._settings = group, ds_engine, settings
        self._shards = ShardFiles()
        self._engine.checkpoint_engine = self._shards
        self._writing: _Writing | None = None
        self.committed_step: int | None = None  # the newest of this run
        self._parent: dict[str, Any] | None = None
        self._job = group.gather_json(os.environ.get("SLURM_JOB_ID") or str(os.getpid()))[0]

    def goes_on_from(self, directory: Path) -> None:
        """The checkpoint that this job resumed from, of this run or from elsewhere."""
        manifest = read_manifest(directory)
        self._parent = parent_of(manifest)
        if directory.resolve().parent == self._root.resolve():
            self.committed_step = manifest["step"]

    def save(self, step: int, state: RunState, score: Score | None, *, wait: bool) -> bool:
        """Begin a checkpoint; with `wait`, or unless they are asynchronous, it is committed on
        return (True)."""
        self.poll(wait=True)
        directory = self._root / f"tmp.step_{step:06d}.{self._job}"
        copies = self._settings.asynchronous and not wait
        own = {name: value.copy() for name, value in {**_rng_state(), **state.own}.items()}
        shared = {name: np.array(value) for name, value in state.arrays.items()}
        scalars = json.dumps(state.scalars, indent=1, sort_keys=True)

        def prepare() -> None:
            if self._group.is_main:
                put_back(self._run_dir)
                for stale in unfinished(self._run_dir):
                    shutil.rmtree(stale)
                directory.mkdir(parents=True)
            faults.point("checkpoint.prepared")

        self._attempt(step, "prepare", prepare)
        self._shards.copies = copies
        self._attempt(step, "gather", lambda: save_shards(self._engine, directory, SHARDS))
        noted = self._shards.take()
        ours = [rank_file(self._group.rank), *([STATE, ARRAYS] if self._group.is_main else [])]
        expected = [*(path.relative_to(directory).as_posix() for path, _ in noted), *ours]

        def write() -> dict[str, Any]:
            faults.point("checkpoint.write")
            while noted:  # the copies are let go one by one
                path, shard = noted.pop(0)
                torch.save(shard, path)
            save_file(own, directory / rank_file(self._group.rank))
            if self._group.is_main:
                (directory / STATE).write_text(scalars, encoding="utf-8")
                save_file(shared, directory / ARRAYS)
            entries = {name: describe_file(directory / name) for name in expected}
            faults.point("checkpoint.written", path=directory / expected[0])
            return entries

        self._writing = _Writing(step, directory, score, expected, write)
        if copies:
            self._writing.start()
            return False
        self._writing.run()
        return self.poll(wait=True)

    def poll(self, *, wait: bool = False) -> bool:
        """Commit the checkpoint under way if all ranks have written it (`wait`: when they have);
        True if one was committed."""
        if self._writing is None:
            return False
        if wait:
            self._writing.join()
        if self._group.all_max(int(not self._writing.done)):
            return False
        writing, self._writing = self._writing, None

        def written() -> None:
            if writing.failure is not None:
                raise writing.failure
            if missing := sorted(set(writing.expected) - set(writing.files)):
                raise CheckpointError(f"{missing[0]} was not written")

        try:
            self._attempt(writing.step, "write", written)
            everyone: dict[str, Any] = {}
            for files in self._group.gather_json(writing.files):
                everyone |= files
            self._attempt(writing.step, "commit", lambda: self._commit(writing, everyone))
        except CheckpointError:
            if self._group.is_main:
                put_back(self._run_dir)
                # half a checkpoint only takes the room of the next
                shutil.rmtree(writing.directory, ignore_errors=True)
            raise
        self.committed_step = writing.step
        return True

    def _commit(self, writing: _Writing, files: dict[str, Any]) -> None:
        if not self._group.is_main:
            return
        directory, final = writing.directory, self._root / f"step_{writing.step:06d}"
        for path in files_of(directory):  # DeepSpeed adds a script of its own
            name = path.relative_to(directory).as_posix()
            if name not in files:
                files[name] = describe_file(path)
        there = {
            name: entry
            for name, entry in files.items()
            if (directory / name).is_file() and (directory / name).stat().st_size == entry["bytes"]
        }
        part = lacks(there, self._group.world_size) or next(iter(set(files) - set(there)), None)
        if part is not None:
            raise CheckpointError(f"{directory}: has no {part}, or not all of it")
        for log in LOGS:  # their lines up to this step are older than the checkpoint
            if (self._run_dir / log).exists():
                fsync(self._run_dir / log)
        faults.point("checkpoint.manifest")
        score = writing.score
        manifest: dict[str, Any] = {
            "step": writing.step,
            "run": origin_of(self._run_dir).id,
            "parent": self._parent,
            "world_size": self._group.world_size,
            "score": score.value if score is not None else None,
            "score_of": score.of if score is not None else None,
            "cero_rl": __version__,
            "torch": torch.__version__,
            **self.identity,
            "files": files,
        }
        manifest["id"] = parent_of(manifest)["id"]
        before = final.with_name(REPLACED + final.name)
        if final.exists():
            with suppress(CheckpointError):
                manifest["parent"] = read_manifest(final).get("parent")
        write_json(directory / MANIFEST, manifest)
        fsync(directory / SHARDS)
        faults.point("checkpoint.before_rename")
        if final.exists():  # the same step once more: `recover` puts it back after a kill
            final.rename(before)
            faults.point("checkpoint.replacing")
        directory.rename(final)
        fsync(self._root)
        self._parent = parent_of(manifest)
        faults.point("checkpoint.renamed", path=final)
        write_latest(self._run_dir, final)
        faults.point("checkpoint.latest", path=self._run_dir / LATEST)
        shutil.rmtree(before, ignore_errors=True)

    def rescore(self, score: Score) -> None:
        """Write down what the newest checkpoint is worth, which was measured after it was saved."""

        def write() -> None:
            final = self._root / f"step_{self.committed_step:06d}"
            manifest = read_manifest(final)
            write_json(final / MANIFEST, {**manifest, "score": score.value, "score_of": score.of})

        assert self.committed_step is not None
        step = self.committed_step
        self._attempt(step, "score", lambda: write() if self._group.is_main else None)

    def tidy(self) -> None:
        """Remove what the settings do not keep."""
        keep = self._settings

        def remove() -> None:
            prune(
                self._run_dir,
                keep_last=keep.keep_last,
                keep_best=keep.keep_best,
                keep_every_steps=keep.keep_every_steps,
            )

        step = self.committed_step or 0
        self._attempt(step, "prune", lambda: remove() if self._group.is_main else None)

    def _attempt(self, step: int, what: str, action: Callable[[], Any]) -> None:
        self._group.together(f"checkpoint of step {step}, {what}", action, CheckpointError)
