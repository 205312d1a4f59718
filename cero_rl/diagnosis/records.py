"""What a diagnosis finds, as records for a table or for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from cero_rl.diagnosis import statistics as stat


@dataclass(frozen=True)
class PoolReport:
    """What the model's samples say of some prompts."""

    prompts: int
    of: int
    rollouts: int
    missing: int
    pass_rate: stat.Measured
    variance: stat.Measured  # of a reward given its prompt: p (1 - p)
    histogram: dict[str, float]  # share of the prompts in each bin of pass rates, both looks
    live: stat.Measured  # groups of the first look whose rewards differ
    taught: stat.Measured | None = None  # groups with a gradient, as trained


@dataclass(frozen=True)
class NoiseReport:
    scale: stat.NoiseScale
    group_rollouts: int
    batch_rollouts: int  # of an optimizer step of the run
    batch_groups: float
    regime: stat.Regime
    projected_to: int | None  # numbers that a gradient was projected to, None: not at all
    parameters: int


@dataclass(frozen=True)
class Row:
    """Prompts of one label."""

    name: str
    prompts: int
    share: float
    live: float
    pass_rate: float
    variance: float
    own: stat.Measured | None  # value of a group: of a unit of step length, in held-out reward
    value: stat.Measured | None  # the same over that of the mean group
    per_variance: float | None  # that, over the variance relative to the mean


@dataclass(frozen=True)
class TransferRow:
    name: str
    transfer: stat.Transfer


@dataclass(frozen=True)
class Diagnosis:
    model: str
    pool: PoolReport
    heldout: PoolReport | None
    noise: NoiseReport | None
    mean_value: stat.Measured | None  # <gradient of a mean group, held-out gradient>
    cosine: float | None  # of the two mean gradients, noise taken out
    gains: dict[str, stat.Gain]
    tables: dict[str, list[Row]]  # by column, and by pass rate
    transfer: list[TransferRow]  # all, then by label
    notes: list[str]
