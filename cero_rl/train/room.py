"""Will what a run writes fit where it is to be written? Told before weights load, from the model's
configuration and the free space of the disk; an estimate, lower than what is needed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.errors import ConfigError
from cero_rl.models.load import load_model_config

_STATE_BYTES = 12  # a trained parameter in a checkpoint: float32 master and Adam's two moments


def written_bytes(config: Config) -> tuple[int, int]:
    """(of one checkpoint, of the export) at least. With LoRA a checkpoint is small: 0."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_model_config(config.model.path), trust_remote_code=False
        )
    parameters = sum(p.numel() for p in model.parameters())
    width = getattr(torch, config.model.dtype).itemsize
    state = _STATE_BYTES + (width if config.zero.stage < 3 else 0)
    checkpoint = 0 if config.lora.rank else parameters * state
    return checkpoint, parameters * width if config.checkpoint.export else 0


def room_problem(
    checkpoint_bytes: int, export_bytes: int, free_bytes: int, *, kept: int, resumed: bool
) -> tuple[bool, str] | None:
    """(is it certain, words) where `free_bytes` are too few: for one checkpoint and the export, or
    for all `kept` checkpoints and one in the making. None where they are enough.

    A resumed run has checkpoints already, so only its export is certain to be new.
    """
    least = export_bytes + (0 if resumed else checkpoint_bytes)
    most = export_bytes + checkpoint_bytes * (1 if resumed else kept + 1)
    if free_bytes >= most:
        return None
    needed = least if free_bytes < least else most
    what = f"a checkpoint is about {_gigabytes(checkpoint_bytes)}"
    if export_bytes:
        what += f", the export {_gigabytes(export_bytes)}"
    return free_bytes < least, (
        f"{_gigabytes(free_bytes)} are free, about {_gigabytes(needed)} will be written ({what})"
    )


def check_room(config: Config, run_dir: Path, *, resumed: bool, group: Group) -> str | None:
    """A warning, or None; looked at on rank 0, the same on all. Raises ConfigError where writing
    is certain to fail: no permission, or no room for a single checkpoint and the export."""
    warnings: list[str] = []

    def look() -> None:
        place = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists())
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            raise ConfigError(
                f"output_dir: {place} is no directory that can be written; give another"
            )
        keep = config.checkpoint
        free = shutil.disk_usage(place).free + (0 if resumed else _bytes(run_dir))
        found = room_problem(
            *written_bytes(config), free, kept=keep.keep_last + keep.keep_best, resumed=resumed
        )
        if found is None:
            return
        if found[0]:
            raise ConfigError(f"output_dir: at {place} {found[1]}; make room or give another")
        warnings.append(found[1])

    group.on_main(look, (ConfigError,))
    return warnings[0] if warnings else None


def _bytes(run_dir: Path) -> int:
    """What --overwrite will set free."""
    if not run_dir.is_dir():
        return 0
    return sum(p.lstat().st_size for p in run_dir.rglob("*") if p.is_file())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
