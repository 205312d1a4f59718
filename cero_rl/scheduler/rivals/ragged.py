"""Small helpers on ragged groups: group j owns entries offsets[j]:offsets[j+1]. Everything is O(R),
without loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids, Samples

Bools = npt.NDArray[np.bool_]


def group_of(offsets: Ids) -> Ids:
    """i64[R]: the group of each entry."""
    return np.repeat(np.arange(offsets.shape[0] - 1), np.diff(offsets))


def group_sum(values: npt.NDArray[np.generic], offsets: Ids) -> Floats:
    """f64[G] sums of values [R]; an empty group has 0."""
    sums = np.bincount(
        group_of(offsets), weights=values.astype(np.float64), minlength=offsets.shape[0] - 1
    )
    return sums.astype(np.float64)


def running_count(mask: Bools, offsets: Ids) -> Ids:
    """i64[R]: how many of the group's entries up to and including this one are in mask bool[R]."""
    count = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(mask)))
    return count[1:] - np.repeat(count[offsets[:-1]], np.diff(offsets))


def live_groups(samples: Samples) -> Bools:
    """bool[R]: the rollouts of groups whose rewards differ."""
    group, count = group_of(samples.offsets), samples.offsets.shape[0] - 1
    highest, lowest = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(highest, group, samples.rewards)
    np.minimum.at(lowest, group, samples.rewards)
    return (highest > lowest)[group]


def right(samples: Samples) -> Bools:
    """bool[R]: rewards above one half count as right."""
    return samples.rewards > 0.5
