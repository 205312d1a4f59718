"""How much of a job's time is left: stop and save while a step and a save still fit, instead of being killed at the limit.

The budget counts from the start of the job, not of the process: waiting for nodes, containers and weights is part of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from cero_rl.errors import ConfigError

START, END = "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME"  # Unix seconds; set by Slurm or by the job script


@dataclass(frozen=True)
class Walltime:
    """A limit on the job. All times in seconds; `start` is Unix time."""

    limit_seconds: float
    margin_seconds: float  # kept free beside the next step and the save
    start: float

    def remaining_seconds(self, now: float | None = None) -> float:
        return self.start + self.limit_seconds - (time.time() if now is None else now)

    def should_stop(self, step_seconds: float, save_seconds: float = 0.0, now: float | None = None) -> bool:
        """True if a step of this length and a save would not end before the limit. Ranks must agree on the answer."""
        return self.remaining_seconds(now) < step_seconds + save_seconds + self.margin_seconds


def find_walltime(limit_seconds: float | None, margin_seconds: float, environ: Mapping[str, str], now: float) -> Walltime | None:
    """The tighter of a configured limit and the job's own end; None where there is neither. `now` stands for an unknown start."""
    start, end = _stamp(environ, START), _stamp(environ, END)
    start = now if start is None else start
    limits = [limit for limit in (limit_seconds, None if end is None else end - start) if limit is not None]
    return Walltime(min(limits), margin_seconds, start) if limits else None


def _stamp(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise ConfigError(f"{name}: got {text!r}, wanted Unix seconds; unset it or set it to `date +%s`")
    return float(text)
