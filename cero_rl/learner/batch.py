"""Scored groups -> the batch that trains, with its advantages; what a keep rule leaves out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler import Samples
from cero_rl.scheduler.protocol import Keep
from cero_rl.types import RolloutGroup


def _kept(
    groups: list[RolloutGroup], rewards: list[npt.NDArray[np.float32]], keep: Keep
) -> list[npt.NDArray[np.float32]]:
    """The rewards with nan where the scheduler keeps a rollout out of training."""
    known = [~np.isnan(r) for r in rewards]
    lengths = [
        len(c.token_ids)
        for g, k in zip(groups, known)
        for c, there in zip(g.completions, k)
        if there
    ]
    offsets = np.cumsum([0, *(int(k.sum()) for k in known)])
    flat = (
        np.concatenate([r[k] for r, k in zip(rewards, known)]).astype(np.float64)
        if rewards
        else np.zeros(0)
    )
    ids = np.array([g.prompt_id for g in groups], dtype=np.int64)
    mask = keep(Samples(ids, flat, offsets.astype(np.int64), np.array(lengths, dtype=np.int64)))
    kept = []
    for values, there, (first, last) in zip(rewards, known, pairwise(offsets)):
        trained = values.copy()
        trained[np.flatnonzero(there)[~mask[first:last]]] = np.nan
        kept.append(trained)
    return kept
