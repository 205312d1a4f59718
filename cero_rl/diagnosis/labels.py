"""Prompts by what the data says of them, or by how often they are passed: a name a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cero_rl.data.prompts import Prompt
from cero_rl.errors import DataError

MOST_LABELS = 12
RATE_BINS = ("0", "(0, .25)", "[.25, .5)", "[.5, .75)", "[.75, 1)", "1")
UNKNOWN = "unknown"
Names = list[str]


def rate_bin(rate: float) -> str:
    """The bin of `RATE_BINS` of a pass rate; `UNKNOWN` for nan."""
    if np.isnan(rate):
        return UNKNOWN
    if rate <= 0 or rate >= 1:
        return RATE_BINS[0] if rate <= 0 else RATE_BINS[-1]
    return RATE_BINS[1 + int(rate * 4)]


def has_column(prompts: Sequence[Prompt], name: str) -> bool:
    return name == "source" or any(name in p.columns for p in prompts)


def column(prompts: Sequence[Prompt], name: str) -> list[object]:
    """The column of each prompt, None where it has none; `source` is what the data names so, or
    the file. Raises DataError where no prompt has it."""
    if not has_column(prompts, name):
        found = sorted({c for p in prompts for c in p.columns})
        raise DataError(
            f"--by {name}: no such column in the training data; it has "
            f"{', '.join([*found, 'source'])}"
        )
    return [p.columns.get(name, p.source if name == "source" else None) for p in prompts]


def names_of(values: Sequence[object]) -> Names:
    """At most `MOST_LABELS` names: numbers with more values than that in quarters, other values
    as they are, the rarest of too many as `other`."""
    kinds = Counter(map(_name, values))
    if len(kinds) <= MOST_LABELS:
        return [_name(value) for value in values]
    numbers = [v for v in values if v is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        return _quarters(np.array([np.nan if v is None else v for v in values], dtype=np.float64))
    kept = {name for name, _ in kinds.most_common(MOST_LABELS - 1)}
    return [name if (name := _name(value)) in kept else "other" for value in values]


def _name(value: object) -> str:
    return UNKNOWN if value is None else str(value)[:40]


def _quarters(values: npt.NDArray[np.float64]) -> Names:
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, [0, 0.25, 0.5, 0.75, 1]))
    last = max(len(edges) - 2, 0)
    names = []
    for value in values:
        if np.isnan(value):
            names.append(UNKNOWN)
            continue
        at = min(int(np.searchsorted(edges, value, side="right")) - 1, last)
        high = edges[min(at + 1, len(edges) - 1)]
        names.append(f"{edges[at]:g} to {high:g}")
    return names


def order(names: Sequence[str]) -> Names:
    """Each name once: bins of pass rates from low to high, numbers by size, others by letter."""

    def key(name: str) -> tuple[int, float, str]:
        if name in RATE_BINS:
            return 0, RATE_BINS.index(name), name
        try:
            return 0, float(name.split(" ")[0]), name
        except ValueError:
            return (2 if name in (UNKNOWN, "other") else 1), 0.0, name

    return sorted(set(names), key=key)
