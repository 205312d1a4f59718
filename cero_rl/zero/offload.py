"""The learner's states wait in host memory while the sampler works, and come back for the step.

Masters and Adam's moments are moved here: DeepSpeed 0.19.8 moves them for its own FusedAdam alone
(`offload_states`, stage 3). Gradient sums and the bucket they are reduced in go by its own call.
The weights' shards stay: weight sync and parity probe need them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cero_rl.config import Config


def states_wait(config: Config, device: torch.device) -> bool:
    """Is there anything to gain? On a CPU they are in host memory already."""
    return config.zero.offload_states_in_rollout and device.type == "cuda"


class HostStates:
    """Of one ZeRO-3 engine with torch's AdamW. Values are copied bit by bit, and the tensors that
    DeepSpeed and the optimizer know stay the same objects."""

    def __init__(self, engine: Any, *, pinned: bool) -> None:
        self._engine = engine
        self._pinned = pinned
        self._buffers: dict[int, Tensor] = {}  # host memory, used again at every step
        self._devices: list[torch.device] = []
        self.away = False

    def leave(self) -> None:
        """To the host. Nothing where they are there already."""
        if self.away:
            return
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as Kind

        self._devices = []
        for index, state in enumerate(self._moved()):
            self._devices.append(state.device)
            buffer = self._buffers.get(index)
            if buffer is None:
                buffer = torch.empty_like(state, device="cpu", pin_memory=self._pinned)
                self._buffers[index] = buffer
            buffer.copy_(state)
            state.data = buffer
        kinds = {Kind.lp_grads, Kind.contiguous_grad_buffer}
        self._engine.offload_states(include=kinds, pin_memory=self._pinned)
        self.away = True

    def come_back(self) -> None:
        """To where they were. Nothing where they never left."""
        if not self.away:
            return
        self._engine.reload_states()
        for state, device in zip(self._moved(), self._devices, strict=True):
            state.data = state.data.to(device, copy=True)
        self.away = False

    def _moved(self) -> Iterator[Tensor]:
        """Masters, then moments; the same order at every call between two steps."""
        optimizer = self._engine.optimizer
        masters = optimizer.fp32_partitioned_groups_flat
        yield from masters
        for master in masters:
            state = optimizer.optimizer.state.get(master, {})
            yield from (state[name] for name in ("exp_avg", "exp_avg_sq") if name in state)
