"""Weights out of ZeRO shards: bucket by bucket, into the rollout engine or into an exported model.

A partitioned parameter has numel() == 0, so buckets are sized by ds_numel; the whole model is never gathered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BUCKET_BYTES = 512 * 2**20


def _full_numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@dataclass(frozen=True)
class Source:
    """A full tensor to come: `make` it while its `parameters` are gathered."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, parameter: nn.Parameter) -> Source:
        """The parameter as it is."""
        return cls(name, (parameter,), lambda: parameter.data)

    @property
    def numel(self) -> int:
        return sum(map(_full_numel, self.parameters))

    @property
    def full_bytes(self) -> int:
        return sum(_full_numel(p) * p.element_size() for p in self.parameters)


def buckets(sources: Iterable[Source], limit_bytes: int = BUCKET_BYTES) -> Iterator[list[Source]]:
    """Consecutive sources whose full sizes add up to at most `limit_bytes` (one larger source goes alone)."""
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
    """(name, full tensor) for every source; the tensor is valid until the next item. A collective: all ranks iterate to the end."""
    import deepspeed

    for bucket in buckets(sources):
        with deepspeed.zero.GatheredParameters([parameter for source in bucket for parameter in source.parameters]):
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
