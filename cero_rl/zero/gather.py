"""Whole weights out of ZeRO shards, bucket by bucket: for the sampler and for an exported model.

A partitioned parameter has numel() == 0, so buckets are sized by ds_numel; the whole model is never
gathered at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from cero_rl.models.weights import Source

BUCKET_BYTES = 512 * 2**20


def buckets(sources: Iterable[Source], limit_bytes: int = BUCKET_BYTES) -> Iterator[list[Source]]:
    """Consecutive sources whose full sizes add up to at most `limit_bytes` (one larger source goes
    alone)."""
    bucket: list[Source] = []
    size = 0
    for source in sources:
        needed = source.full_bytes
        if bucket and size + needed > limit_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(source)
        size += needed
    if bucket:
        yield bucket


def full_weights(sources: Iterable[Source]) -> Iterator[tuple[str, Tensor]]:
    """(name, full tensor) for every source; the tensor is valid until the next item. A collective:
    all ranks iterate to the end."""
    import deepspeed

    for bucket in buckets(sources):
        with deepspeed.zero.GatheredParameters(
            [parameter for source in bucket for parameter in source.parameters]
        ):
            for source in bucket:
                yield source.name, source.make()


@torch.no_grad()
def full_state_dict(sources: Iterable[Source], *, keep: bool) -> dict[str, Tensor]:
    """CPU copies of all tensors where `keep` (rank 0), empty elsewhere; every rank takes part."""
    copied = {}
    for name, tensor in full_weights(sources):
        if keep:
            copied[name] = tensor.detach().to("cpu", copy=True)
    return copied
