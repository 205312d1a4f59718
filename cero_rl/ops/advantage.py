"""Group advantages over ragged rollout groups: one exact definition for the trainer, the
scheduler's evidence and the tests.

R rollouts, G groups, S packed sequences, T packed tokens; rollouts of group j are
group_offsets[j]:group_offsets[j+1].

    center  r - mean                    Dr.GRPO, arXiv 2503.20783
    std     (r - mean) / (std + eps)    GRPO, arXiv 2402.03300
    rloo    n / (n - 1) * (r - mean)    leave-one-out baseline, arXiv 2402.14740
    maxrl   (r - mean) / mean           0 where the mean is not positive

With groups of unequal size `std` with ddof=1 shrinks |adv| by sqrt((n-1)/n), 0.71 at n=2 and 0.97
at n=16: a weight by group size that nobody asked for. ddof=0 does not; `rloo` is unbiased for every
size and is the default.

Accumulation is in float64 in a fixed order, so results are the same bits for any thread count, and
on CPU and GPU.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cero_rl.ops._load import build_info

Norm = Literal["center", "std", "rloo", "maxrl"]
_NORMS: dict[str, int] = {"center": 0, "std": 1, "rloo": 2, "maxrl": 3}
_CUDA_NOTE = build_info().cuda_note  # why CUDA tensors cannot be used; empty when they can


def op_device(wanted: torch.device) -> torch.device:
    """Where the operators run for a learner on `wanted`: there, or on the CPU where they were built
    without CUDA; the bits are the same."""
    return torch.device("cpu") if wanted.type == "cuda" and _CUDA_NOTE else wanted


class GroupAdvantage(NamedTuple):
    """What `group_advantage` gives: R rollouts, G groups."""

    adv: Tensor  # f32[R]
    mean: Tensor  # f32[G] 0 for an empty group
    std: Tensor  # f32[G] 0 for a dead group
    wins: Tensor  # i32[G] rewards above success_threshold
    live: Tensor  # bool[G] two rollouts or more, rewards not all equal


class TokenAdvantage(NamedTuple):
    """The same with advantages spread over T packed tokens."""

    adv: Tensor  # f32[R]
    token_adv: Tensor  # f32[T] 0 where loss_mask is False
    mean: Tensor  # f32[G]
    std: Tensor  # f32[G]
    wins: Tensor  # i32[G]
    live: Tensor  # bool[G]


def _want(tensor: Tensor, name: str, dtypes: tuple[torch.dtype, ...], device: torch.device) -> None:
    if tensor.dim() != 1:
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)}, wanted one dimension; flatten it"
        )
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(
            f"{name}: got {str(tensor.dtype).removeprefix('torch.')}, wanted {wanted}; "
            "convert it with .to()"
        )
    if tensor.device != device:
        raise ValueError(
            f"{name}: is on {tensor.device}, rewards on {device}; move it with .to(rewards.device)"
        )


def _check_offsets(offsets: Tensor, name: str, end: int, *, exact: bool) -> int | None:
    """Cumulative sizes: sorted, from 0 to `end` exactly, or anywhere within. Returns the largest
    size, None if it may not look."""
    if offsets.numel() < 1:
        raise ValueError(f"{name}: is empty, wanted at least one entry (0)")
    if not _can_look(offsets):
        return None
    first, last, smallest, largest = torch.ops.cero.integer_range(offsets.contiguous())
    if smallest < 0:
        raise ValueError(f"{name}: is not sorted; wanted cumulative sizes, as of torch.cumsum")
    if first < 0 or last > end or (exact and (first, last) != (0, end)):
        raise ValueError(
            f"{name}: runs from {first} to {last}, wanted {'exactly ' if exact else ''}0 to {end}"
        )
    return largest


def _check_options(norm: str, ddof: int, eps: float) -> int:
    """The norm's number in csrc/group_math.h."""
    if norm not in _NORMS:
        raise ValueError(f"norm: got {norm!r}, wanted one of {', '.join(_NORMS)}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof: got {ddof!r}, wanted 0 or 1")
    if not 0 <= eps < float("inf"):  # False for NaN; math.isfinite would break a graph
        raise ValueError(f"eps: got {eps!r}, wanted a finite number >= 0")
    return _NORMS[norm]


def _check_values(tensor: Tensor, name: str, device: torch.device) -> None:
    """f32, one dimension, no gradient."""
    if tensor.requires_grad:
        raise ValueError(
            f"{name}: requires grad, but advantages are constants of the loss; pass {name}.detach()"
        )
    if tensor.device.type == "cuda" and _CUDA_NOTE:
        raise ValueError(
            f"{name}: is on {tensor.device}, but {_CUDA_NOTE}; build it with "
            "`CERO_CUDA=1 pip install --no-build-isolation -e .` or pass CPU tensors"
        )
    _want(tensor, name, (torch.float32,), device)


def _can_look(tensor: Tensor) -> bool:
    """Whether values may be read: not on a GPU, which would stop the host until it has caught up,
    and not while compiling."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_groups(
    rewards: Tensor,
    group_offsets: Tensor,
    norm: str,
    eps: float,
    ddof: int,
    group_weight: Tensor | None,
    max_group: int | None,
) -> int:
    """The arguments that both operators share; returns the norm's number."""
    norm_id = _check_options(norm, ddof, eps)
    _check_values(rewards, "rewards", rewards.device)
    _want(group_offsets, "group_offsets", (torch.int32, torch.int64), rewards.device)
    largest = _check_offsets(group_offsets, "group_offsets", rewards.numel(), exact=True)
    groups = group_offsets.numel() - 1
    if group_weight is not None:
        _check_values(group_weight, "group_weight", rewards.device)
        if group_weight.numel() != groups:
            raise ValueError(
                f"group_weight: got {group_weight.numel()} entries, wanted {groups}, one a group"
            )
    if max_group is not None and largest is not None and largest > max_group:
        raise ValueError(
            f"max_group: got {max_group}, but a group has {largest} rollouts; raise it or "
            "leave it out"
        )
    return norm_id


def _check_sequences(
    rollouts: int,
    cu_seqlens: Tensor,
    loss_mask: Tensor,
    seq_rollout: Tensor | None,
    device: torch.device,
) -> None:
    _want(cu_seqlens, "cu_seqlens", (torch.int32,), device)
    _want(loss_mask, "loss_mask", (torch.bool,), device)
    _check_offsets(cu_seqlens, "cu_seqlens", loss_mask.numel(), exact=False)
    sequences = cu_seqlens.numel() - 1
    if seq_rollout is None:
        if sequences > rollouts:
            raise ValueError(
                f"cu_seqlens: has {sequences} sequences for {rollouts} rollouts; pass seq_rollout"
            )
        return
    _want(seq_rollout, "seq_rollout", (torch.int32,), device)
    if seq_rollout.numel() != sequences:
        raise ValueError(
            f"seq_rollout: got {seq_rollout.numel()} entries, wanted {sequences}, one a sequence"
        )
    if sequences and _can_look(seq_rollout):
        low, high, _, _ = torch.ops.cero.integer_range(seq_rollout.contiguous())
        if low < 0 or high >= rollouts:
            raise ValueError(f"seq_rollout: runs from {low} to {high}, wanted 0 to {rollouts - 1}")


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


@torch.no_grad()
def group_advantage(
    rewards: Tensor,
    group_offsets: Tensor,
    *,
    norm: Norm = "rloo",
    eps: float = 1e-6,
    ddof: int = 1,
    group_weight: Tensor | None = None,
    success_threshold: float = 0.5,
    max_group: int | None = None,
) -> GroupAdvantage:
    """Advantages and statistics of ragged groups from rewards f32[R] and group_offsets
    i32|i64[G+1]; not differentiable.

    group_weight f32[G] multiplies a group's advantages. max_group, if given, is a promise about the
    largest group that is checked on CPU tensors. A NaN reward makes its own group's advantages NaN
    and no other's. Raises ValueError for a wrong dtype, shape or device, unsorted offsets, an
    unknown norm, ddof or eps, or inputs that require grad.

    Offsets on a GPU are not looked at, which would stop the host until the device has caught up:
    there wrong offsets read and write out of bounds. They are not looked at while compiling either.
    """
    norm_id = _check_groups(rewards, group_offsets, norm, eps, ddof, group_weight, max_group)
    out = torch.ops.cero.group_advantage(
        rewards.contiguous(),
        group_offsets.contiguous(),
        _contiguous(group_weight),
        norm_id,
        float(eps),
        ddof,
        float(success_threshold),
    )
    return GroupAdvantage(*out)


@torch.no_grad()
def token_advantage(
    adv: Tensor, cu_seqlens: Tensor, loss_mask: Tensor, *, seq_rollout: Tensor | None = None
) -> Tensor:
    """Advantages adv f32[R] spread over packed tokens: token_adv f32[T] is adv of the token's
    rollout where loss_mask bool[T] is True.

    cu_seqlens i32[S+1] bounds the packed sequences; seq_rollout i32[S] names each one's rollout
    (None: sequence s is rollout s). Masked tokens and tokens of no sequence get 0. For
    micro-batches, whose groups were computed before they were packed. Raises ValueError for a wrong
    dtype, shape or device, adv that requires grad, and (CPU tensors) indices out of range.
    """
    _check_values(adv, "adv", adv.device)
    _check_sequences(adv.numel(), cu_seqlens, loss_mask, seq_rollout, adv.device)
    return torch.ops.cero.token_advantage(
        adv.contiguous(), cu_seqlens.contiguous(), _contiguous(seq_rollout), loss_mask.contiguous()
    )


@torch.no_grad()
def group_advantage_tokens(
    rewards: Tensor,
    group_offsets: Tensor,
    cu_seqlens: Tensor,
    loss_mask: Tensor,
    *,
    seq_rollout: Tensor | None = None,
    norm: Norm = "rloo",
    eps: float = 1e-6,
    ddof: int = 1,
    group_weight: Tensor | None = None,
    success_threshold: float = 0.5,
    max_group: int | None = None,
) -> TokenAdvantage:
    """`group_advantage` and `token_advantage` in one call: two launches on a GPU, and nothing waits
    for data.

    Statistics cover all R rollouts although only S <= R of them may be packed. Raises ValueError as
    those two do.
    """
    norm_id = _check_groups(rewards, group_offsets, norm, eps, ddof, group_weight, max_group)
    _check_sequences(rewards.numel(), cu_seqlens, loss_mask, seq_rollout, rewards.device)
    out = torch.ops.cero.group_advantage_tokens(
        rewards.contiguous(),
        group_offsets.contiguous(),
        _contiguous(group_weight),
        cu_seqlens.contiguous(),
        _contiguous(seq_rollout),
        loss_mask.contiguous(),
        norm_id,
        float(eps),
        ddof,
        float(success_threshold),
    )
    return TokenAdvantage(*out)


@torch.library.register_fake("cero::group_advantage")
def _(rewards, group_offsets, group_weight, norm, eps, ddof, success_threshold):
    groups = group_offsets.numel() - 1
    return (
        rewards.new_empty(rewards.numel()),
        rewards.new_empty(groups),
        rewards.new_empty(groups),
        rewards.new_empty(groups, dtype=torch.int32),
        rewards.new_empty(groups, dtype=torch.bool),
    )


@torch.library.register_fake("cero::token_advantage")
def _(adv, cu_seqlens, seq_rollout, loss_mask):
    return adv.new_empty(loss_mask.numel())


@torch.library.register_fake("cero::group_advantage_tokens")
def _(
    rewards,
    group_offsets,
    group_weight,
    cu_seqlens,
    seq_rollout,
    loss_mask,
    norm,
    eps,
    ddof,
    success_threshold,
):
    groups = group_offsets.numel() - 1
    return (
        rewards.new_empty(rewards.numel()),
        rewards.new_empty(loss_mask.numel()),
        rewards.new_empty(groups),
        rewards.new_empty(groups),
        rewards.new_empty(groups, dtype=torch.int32),
        rewards.new_empty(groups, dtype=torch.bool),
    )
