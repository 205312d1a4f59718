"""From a committed checkpoint back into the engine and the loop, after its manifest has been
checked by all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from cero_rl.checkpoint.commit import RunState
from cero_rl.checkpoint.manifest import (
    ARRAYS,
    SHARDS,
    STATE,
    rank_file,
    read_manifest,
    step_dirs,
    verify,
)
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError
from cero_rl.zero.shards import load_shards, read_shard


def find_valid(run_dir: Path, group: Group, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose manifest holds on every rank; `report` is told of each that does
    not."""
    for directory in step_dirs(run_dir):
        problem = check(directory, group)
        if problem is None:
            return directory
        report(f"checkpoint refused: {problem}")
    return None


def check(directory: Path, group: Group) -> str | None:
    """What is wrong with a checkpoint on any rank, the same words on every rank; None if its
    manifest holds on all. Every rank looks for every file; the hashes are dealt over them, so that
    a checkpoint is read once and not once a rank."""
    problem = None
    try:
        verify(directory, rank=group.rank, ranks=group.world_size)
    except CheckpointError as error:
        problem = str(error)
    return next((p for p in group.gather_json(problem) if p), None)


def is_universal(directory: Path) -> bool:
    """Does it hold DeepSpeed's universal layout, for any number of ranks? The engine must be told
    before it is built."""
    return bool(read_manifest(directory).get("universal", False))


def load(directory: Path, group: Group, ds_engine: Any, *, identity: Mapping[str, Any]) -> RunState:
    """Restore the engine and return the loop's state. `directory` must have passed `check`.

    Raises CheckpointError where a LoRA's frozen base differs; settings and contents were compared
    before (checkpoint/identity.py). The scheduler's part is the same whatever number of ranks wrote
    it. DeepSpeed's shards are not: another number needs them cut anew, except at stage 0.
    """
    manifest = read_manifest(directory)
    universal = is_universal(directory)
    for key in ("base_weights",):
        if key in identity and manifest.get(key) != identity[key]:
            raise CheckpointError(
                f"{directory}: its adapter lies on base weights {manifest.get(key)}, this run has "
                f"{identity[key]}; resume with the base that the run was started with"
            )
    own: dict[str, Any] = {}

    def restore() -> None:
        if universal:  # DeepSpeed opens these files itself, and would run what they hold
            for path in sorted((directory / SHARDS).rglob("*.pt")):
                read_shard(path)
        load_shards(ds_engine, directory, SHARDS)
        if not (path := directory / rank_file(group.rank)).exists():
            return  # a universal checkpoint for more ranks than it has random states for
        own.update(load_file(path))
        torch.set_rng_state(torch.from_numpy(own["rng.cpu"]))
        if torch.cuda.is_available() and "rng.cuda" in own:
            torch.cuda.set_rng_state(torch.from_numpy(own["rng.cuda"]))

    group.together(f"loading {directory}", restore, CheckpointError)
    scalars = json.loads((directory / STATE).read_text(encoding="utf-8"))
    # Rollouts that were generated ahead belong to the ranks that did it.
    as_many = manifest["world_size"] == group.world_size
    own = {name: v for name, v in own.items() if as_many and not name.startswith("rng.")}
    return RunState(scalars, load_file(directory / ARRAYS), own)
