"""How DeepSpeed's shards are written and read: through this engine of its own interface, never
through a plain pickle.

Writing is two steps: `save` only notes what DeepSpeed wants written (a copy, if training goes on
meanwhile), `write` puts it on disk outside every collective, so that a full disk on one rank is an
error and not a hang. Reading allows tensors, plain containers and the few classes DeepSpeed puts
into its own files; anything else in a file is refused by name. That holds for the files that
DeepSpeed opens by itself as well (universal checkpoints), at the moment it opens them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
    CheckpointCommitInfo,
    CheckpointEngine,
)
from torch import Tensor
from torch.utils import _pytree

from cero_rl.errors import CheckpointError, first_line
from cero_rl.files.pickled_enum import GETATTR, enum_member


def _allowed() -> list[Any]:
    """Classes that DeepSpeed 0.19.8 stores beside tensors in ZeRO checkpoints of this project."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    classes = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, set]
    return [*classes, (enum_member, GETATTR)]


_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def restricted_loading() -> Iterator[None]:
    """Every torch.load of this process, whoever calls it with whatever arguments, reads tensors,
    plain containers and DeepSpeed's classes, and runs nothing."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_allowed()):
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _refusal(where: str | Path, error: Exception) -> CheckpointError:
    """The restricted reader has no error class of its own for a file that is damaged, and its
    advice to trust a file that holds code is left out."""
    if not isinstance(error, pickle.UnpicklingError):
        return CheckpointError(
            f"{where}: cannot be read ({type(error).__name__}: {first_line(error)}); use another "
            "checkpoint"
        )
    first = next(
        (line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line),
        first_line(error),
    )
    what = first.strip().split(". ")[0]  # the sentences after it say how to trust the file
    return CheckpointError(
        f"{where}: refused, it is more than tensors and settings ({what}); use another checkpoint"
    )


def read_shard(path: str | Path, map_location: Any = "cpu") -> Any:
    """A DeepSpeed .pt file, with nothing run from it. Raises CheckpointError naming what it holds
    that is not allowed."""
    try:
        with restricted_loading():
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever a damaged pickle makes of the reader
        raise _refusal(path, error) from None


def _copy(state: Any) -> Any:
    """`state` with every tensor on the CPU and detached from the live one; a tensor that occurs
    twice is copied once."""
    seen: dict[int, Tensor] = {}

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in seen:
            seen[id(value)] = value.detach().to("cpu", copy=True)
        return seen[id(value)]

    return _pytree.tree_map(copied, state)


def _has_frozen(ds_engine: Any) -> bool:
    return not all(parameter.requires_grad for parameter in ds_engine.module.parameters())


def save_shards(ds_engine: Any, directory: Path, tag: str) -> None:
    """Have DeepSpeed note its state in `engine.checkpoint_engine`, frozen parameters left out. A
    collective."""
    ds_engine.save_checkpoint(
        str(directory), tag=tag, save_latest=False, exclude_frozen_parameters=_has_frozen(ds_engine)
    )


def load_shards(ds_engine: Any, directory: Path, tag: str) -> None:
    """The counterpart; frozen parameters stay as they are. A collective. Raises CheckpointError
    where there is nothing to load, or a file is not what DeepSpeed writes."""
    try:
        with restricted_loading():
            loaded, _ = ds_engine.load_checkpoint(
                str(directory), tag=tag, load_module_strict=not _has_frozen(ds_engine)
            )
    except CheckpointError:  # of ShardFiles, with the file's name
        raise
    except Exception as error:  # DeepSpeed takes the files' layout for granted
        raise _refusal(directory / tag, error) from error
    if loaded is None:
        raise CheckpointError(f"{directory / tag}: DeepSpeed found nothing to load")


class ShardFiles(CheckpointEngine):
    """Takes the place of `engine.checkpoint_engine`."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "cero_rl.ShardFiles"
        self.copies = False  # while training goes on during the writing
        self._noted: list[tuple[Path, Any]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        self._noted = []

    def save(self, state_dict: Any, path: str) -> None:
        self._noted.append((Path(path), _copy(state_dict) if self.copies else state_dict))

    def take(self) -> list[tuple[Path, Any]]:
        """What DeepSpeed wanted written since `create`."""
        noted, self._noted = self._noted, []
        return noted

    def load(self, path: str, map_location: Any = None) -> Any:
        return read_shard(path, map_location)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True
