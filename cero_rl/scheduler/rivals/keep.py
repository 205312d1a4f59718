"""Which of the sampled rollouts train: PODS and GFPO, as a rule on top of any scheduler.

In: the round's rewards and lengths, ragged. Out: bool[R]. The budget has paid for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.rivals.ragged import group_of
from cero_rl.scheduler.sizes import Ids, Samples, Scalar, require

KeepName = Literal["pods", "gfpo", "gfpo_efficiency"]


@dataclass(frozen=True, slots=True)
class KeepRule:
    """pods: the subset with the largest reward variance. gfpo: the shortest. gfpo_efficiency: the
    most reward per token.

    share: of each group that trains, rounded up, at least 2 (or the whole group where it is
    smaller).
    """

    name: KeepName
    share: float = 0.5

    def __post_init__(self) -> None:
        require(
            self.name in get_args(KeepName),
            f"keep rule {self.name!r}, wanted one of {', '.join(get_args(KeepName))}",
        )
        require(0.0 < self.share <= 1.0, f"keep share = {self.share:g}, wanted a number in (0, 1]")

    def narrow(self, samples: Samples, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """bool[R]: of what `mask` bool[R] lets through, what the rule keeps."""
        sizes = np.bincount(group_of(samples.offsets)[mask], minlength=samples.prompt_ids.shape[0])
        offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes)))
        rest = Samples(samples.prompt_ids, samples.rewards[mask], offsets, samples.lengths[mask])
        kept = mask.copy()
        kept[mask] = self.mask(rest)
        return kept

    @staticmethod
    def no_identity() -> dict[str, Scalar]:
        """For a saved state of an allocator without a keep rule."""
        return {"keep_rule": "", "keep_share": 0.0}

    def identity(self) -> dict[str, Scalar]:
        """For a saved state."""
        return {"keep_rule": self.name, "keep_share": self.share}

    def mask(self, samples: Samples) -> npt.NDArray[np.bool_]:
        sizes = np.diff(samples.offsets)
        kept = np.minimum(np.maximum(np.ceil(sizes * self.share - 1e-9).astype(np.int64), 2), sizes)
        if self.name == "pods":
            return _max_variance(samples.rewards, samples.offsets, kept)
        if self.name == "gfpo":
            score = samples.lengths.astype(np.float64)
        else:
            score = -samples.rewards / np.maximum(samples.lengths, 1)
        return _rank_in_group(score, samples.offsets) < kept[group_of(samples.offsets)]


def _rank_in_group(score: Floats, offsets: Ids) -> Ids:
    """i64[R]: 0 for the group's smallest score; equal scores by position."""
    group = group_of(offsets)
    order = np.lexsort((np.arange(score.shape[0]), score, group))
    rank = np.empty(score.shape[0], dtype=np.int64)
    rank[order] = np.arange(score.shape[0]) - offsets[:-1][group]
    return rank


def _max_variance(rewards: Floats, offsets: Ids, kept: Ids) -> npt.NDArray[np.bool_]:
    """PODS (arXiv 2504.13818): the optimum is always the h highest and the kept-h lowest rewards;
    try every h.

    Of equally good splits the most even one, then the one with more high rewards.
    """
    rank, mask = _rank_in_group(rewards, offsets), np.zeros(rewards.shape[0], dtype=bool)
    ordered = np.empty_like(rewards)
    ordered[offsets[:-1][group_of(offsets)] + rank] = rewards
    for first, last, count in zip(offsets[:-1], offsets[1:], kept):
        size, values = int(last - first), ordered[first:last]
        total = np.concatenate((np.zeros(1), np.cumsum(values)))
        square = np.concatenate((np.zeros(1), np.cumsum(values**2)))
        low = np.arange(count + 1)
        mean = (total[low] + total[size] - total[size - count + low]) / max(count, 1)
        spread = (square[low] + square[size] - square[size - count + low]) / max(count, 1) - mean**2
        lowest = low[spread >= spread.max() - 1e-12]
        lows = int(lowest[np.argmin(np.abs(2 * lowest - count))])
        position = rank[first:last]
        mask[first:last] = (position < lows) | (position >= size - (count - lows))
    return mask
