"""The numbers of one step, under the names that users of other trainers know. All are over all
ranks.

Denominators: rewards over rollouts with a reward; lengths and truncation over rollouts generated;
group rates over groups.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import Any

import numpy as np

from cero_rl.data.pool import Pool
from cero_rl.distributed.group import Group
from cero_rl.learner.update import UpdateResult
from cero_rl.rollout.collector import Collected
from cero_rl.scheduler import Scheduler
from cero_rl.scheduler.ledger import Ledger
from cero_rl.scheduler.sizes import Evidence
from cero_rl.train.scheduler import cero_of


def scheduler_numbers(scheduler: Scheduler) -> dict[str, float | int]:
    """What the scheduler believes and asks, before it learns of this step's round."""
    numbers: dict[str, float | int] = {
        "cero/posterior_mean": float(scheduler.posterior_mean.mean()),
        "cero/value_mean": float(scheduler.value.mean()),
    }
    if (cero := cero_of(scheduler)) is not None:
        numbers |= {"cero/price": float(cero.price), "cero/slope_mean": float(cero.slope.mean())}
        if cero.tokens is not None and cero.tokens.budget_tokens is not None:
            numbers["budget/remaining_tokens"] = int(cero.tokens.left_tokens)
    return numbers


def skew_numbers(seconds: Mapping[str, float], group: Group) -> dict[str, float | int]:
    """How unequal the ranks' work was: the slowest rank's seconds over the mean, for each stage,
    and which rank it was. A collective."""
    rows = group.gather_floats(list(seconds.values()))
    worst = {
        f"skew/{name}": float(row.max() / row.mean()) if row.mean() else 1.0
        for name, row in zip(seconds, rows.T)
    }
    return {**worst, "skew/slowest_rank": int(rows.sum(axis=1).argmax())}


def step_numbers(
    collected: Collected,
    result: UpdateResult,
    pool: Pool,
    ledger: Ledger,
    group: Group,
    premise: float,
) -> dict[str, float | int]:
    """A collective: every rank calls it. Timings are added by the loop."""
    evidence = collected.evidence
    trials, generated = int(evidence.trials.sum()), int(evidence.generated.sum())
    mean = float(evidence.successes.sum() / max(trials, 1))
    live = float(evidence.live.mean())
    prompt_tokens = sum(
        len(pool.tokens[i]) * int(n) for i, n in zip(evidence.prompt_ids, evidence.generated)
    )
    counts = collected.reward_counts
    known = np.concatenate(collected.rewards) if collected.rewards else np.zeros(0)
    squares = float(np.nansum((known - mean) ** 2))
    timeouts, errors, squares = group.all_sum([counts.timeouts, counts.errors, squares])
    memory_gb = group.all_max_float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return {
        "reward": mean,
        "reward_std": float(np.sqrt(squares / max(trials, 1))),
        "frac_reward_zero_std": 1.0 - live,
        "completions/mean_length": float(evidence.response_tokens.sum() / max(generated, 1)),
        "completions/clipped_ratio": float(evidence.truncated.sum() / max(generated, 1)),
        "num_tokens": prompt_tokens + int(evidence.response_tokens.sum()),
        "reward/timeout_rate": timeouts / max(generated, 1),
        "reward/error_rate": errors / max(generated, 1),
        "cero/rollouts_mean": generated / max(len(evidence.prompt_ids), 1),
        "cero/rollouts_max": int(evidence.generated.max()),
        "cero/effective_group_rate": live,
        "cero/waves": collected.waves,
        "cero/proxy_rank_corr": premise,
        **ledger.metrics(),
        **result.metrics,
        "perf/peak_memory_gb": memory_gb,
    }


def evidence_entry(step: int, round_index: int, evidence: Evidence) -> dict[str, Any]:
    """One line of evidence.jsonl: what was allocated and what came of it, enough to replay the
    scheduler."""
    return {
        "step": step,
        "round": round_index,
        "prompt_ids": evidence.prompt_ids.tolist(),
        "generated": evidence.generated.tolist(),
        "trials": evidence.trials.tolist(),
        "successes": evidence.successes.tolist(),
    }
