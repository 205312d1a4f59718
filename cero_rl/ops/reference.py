"""What the operators mean, in float64 and plain torch: the oracle of the tests, never a fallback.

A group is the rewards of one prompt's rollouts. A group with fewer than two rollouts, or whose
rewards are all equal, is dead: its advantages are exactly 0. See advantage.py for the norms.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantage(
    rewards: Tensor,
    group_offsets: Tensor,
    *,
    norm: str,
    eps: float = 1e-6,
    ddof: int = 1,
    group_weight: Tensor | None = None,
    success_threshold: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(adv f64[R], mean f64[G], std f64[G], wins i32[G], live bool[G]), group by group."""
    groups = group_offsets.numel() - 1
    # compared in the precision of the rewards
    threshold = torch.tensor(success_threshold, dtype=torch.float32)
    adv = torch.zeros(rewards.numel(), dtype=torch.float64)
    mean, std = torch.zeros(groups, dtype=torch.float64), torch.zeros(groups, dtype=torch.float64)
    wins, live = torch.zeros(groups, dtype=torch.int32), torch.zeros(groups, dtype=torch.bool)
    for g in range(groups):
        first, last = int(group_offsets[g]), int(group_offsets[g + 1])
        r = rewards[first:last].double()
        size = r.numel()
        if size == 0:
            continue
        wins[g] = int((rewards[first:last] > threshold).sum())
        mean[g] = r.mean()
        if r.isnan().any():
            std[g], adv[first:last] = torch.nan, torch.nan
            continue
        live[g] = size >= 2 and bool(r.max() > r.min())
        if not live[g]:
            continue
        centered = r - mean[g]
        std[g] = (centered.square().sum() / (size - ddof)).sqrt()
        scale = {
            "center": 1.0,
            "std": 1.0 / float(std[g] + eps),
            "rloo": size / (size - 1),
            "maxrl": 1.0 / float(mean[g]) if mean[g] > 0 else 0.0,
        }[norm]
        adv[first:last] = (
            centered * scale * (1.0 if group_weight is None else float(group_weight[g]))
        )
    return adv, mean, std, wins, live


def token_advantage(
    adv: Tensor, cu_seqlens: Tensor, loss_mask: Tensor, seq_rollout: Tensor | None = None
) -> Tensor:
    """adv of each token's rollout where loss_mask is True, else 0; [T]."""
    out = torch.zeros(loss_mask.numel(), dtype=adv.dtype)
    for s in range(cu_seqlens.numel() - 1):
        first, last = int(cu_seqlens[s]), int(cu_seqlens[s + 1])
        rollout = s if seq_rollout is None else int(seq_rollout[s])
        out[first:last] = torch.where(loss_mask[first:last], adv[rollout], 0.0)
    return out
