"""The process group: start-up under the `deepspeed` launcher (or plain python), and the few
collectives the loop needs.

Everything that crosses ranks goes through `Group`, as tensors or JSON text of agreed shapes; never
as pickled objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from cero_rl.errors import EngineError


@dataclass(frozen=True)
class Group:
    """The data-parallel group. Reductions are over all ranks; every method is a collective that all
    ranks call in step."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum of float64 values over ranks."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def all_max(self, value: int) -> int:
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def all_max_float(self, value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor.item())

    def gather_floats(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Every rank's values, [world, n]; as many on every rank."""
        rows = torch.zeros(self.world_size, len(values), dtype=torch.float64, device=self.device)
        rows[self.rank] = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(rows)
        return rows.cpu().numpy()

    def sum_counts(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Exact integer sum over ranks, any shape; the order of ranks cannot change it."""
        tensor = torch.from_numpy(np.ascontiguousarray(counts, dtype=np.int64)).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in rank order, on every rank."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(
            self.device
        )
        longest = self.all_max(data.numel())
        padded = torch.full((longest,), ord(" "), dtype=torch.uint8, device=self.device)
        padded[: data.numel()] = data
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [json.loads(bytes(part.cpu().numpy()).decode()) for part in parts]

    def agree(self, failed: str | None, what: str) -> None:
        """Raise on all ranks if `what` failed on any; without it one rank's error would leave the
        others waiting."""
        messages = [m for m in self.gather_json(failed) if m]
        if messages:
            raise EngineError(f"{what}: {messages[0]}")

    def barrier(self) -> None:
        self.all_max(0)
