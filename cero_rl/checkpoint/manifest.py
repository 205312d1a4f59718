"""What a checkpoint directory holds, and the proof of it: sizes and sha256 of every file, written
last and checked first.

    checkpoints/step_000010/   zero/ (DeepSpeed shards)  state.json  arrays.safetensors
                               rank0.safetensors ...  MANIFEST.json

A directory without a manifest is no checkpoint, and one whose manifest lists less than `lacks` asks
for is none either. Neither DeepSpeed nor safetensors notices a flipped
bit, so hashes are checked before either opens a file. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cero_rl.errors import CheckpointError
from cero_rl.files.durable import sha256, write_json
from cero_rl.files.plain import plain_files, refuse_link

MANIFEST = "MANIFEST.json"
LATEST = "latest.json"
STATE, ARRAYS, SHARDS = "state.json", "arrays.safetensors", "zero"  # and rankN.safetensors
_STEP = re.compile(r"step_(\d{6,})")


def files_of(directory: Path) -> list[Path]:
    """Every file that a manifest has to list. Raises CheckpointError naming the first thing in
    there that is a link or no plain file."""
    return [path for path in plain_files(directory) if path != directory / MANIFEST]


def rank_file(rank: int) -> str:
    return f"rank{rank}.safetensors"


def step_of(directory: Path) -> int:
    """Of a directory of `all_steps`."""
    return int(directory.name.removeprefix("step_"))


def all_steps(run_dir: Path) -> list[Path]:
    """Every step_N of a run, newest first, whatever is in it."""
    found = [p for p in (run_dir / "checkpoints").glob("step_*") if _STEP.fullmatch(p.name)]
    return sorted(found, key=step_of, reverse=True)


def step_dirs(run_dir: Path) -> list[Path]:
    """Committed checkpoints, newest first, from a scan of the disk."""
    return [p for p in all_steps(run_dir) if (p / MANIFEST).is_file()]


def write_latest(run_dir: Path, directory: Path) -> None:
    """For a person: the program scans the disk."""
    entry = {"step": step_of(directory), "directory": f"checkpoints/{directory.name}"}
    write_json(run_dir / LATEST, entry)


def commit_id(manifest: dict[str, Any]) -> str:
    """What names a checkpoint's content: a score that comes later does not change it."""
    files = json.dumps(manifest["files"], sort_keys=True)
    return str(manifest.get("id") or hashlib.sha256(files.encode()).hexdigest()[:16])


def parent_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """How a manifest names the checkpoint that it goes on from."""
    return {"step": manifest["step"], "id": commit_id(manifest)}


def lacks(names: Collection[str], world_size: int, *, universal: bool = False) -> str | None:
    """The first part that a checkpoint of so many ranks must have and `names` has not."""
    ranks = 0 if universal else world_size
    for wanted in (STATE, ARRAYS, *(rank_file(rank) for rank in range(ranks))):
        if wanted not in names:
            return wanted
    if not any(name.startswith(f"{SHARDS}/") for name in names):
        return f"{SHARDS}/, DeepSpeed's shards"
    optimizers = sum(name.endswith("optim_states.pt") for name in names)
    if not universal and optimizers not in (0, world_size):
        return f"optimizer states of {world_size - optimizers} of {world_size} ranks"
    return None


def read_manifest(directory: Path) -> dict[str, Any]:
    """Raises CheckpointError, with what the directory looks like instead, if there is none that can
    be read."""
    refuse_link(directory)
    refuse_link(directory / MANIFEST)
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        entries = [(entry["bytes"], entry["sha256"]) for entry in manifest["files"].values()]
        numbers = [manifest["step"], manifest["world_size"], *(size for size, _ in entries)]
        if all(type(number) is int for number in numbers):
            return manifest
        problem = "wrong fields"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = type(error).__name__
    raise CheckpointError(
        f"{directory}: no readable {MANIFEST} ({problem}); {_what_it_is(directory)}"
    )


def _what_it_is(directory: Path) -> str:
    if not directory.is_dir():
        return "it is no directory; give one of checkpoints/step_* of a run"
    if steps := step_dirs(directory.parent) if directory.name == "checkpoints" else []:
        names = ", ".join(step.name for step in reversed(steps))
        return f"it holds a run's checkpoints; give one of them ({names}), or --resume auto"
    if directory.name in ("checkpoints", "abandoned") or any(directory.glob("tmp.step_*")):
        return "it holds no committed checkpoint; give one of checkpoints/step_* of a run"
    if (directory.parent / MANIFEST).is_file():
        return f"it is a part of a checkpoint; give {directory.parent}"
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


def share_of(files: Mapping[str, Mapping[str, Any]], rank: int, ranks: int) -> set[str]:
    """Which of a manifest's files this rank reads, so that each is read by one of them and none
    has much more to read than another: the largest first, each to whom has least."""
    load, mine = [0] * ranks, set[str]()
    for name in sorted(files, key=lambda name: (-files[name]["bytes"], name)):
        reader = load.index(min(load))
        load[reader] += files[name]["bytes"]
        if reader == rank:
            mine.add(name)
    return mine


def verify(directory: Path, *, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The manifest, after every part has been looked for and every file's size compared, and the
    hashes of those that fall to this of so many ranks.

    Raises CheckpointError naming the first bad file, link, or name that is none below it.
    """
    manifest = read_manifest(directory)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    universal = bool(manifest.get("universal"))
    if (part := lacks(listed, manifest["world_size"], universal=universal)) is not None:
        raise CheckpointError(f"{directory}: has no {part}; use an older checkpoint")
    present = {p.relative_to(directory).as_posix() for p in files_of(directory)}
    mine = share_of(listed, rank, ranks)
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
        if name in mine and sha256(path) != entry["sha256"]:
            raise CheckpointError(
                f"{path}: content differs from the manifest's sha256; use an older checkpoint"
            )
    if extra := sorted(present - set(listed)):
        raise CheckpointError(
            f"{directory / extra[0]}: not in the manifest; use an older checkpoint"
        )
    return manifest
