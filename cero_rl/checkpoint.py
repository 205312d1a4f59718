"""One commit for weights, optimizer, scheduler, ledger, cursor and random state: a directory is a checkpoint once it has a manifest.

    checkpoints/step_000010/   zero/ (DeepSpeed shards)  state.json  arrays.safetensors  rng_rank0.safetensors ...  MANIFEST.json

Everything is written into tmp.step_*, hashed, made durable, then renamed; a kill at any point leaves the previous checkpoint valid.
Hashes are checked before DeepSpeed opens a shard, because neither it nor safetensors notices a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from cero_rl import __version__
from cero_rl.engine.runtime import Group
from cero_rl.errors import CheckpointError

MANIFEST = "MANIFEST.json"
_ZERO_TAG = "zero"


@dataclass(frozen=True)
class RunState:
    """What the loop needs to go on: JSON scalars and named arrays."""

    scalars: dict[str, Any]
    arrays: dict[str, np.ndarray]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
    _fsync(temporary)
    temporary.replace(path)
    _fsync(path.parent)


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)


def step_dirs(run_dir: Path) -> list[Path]:
    """Committed checkpoints, newest first."""
    found = [p for p in (run_dir / "checkpoints").glob("step_*") if (p / MANIFEST).is_file()]
    return sorted(found, key=lambda p: p.name, reverse=True)


def verify(directory: Path) -> dict[str, Any]:
    """The manifest, after every file's size and hash has been checked. Raises CheckpointError naming the first bad file."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        listed: dict[str, dict[str, Any]] = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory}: no readable {MANIFEST} ({type(error).__name__}); not a valid checkpoint") from None
    present = {p.relative_to(directory).as_posix() for p in _files(directory)}
    for name, entry in listed.items():
        path = directory / name
        if name not in present:
            raise CheckpointError(f"{path}: missing, but the manifest lists it; use an older checkpoint")
        if path.stat().st_size != entry["bytes"]:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}; use an older checkpoint")
        if _sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{path}: content differs from the manifest's sha256; use an older checkpoint")
    if extra := sorted(present - set(listed)):
        raise CheckpointError(f"{directory / extra[0]}: not in the manifest; use an older checkpoint")
    return manifest


def _attempt(group: Group, what: str, action: Any) -> None:
    """Run `action` here and raise on every rank if it failed on any."""
    failed = None
    try:
        action()
    except (OSError, RuntimeError, ValueError) as error:
        failed = f"rank {group.rank}: {type(error).__name__}: {error}"
    messages = [m for m in group.gather_json(failed) if m]
    if messages:
        raise CheckpointError(f"{what}: {messages[0]}")


def save(run_dir: Path, step: int, group: Group, ds_engine: Any, state: RunState, *, identity: Mapping[str, Any], keep_last: int) -> Path:
    """Commit one checkpoint; returns its directory. All ranks call it; raises CheckpointError on all if any rank fails."""
    root = run_dir / "checkpoints"
    final, temporary = root / f"step_{step:06d}", root / f"tmp.step_{step:06d}"

    def prepare() -> None:
        if group.is_main:
            for stale in root.glob("tmp.step_*"):
                shutil.rmtree(stale)
            temporary.mkdir(parents=True)

    def write() -> None:
        ds_engine.save_checkpoint(str(temporary), tag=_ZERO_TAG, save_latest=False)
        rng = {"cpu": torch.get_rng_state().numpy()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state().numpy()
        save_file(rng, temporary / f"rng_rank{group.rank}.safetensors")
        if group.is_main:
            (temporary / "state.json").write_text(json.dumps(state.scalars, indent=1, sort_keys=True))
            save_file({k: np.ascontiguousarray(v) for k, v in state.arrays.items()}, temporary / "arrays.safetensors")

    def commit() -> None:
        if not group.is_main:
            return
        files = {}
        for path in _files(temporary):
            _fsync(path)
            files[path.relative_to(temporary).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = {
            "step": step,
            "world_size": group.world_size,
            "cero_rl": __version__,
            "torch": torch.__version__,
            **identity,
            "files": files,
        }
        write_json(temporary / MANIFEST, manifest)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _fsync(root)
        write_json(root / "latest.json", {"step": step, "directory": final.name})
        for old in step_dirs(run_dir)[keep_last:]:
            shutil.rmtree(old)

    for what, action in (("prepare", prepare), ("write", write), ("commit", commit)):
        _attempt(group, f"checkpoint step {step}, {what}", action)
    return final


def find_valid(run_dir: Path, group: Group, report: Any) -> Path | None:
    """The newest checkpoint whose manifest holds on every rank; `report` is told of each that does not."""
    for directory in step_dirs(run_dir):
        problem = None
        try:
            verify(directory)
        except CheckpointError as error:
            problem = str(error)
        problems = [p for p in group.gather_json(problem) if p]
        if not problems:
            return directory
        report(f"checkpoint refused: {problems[0]}")
    return None


def load(directory: Path, group: Group, ds_engine: Any, *, identity: Mapping[str, Any]) -> RunState:
    """Restore the engine and return the loop's state. `directory` must have passed `verify`.

    Raises CheckpointError where the world size, the data or the configuration differ, with both values.
    """
    manifest = json.loads((directory / MANIFEST).read_text())
    if manifest["world_size"] != group.world_size:
        raise CheckpointError(
            f"{directory}: written by {manifest['world_size']} ranks, this job has {group.world_size}; start it with the same number"
        )
    for key, wanted in identity.items():
        if manifest.get(key) != wanted:
            raise CheckpointError(
                f"{directory}: {key} is {manifest.get(key)}, this run has {wanted}; resume with what the run was started with"
            )

    def restore() -> None:
        loaded, _ = ds_engine.load_checkpoint(str(directory), tag=_ZERO_TAG)
        if loaded is None:
            raise RuntimeError("DeepSpeed found nothing to load")
        rng = load_file(directory / f"rng_rank{group.rank}.safetensors")
        torch.set_rng_state(torch.from_numpy(rng["cpu"]))
        if torch.cuda.is_available() and "cuda" in rng:
            torch.cuda.set_rng_state(torch.from_numpy(rng["cuda"]))

    _attempt(group, f"loading {directory}", restore)
    return RunState(scalars=json.loads((directory / "state.json").read_text()), arrays=load_file(directory / "arrays.safetensors"))
