"""Exchange a scheduler's pool between rounds: prompts leave, prompts join, what is known of the
others stays. Ours.

In: a CeroScheduler and, for each prompt of the new pool, its index in the old one. Out: the same
scheduler over the new pool.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import BetaPosterior
from cero_rl.scheduler.tokens import TokenCosts

if TYPE_CHECKING:
    from cero_rl.scheduler.cero import CeroScheduler


def indices_of(old_keys: list[str], new_keys: list[str]) -> npt.NDArray[np.int64]:
    """i64[P']: where each new key stands among the old ones, -1 if it does not; what `set_pool`
    takes."""
    at = {key: index for index, key in enumerate(old_keys)}
    return np.array([at.get(key, -1) for key in new_keys], dtype=np.int64)


def change_pool(
    scheduler: CeroScheduler,
    previous: npt.NDArray,
    new_prior: tuple[float, float],
    labels: npt.ArrayLike | None,
) -> None:
    """See CeroScheduler.set_pool."""
    if scheduler.pending is not None:
        raise RuntimeError("set_pool() in the middle of a round: call update() first")
    pool, stays = previous.shape[0] if previous.ndim == 1 else 0, previous >= 0
    old = previous[stays]
    if (
        pool == 0
        or previous.dtype.kind not in "iu"
        or np.unique(old).shape != old.shape
        or bool((previous < -1).any())
    ):
        raise ValueError("previous: wanted a vector of distinct old indices, -1 for new prompts")
    if old.size and int(old.max()) >= scheduler.spec.num_prompts:
        raise ValueError(
            f"previous: index {int(old.max())} is not in the old pool of "
            f"{scheduler.spec.num_prompts}"
        )
    if (scheduler.progress is not None) != (labels is not None):
        raise ValueError(
            "labels belong to value = 'progress', and there they are needed: one per "
            "prompt of the new pool"
        )
    spec = replace(scheduler.spec, num_prompts=pool)
    posterior = scheduler.posterior
    prior = posterior.prior
    if not isinstance(prior[0], float):
        vectors = np.full(pool, new_prior[0]), np.full(pool, new_prior[1])
        for vector, before in zip(vectors, prior):
            vector[stays] = np.broadcast_to(before, posterior.a.shape)[old]
        prior = vectors
    fresh = BetaPosterior(pool, prior, posterior.forgetting)
    progress = None
    if scheduler.progress is not None and labels is not None:
        progress = scheduler.progress.with_labels(labels, pool)
    squares = None if scheduler._squares is None else fresh.a.copy()
    for array, before in ((fresh.a, posterior.a), (fresh.b, posterior.b)):
        array[stays] = before[old]
    if squares is not None and scheduler._squares is not None:
        squares[stays] = scheduler._squares[old]
    slope, exposure, rank = scheduler._slope, scheduler._exposure, scheduler._tie_rank

    # Everything is checked: from here on the scheduler changes.
    scheduler.spec, scheduler.posterior, scheduler.progress, scheduler._squares = (
        spec,
        fresh,
        progress,
        squares,
    )
    scheduler._prior_identity = (
        fresh.prior_identity() if not isinstance(prior[0], float) else scheduler._prior_identity
    )
    scheduler._value = np.empty(pool)
    scheduler._revalue(None)
    scheduler._slope = np.minimum(4.0 * scheduler._value, 1.0)
    scheduler._exposure = np.zeros(pool, dtype=np.int64)
    scheduler._slope[stays], scheduler._exposure[stays] = slope[old], exposure[old]
    ranks = np.empty(pool, dtype=np.int64)
    ranks[stays] = np.argsort(np.argsort(rank[old]))
    joined = np.random.default_rng([scheduler.seed, scheduler.round, pool]).permutation(
        pool - old.shape[0]
    )
    ranks[~stays] = old.shape[0] + joined
    scheduler._tie_rank, scheduler._pool_changed = ranks, True
    # expected lengths come again with the next set_expected_tokens()
    if scheduler.tokens is not None:
        spent = scheduler.tokens.spent_tokens
        scheduler.tokens = TokenCosts(pool, scheduler.tokens.budget_tokens)
        scheduler.tokens.spent_tokens = spent
