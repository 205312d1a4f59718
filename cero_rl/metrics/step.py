"""One step's line of metrics.jsonl: every name that is written, in one table, and the clocks.

All numbers are over all ranks. Denominators: rewards over rollouts with a reward; lengths and
truncation over rollouts generated; group rates over groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.checkpoint.progress import Progress
from cero_rl.config import Config
from cero_rl.data.pool import Pool
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError
from cero_rl.files.jsonl import append_jsonl
from cero_rl.job import faults
from cero_rl.learner.batch import TrainingBatch
from cero_rl.learner.update import UpdateResult
from cero_rl.memory.peaks import Peaks
from cero_rl.metrics.alerts import Alert
from cero_rl.metrics.completions import completion_rows, is_due
from cero_rl.metrics.console import Console, signal_in_words
from cero_rl.metrics.recorder import Recorder
from cero_rl.metrics.samples import dump_samples
from cero_rl.metrics.throughput import Arithmetic, rates
from cero_rl.rewards.missing import first_reason
from cero_rl.rewards.parts import part_numbers
from cero_rl.rollout.collector import Rollouts
from cero_rl.scheduler.posterior import Floats
from cero_rl.scheduler.premise import premise_correlation
from cero_rl.scheduler.reasons import Reasons
from cero_rl.types import Step

# name, or its beginning up to a *, and what it says
NAMES = {
    "step": "optimizer steps so far; 0 is the evaluation before training",
    "round": "of the scheduler, from 0",
    "reward": "mean of the rewards",
    "reward_std": "their standard deviation over all rollouts",
    "frac_reward_zero_std": "share of groups whose rewards are all equal",
    "reward/timeout_rate": "rewards missing because the verifier ran out of time",
    "reward/error_rate": "rewards missing because the verifier failed",
    "completions/mean_length": "response tokens of a rollout",
    "completions/clipped_ratio": "rollouts cut at the length limit",
    "completions/censored_ratio": "of them, scored and no evidence to the scheduler",
    "reward/overlong_mean": "soft overlong punishment, a part of the reward",
    "reward/*": "of each function of reward.functions: mean, std, missing_rate; extra/KEY: means "
    "of the other numbers of a reward's dict; extra_dropped: its entries that were no number",
    "episodes/turns": "answers of the model in an episode (rollout.environment)",
    "episodes/environment_tokens": "of an episode, which the environment wrote",
    "episodes/metric/*": "means of what the environment's @metric methods return",
    "num_tokens": "prompt and response tokens generated",
    "trained_tokens": "response tokens in the loss",
    "loss": "policy loss, KL term included",
    "grad_norm": "before clipping",
    "learning_rate": "of the last update, taken or skipped",
    "skipped_updates": "optimizer steps skipped for a bad gradient, or for want of a live group",
    "micro_batches": "forward and backward passes of a rank",
    "kl": "KL(policy || start model) a token",
    "entropy": "of the policy, a token",
    "clip_ratio/*": "tokens whose probability ratio was clipped: low, high, either, dual",
    "mismatch/*": "sampler against learner on the tokens that train",
    "parity/*": "sampler against learner on the probe after the weight sync",
    "rollout/staleness": "updates between the oldest completion's weights and the learner's",
    "baseline/strength": "rollouts that the critic's prior of a group counts for, mean",
    "baseline/half_life": "of a prompt's evidence in the critic, in updates at the full rate",
    "baseline/signal_share": "rollouts further from their baseline than learner.min_advantage",
    "baseline/explained": "share of the difference between prompts that the critic knows",
    "signal/found": "squared advantages of the step's rollouts, before scaling (live_signal)",
    "signal/expected": "what was expected of them when the step was cut (live_signal)",
    "coverage/positive_weight": "factor of the step's advantages above 0 (entropy_target)",
    "coverage/entropy_target": "learner.entropy_target",
    "cero/posterior_mean": "expected success rate, mean over the pool",
    "cero/value_mean": "worth of a rollout, mean over the pool",
    "cero/set_aside_prompts": "whose next rollout is more likely to be lost than judged",
    "cero/price": "of a unit of budget (CERO)",
    "cero/slope_mean": "worth of one more unit, mean over the pool (CERO)",
    "cero/cell_spread": "standard deviation of the cells' success rates over the pool (cells)",
    "cero/direction_mean": "factor of direction on the worth, mean over the pool (direction)",
    "cero/looked_share": "prompts that had a first look (direction)",
    "cero/starved_share": "prompts not looked at for two uniform passes (CERO)",
    "cero/rollouts_mean": "rollouts of a group",
    "cero/rollouts_max": "rollouts of the largest group",
    "cero/effective_group_rate": "share of groups whose rewards differ",
    "cero/waves": "of this step",
    "cero/proxy_rank_corr": "rank correlation of predicted worth and observed variance",
    "budget/*": "the ledger: total, spent, remaining, refunded rollouts; remaining tokens; turns "
    "and tokens of episodes",
    "eval/*": "held-out: avg@k, pass@k, maj@k, how sure, rollouts, share of them judged; by source",
    "checkpoint/failed_saves": "in a row",
    "step_time": "seconds from sampling to synced weights",
    "timing_s/*": "seconds by phase on rank 0; checkpoint: of the save before this line",
    "perf/tokens_per_second": "tokens generated over step_time",
    "perf/rollout_tokens_per_second": "response tokens generated, over the seconds of rollout",
    "perf/learner_tokens_per_second": "tokens through forward and backward, over the learner's",
    "perf/mfu": "share of the GPUs' bfloat16 arithmetic that the learner used; absent on CPUs",
    "perf/peak_memory_gb": "most resident memory of the largest rank so far, GiB",
    "perf/memory_gib/*": "peak by phase of the largest rank: allocated on a GPU, resident on CPUs; "
    "before: ahead of the models; device: of the GPU in use at the step's end, by everyone",
    "skew/*": "slowest rank over the mean, by phase; which rank it was",
}
_SKEW = ("rollout", "reward", "learner")
_ALWAYS_TIMED = ("rollout", "reward", "advantage", "reduce_counts", "learner", "sync", "scheduler")
_CHECKPOINT_SECONDS = 1e-3  # below it nothing was saved
_GIB = 2**30
_MEASURED = ("rollout", "learner", "optimizer", "sync", "evaluate", "checkpoint")  # their memory

Numbers = dict[str, float | int]


class Clocks:
    """Seconds by phase since they were last taken, and the memory of those that hold much."""

    def __init__(self, peaks: Peaks | None = None) -> None:
        self._seconds: dict[str, float] = {}
        self._peaks = peaks

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Time the block as part of `phase`."""
        started = time.perf_counter()
        try:
            with ExitStack() as stack:
                if self._peaks is not None and phase in _MEASURED:
                    stack.enter_context(self._peaks.phase(phase))
                yield
        finally:
            self._seconds[phase] = self.seconds(phase) + time.perf_counter() - started

    def seconds(self, phase: str) -> float:
        return self._seconds.get(phase, 0.0)

    def take(self) -> dict[str, float]:
        """All of them; they begin anew."""
        taken = self._seconds
        self._seconds = {}
        return taken


class StepMetrics:
    """Where steps are written: metrics.jsonl and trackers, ledger.jsonl, evidence.jsonl,
    samples.jsonl, and the progress line."""

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        group: Group,
        pool: Pool,
        progress: Progress,
        console: Console,
        recorder: Recorder,
        peaks: Peaks,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.config = config
        self.group = group
        self.pool = pool
        self.progress = progress
        self.console = console
        self.recorder = recorder
        self.peaks = peaks
        self.arithmetic = arithmetic
        self.clocks = Clocks(peaks)
        self.missing_said = False

    def open(
        self, step: Step, value: Floats, expected: Floats, reasons: Reasons | None = None
    ) -> StepLine:
        """The line of a step that begins now. value f64[P] is what its prompts were thought to be
        worth, expected f64[P] their success rates, reasons why they were chosen."""
        return StepLine(self, step, value, expected, reasons or Reasons())


class StepLine:
    """Grows while the step is made, and is written at its end."""

    def __init__(
        self, to: StepMetrics, step: Step, value: Floats, expected: Floats, reasons: Reasons
    ) -> None:
        self._to = to
        self._step = step
        self._value = value
        self._expected = expected
        self._reasons = reasons
        self._started = time.perf_counter()
        self._numbers: Numbers = {}
        self.step_seconds = 0.0
        self.clock = to.clocks.clock
        self.seconds = to.clocks.seconds

    def believes(self, metrics: Mapping[str, float | int]) -> None:
        """What the scheduler said before it learned from this step's round."""
        self._numbers |= metrics

    def log(
        self, rollouts: Rollouts, update: UpdateResult, parity: Mapping[str, float], version: int
    ) -> None:
        """The step is made: its books, and its numbers. `version` is that of the weights it was
        sampled for. A collective."""
        self.step_seconds = time.perf_counter() - self._started
        self._write_books(rollouts)
        group = self._to.group
        is_sum = self._to.config.reward.trains_evidence
        numbers = rollout_numbers(rollouts, self._to.pool, group, evidence_trains=is_sum)
        self._say_missing(rollouts)
        if self._to.config.rollout.environment is not None:
            numbers |= episode_numbers(rollouts, group)
        if self._to.config.reward.has_parts:
            numbers |= part_numbers(group.gather_json(rollouts.parts.state()))
        numbers["cero/proxy_rank_corr"] = premise_correlation(
            self._value[rollouts.prompt_ids],
            rollouts.evidence.successes,
            rollouts.evidence.trials,
            rollouts.evidence.squares,
        )
        self._numbers |= numbers
        self._numbers |= self._to.progress.ledger.metrics()
        self._numbers |= update.metrics
        self._numbers |= parity
        stale = version - rollouts.oldest_version(version)
        self._numbers |= {
            "round": self._step.round,
            "rollout/staleness": group.all_max(stale),
            "step_time": self.step_seconds,
            "perf/tokens_per_second": numbers["num_tokens"] / self.step_seconds,
            "perf/peak_memory_gb": group.all_max_float(self._to.peaks.resident() / _GIB),
        }
        seconds = {phase: self.seconds(phase) for phase in ("rollout", "learner")}
        generated = float(rollouts.counts.response_tokens.sum())
        self._numbers |= rates(generated, update.tokens, seconds)
        if self._to.arithmetic is not None:
            used = self._to.arithmetic.used(update, seconds["learner"], group.world_size)
            self._numbers["perf/mfu"] = used
        self._numbers |= skew_numbers({name: self.seconds(name) for name in _SKEW}, group)

    def _together(self, action: Callable[[], None]) -> None:
        """What the disk keeps rank 0 from writing ends all ranks: a checkpoint needs its logs."""
        what = f"logs of step {self._to.progress.step}"
        self._to.group.together(what, action, CheckpointError)

    def _write_books(self, rollouts: Rollouts) -> None:
        to = self._to

        def append() -> None:
            if not to.group.is_main:
                return
            step = to.progress.step
            entry = {"step": step, "round": self._step.round, "groups": len(rollouts.prompt_ids)}
            append_jsonl(to.run_dir / "ledger.jsonl", {**entry, **to.progress.ledger.state()})
            faults.point("log.ledger")
            evidence = evidence_entry(step, rollouts, self._value, self._expected, self._reasons)
            append_jsonl(to.run_dir / "evidence.jsonl", evidence)
            faults.point("log.evidence")
            if to.config.logging.sample_dumps:
                count = to.config.logging.samples_per_dump
                dump_samples(to.run_dir, step, rollouts, to.pool.prompts, count)

        self._together(append)

    def _say_missing(self, rollouts: Rollouts) -> None:
        """Once: that rewards are missing, and why. A collective where some are."""
        to, counts = self._to, rollouts.counts
        missing = counts.missing
        if not missing or to.missing_said:
            return
        to.missing_said = True
        reason = first_reason(to.group.gather_json(rollouts.reward_error))
        to.console.say(
            f"rewards: {missing} of {int(counts.generated.sum())} of step {to.progress.step} are "
            f"missing (counted, never 0); {reason}"
        )

    def show(self, rollouts: Rollouts, batch: TrainingBatch) -> None:
        """Some completions, on the console, where that is due."""
        to = self._to
        every = to.config.logging.table_every_steps
        if to.group.is_main and is_due(to.progress.step, every):
            rows = completion_rows(rollouts, batch, to.pool.prompts, self._expected)
            to.console.completions(to.progress.step, rows)

    def add(self, metrics: Mapping[str, float | int]) -> None:
        """What an evaluation, the critic or the batch has to say."""
        self._numbers |= metrics

    def write(self, failed_saves: int) -> None:
        """metrics.jsonl, trackers, console."""
        numbers = self._numbers
        seconds = self._to.clocks.take()
        numbers |= {f"timing_s/{name}": seconds.get(name, 0.0) for name in _ALWAYS_TIMED}
        if "evaluate" in seconds:
            numbers["timing_s/evaluate"] = seconds["evaluate"]
        if seconds.get("checkpoint", 0.0) > _CHECKPOINT_SECONDS:
            numbers["timing_s/checkpoint"] = seconds["checkpoint"]
        numbers["checkpoint/failed_saves"] = failed_saves
        numbers |= memory_numbers(self._to.peaks, self._to.group)
        step, spent = self._to.progress.step, self._to.progress.ledger.spent_rollouts

        alerts: list[Alert] = []

        def append() -> None:
            alerts.extend(self._to.recorder.write(step, numbers))
            faults.point("log.metrics")

        self._together(append)
        for alert in alerts:
            self._to.console.say(str(alert))
        self._to.console.progress(
            step,
            spent,
            reward=numbers["reward"],
            signal=signal_in_words(numbers),
            tokens_per_second=numbers["perf/tokens_per_second"],
        )


def evidence_entry(
    step: int, rollouts: Rollouts, value: Floats, expected: Floats, reasons: Reasons
) -> dict[str, Any]:
    """One line of evidence.jsonl: what was allocated and what came of it, enough to replay the
    scheduler; and what it believed before, of worth and success rate f64[P], to hold against it,
    and why it chose as it did."""
    evidence = rollouts.evidence
    ids = evidence.prompt_ids
    return {
        "step": step,
        "round": rollouts.step.round,
        "prompt_ids": ids.tolist(),
        "generated": rollouts.counts.generated.tolist(),
        "trials": evidence.trials.tolist(),
        "successes": evidence.successes.tolist(),
        "worth": np.round(value[ids], 5).tolist(),
        "expected": np.round(expected[ids], 5).tolist(),
        **reasons.entry(ids),
    }


def memory_numbers(peaks: Peaks, group: Group) -> Numbers:
    """GiB by phase since they were last taken, of the largest rank. A collective: the phases are
    the same on all ranks."""
    held = peaks.take()
    if held:
        held["before"] = peaks.before
    if (used := peaks.device_used()) is not None:
        held["device"] = used
    rows = group.gather_floats([float(size) for size in held.values()])
    return {f"perf/memory_gib/{name}": float(row.max()) / _GIB for name, row in zip(held, rows.T)}


def skew_numbers(seconds: Mapping[str, float], group: Group) -> Numbers:
    """How unequal the ranks' work was: the slowest rank's seconds over the mean, for each phase,
    and which rank it was. A collective."""
    rows = group.gather_floats(list(seconds.values()))
    worst: Numbers = {}
    for name, row in zip(seconds, rows.T):
        worst[f"skew/{name}"] = float(row.max() / row.mean()) if row.mean() else 1.0
    return {**worst, "skew/slowest_rank": int(rows.sum(axis=1).argmax())}


def rollout_numbers(
    rollouts: Rollouts, pool: Pool, group: Group, *, evidence_trains: bool = True
) -> Numbers:
    """What was sampled and what it was worth. A collective."""
    counts = rollouts.counts
    evidence = rollouts.evidence
    trials = int(counts.trials.sum())
    generated = int(counts.generated.sum())
    mean = float(evidence.successes.sum() / max(trials, 1))
    live = float(counts.live.astype(bool).mean())
    prompt_tokens = sum(
        len(pool.tokens[i]) * int(n) for i, n in zip(rollouts.prompt_ids, counts.generated)
    )
    missing = rollouts.reward_counts
    known = np.concatenate(rollouts.rewards) if rollouts.rewards else np.zeros(0)
    sums = [missing.timeouts, missing.errors, float(np.nansum(known)), rollouts.penalty]
    timeouts, errors, total, penalty = group.all_sum(sums)
    censored = int(counts.censored.sum())
    # the evidence has other sums than the rewards that train
    if penalty or censored or not evidence_trains:
        trials += censored
        mean = total / max(trials, 1)
    (squares,) = group.all_sum([float(np.nansum((known - mean) ** 2))])
    return {
        "reward": mean,
        "reward_std": float(np.sqrt(squares / max(trials, 1))),
        "frac_reward_zero_std": 1.0 - live,
        "completions/mean_length": float(counts.response_tokens.sum() / max(generated, 1)),
        "completions/censored_ratio": censored / max(generated, 1),
        "reward/overlong_mean": penalty / max(trials, 1),
        "completions/clipped_ratio": float(counts.truncated.sum() / max(generated, 1)),
        "num_tokens": prompt_tokens + int(counts.response_tokens.sum()),
        "reward/timeout_rate": timeouts / max(generated, 1),
        "reward/error_rate": errors / max(generated, 1),
        "cero/rollouts_mean": generated / max(len(rollouts.prompt_ids), 1),
        "cero/rollouts_max": int(counts.generated.max()),
        "cero/effective_group_rate": live,
        "cero/waves": rollouts.waves,
    }


def episode_numbers(rollouts: Rollouts, group: Group) -> Numbers:
    """Of the step's episodes; the environment's own metrics over those that have them. A
    collective."""
    sums: dict[str, list[float]] = {}
    for completion in (c for g in rollouts.groups for c in g.completions):
        for name, value in (completion.episode.metrics if completion.episode else {}).items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1
    ranks, counts = group.gather_json(sums), rollouts.counts
    generated = max(int(counts.generated.sum()), 1)
    numbers: Numbers = {
        "episodes/turns": float(counts.turns.sum() / generated),
        "episodes/environment_tokens": float(counts.environment_tokens.sum() / generated),
    }
    for name in sorted({name for sums in ranks for name in sums}):
        parts = [sums[name] for sums in ranks if name in sums]
        of = sum(part[1] for part in parts)
        numbers[f"episodes/metric/{name}"] = sum(part[0] for part in parts) / of
    return numbers
