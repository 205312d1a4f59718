"""A start model for an engine: under ZeRO-3 sharded weight by weight while it is read, so that no
rank ever holds it whole, in host or device memory."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import nn

from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.models.attention import attention_of
from cero_rl.models.load import load_model


class _Sharding:
    """DeepSpeed's own partitioning of whole models, given one weight after the other: each goes to
    the rank's device, takes rank 0's values, and is cut. A collective a weight, in the order of the
    checkpoint's names, which is the same on every rank."""

    def __init__(self, settings: dict[str, Any], dtype: torch.dtype) -> None:
        self._settings, self._dtype = settings, dtype
        self._first: Any = None

    def __call__(self, parameter: nn.Parameter) -> None:
        import deepspeed
        from deepspeed.utils import groups

        if hasattr(parameter, "ds_id"):
            return
        # some models keep a few weights in float32, as DeepSpeed does not
        parameter.data = parameter.data.to(self._dtype)
        if self._first is None:
            self._first = parameter
            deepspeed.zero.Init(
                module=nn.ParameterList([parameter]),
                config_dict_or_path=self._settings,
                dtype=self._dtype,
                # None, or what an earlier model's zero.hpz_partition_size made of the ranks
                zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
            )
        else:
            self._first.convert_to_zero_parameters(param_list=[parameter])
        if parameter.ds_tensor.device.type == "cpu":  # pyright: ignore[reportAttributeAccessIssue]
            _give_memory_back()


def _give_memory_back() -> None:
    """glibc keeps the room of a weight that was freed, and the next shards are cut out of it: the
    holes that stay between them may be worth the model. Without glibc nothing is done."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def load_for_engine(config: Config, group: Group, settings: dict[str, Any]) -> Any:
    """The start model for `deepspeed.initialize` with `settings`. At stage 3 a collective, whose
    parameters are shards already. Raises EngineError as `load_model`."""
    model, attention = config.model, attention_of(config)
    if config.zero.stage < 3:
        return load_model(model.path, model.dtype, attention)
    sharding = _Sharding(settings, getattr(torch, model.dtype))
    causal_lm = load_model(model.path, model.dtype, attention, handle=sharding)
    for buffer in causal_lm.buffers():  # DeepSpeed moves none of a model that it finds sharded
        buffer.data = buffer.data.to(group.device)
    return causal_lm
