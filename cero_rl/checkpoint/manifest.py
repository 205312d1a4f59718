"""What a checkpoint directory holds, and the proof of it: sizes and sha256 of every file, written
last and checked first.

    checkpoints/step_000010/   zero/ (DeepSpeed shards)  state.json  arrays.safetensors
                               rank0.safetensors ...  MANIFEST.json

A directory without a manifest is no checkpoint. Neither DeepSpeed nor safetensors notices a flipped
bit, so hashes are checked before either opens a file. Standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cero_rl.errors import CheckpointError
from cero_rl.files.durable import sha256

MANIFEST = "MANIFEST.json"
LATEST = "latest.json"


def files_of(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)


def step_dirs(run_dir: Path) -> list[Path]:
    """Committed checkpoints, newest first, from a scan of the disk."""
    found = [p for p in (run_dir / "checkpoints").glob("step_*") if (p / MANIFEST).is_file()]
    return sorted(found, key=lambda p: p.name, reverse=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Raises CheckpointError, with what the directory looks like instead, if there is none that can
    be read."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(manifest["files"], dict) and isinstance(manifest["step"], int):
            return manifest
        problem = "wrong fields"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = type(error).__name__
    raise CheckpointError(
        f"{directory}: no readable {MANIFEST} ({problem}); {_what_it_is(directory)}"
    )


def _what_it_is(directory: Path) -> str:
    if not directory.is_dir():
        return "it is no directory; give one of checkpoints/step_* of a run"
    if (directory / "config.resolved.yaml").exists():
        return (
            "it is a run's directory; give its name with --resume auto, or one of its "
            "checkpoints/step_*"
        )
    if any(directory.glob("*.safetensors*")) and (directory / "config.json").exists():
        return (
            "it looks like a model in save_pretrained layout; start from it with --set "
            "model.path=..."
        )
    if any(directory.rglob("*optim_states.pt")):
        return (
            "it looks like a bare DeepSpeed checkpoint; see docs/tools.md for what can be made "
            "of it"
        )
    return "not a valid checkpoint"


def verify(directory: Path) -> dict[str, Any]:
    """The manifest, after every file's size and hash has been checked. Raises CheckpointError
    naming the first bad file."""
    manifest = read_manifest(directory)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    present = {p.relative_to(directory).as_posix() for p in files_of(directory)}
    for name, entry in listed.items():
        path = directory / name
        if name not in present:
            raise CheckpointError(
                f"{path}: missing, but the manifest lists it; use an older checkpoint"
            )
        if path.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}; "
                "use an older checkpoint"
            )
        if sha256(path) != entry["sha256"]:
            raise CheckpointError(
                f"{path}: content differs from the manifest's sha256; use an older checkpoint"
            )
    if extra := sorted(present - set(listed)):
        raise CheckpointError(
            f"{directory / extra[0]}: not in the manifest; use an older checkpoint"
        )
    return manifest
