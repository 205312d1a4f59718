"""Our own checkpoint directories: find the DeepSpeed part, check the manifest first, write a new
manifest for a converted one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cero_rl.checkpoint import MANIFEST, verify
from cero_rl.checkpoint.manifest import files_of
from cero_rl.errors import CheckpointError
from cero_rl.files.durable import describe_file, write_json
from cero_rl.files.plain import plain_files


@dataclass(frozen=True)
class Located:
    """zero: the directory with DeepSpeed's files. root and manifest: of our checkpoint around it,
    None for a bare one."""

    zero: Path
    root: Path | None
    manifest: Mapping[str, Any] | None


def zero_directory(directory: Path) -> Path | None:
    """`directory` or the one directory below it that holds DeepSpeed's files."""
    for place in [directory, *sorted(p for p in directory.iterdir() if p.is_dir())]:
        if any(place.glob("*_model_states.pt")):
            return place
    return None


def locate(directory: Path, *, bare: bool) -> Located:
    """A checkpoint of ours, verified file by file, or with `bare` any DeepSpeed directory. Raises
    CheckpointError otherwise."""
    zero = zero_directory(directory)
    if zero is None:
        raise CheckpointError(
            f"{directory}: no *_model_states.pt; wanted runs/NAME/checkpoints/step_N or a "
            "DeepSpeed directory"
        )
    if (directory / MANIFEST).is_file():
        return Located(zero, directory, verify(directory))
    if (directory.parent / MANIFEST).is_file() and zero == directory:
        return Located(zero, directory.parent, verify(directory.parent))
    if not bare:
        raise CheckpointError(
            f"{directory}: has no {MANIFEST}, so nothing vouches for its files; give --bare "
            "to convert it all the same"
        )
    plain_files(directory)
    return Located(zero, None, None)


def start_model(located: Located) -> Path | None:
    """The model directory that the run of this checkpoint started from, as its resolved
    configuration names it, or a LoRA's manifest."""
    if located.root is None or located.manifest is None:
        return None
    resolved = located.root.parent.parent / "config.resolved.yaml"
    try:
        named = yaml.safe_load(resolved.read_text(encoding="utf-8"))["model"]["path"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        named = (located.manifest.get("adapter") or {}).get("base_model_name_or_path")
    return Path(named) if isinstance(named, str) and Path(named).is_dir() else None


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """`manifest` with the files that are there now."""
    files = {
        path.relative_to(directory).as_posix(): describe_file(path) for path in files_of(directory)
    }
    write_json(directory / MANIFEST, {**manifest, "files": files})
