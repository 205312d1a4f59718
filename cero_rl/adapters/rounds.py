"""One CERO round inside somebody else's trainer: dealing its rollouts to processes, scoring its
ragged groups, saving its state.

In:  an Allocation and the reward of every rollout it asked for. Out: advantages for the trainer,
counts for the scheduler. Knows no trainer; both adapters are built on it. Rollouts of a round are
numbered 0..R-1, group after group.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cero_rl.data.prompts import Messages, fingerprint, make_prompt
from cero_rl.errors import CheckpointError, RewardError, first_line
from cero_rl.files.plain import refuse_link
from cero_rl.ops import group_advantage
from cero_rl.ops.advantage import Norm
from cero_rl.scheduler import CeroOptions, Evidence, Scheduler
from cero_rl.scheduler.critic import GroupSums, PosteriorCritic, leave_one_out
from cero_rl.scheduler.ledger import Ledger
from cero_rl.scheduler.registry import allocator
from cero_rl.types import Allocation

STATE_FILE = "cero_scheduler.npz"
_SCHEDULER = "scheduler."
_CRITIC = "critic."


@dataclass(frozen=True, slots=True)
class AdvantageRule:
    """How rewards become advantages and evidence; see cero_rl.ops.group_advantage for norm, eps and
    ddof."""

    norm: Norm
    eps: float = 1e-6
    ddof: int = 1
    success_threshold: float = 0.5  # a rollout is a success when its reward is larger


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A scored round, the same on every process."""

    allocation: Allocation
    rewards: npt.NDArray[np.float32]  # [R] NaN: missing
    advantages: npt.NDArray[np.float32]  # [R] 0 where the reward is missing
    successes: npt.NDArray[np.int64]  # [P]
    trials: npt.NDArray[np.int64]  # [P] rollouts with a reward
    live: npt.NDArray[np.bool_]  # [G] at least two rewards, not all equal


def rollout_groups(allocation: Allocation) -> npt.NDArray[np.int64]:
    """i64[R]: the group (position in the Allocation) of every rollout."""
    return np.repeat(np.arange(allocation.rollouts.shape[0]), allocation.rollouts)


def deal_slots(rollouts: int, processes: int, chunks: int) -> npt.NDArray[np.int64]:
    """i64[processes, n]: the rollout in each slot, -1 where there is none; n is the smallest
    multiple of `chunks` that holds all.

    Rollouts are dealt in order and as evenly as possible; a process's empty slots are its last.
    Raises ValueError on no rollouts.
    """
    if min(rollouts, processes, chunks) < 1:
        raise ValueError(
            f"deal_slots({rollouts}, {processes}, {chunks}): wanted three integers >= 1"
        )
    bounds = np.arange(processes + 1) * rollouts // processes
    width = math.ceil(math.ceil(rollouts / processes) / chunks) * chunks
    slots = bounds[:-1, None] + np.arange(width)
    slots[slots >= bounds[1:, None]] = -1
    return slots


def score_round(
    allocation: Allocation,
    rewards: npt.NDArray[np.float32],
    num_prompts: int,
    rule: AdvantageRule,
    signal: npt.NDArray[np.float32] | None = None,
    critic: PosteriorCritic | None = None,
) -> RoundResult:
    """Ragged advantages and the round's evidence from rewards f32[R].

    A NaN reward is a missing one: it leaves its group's baseline and the evidence, and its
    advantage is 0. `signal` f32[R], if given, is what success is read from instead of the reward
    (NaN: no evidence). A `critic` gives the baseline instead of the groups, with norm "center" as
    it is and with "std" over the round's root mean square, and learns from the round. Raises
    ValueError for a wrong number of rewards, RewardError for one that is infinite: its whole group
    would have no finite advantage.
    """
    total = allocation.total_rollouts
    signal = rewards if signal is None else signal
    for name, values in (("rewards", rewards), ("signal", signal)):
        if values.shape != (total,):
            raise ValueError(
                f"{name}: got shape {values.shape}, wanted ({total},): one entry per "
                f"rollout of round {allocation.round}"
            )
    if (infinite := np.flatnonzero(np.isinf(rewards))).size:
        raise RewardError(
            f"reward: got {rewards[infinite[0]]:g} for rollout {infinite[0]} of round "
            f"{allocation.round}; wanted a finite number, or NaN (None) for a missing one"
        )
    groups, sizes = rollout_groups(allocation), allocation.rollouts.shape[0]
    present = ~np.isnan(rewards)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(groups[present], minlength=sizes))))
    scored = group_advantage(
        torch.tensor(rewards[present], dtype=torch.float32),
        torch.from_numpy(offsets.astype(np.int64)),
        norm=rule.norm,
        eps=rule.eps,
        ddof=rule.ddof,
        success_threshold=rule.success_threshold,
    )
    advantages = np.zeros(total, dtype=np.float32)
    advantages[present] = scored.adv.numpy()
    if critic is not None:
        values = rewards[present].astype(np.float64)
        own = _against_critic(critic, allocation.prompt_ids, values, offsets.astype(np.int64))
        size = np.sqrt(np.mean(own**2)) if rule.norm == "std" and own.any() else 1.0
        advantages[present] = own / size
    known = ~np.isnan(signal)
    prompts = allocation.prompt_ids[groups]
    won = known & (signal > np.float32(rule.success_threshold))
    return RoundResult(
        allocation,
        rewards,
        advantages,
        np.bincount(prompts[won], minlength=num_prompts),
        np.bincount(prompts[known], minlength=num_prompts),
        scored.live.numpy(),
    )


def _against_critic(
    critic: PosteriorCritic,
    prompt_ids: npt.NDArray[np.int64],
    rewards: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """f64[R]: the rewards less what the critic expects of their groups; it learns from them."""
    counts = np.diff(offsets)
    group = np.repeat(np.arange(counts.size), counts)
    sums = np.bincount(group, weights=rewards, minlength=counts.size).astype(np.float64)
    squares = np.bincount(group, weights=rewards**2, minlength=counts.size).astype(np.float64)
    groups = GroupSums(prompt_ids, sums, squares, counts)
    predicted = critic.predict(groups)
    critic.observe(groups, predicted)
    return rewards - leave_one_out(rewards, offsets, predicted.mean, predicted.strength)


def published_cero(name: str, rounds: int, step_scale: float) -> CeroOptions | None:
    """CERO's options for a trainer's script: the dual step in units of the published 1/sqrt(K),
    the budget spent exactly. None for an allocator that has none of them. Raises ValueError."""
    if not allocator(name).is_cero:
        return None
    return CeroOptions(step_size=step_scale / math.sqrt(rounds), spend_down=True)


def open_round(scheduler: Scheduler) -> Allocation | None:
    """The next round that has something to generate, or the one a resumed run was about to
    generate; None when the run is over.

    Rounds that execute nothing are closed on the way: they make no policy update.
    """
    if scheduler.pending is not None:
        return scheduler.pending
    while (allocation := scheduler.open_round()) is not None and allocation.total_rollouts == 0:
        scheduler.close_round()
    return allocation


def close_round(scheduler: Scheduler, result: RoundResult) -> None:
    """Tell the scheduler what came of the open round, and end it."""
    ids = result.allocation.prompt_ids
    successes = result.successes[ids].astype(np.float64)
    scheduler.observe(Evidence(ids, successes, result.trials[ids]))
    scheduler.close_round()


def pool_fingerprint(prompts: Iterable[str | Messages]) -> str:
    """64 hex digits: the same exactly for the same prompts in the same order."""
    return fingerprint(make_prompt(prompt, "", "", {}) for prompt in prompts)


def save_state(
    path: Path,
    scheduler: Scheduler,
    ledger: Ledger,
    pool: str,
    critic: PosteriorCritic | None = None,
) -> None:
    """Replace `path` atomically with the scheduler's state, the ledger, the pool's fingerprint and
    the critic's state."""
    parts = {_SCHEDULER: scheduler.state_dict()}
    if critic is not None:
        parts[_CRITIC] = critic.state_dict()
    state: dict[str, Any] = {
        f"{prefix}{key}": np.asarray(value)
        for prefix, part in parts.items()
        for key, value in part.items()
    }
    state |= {"pool": np.asarray(pool), "spent": np.asarray(ledger.spent_rollouts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **state)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_state(
    path: Path,
    scheduler: Scheduler,
    ledger: Ledger,
    pool: str,
    critic: PosteriorCritic | None = None,
) -> None:
    """Restore `save_state`.

    Raises CheckpointError if the file is missing or was written for another pool, ValueError if the
    scheduler's settings differ.
    """
    refuse_link(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: not found; the checkpoint was written without CERO, resume from one "
            "that has it"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            saved = {key: file[key] for key in file.files}
        found, spent = str(saved["pool"]), int(saved["spent"])
    except Exception as error:  # numpy and zipfile raise a dozen unrelated types
        what = f"{type(error).__name__}: {first_line(error)}".split(". ")[0]
        raise CheckpointError(
            f"{path}: no state of a scheduler ({what}); resume from an older checkpoint"
        ) from None
    if found != pool:
        raise CheckpointError(
            f"{path}: its pool is {found[:12]} but the data set is "
            f"{pool[:12]}; give the same prompts in the same order"
        )

    def part(prefix: str) -> dict[str, Any]:
        return {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}

    scheduler.load_state_dict(part(_SCHEDULER))
    if critic is not None:
        critic.load_state_dict(part(_CRITIC))
    ledger.spent_rollouts = spent
