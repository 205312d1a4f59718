"""Held-out evaluation: avg@k, unbiased pass@k and maj@k over all ranks and by source, with the
same random draws at every call.

Common draws make the difference of two evaluations far less noisy than either. Evaluation rollouts
are counted apart from the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from cero_rl.checkpoint.retention import Score
from cero_rl.config import Config
from cero_rl.data.pool import Pool
from cero_rl.data.prompts import Prompt
from cero_rl.distributed.group import Group
from cero_rl.job.watchdog import Watchdog
from cero_rl.rewards.answers import answer_part
from cero_rl.rewards.missing import first_reason
from cero_rl.rewards.scoring import score_together
from cero_rl.rewards.several import Judge
from cero_rl.rollout.collector import generation_limit
from cero_rl.rollout.protocol import RolloutEngine, RolloutRequest
from cero_rl.train.accuracy import Counts, Spread, majority, mean, pass_at_k, rates
from cero_rl.types import RolloutGroup

EVALUATION_STREAM = 2**40  # far from every training round's stream


_UNKNOWN = Spread(float("nan"), float("nan"), float("nan"), float("nan"))
_FIXED_POINT = 2**20  # maj@k of a prompt is counted in units of 1 / _FIXED_POINT


@dataclass(frozen=True)
class SourceRow:
    """The prompts of one source."""

    prompts: int
    rollouts: int
    judged: int
    average: float
    spread: Spread


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers of accuracy are nan where too few samples were judged to speak of one."""

    prompts: int
    rollouts: int
    judged: int  # rollouts with a reward
    reason: str  # why others have none
    average: float  # mean over prompts of the share of scored samples above the success threshold
    standard_error: float  # over prompts, their samples included (accuracy.Spread)
    pass_at: dict[int, float]
    samples_per_prompt: int
    # by which checkpoints are compared: of the first evaluation.samples_per_prompt samples alone,
    # which an evaluation on the way draws too
    score: Score
    spread: Spread = _UNKNOWN
    majority: float = float("nan")  # maj@k of all samples; nan with fewer than two a prompt
    by_source: dict[str, SourceRow] = field(default_factory=dict)  # where there are several

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
            f"eval/maj@{self.samples_per_prompt}": self.majority,
            "eval/sampling_error": self.spread.sampling_error,
            "eval/interval_low": self.spread.low,
            "eval/interval_high": self.spread.high,
        }
        for source, row in self.by_source.items():
            numbers[f"eval/source/{source}/avg@{self.samples_per_prompt}"] = row.average
            numbers[f"eval/source/{source}/prompts"] = row.prompts
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
        if not np.isnan(self.majority):
            passes += f", maj@{self.samples_per_prompt} {self.majority:.3f}"
        return f"{average} on {self.prompts} prompts{passes}{judged and '; ' + judged}"

    def table(self) -> list[str]:
        """For a person: a row for all prompts and one for each source."""
        whole = SourceRow(self.prompts, self.rollouts, self.judged, self.average, self.spread)
        rows = {"all": whole, **self.by_source}
        width = max(len(name) for name in rows)
        k = self.samples_per_prompt
        head = f"{'source':{width}}  prompts  samples  unjudged  {f'avg@{k}':>7}  95 % interval"
        lines = [head]
        for name, row in rows.items():
            interval = f"{row.spread.low:.3f} to {row.spread.high:.3f}"
            interval = "unknown" if np.isnan(row.spread.low) else interval
            unjudged = row.rollouts - row.judged
            counts = f"{row.prompts:7}  {row.rollouts:7}  {unjudged:8}"
            lines.append(f"{name:{width}}  {counts}  {row.average:7.3f}  {interval}")
        names = [*(f"pass@{k}" for k in self.pass_at), f"maj@{k}"]
        values = [*self.pass_at.values(), self.majority]
        known = [f"{n} {v:.3f}" for n, v in zip(names, values) if not np.isnan(v)]
        return [*lines, ", ".join(known)] if known else lines

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
    rewards: Judge,
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
    counts = np.zeros((5, len(prompts)), dtype=np.int64)
    for index, done, values in zip(mine, groups, scores.evidence):
        counts[4, index] = round(_majority(done, values, config) * _FIXED_POINT)
        for row, drawn in enumerate((values, values[:compared])):
            known = drawn[~np.isnan(drawn)]
            wins = (known > config.reward.success_threshold).sum()
            counts[2 * row : 2 * row + 2, index] = wins, known.size
    successes, trials, *first, votes = group.sum_counts(counts)
    rollouts, judged = len(prompts) * samples_per_prompt, int(trials.sum())
    reason = ""
    if judged < rollouts:
        reason = first_reason(group.gather_json(scores.first_error))
    if judged / rollouts < settings.min_judged_rate:
        trials = np.zeros_like(trials)
        first = np.zeros_like(first)
    spread, voted = Spread.of(successes, trials), votes[trials > 0] / _FIXED_POINT
    on = f"avg@{compared} of {len(prompts)} prompts at temperature {settings.temperature:g}"
    return EvaluationResult(
        prompts=len(prompts),
        rollouts=rollouts,
        judged=judged,
        reason=reason,
        average=mean(rates(successes, trials)),
        standard_error=spread.standard_error,
        pass_at={
            k: pass_at_k(successes, trials, k) for k in settings.pass_k if k <= samples_per_prompt
        },
        samples_per_prompt=samples_per_prompt,
        score=Score(mean(rates(*first)), on),
        spread=spread,
        majority=mean(voted) if samples_per_prompt > 1 else float("nan"),
        by_source=_by_source(prompts, successes, trials, samples_per_prompt),
    )


def _majority(group: RolloutGroup, values: npt.NDArray[np.float32], config: Config) -> float:
    """maj@k of one prompt's judged samples."""
    judged = [(c, r) for c, r in zip(group.completions, values.tolist()) if not np.isnan(r)]
    said = [c.text if c.episode is None else c.episode.last_reply for c, _ in judged]
    reward = config.reward
    texts = [
        answer_part(text, answer_tags=reward.answer_tags, thinking=reward.thinking) for text in said
    ]
    return majority(texts, [r > config.reward.success_threshold for _, r in judged])


def _by_source(
    prompts: Sequence[Prompt], successes: Counts, trials: Counts, samples: int
) -> dict[str, SourceRow]:
    """A row for each source, in the order of appearance; none where there is only one."""
    sources = np.array([prompt.source for prompt in prompts], dtype=object)
    names = list(dict.fromkeys(sources.tolist()))
    rows = {}
    for name in names if len(names) > 1 else []:
        own = sources == name
        wins, tries = successes[own], trials[own]
        size = int(own.sum())
        average = mean(rates(wins, tries))
        spread = Spread.of(wins, tries)
        rows[name] = SourceRow(size, size * samples, int(tries.sum()), average, spread)
    return rows
