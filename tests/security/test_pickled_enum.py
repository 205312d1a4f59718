"""Members of enumerations as Python 3.11.0 to 3.11.3 pickles them, by getattr: read by every
restricted reader on any Python, and nothing else by that name."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from cero_rl.convert.dcp import _Unpickler
from cero_rl.convert.zero import load_restricted
from cero_rl.errors import CheckpointError
from cero_rl.zero.shards import read_shard


class ByName:
    """Pickles as getattr(kind, name)."""

    def __init__(self, kind: Any, name: str) -> None:
        self._reduced = (getattr, (kind, name))

    def __reduce__(self) -> Any:
        return self._reduced


def saved(tmp_path: Path, value: Any) -> Path:
    torch.save({"zero_stage": value}, tmp_path / "states.pt")
    return tmp_path / "states.pt"


READERS = [read_shard, load_restricted]


@pytest.mark.covers("files written by another Python")
@pytest.mark.parametrize("read", READERS)
def test_a_stage_by_its_name_is_read(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for stage in ZeroStageEnum:
        assert int(read(saved(tmp_path, ByName(ZeroStageEnum, stage.name)))["zero_stage"]) == stage


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("kind", "name"), [(ZeroStageEnum, "__init_subclass__"), (LossScaler, "backward")]
)
def test_any_other_attribute_is_refused(
    read: Callable[[Path], Any], kind: Any, name: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"states\.pt"):
        read(saved(tmp_path, ByName(kind, name)))


def test_megatrons_layout_is_read_and_no_more_of_it() -> None:
    def read(name: str) -> Any:
        return _Unpickler(io.BytesIO(pickle.dumps(ByName(_MEM_FORMAT_ENCODING, name)))).load()

    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    assert read(member.name) is member
    with pytest.raises(pickle.UnpicklingError):
        read("mro")
