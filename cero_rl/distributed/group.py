"""The data-parallel group: the few collectives a run needs, and `together`, the one boundary at
which what fails on one rank fails on all.

Everything that crosses ranks goes through `Group`, as tensors or JSON text of agreed shapes; never
as pickled objects. A group of one needs no process group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from cero_rl import errors
from cero_rl.errors import CeroError, EngineError, first_line

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Group:
    """The data-parallel group. Reductions are over all ranks; every method is a collective that all
    ranks call in step."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def alone(cls, device: str = "cpu") -> Group:
        """One rank that talks to nobody."""
        return cls(0, 1, torch.device(device))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def _reduce(self, tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> torch.Tensor:
        if self.world_size > 1:
            dist.all_reduce(tensor, op=op)
        return tensor

    def all_sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum of float64 values over ranks."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        return self._reduce(tensor).tolist()

    def all_max(self, value: int) -> int:
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        return int(self._reduce(tensor, dist.ReduceOp.MAX).item())

    def all_max_float(self, value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        return float(self._reduce(tensor, dist.ReduceOp.MAX).item())

    def gather_floats(self, values: Sequence[float]) -> npt.NDArray[np.float64]:
        """Every rank's values, [world, n]; as many on every rank."""
        shape = (self.world_size, len(values))
        rows = torch.zeros(shape, dtype=torch.float64, device=self.device)
        rows[self.rank] = torch.tensor(list(values), dtype=torch.float64)
        return self._reduce(rows).cpu().numpy()

    def sum_counts(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Exact integer sum over ranks, any shape; the order of ranks cannot change it."""
        tensor = torch.from_numpy(np.array(counts, dtype=np.int64)).to(self.device)
        return self._reduce(tensor).cpu().numpy()

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in rank order, on every rank."""
        text = json.dumps(value)
        if self.world_size == 1:
            return [json.loads(text)]
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(self.device)
        longest = self.all_max(data.numel())
        padded = torch.full((longest,), ord(" "), dtype=torch.uint8, device=self.device)
        padded[: data.numel()] = data
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return [json.loads(bytes(part.cpu().numpy()).decode()) for part in parts]

    def together(
        self, what: str, action: Callable[[], ResultT], raises: type[CeroError] = EngineError
    ) -> ResultT:
        """Run `action` on every rank; what fails on one rank fails on all. Returns its result here.

        Every rank raises `raises` with the words of the first rank that failed, behind `what`.
        Without this a rank that raised alone would leave the others waiting in a collective. What
        `action` raises on purpose (CeroError), what torch, the disk or a library raise
        (RuntimeError, OSError, ValueError, safetensors' own class) is caught; anything else is a
        bug and ends the process.
        """
        failure: Exception | None = None
        result: Any = None
        try:
            result = action()
        except (CeroError, OSError, RuntimeError, ValueError, SafetensorError) as error:
            failure = error
        said = None
        if failure is not None:
            plain = isinstance(failure, CeroError)
            words = str(failure) if plain else f"{type(failure).__name__}: {first_line(failure)}"
            said = f"rank {self.rank}: {words}"
        first = next((text for text in self.gather_json(said) if text is not None), None)
        if first is not None:
            raise raises(f"{what}: {first}") from failure
        return result

    def on_main(self, action: Callable[[], None], raises: tuple[type[CeroError], ...]) -> None:
        """Run `action` on rank 0 alone; an error of `raises` that it meets, every rank raises."""
        failure: CeroError | None = None
        said = None
        if self.is_main:
            try:
                action()
            except raises as error:
                failure = error
                said = [type(error).__name__, str(error)]
        told = self.gather_json(said)[0]
        if told is not None:
            kinds = {kind.__name__: kind for kind in raises}
            raise kinds[told[0]](told[1]) from failure

    def alike(self, action: Callable[[], ResultT]) -> ResultT:
        """Run `action` on every rank; an error of cero_rl/errors.py that one of them meets, every
        rank raises, with its own exit code."""
        failure: CeroError | None = None
        said = result = None
        try:
            result = action()
        except CeroError as error:
            failure = error
            said = [type(error).__name__, str(error)]
        answers = self.gather_json(said)
        first = next((rank for rank, told in enumerate(answers) if told is not None), None)
        if first is not None:
            kind, words = answers[first]
            where = f"rank {first}: " if first else ""
            raise getattr(errors, kind, CeroError)(where + words) from failure
        return cast("ResultT", result)

    def barrier(self) -> None:
        self.all_max(0)
