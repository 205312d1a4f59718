"""Counts where a host would wait for its device: what on a GPU stops the queue of kernels.

On a CPU nothing waits, but the operators are the same: a number that is read from a tensor, and a
result whose shape is data. Each is booked on the innermost frame of cero_rl, or of DeepSpeed, or of
whoever else asked for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_WAITS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.bincount.default,
    _ATEN._unique2.default,
}
_PACKAGES = ("cero_rl", "deepspeed", "transformers")


class HostSyncs(TorchDispatchMode):
    """`found`: how often, by (package, function, operator)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str, str]] = Counter()

    def by_package(self, package: str) -> int:
        return sum(n for (owner, _, _), n in self.found.items() if owner == package)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITS or _has_data_shape(func, args, kwargs or {}):
            self.found[(*_asker(), str(func))] += 1
        return func(*args, **(kwargs or {}))


def _has_data_shape(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func is _ATEN.index.Tensor:
        return any(i is not None and i.dtype == torch.bool for i in args[1])
    return func is _ATEN.repeat_interleave.Tensor and kwargs.get("output_size") is None


def _asker() -> tuple[str, str]:
    frame = sys._getframe(2)
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in _PACKAGES:
            return package, frame.f_code.co_name
        frame = frame.f_back
    return "other", ""
