"""Numbers as a person reads them: what is not known, how many of what, how long."""

from __future__ import annotations

import math


def figure(value: float, how: str = ".3f") -> str:
    """`-` for what is not known."""
    return format(value, how) if math.isfinite(value) else "-"


def counted(number: float, noun: str) -> str:
    """`1 rollout`, `1,200 rollouts`."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
