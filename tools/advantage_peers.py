"""The ways others compute group advantages, one function each, with the same inputs and outputs as
our operator: for the benchmark.

Norm: (r - mean) / (std + 1e-6) with ddof 1, what most trainers do; a group of one gets 0. `spread`
to packed tokens is the same for all peers, written as eager code would, with the output size given
so that it need not wait for the GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from cero_rl.ops import group_advantage, group_advantage_tokens

EPS = 1e-6
THRESHOLD = 0.5


@dataclass(frozen=True)
class Case:
    """R rollouts in G groups; cu_seqlens and the rest are None where only the groups are wanted."""

    sizes: str  # how groups are sized, for the table
    rewards: Tensor  # f32[R]
    group_offsets: Tensor  # i64[G+1]
    cu_seqlens: Tensor | None = None  # i32[R+1]
    seq_rollout: Tensor | None = None  # i32[R]
    loss_mask: Tensor | None = None  # bool[T]

    @property
    def tokens(self) -> int:
        return 0 if self.loss_mask is None else self.loss_mask.numel()


class Outputs(NamedTuple):
    adv: Tensor  # f32[R]
    mean: Tensor  # f32[G]
    std: Tensor  # f32[G]
    wins: Tensor  # i32[G]
    live: Tensor  # bool[G]
    token_adv: Tensor | None  # f32[T]


def spread(adv: Tensor, case: Case) -> Tensor | None:
    if case.cu_seqlens is None or case.seq_rollout is None or case.loss_mask is None:
        return None
    lengths = (case.cu_seqlens[1:] - case.cu_seqlens[:-1]).long()
    return (
        torch.repeat_interleave(adv[case.seq_rollout.long()], lengths, output_size=case.tokens)
        * case.loss_mask
    )


def _owner(case: Case, sizes: Tensor) -> Tensor:
    return torch.repeat_interleave(
        torch.arange(sizes.numel(), device=sizes.device), sizes, output_size=case.rewards.numel()
    )


def cero(case: Case) -> Outputs:
    if case.cu_seqlens is None or case.loss_mask is None:
        return Outputs(
            *group_advantage(
                case.rewards, case.group_offsets, norm="std", eps=EPS, success_threshold=THRESHOLD
            ),
            None,
        )
    out = group_advantage_tokens(
        case.rewards,
        case.group_offsets,
        case.cu_seqlens,
        case.loss_mask,
        seq_rollout=case.seq_rollout,
        norm="std",
        eps=EPS,
        success_threshold=THRESHOLD,
    )
    return Outputs(out.adv, out.mean, out.std, out.wins, out.live, out.token_adv)


def index_add(case: Case) -> Outputs:
    sizes = case.group_offsets[1:] - case.group_offsets[:-1]
    owner, zeros = _owner(case, sizes), torch.zeros(sizes.numel(), device=sizes.device)
    count = sizes.float()
    mean = zeros.index_add(0, owner, case.rewards) / count.clamp(min=1)
    centered = case.rewards - mean[owner]
    std = (zeros.index_add(0, owner, centered**2) / (count - 1).clamp(min=1)).sqrt()
    wins = zeros.index_add(0, owner, (case.rewards > THRESHOLD).float()).int()
    adv = centered / (std + EPS)[owner]
    return Outputs(adv, mean, std, wins, std > EPS, spread(adv, case))


compiled_index_add = torch.compile(index_add, dynamic=True)


def segment_reduce(case: Case) -> Outputs:
    def reduce(values: Tensor, how: str) -> Tensor:
        return torch.segment_reduce(
            values, how, offsets=case.group_offsets, axis=0, initial=0 if how == "sum" else None
        )

    sizes = case.group_offsets[1:] - case.group_offsets[:-1]
    owner = _owner(case, sizes)
    mean = reduce(case.rewards, "sum") / sizes.clamp(min=1)
    centered = case.rewards - mean[owner]
    std = (reduce(centered**2, "sum") / (sizes - 1).clamp(min=1)).sqrt()
    wins = reduce((case.rewards > THRESHOLD).float(), "sum").int()
    adv = centered / (std + EPS)[owner]
    return Outputs(adv, mean, std, wins, std > EPS, spread(adv, case))


def segment_csr(case: Case) -> Outputs:
    import torch_scatter  # pyright: ignore[reportMissingImports]

    def total(values: Tensor) -> Tensor:
        return torch_scatter.segment_csr(values, case.group_offsets, reduce="sum")

    sizes = case.group_offsets[1:] - case.group_offsets[:-1]
    mean = total(case.rewards) / sizes.clamp(min=1)
    centered = case.rewards - torch_scatter.gather_csr(mean, case.group_offsets)
    std = (total(centered**2) / (sizes - 1).clamp(min=1)).sqrt()
    wins = total((case.rewards > THRESHOLD).float()).int()
    adv = centered / torch_scatter.gather_csr(std + EPS, case.group_offsets)
    return Outputs(adv, mean, std, wins, std > EPS, spread(adv, case))


def padded(case: Case) -> Outputs:
    """A rectangle [G, largest group]: a view where all groups have one size, a gather where not."""
    sizes = case.group_offsets[1:] - case.group_offsets[:-1]
    largest = int(sizes.max())
    if largest * sizes.numel() == case.rewards.numel():
        valid, table = None, case.rewards.view(-1, largest)
    else:
        column = torch.arange(largest, device=sizes.device)
        valid = column < sizes[:, None]
        place = (case.group_offsets[:-1, None] + column).clamp(max=case.rewards.numel() - 1)
        table = torch.where(valid, case.rewards[place], 0.0)
    mean = table.sum(1) / sizes
    centered = table - mean[:, None]
    if valid is not None:
        centered = torch.where(valid, centered, 0.0)
    std = (centered.square().sum(1) / (sizes - 1).clamp(min=1)).sqrt()
    wins = (table > THRESHOLD).sum(1).int()
    scaled = centered / (std + EPS)[:, None]
    adv = scaled.reshape(-1) if valid is None else scaled[valid]
    return Outputs(adv, mean, std, wins, std > EPS, spread(adv, case))


def python_loop(case: Case) -> Outputs:
    adv, rows = torch.zeros_like(case.rewards), []
    for first, last in pairwise(case.group_offsets.tolist()):
        group = case.rewards[first:last]
        mean = group.mean()
        std = group.std() if last - first > 1 else torch.zeros_like(mean)
        adv[first:last] = (group - mean) / (std + EPS)
        rows.append((mean, std, (group > THRESHOLD).sum()))
    mean, std, wins = (torch.stack(column) for column in zip(*rows))
    return Outputs(adv, mean, std, wins.int(), std > EPS, spread(adv, case))


def peers() -> dict[str, Callable[[Case], Outputs]]:
    """All that can run here, by the name in the table."""
    found: dict[str, Callable[[Case], Outputs]] = {
        "index_add": index_add,
        "segment_reduce": segment_reduce,
        "compiled index_add": compiled_index_add,
        "padded": padded,
        "python loop": python_loop,
    }
    if importlib.util.find_spec("torch_scatter") is not None:
        found["segment_csr"] = segment_csr
    return found


def disagreement(got: Outputs, wanted: Outputs) -> str:
    """Empty where all outputs agree up to float32 rounding, else the name of the first that does
    not."""
    for name, a, b in zip(Outputs._fields, got, wanted):
        if (a is None) != (b is None):
            return name
        if (
            a is not None
            and b is not None
            and not torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)
        ):
            return name
    return ""


def worst_on_equal_rewards(peer: Callable[[Case], Outputs], device: str) -> float:
    """Largest |adv| over 441 groups whose rewards are all equal, sizes 2..64: the only right answer
    is 0."""
    values = (0.1, 0.2, 0.3, 0.7, 0.9, 1 / 3, 1.1)
    sizes = torch.arange(2, 65).repeat_interleave(len(values))
    rewards = torch.tensor(values).repeat(63).repeat_interleave(sizes)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    return float(peer(Case("equal", rewards.to(device), offsets.to(device))).adv.abs().max())
