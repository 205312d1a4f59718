"""Tokens a second by phase, and the share of a GPU's arithmetic that the learner used.

Model FLOPs as in PaLM (arXiv 2204.02311, appendix B): 6 a parameter and token for forward and
backward pass (4 where the parameter is frozen), and 12 a head, its width, a layer and a pair of
tokens for attention. What is computed twice to save memory does not count, nor do passes without a
gradient (a reference model, log-probabilities before the update).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cero_rl.config import Config
from cero_rl.learner.update import UpdateResult
from cero_rl.models.load import load_model_config
from cero_rl.models.shapes import Shape, shape_of

# dense bfloat16 FLOP/s as their makers state them; the first name that is part of the device's
_PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("A40", 150e12),
    ("A10", 125e12),
    ("L4", 121e12),
)


def peak_flops(device: str, dtype: str) -> float | None:
    """FLOP/s of a device by its name; None where it is not known."""
    if dtype != "bfloat16":
        return None
    return next((peak for name, peak in _PEAKS if name in device), None)


def learner_flops(shape: Shape, tokens: float, squares: float) -> float:
    """Of forward and backward pass over `tokens`, in sequences whose squared lengths add up to
    `squares`."""
    frozen = shape.trained < shape.parameters
    return (4 if frozen else 6) * shape.active * tokens + 12 * shape.attention * squares


@dataclass(frozen=True)
class Arithmetic:
    """What the model asks for, and what one device can do."""

    shape: Shape
    peak: float  # FLOP/s of one device

    @classmethod
    def of(cls, config: Config, device: torch.device) -> Arithmetic | None:
        """None on a CPU, and where the device's peak is not known."""
        if device.type != "cuda":
            return None
        peak = peak_flops(torch.cuda.get_device_name(device), config.model.dtype)
        if peak is None:
            return None
        return cls(shape_of(load_model_config(config.model.path), config), peak)

    def used(self, update: UpdateResult, seconds: float, ranks: int) -> float:
        """The share that an update of `seconds` on so many devices used."""
        flops = learner_flops(self.shape, update.tokens, update.squares)
        return flops / (seconds * ranks * self.peak)


def rates(generated: float, learned: float, seconds: dict[str, float]) -> dict[str, float]:
    """Tokens of all ranks over rank 0's seconds in the phase; a phase that took none is left
    out."""
    tokens = {"rollout": generated, "learner": learned}
    return {
        f"perf/{phase}_tokens_per_second": count / seconds[phase]
        for phase, count in tokens.items()
        if seconds[phase] > 0
    }
