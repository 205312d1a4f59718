"""Exchange a scheduler's pool between rounds: prompts leave, prompts join, what is known of the
others stays. Ours.

In: for each prompt of the new pool its index in the old one. Out: old arrays over the new pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import BetaPosterior


def indices_of(old_keys: list[str], new_keys: list[str]) -> npt.NDArray[np.int64]:
    """i64[P']: where each new key stands among the old ones, -1 if it does not; what `set_pool`
    takes."""
    at = {key: index for index, key in enumerate(old_keys)}
    return np.array([at.get(key, -1) for key in new_keys], dtype=np.int64)


@dataclass(frozen=True)
class PoolChange:
    """Which prompts of a new pool of P' were in the old one."""

    stays: npt.NDArray[np.bool_]  # [P'] was it there?
    old: npt.NDArray[np.int64]  # [S] its index then, for those that stay

    @classmethod
    def of(cls, previous: npt.NDArray, old_size: int) -> PoolChange:
        """From previous i64[P'], each new prompt's index in the old pool, -1 for a prompt not in
        it. Raises ValueError for anything else."""
        if previous.ndim != 1 or previous.shape[0] == 0 or previous.dtype.kind not in "iu":
            raise ValueError(
                "previous: wanted a vector of distinct old indices, -1 for new prompts"
            )
        stays = previous >= 0
        old = previous[stays]
        if np.unique(old).shape != old.shape or bool((previous < -1).any()):
            raise ValueError(
                "previous: wanted a vector of distinct old indices, -1 for new prompts"
            )
        if old.size and int(old.max()) >= old_size:
            raise ValueError(
                f"previous: index {int(old.max())} is not in the old pool of {old_size}"
            )
        return cls(stays, old)

    @property
    def size(self) -> int:
        return self.stays.shape[0]

    def carry(self, before: npt.NDArray, fresh: npt.NDArray) -> npt.NDArray:
        """[P'] the entries `before` [P] of prompts that stay, `fresh` [P'] of those that joined."""
        carried = fresh.copy()
        carried[self.stays] = before[self.old]
        return carried

    def posterior(self, before: BetaPosterior, new_prior: tuple[float, float]) -> BetaPosterior:
        """The evidence of prompts that stay over the new pool; `new_prior` is that of those that
        joined, where the run has a prior per prompt."""
        prior = before.prior
        if not isinstance(prior[0], float):
            prior = (
                self.carry(
                    np.broadcast_to(prior[0], before.a.shape), np.full(self.size, new_prior[0])
                ),
                self.carry(
                    np.broadcast_to(prior[1], before.b.shape), np.full(self.size, new_prior[1])
                ),
            )
        fresh = BetaPosterior(self.size, prior, before.forgetting)
        fresh.a = self.carry(before.a, fresh.a)
        fresh.b = self.carry(before.b, fresh.b)
        return fresh

    def ranks(self, before: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray:
        """i64[P'] the order of ties: that of the prompts that stay, then the new ones, shuffled."""
        ranks = np.empty(self.size, dtype=np.int64)
        ranks[self.stays] = np.argsort(np.argsort(before[self.old]))
        count = self.old.shape[0]
        ranks[~self.stays] = count + rng.permutation(self.size - count)
        return ranks
