"""The one DeepSpeed object that a ZeRO-3 optimizer file must hold besides tensors and plain
values."""

from __future__ import annotations

from typing import Any


def no_loss_scaling() -> Any:
    """DeepSpeed's static scaler at 1, as training in float32 and bfloat16 saves it."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    one: Any = 1.0  # DeepSpeed's annotation says int
    return LossScaler(scale=one)
