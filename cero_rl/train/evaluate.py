"""Held-out evaluation: avg@k and unbiased pass@k over all ranks, with the same random draws at
every call.

Common draws make the difference of two evaluations far less noisy than either. Evaluation rollouts
are counted apart from the budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from cero_rl.checkpoint.retention import Score
from cero_rl.config import Config
from cero_rl.data.pool import Pool
from cero_rl.distributed.group import Group
from cero_rl.job.watchdog import Watchdog
from cero_rl.rewards.missing import first_reason
from cero_rl.rewards.pool import RewardPool
from cero_rl.rewards.scoring import score_together
from cero_rl.rollout.collector import generation_limit
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest

EVALUATION_STREAM = 2**40  # far from every training round's stream


def pass_at_k(successes: npt.NDArray[np.int64], trials: npt.NDArray[np.int64], k: int) -> float:
    """Mean over prompts of 1 - C(n-c, k)/C(n, k), the unbiased estimate of pass@k (Chen et al.,
    2021, arXiv 2107.03374).

    Prompts with fewer than k scored samples are left out; nan if none is left.
    """
    enough = trials >= k
    failures, n = (trials - successes)[enough], trials[enough]
    if not n.size:
        return float("nan")
    miss = np.ones(n.shape)
    for j in range(k):
        miss *= np.clip(failures - j, 0, None) / (n - j)
    return float((1.0 - miss).mean())


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers of accuracy are nan where too few samples were judged to speak of one."""

    prompts: int
    rollouts: int
    judged: int  # rollouts with a reward
    reason: str  # why others have none
    average: float  # mean over prompts of the share of scored samples above the success threshold
    standard_error: float  # over prompts
    pass_at: dict[int, float]
    samples_per_prompt: int
    # by which checkpoints are compared: of the first evaluation.samples_per_prompt samples alone,
    # which an evaluation on the way draws too
    score: Score

    @property
    def judged_rate(self) -> float:
        return self.judged / self.rollouts

    @property
    def missing_rate(self) -> float:
        return (self.rollouts - self.judged) / self.rollouts

    @property
    def is_known(self) -> bool:
        """Was enough judged to speak of accuracy?"""
        return not np.isnan(self.average)

    def metrics(self) -> dict[str, float | int]:
        """Under the names of metrics.jsonl; numbers that are not known are left out."""
        numbers: dict[str, float | int] = {
            f"eval/avg@{self.samples_per_prompt}": self.average,
            "eval/standard_error": self.standard_error,
            "eval/rollouts": self.rollouts,
            "eval/judged_rate": self.judged_rate,
            **{f"eval/pass@{k}": value for k, value in self.pass_at.items()},
        }
        return {name: value for name, value in numbers.items() if not np.isnan(value)}

    def describe(self, before: Mapping[str, float | int] = MappingProxyType({})) -> str:
        """For a person; pass@k beside what the metrics `before` say of it."""
        judged = ""
        if self.judged < self.rollouts:
            judged = f"{self.judged} of {self.rollouts} samples have a reward, {self.reason}"
        if not self.is_known:
            return f"accuracy unknown: {judged}"
        average = f"avg@{self.samples_per_prompt} {self.average:.3f} +- {self.standard_error:.3f}"
        passes = "".join(
            f", pass@{k} {_before(before.get(f'eval/pass@{k}') if k > 1 else None)}{value:.3f}"
            for k, value in self.pass_at.items()
        )
        return f"{average} on {self.prompts} prompts{passes}{judged and '; ' + judged}"

    def change_from(self, before: Mapping[str, float | int]) -> str:
        """` 0.500 -> 0.570 (+7.0 points)`, or the arrow alone where the metrics before are not of
        the same kind, or nothing where this accuracy is not known."""
        if not self.is_known:
            return ""
        change = f" -> {self.average:.3f}"
        earlier = before.get(f"eval/avg@{self.samples_per_prompt}")
        if earlier is None:
            return change
        return f" {earlier:.3f}{change} ({(self.average - earlier) * 100:+.1f} points)"


def _before(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} -> "


def evaluate(
    engine: RolloutEngine,
    heldout: Pool,
    rewards: RewardPool,
    group: Group,
    watchdog: Watchdog,
    config: Config,
    *,
    final: bool,
) -> EvaluationResult:
    """Held-out accuracy as config.evaluation asks for it, `final` before and after training.

    Prompts go to ranks round-robin; success counts are summed over ranks. A missing reward leaves
    the average; where more than evaluation.min_judged_rate allows are missing there is none: a
    verifier that abstains on what is wrong would make all that is left right. A collective.
    """
    settings = config.evaluation
    final_samples = settings.final_samples_per_prompt if final else None
    samples_per_prompt = final_samples or settings.samples_per_prompt
    prompts = heldout.prompts[: settings.limit]
    mine = range(group.rank, len(prompts), group.world_size)
    episodes = config.rollout.environment is not None
    requests = [
        RolloutRequest(
            i,
            heldout.tokens[i],
            samples_per_prompt,
            stream_key=int(prompts[i].key, 16),
            task=prompts[i] if episodes else None,
        )
        for i in mine
    ]
    with watchdog.phase("evaluation", "the sampler and all ranks", generation_limit(config)):
        groups = engine.generate(
            requests, stream=EVALUATION_STREAM, temperature=settings.temperature
        )
    with watchdog.phase("reward", "verifiers and all ranks"):
        scores = score_together(groups, prompts, rewards, group)
    compared = min(samples_per_prompt, settings.samples_per_prompt)
    counts = np.zeros((4, len(prompts)), dtype=np.int64)
    for index, values in zip(mine, scores.values):
        for row, drawn in enumerate((values, values[:compared])):
            known = drawn[~np.isnan(drawn)]
            wins = (known > config.reward.success_threshold).sum()
            counts[2 * row : 2 * row + 2, index] = wins, known.size
    successes, trials, *first = group.sum_counts(counts)
    rollouts, judged = len(prompts) * samples_per_prompt, int(trials.sum())
    reason = ""
    if judged < rollouts:
        reason = first_reason(group.gather_json(scores.first_error))
    if judged / rollouts < settings.min_judged_rate:
        trials = np.zeros_like(trials)
        first = np.zeros_like(first)
    rates = _rates(successes, trials)
    on = f"avg@{compared} of {len(prompts)} prompts at temperature {settings.temperature:g}"
    return EvaluationResult(
        prompts=len(prompts),
        rollouts=rollouts,
        judged=judged,
        reason=reason,
        average=_mean(rates),
        standard_error=float(rates.std(ddof=1) / np.sqrt(rates.size))
        if rates.size > 1
        else float("nan"),
        pass_at={
            k: pass_at_k(successes, trials, k) for k in settings.pass_k if k <= samples_per_prompt
        },
        samples_per_prompt=samples_per_prompt,
        score=Score(_mean(_rates(*first)), on),
    )


def _rates(
    successes: npt.NDArray[np.int64], trials: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Of the prompts with a known reward."""
    known = trials > 0
    return successes[known] / trials[known]


def _mean(rates: npt.NDArray[np.float64]) -> float:
    return float(rates.mean()) if rates.size else float("nan")
