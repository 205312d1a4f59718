"""One commit for weights, optimizer, scheduler, ledger, cursor, unlearned rollouts and random
state.

Everything is written into tmp.step_N.JOB/, hashed and made durable by the rank that wrote it; when
all ranks are done, rank 0 writes the manifest, renames the directory to step_N, replaces
latest.json and removes what is superfluous. A kill at any point leaves the previous checkpoint
valid. With `checkpoint.asynchronous` the writing happens in a thread on a copy of the state, and
the commit at the edge of a later step; an error then surfaces there.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from cero_rl import __version__
from cero_rl.checkpoint.manifest import LATEST, MANIFEST, files_of
from cero_rl.checkpoint.retention import prune, unfinished
from cero_rl.config.run import CheckpointConfig
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError
from cero_rl.files.durable import describe_file, fsync, write_json
from cero_rl.job import faults
from cero_rl.zero.shards import ShardFiles, save_shards

ZERO_TAG = "zero"


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


class _Writing:
    """One rank's files of one checkpoint on their way to the disk."""

    def __init__(
        self, step: int, directory: Path, score: float | None, write: Callable[[], dict[str, Any]]
    ) -> None:
        self.step, self.directory, self.score = step, directory, score
        self.files: dict[str, Any] = {}
        self.failure: OSError | RuntimeError | ValueError | None = None
        self._write = write
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        try:
            self.files = self._write()
        except (OSError, RuntimeError, ValueError) as error:
            self.failure = error

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
        self.committed_step: int | None = None  # the newest of this job
        self._job = group.gather_json(os.environ.get("SLURM_JOB_ID") or str(os.getpid()))[0]

    def save(self, step: int, state: RunState, score: float | None, *, wait: bool) -> bool:
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
                for stale in unfinished(self._run_dir):
                    shutil.rmtree(stale)
                directory.mkdir(parents=True)
            faults.point("checkpoint.prepared")

        self._attempt(step, "prepare", prepare)
        self._shards.copies = copies
        self._attempt(step, "gather", lambda: save_shards(self._engine, directory, ZERO_TAG))
        noted = self._shards.take()

        def write() -> dict[str, Any]:
            faults.point("checkpoint.write")
            written = []
            while noted:  # the copies are let go one by one
                path, shard = noted.pop(0)
                torch.save(shard, path)
                written.append(path)
            save_file(own, directory / f"rank{self._group.rank}.safetensors")
            written.append(directory / f"rank{self._group.rank}.safetensors")
            if self._group.is_main:
                (directory / "state.json").write_text(scalars, encoding="utf-8")
                save_file(shared, directory / "arrays.safetensors")
                written += [directory / "state.json", directory / "arrays.safetensors"]
            entries = {
                path.relative_to(directory).as_posix(): describe_file(path) for path in written
            }
            faults.point("checkpoint.written", path=written[0])
            return entries

        self._writing = _Writing(step, directory, score, write)
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

        self._attempt(writing.step, "write", written)
        everyone: dict[str, Any] = {}
        for files in self._group.gather_json(writing.files):
            everyone |= files
        self._attempt(writing.step, "commit", lambda: self._commit(writing, everyone))
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
        faults.point("checkpoint.manifest")
        manifest = {
            "step": writing.step,
            "world_size": self._group.world_size,
            "score": writing.score,
            "cero_rl": __version__,
            "torch": torch.__version__,
            **self.identity,
            "files": files,
        }
        write_json(directory / MANIFEST, manifest)
        fsync(directory / ZERO_TAG)
        faults.point("checkpoint.before_rename")
        before = final.with_name(f"tmp.old_{final.name}")
        if final.exists():  # the same step once more, after a resume: what was there is as good
            final.rename(before)
        directory.rename(final)
        fsync(self._root)
        faults.point("checkpoint.renamed", path=final)
        write_json(
            self._run_dir / LATEST, {"step": writing.step, "directory": f"checkpoints/{final.name}"}
        )
        faults.point("checkpoint.latest", path=self._run_dir / LATEST)
        shutil.rmtree(before, ignore_errors=True)
        keep = self._settings
        prune(
            self._run_dir,
            keep_last=keep.keep_last,
            keep_best=keep.keep_best,
            keep_every_steps=keep.keep_every_steps,
        )

    def _attempt(self, step: int, what: str, action: Callable[[], Any]) -> None:
        self._group.together(f"checkpoint of step {step}, {what}", action, CheckpointError)
