"""Recorded pass rates as a pool: what another allocator would have met in a run that already
happened.

In: a run's counts (round, prompt, trials, successes), e.g. from evidence.jsonl. Out: a success rate
for every round and recorded prompt. The rates are the run's own, whatever the replayed allocator
does: replay shows what an allocator would have chosen, not what the model would have learned.
Prompts that the run never sampled are unknown and left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.sizes import Ids

_MEMORY = 0.9  # weight of a neighbouring round; two-sided
_PRIOR = 2.0  # pseudo-rollouts at the pool's mean rate
_MOST_CELLS = 100_000_000


@dataclass(frozen=True, slots=True)
class Counts:
    """One entry per recorded group."""

    round: Ids  # [N]
    prompt: Ids  # [N]
    trials: Ids  # [N]
    successes: Floats  # [N]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Smoothed success rates of a run."""

    prompt_ids: Ids  # [P] pool indices of the recorded run
    rates: npt.NDArray[np.float32]  # [K, P]
    rollouts: int  # recorded


def read_evidence(path: Path) -> Counts:
    """The counts in an evidence.jsonl (one JSON object a line, see `evidence_entry`). Raises
    ValueError naming the line."""
    rounds, prompts, trials, successes = [], [], [], []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                fields = [entry["prompt_ids"], entry["trials"], entry["successes"]]
                if len({len(field) for field in fields}) != 1:
                    raise ValueError("prompt_ids, trials and successes differ in length")
                rounds.append(np.full(len(fields[0]), int(entry["round"]), dtype=np.int64))
                prompts.append(np.asarray(fields[0], dtype=np.int64))
                trials.append(np.asarray(fields[1], dtype=np.int64))
                successes.append(np.asarray(fields[2], dtype=np.float64))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a line of evidence ({type(error).__name__}: "
                    f"{str(error).splitlines()[0]})"
                ) from None
    if not rounds:
        raise ValueError(f"{path} holds no evidence: the run has not finished a step")
    return Counts(
        np.concatenate(rounds),
        np.concatenate(prompts),
        np.concatenate(trials),
        np.concatenate(successes),
    )


def smooth(counts: Counts) -> Recorded:
    """Rates by round: each prompt's pass rates, weighted 0.9^distance in rounds, shrunk to the
    pool's mean by two pseudo-rollouts.

    Raises ValueError without a single rewarded rollout, for bad counts, or if rounds x prompts is
    beyond 1e8.
    """
    known = counts.trials > 0
    if not known.any():
        raise ValueError("the recorded run has no rollout with a reward")
    prompt, trials, successes = counts.prompt[known], counts.trials[known], counts.successes[known]
    if (successes < 0).any() or (successes > trials).any() or prompt.min() < 0:
        raise ValueError(
            "recorded counts are damaged: wanted 0 <= successes <= trials and prompt ids >= 0"
        )
    step = np.unique(counts.round)
    k = np.searchsorted(step, counts.round[known])
    ids, column = np.unique(prompt, return_inverse=True)
    if step.shape[0] * ids.shape[0] > _MOST_CELLS:
        raise ValueError(
            f"{step.shape[0]} rounds x {ids.shape[0]} prompts are too many to replay (at "
            f"most {_MOST_CELLS})"
        )
    wins = np.zeros((step.shape[0], ids.shape[0]), dtype=np.float32)
    tries = np.zeros_like(wins)
    np.add.at(wins, (k, column), successes)
    np.add.at(tries, (k, column), trials)
    mean = float(wins.sum() / tries.sum())
    wins, tries = _two_sided(wins), _two_sided(tries)
    rates = (wins + np.float32(_PRIOR * mean)) / (tries + np.float32(_PRIOR))
    return Recorded(ids, np.clip(rates, 1e-4, 1.0 - 1e-4).astype(np.float32), int(trials.sum()))


def _two_sided(counts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """sum_j 0.9^|k-j| counts[j] for every row k, in two passes."""
    forward, backward = counts.copy(), counts.copy()
    for k in range(1, counts.shape[0]):
        forward[k] += np.float32(_MEMORY) * forward[k - 1]
        backward[-1 - k] += np.float32(_MEMORY) * backward[-k]
    return forward + backward - counts
