"""Named tensors that are read a piece at a time, so that a conversion never holds a whole model,
shard or large tensor.

A `Weights` says what there is (name, dtype, shape) and yields each tensor as flat pieces. Sources
(safetensors, ZeRO shards, Megatron) make one, transformations wrap one,
`safetensors_io.write_sharded` drains one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cero_rl.errors import CheckpointError

PIECE_BYTES = 2**20  # stays in the cache: pieces of 32 MB were cast at a ninth of the speed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Spec:
    """What a tensor is before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Weights:
    """specs: every tensor, in the order in which it will be written. pieces(name): its elements in
    order, flat, in the spec's dtype."""

    specs: Mapping[str, Spec]
    pieces: Callable[[str], Iterator[Tensor]]

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """The whole tensor, filled piece by piece: joining a list of pieces would hold it twice.

        `into`: a tensor that is no longer needed. Where it has the same size its memory is used:
        fresh memory costs as much as writing it to a file.
        """
        spec, at = self.specs[name], 0
        if into is not None and (into.dtype, into.numel()) == (spec.dtype, spec.numel):
            flat = into.view(-1)
        else:
            flat = torch.empty(spec.numel, dtype=spec.dtype)
        for piece in self.pieces(name):
            flat[at : at + len(piece)] = piece
            at += len(piece)
        assert at == spec.numel, (name, at)
        return flat.reshape(spec.shape)


def cast(weights: Weights, dtype: torch.dtype, kept: Collection[str] = ()) -> Weights:
    """Floating-point tensors in another dtype, rounded to nearest even; others and those `kept` as
    they are. Raises CheckpointError on overflow."""
    specs = {
        n: Spec(dtype, s.shape) if s.dtype.is_floating_point and n not in kept else s
        for n, s in weights.specs.items()
    }

    def pieces(name: str) -> Iterator[Tensor]:
        source, target = weights.specs[name].dtype, specs[name].dtype
        for piece in weights.pieces(name):
            converted = piece.to(target)
            if target == torch.float16 and source != target and _overflows(piece, converted):
                raise CheckpointError(
                    f"{name}: values beyond 65504 do not fit float16; use --dtype bfloat16 "
                    "or float32"
                )
            yield converted

    return Weights(specs, pieces)


def common_dtype(weights: Weights) -> torch.dtype:
    """The dtype that most elements have."""
    counts: dict[torch.dtype, int] = {}
    for spec in weights.specs.values():
        if spec.dtype.is_floating_point:
            counts[spec.dtype] = counts.get(spec.dtype, 0) + spec.numel
    if not counts:
        raise CheckpointError("weights: no floating-point tensor; wanted a language model")
    return max(counts, key=lambda dtype: counts[dtype])


def _overflows(piece: Tensor, converted: Tensor) -> bool:
    """A finite value became infinite. The extremes tell at once, isfinite is slow."""
    if not piece.numel() or float(piece.abs().amax()) < 65504:  # false for NaN
        return False
    return not torch.isfinite(converted).equal(torch.isfinite(piece))


def whole(specs: Mapping[str, Spec], make: Callable[[str], Tensor]) -> Weights:
    """Weights of a source that can only make a tensor whole."""

    def pieces(name: str) -> Iterator[Tensor]:
        tensor = make(name)
        wanted = specs[name]
        assert tuple(tensor.shape) == wanted.shape, (name, tuple(tensor.shape), wanted.shape)
        yield tensor.to(wanted.dtype).contiguous().flatten()

    return Weights(specs, pieces)


def read_elements(
    path: Path, offset_bytes: int, count: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """`count` elements of a file from a byte offset, by plain reads: a memory map would keep every
    page it touched."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset_bytes)
        step = max(PIECE_BYTES // dtype.itemsize, 1)
        for first in range(0, count, step):
            buffer = bytearray(min(step, count - first) * dtype.itemsize)
            view, filled = memoryview(buffer), 0
            while filled < len(buffer):
                got = file.readinto(view[filled:])
                if not got:
                    raise CheckpointError(
                        f"{path}: ends early, at byte "
                        f"{offset_bytes + first * dtype.itemsize + filled}; the file is cut"
                    )
                filled += got
            yield torch.frombuffer(buffer, dtype=dtype)
