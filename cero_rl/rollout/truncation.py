"""What becomes of rollouts that the length limit cut: in the reward they train with, in the loss,
and in what the scheduler is told.

A cut rollout was stopped before it said whether it was right. Its reward trains like any other
(the default), or it is left out of the loss; `scheduler.truncated` says whether it counts as the
trial it was scored as, or as censored: no evidence at all, right or wrong. Censoring only those
that were scored 0 would push the posterior up. Soft overlong punishment (DAPO, arXiv 2503.14476,
equation 13): with L tokens at most, the last B of them a buffer,

    0 up to L - B tokens,   then -(n - (L - B)) / B,   at least -1

times reward.overlong_penalty is added to the reward that trains; the evidence is without it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cero_rl.config import Config
from cero_rl.types import RolloutGroup

Rewards = npt.NDArray[np.float32]


def is_cut(group: RolloutGroup) -> npt.NDArray[np.bool_]:
    """bool[n]: completions that ended at the length limit."""
    return np.array([c.finish_reason == "length" for c in group.completions], dtype=np.bool_)


def overlong(lengths: npt.NDArray[np.int64], limit: int, buffer: int) -> Rewards:
    """f32[n] in [-1, 0] of responses of so many tokens."""
    beyond = lengths - (limit - buffer)
    return (-np.clip(beyond / buffer, 0.0, 1.0)).astype(np.float32)


def shaped(rewards: Rewards, group: RolloutGroup, config: Config) -> Rewards:
    """Rewards f32[n] that train: with the soft punishment, where there is one; nan stays nan."""
    buffer = config.reward.overlong_buffer_tokens
    if buffer is None:
        return rewards
    lengths = np.array([len(c.token_ids) for c in group.completions], dtype=np.int64)
    limit = config.rollout.max_response_tokens
    penalty = config.reward.overlong_penalty * overlong(lengths, limit, buffer)
    return (rewards + penalty).astype(np.float32)


def without_cut(rewards: Rewards, group: RolloutGroup, *, leave_out: bool) -> Rewards:
    """Rewards f32[n] with nan for the cut ones, where they are to be left out."""
    if not leave_out:
        return rewards
    kept = rewards.copy()
    kept[is_cut(group)] = np.nan
    return kept
