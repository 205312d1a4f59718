"""Long vectors into short ones that keep inner products: a count sketch (Charikar, Chen and
Farach-Colton, 2002) with signs of each element and a cyclic shift of each row.

Linear, and unbiased for the inner product of any two vectors; its standard deviation is at most
about sqrt(2 / size) |a| |b|. Costs D bytes for the signs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Sketch:
    """f32[dimension] -> f32[size]; the identity where that is no shorter. A function of the sizes
    and the seed."""

    def __init__(self, dimension: int, size: int, seed: int, device: torch.device) -> None:
        self.dimension = dimension
        self.size = min(size, dimension)
        self.is_exact = self.size == dimension
        rows = -(-dimension // self.size)
        random = torch.Generator().manual_seed(seed % 2**63)
        self._shifts = torch.randint(self.size, (rows,), generator=random).tolist()
        self._signs: Tensor | None = None
        if not self.is_exact:
            bits = torch.randint(2, (dimension,), generator=random, dtype=torch.int8)
            self._signs = (2 * bits - 1).to(device)

    @property
    def relative_error(self) -> float:
        """Standard deviation of an inner product over the product of the norms."""
        return 0.0 if self.is_exact else math.sqrt(2 / self.size)

    def __call__(self, vector: Tensor) -> Tensor:
        if self._signs is None:
            return vector
        short = torch.zeros(self.size, dtype=vector.dtype, device=vector.device)
        rows = (vector * self._signs).split(self.size)
        for row, shift in zip(rows, self._shifts):
            if len(row) < self.size:
                row = torch.nn.functional.pad(row, (0, self.size - len(row)))
            short[shift:] += row[: self.size - shift]
            short[:shift] += row[self.size - shift :]
        return short


def gram(first: Tensor, second: Tensor, columns: int = 2**16) -> Tensor:
    """f64[m, n] inner products of the rows of [m, D] and [n, D], summed in float64 without a copy
    of either in it."""
    total = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    for a, b in zip(first.split(columns, dim=1), second.split(columns, dim=1)):
        total += a.double() @ b.double().T
    return total.cpu()
