"""Sequence parallelism: N neighbouring ranks, a block, hold the tokens of one pack between them
(DeepSpeed-Ulysses, arXiv 2309.14509).

All that a token goes through alone (embedding, projections, feed-forward, head) a rank computes for
its slice. In attention tokens meet: there one exchange turns a slice of the tokens with all heads
into all tokens with a slice of the heads, and another turns the result back. With t = T'/N tokens a
rank, T' = T rounded up to a multiple of N:

    rank r has tokens r*t:(r+1)*t, heads 0:H      [t, H, D]
      to_heads    ->  tokens 0:T', heads r*h:(r+1)*h, h = H/N      [T', h, D]
      to_tokens   ->  back

Log-probabilities are summed to the whole pack (`whole`), so each rank of a block has the same [T]
of them and computes the same loss of the whole pack. Its backward pass brings that loss's gradient
through its own slice: summed over the block, the gradients of its ranks are the loss's.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cero_rl.distributed.group import Group


@dataclass(frozen=True)
class Block:
    """This rank's place in its block. `to_heads`, `to_tokens`, `whole` and `gather` are collectives
    of the block's ranks; all but `gather` have a gradient."""

    rank: int = 0  # within the block
    size: int = 1
    process_group: Any = None

    @classmethod
    def of(cls, group: Group, size: int, timeout_seconds: float) -> Block:
        """The block of this rank, ranks r*size:(r+1)*size of the group. A collective of the whole
        group."""
        if size == 1:
            return cls()
        timeout, own = datetime.timedelta(seconds=timeout_seconds), None
        for first in range(0, group.world_size, size):
            made = dist.new_group(list(range(first, first + size)), timeout=timeout)
            own = made if first <= group.rank < first + size else own
        return cls(group.rank % size, size, own)

    def slice_tokens(self, tokens: int) -> int:
        """Of each rank's slice of a pack."""
        return -(-tokens // self.size)

    def cut_of(self, mask: Tensor) -> tuple[int, ...] | None:
        """mask bool[T] on the host -> of each slice, the tokens of it that the slice predicts: a
        token is predicted by the one before it, which may be the last of the slice before. None
        where nothing is cut."""
        if self.size == 1:
            return None
        own = self.slice_tokens(len(mask))
        return tuple(int(mask[1:][r * own :][:own].sum()) for r in range(self.size))

    def slice_of(self, values: Tensor) -> Tensor:
        """[T] -> [t] of this rank; what a pack lacks to a multiple of N is 0."""
        own = self.slice_tokens(len(values))
        return F.pad(values, (0, own * self.size - len(values)))[self.rank * own :][:own]

    def to_heads(self, values: Tensor) -> Tensor:
        """[t, H, D] of each rank -> [T', H/N, D]. Raises ValueError where N does not divide H."""
        if values.shape[1] % self.size:
            raise ValueError(
                f"{values.shape[1]} attention heads are not divisible by zero.sequence_parallel = "
                f"{self.size}"
            )
        by_rank = values.unflatten(1, (self.size, -1)).transpose(0, 1)  # [N, t, h, D]
        return self._exchange(by_rank).flatten(0, 1)

    def to_tokens(self, values: Tensor) -> Tensor:
        """[T', H/N, D] of each rank -> [t, H, D]."""
        by_rank = values.unflatten(0, (self.size, -1))  # [N, t, h, D]
        return self._exchange(by_rank).transpose(0, 1).flatten(1, 2)

    def own_heads(self, values: Tensor) -> Tensor:
        """[H] -> [H/N], those that `to_heads` gives this rank."""
        return values.chunk(self.size)[self.rank]

    def whole(self, values: Tensor) -> Tensor:
        """[T], 0 where another rank of the block has something -> [T] of all of them."""
        return _Whole.apply(values, self.process_group)  # pyright: ignore

    def gather(self, values: Tensor, device: torch.device) -> list[Tensor]:
        """values [n], n each rank's own, of one type -> those of every rank, in order, where they
        were; they travel by way of `device`."""
        data = values.contiguous().view(torch.uint8).to(device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=device)
        lengths[self.rank] = len(data)
        dist.all_reduce(lengths, group=self.process_group)
        sizes = lengths.tolist()
        padded = F.pad(data, (0, max(sizes) - len(data)))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.process_group)
        return [p[:n].view(values.dtype).to(values.device) for p, n in zip(parts, sizes)]

    def _exchange(self, parts: Tensor) -> Tensor:
        return _Exchange.apply(parts, self.process_group)  # pyright: ignore


class _Exchange(torch.autograd.Function):
    """[N, ...] on each rank: part i goes to rank i. Its own inverse, so its own gradient."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, process_group: Any) -> Tensor:
        ctx.process_group = process_group
        parts = parts.contiguous()
        out = torch.empty_like(parts)
        dist.all_to_all_single(out, parts, group=process_group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Exchange.forward(ctx, grads[0], ctx.process_group), None


class _Whole(torch.autograd.Function):
    """The sum over the block. Every rank goes on to the same loss, of which each brings the
    gradient of its own summand: it passes as it is, and is not summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, process_group: Any) -> Tensor:
        out = values.clone()
        dist.all_reduce(out, group=process_group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@dataclass(frozen=True)
class OncePerBlock(Group):
    """The same ranks where those of a block hold the same: sums count each block once, by its first
    rank."""

    counts: bool = True

    @classmethod
    def of(cls, group: Group, block: Block) -> OncePerBlock:
        return cls(group.rank, group.world_size, group.device, counts=block.rank == 0)

    def all_sum(self, values: Sequence[float]) -> list[float]:
        return super().all_sum([value if self.counts else 0.0 for value in values])
