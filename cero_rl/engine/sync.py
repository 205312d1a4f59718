"""Weights out of ZeRO shards: bucket by bucket, into the rollout engine or into an exported model.

A partitioned parameter has numel() == 0, so buckets are sized by ds_numel; the whole model is never gathered at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

BUCKET_BYTES = 512 * 2**20


def _full_numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def buckets(named: Iterable[tuple[str, nn.Parameter]], limit_bytes: int = BUCKET_BYTES) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Consecutive parameters whose full sizes add up to at most `limit_bytes` (one larger parameter goes alone)."""
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in named:
        needed = _full_numel(parameter) * parameter.element_size()
        if bucket and size + needed > limit_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += needed
    if bucket:
        yield bucket


def full_weights(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    """(name, full tensor) for every parameter; the tensor is valid until the next item. A collective: all ranks iterate to the end."""
    import deepspeed

    for bucket in buckets(named):
        with deepspeed.zero.GatheredParameters([parameter for _, parameter in bucket]):
            for name, parameter in bucket:
                yield name, parameter.data


@torch.no_grad()
def full_state_dict(named: Iterable[tuple[str, nn.Parameter]], *, keep: bool) -> dict[str, Tensor]:
    """CPU copies of all parameters where `keep` (rank 0), empty elsewhere; every rank takes part."""
    copied = {}
    for name, tensor in full_weights(named):
        if keep:
            copied[name] = tensor.detach().to("cpu", copy=True)
    return copied
