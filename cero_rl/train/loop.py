"""The loop: allocate, sample, learn, account, save; and nothing else.

In: a validated Config and the process group. Out: a run directory (metrics.jsonl, ledger.jsonl,
checkpoints/, export/) and an exit code. One `_work_off` is one line of metrics.jsonl; a round is
one piece of work, or several where learner.rollouts_per_step cuts it. Every decision is a
function of the seed and of counts summed over all ranks, so all ranks take the same path.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.checkpoint.export import export_model
from cero_rl.checkpoint.progress import Progress
from cero_rl.checkpoint.restore import is_universal, load
from cero_rl.checkpoint.rollout_store import pack_groups, unpack_groups
from cero_rl.checkpoint.saver import Saver
from cero_rl.config import Config
from cero_rl.data.pool import Data
from cero_rl.distributed.group import Group
from cero_rl.errors import EXIT_INTERRUPT, DivergedError, EngineError
from cero_rl.files.jsonl import append_jsonl, truncate_jsonl
from cero_rl.job import faults
from cero_rl.job.stopping import Interrupt, Stopping, Walltime
from cero_rl.job.watchdog import Watchdog
from cero_rl.learner.update import UpdateResult, optimize
from cero_rl.metrics.console import Console
from cero_rl.metrics.recorder import Recorder
from cero_rl.metrics.samples import dump_samples
from cero_rl.metrics.step import evidence_entry, scheduler_numbers, skew_numbers, step_numbers
from cero_rl.rewards.pool import RewardPool
from cero_rl.rollout.collector import Collected, Collector
from cero_rl.rollout.engines.build import build_rollout_engine
from cero_rl.rollout.engines.choose import choose_engine
from cero_rl.scheduler import Scheduler
from cero_rl.scheduler.premise import premise_correlation
from cero_rl.train.evaluate import EvaluationResult, evaluate
from cero_rl.train.rounds import Work, slices
from cero_rl.train.run_directory import LOGS
from cero_rl.train.scheduler import cero_of, save_evidence
from cero_rl.train.weight_sync import WeightSync
from cero_rl.types import Allocation
from cero_rl.zero.policy import Policy, build_reference

GO_ON = "Go on with the same command and --resume auto"


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: from the command line."""

    resume: Path | None = None  # a committed checkpoint directory whose manifest holds
    stop_at_step: int | None = None  # save and end there
    walltime: Walltime | None = None  # save and end before it is over


class Trainer:
    """The state of one run. `run()` works through the budget and returns the exit code."""

    def __init__(
        self,
        config: Config,
        options: Options,
        group: Group,
        data: Data,
        scheduler: Scheduler,
        tokenizer: Any,
        run_dir: Path,
        watchdog: Watchdog,
    ) -> None:
        config = choose_engine(config, on_gpu=group.device.type == "cuda")
        self.config, self.options, self.group, self.data, self.run_dir = (
            config,
            options,
            group,
            data,
            run_dir,
        )
        self.tokenizer, self.watchdog = tokenizer, watchdog
        self.scheduler = scheduler
        self.cero = cero_of(scheduler)  # what only CERO wants to know or be told
        self.at = Progress.fresh(config, len(data.train))
        self.scheduler_seconds = 0.0  # since the last line of metrics
        self.reward_error_said = False
        # this rank's rollouts that were generated ahead of the checkpoint
        self.restored: dict[str, Any] = {}
        self.policy = Policy(
            config, group, universal=options.resume is not None and is_universal(options.resume)
        )
        self.reference = (
            build_reference(config, group, self.policy)
            if config.learner.kl_coefficient > 0
            else None
        )
        self.engine = build_rollout_engine(config, tokenizer, group)
        self.weights = WeightSync(self.policy, self.engine, data.train.tokens, config, group)
        self.console = Console(active=group.is_main, total_rollouts=config.budget.total_rollouts)
        identity = {"data_fingerprint": data.fingerprint, **self.policy.identity(group)}
        if self.policy.adapter is not None:
            self.console.say(f"  {self.policy.adapter.describe()}")
        self.saver = Saver(run_dir, group, self.policy.engine, config, identity, self.console.say)

    # --- the loop

    def run(self) -> int:
        if self.options.resume is not None:
            self._restore(self.options.resume)
        recorder = Recorder(self.run_dir, self.config, active=self.group.is_main)
        try:
            with RewardPool(self.config.reward) as rewards, Interrupt() as interrupt:
                stopping = Stopping(interrupt, self.options.walltime)
                lengths, phase = self.at.lengths, self.watchdog.phase
                self.collector = Collector(
                    self.data.train, self.engine, rewards, lengths, self.config, self.group, phase
                )
                self._push()
                if self.at.step == 0 and len(self.data.heldout):
                    before = self._evaluate(rewards, final=True)
                    self.at.eval_before = before.metrics()
                    recorder.write(0, {**self.at.eval_before, **self.at.ledger.metrics()})
                    self.console.say(f"held-out before training: {_describe(before)}")
                if stop := self.group.all_max(stopping.code):
                    self.console.say(
                        f"stopped before step {self.at.step + 1}, nothing to save. {GO_ON}"
                    )
                    return stop
                work = self._next_work()
                while work is not None:
                    faults.at_step(self.at.step + 1)
                    upcoming, numbers = self._work_off(work)
                    stop = self._close_step(upcoming, numbers, rewards, recorder, stopping)
                    if stop is not None:
                        return stop
                    work = upcoming or self._next_work()
                return self._finish(rewards, recorder)
        finally:
            recorder.close()
            self.console.close()

    def _next_work(self) -> Work | None:
        """The next piece of the pending allocation, or of a new one; None when the budget is
        spent."""
        while (allocation := self._next_allocation()) is not None:
            for first, last in slices(allocation.rollouts, self.config.learner.rollouts_per_step):
                if last > self.at.groups_done:
                    begun = self.collector.begin(
                        allocation.prompt_ids[first:last],
                        allocation.rollouts[first:last],
                        allocation.round + 1,
                    )
                    begun.wave.groups, self.restored = (
                        unpack_groups(self.restored, begun.wave.requests),
                        {},
                    )
                    return Work(allocation, first, last, begun)
            self._close_round()  # a round that asks for nothing
        return None

    def _next_allocation(self) -> Allocation | None:
        if self.scheduler.pending is not None:  # in the middle of a round
            return self.scheduler.pending
        if self.cero is not None and self.cero.tokens is not None:
            self.cero.set_expected_tokens(self.at.lengths.expected(np.arange(len(self.data.train))))
        allocation, seconds = _timed(self.scheduler.next_round)
        self.scheduler_seconds += seconds
        return allocation

    def _close_round(self) -> None:
        if self.cero is not None and self.config.scheduler.value == "graded":
            cero, squares = self.cero, np.minimum(self.at.squares, self.at.successes)
            _, seconds = _timed(lambda: cero.update(self.at.successes, self.at.trials, squares))
        else:
            _, seconds = _timed(lambda: self.scheduler.update(self.at.successes, self.at.trials))
        self.scheduler_seconds += seconds
        self.at.close_round()

    def _work_off(self, work: Work) -> tuple[Work | None, dict[str, float | int]]:
        """Sample, account and learn. Returns the work that was begun meanwhile (rollout.overlap)
        and the step's numbers."""
        started, overlap = time.perf_counter(), self.config.rollout.overlap
        value_before = self.scheduler.value
        collected = self.collector.finish(
            # a cut round has one wave: its pieces were planned together
            work.begun,
            next_wave=self.scheduler.next_round if work.is_whole_round else None,
            keep=self.scheduler.keep,
        )
        self._account(collected)
        faults.point("evidence.booked")
        numbers = scheduler_numbers(self.scheduler)
        self.at.groups_done = work.last
        if work.ends_round:
            self._close_round()
        upcoming = None
        if overlap and (upcoming := self._next_work()) is not None:
            self.collector.generate_ahead(upcoming.begun)
        if not overlap:
            self.engine.sleep()
        learn_started = time.perf_counter()
        with self.watchdog.phase("learner", "its own passes and all ranks' shards"):
            result = optimize(
                self.policy, self.reference, collected, self.config, self.group, self.at.updates
            )
        learned = time.perf_counter()
        waited = self.collector.settle(upcoming.begun) if upcoming is not None else 0.0
        staleness = self.at.updates - min(
            (c.policy_version for g in collected.groups for c in g.completions),
            default=self.at.updates,
        )
        self.at.updates += self.config.learner.updates_per_batch
        self._watch(result)
        sync_started = time.perf_counter()
        parity = self._push()
        ended = time.perf_counter()
        self.at.step += 1
        self._log(work, collected)
        premise = premise_correlation(
            value_before[collected.evidence.prompt_ids],
            collected.evidence.successes,
            collected.evidence.trials,
        )
        numbers |= step_numbers(
            collected, result, self.data.train, self.at.ledger, self.group, premise
        )
        seconds = {
            "rollout": collected.rollout_seconds + waited,
            "reward": collected.reward_seconds,
            "learner": learned - learn_started,
        }
        numbers |= skew_numbers(seconds, self.group)
        return upcoming, {
            **numbers,
            **parity,
            "round": work.allocation.round,
            "rollout/staleness": self.group.all_max(staleness),
            "step_time": ended - started,
            "timing_s/rollout": collected.rollout_seconds + waited,
            "timing_s/reward": collected.reward_seconds,
            "timing_s/advantage": collected.advantage_seconds,
            "timing_s/reduce_counts": collected.reduce_seconds,
            "timing_s/learner": learned - learn_started,
            "timing_s/sync": ended - sync_started,
            "perf/tokens_per_second": numbers["num_tokens"] / (ended - started),
        }

    def _account(self, collected: Collected) -> None:
        """Book what was generated and tell the scheduler what came of it: counts of all ranks,
        the same on every rank."""
        evidence = collected.evidence
        graded = evidence.squares if self.config.scheduler.value == "graded" else None
        if self.cero is not None and self.config.scheduler.streaming:
            self.cero.update_partial(
                evidence.prompt_ids, evidence.successes, evidence.trials, graded
            )
        else:  # kept until the round is closed
            self.at.successes[evidence.prompt_ids] += evidence.successes
            self.at.squares[evidence.prompt_ids] += evidence.squares
            self.at.trials[evidence.prompt_ids] += evidence.trials
        self.at.lengths.update(evidence)
        generated = int(evidence.generated.sum())
        if failed := evidence.requested - generated:
            self.scheduler.refund(failed)
        if self.cero is not None and self.cero.tokens is not None:
            self.cero.spend_tokens(int(evidence.response_tokens.sum()))
        self.at.ledger.book(generated, failed)

    def _watch(self, result: UpdateResult) -> None:
        """Stop a run that diverged, or whose sampler does not hold the learner's weights."""
        self.at.bad_updates = (
            0 if result.applied else self.at.bad_updates + result.nonfinite_updates
        )
        limit = self.config.learner.max_nonfinite_steps
        if self.at.bad_updates >= limit:
            raise DivergedError(
                f"{self.at.bad_updates} optimizer steps in a row had a non-finite loss or gradient "
                f"(learner.max_nonfinite_steps = {limit}); lower optimizer.learning_rate, "
                "and resume from the last checkpoint"
            )
        gap, bound = result.metrics["mismatch/logp_abs_mean"], self.config.parity_bound
        # rollouts from older weights differ, as they should
        if gap > bound and not self.config.rollout.overlap:
            raise EngineError(
                f"sampler and learner disagree: mean |log-prob difference| {gap:.3g} on "
                f"fresh samples, bound {bound} for "
                f"{self.config.model.dtype}; the sampler's weights are not the learner's"
            )

    def _log(self, work: Work, collected: Collected) -> None:
        if self.group.is_main:
            evidence, step, round_index = collected.evidence, self.at.step, work.allocation.round
            entry = {
                "step": step,
                "round": round_index,
                "groups": len(evidence.prompt_ids),
                **self.at.ledger.state(),
            }
            append_jsonl(self.run_dir / "ledger.jsonl", entry)
            faults.point("log.ledger")
            append_jsonl(
                self.run_dir / "evidence.jsonl", evidence_entry(step, round_index, evidence)
            )
            faults.point("log.evidence")
            if self.config.logging.sample_dumps:
                dump_samples(
                    self.run_dir,
                    step,
                    collected,
                    self.data.train.prompts,
                    self.config.logging.samples_per_dump,
                )
        if collected.reward_error is not None and not self.reward_error_said:
            self.reward_error_said = True
            self.console.say(
                f"rewards: some are missing (counted, never 0); the first: {collected.reward_error}"
            )

    def _close_step(
        self,
        upcoming: Work | None,
        numbers: dict[str, float | int],
        rewards: RewardPool,
        recorder: Recorder,
        stopping: Stopping,
    ) -> int | None:
        """Evaluate and save where it is time to, write the numbers; an exit code if the run is
        to stop here."""
        numbers["timing_s/scheduler"], self.scheduler_seconds = self.scheduler_seconds, 0.0
        step, every, score = self.at.step, self.config.evaluation.every_steps, None
        if (
            every
            and step % every == 0
            and len(self.data.heldout)
            and self.at.ledger.remaining_rollouts
        ):
            result, seconds = _timed(lambda: self._evaluate(rewards, final=False))
            numbers |= {**result.metrics(), "timing_s/evaluate": seconds}
            self.console.say(f"held-out after step {step}: {_describe(result)}")
            score = result.average
        stopping.took(numbers["step_time"] + numbers.get("timing_s/evaluate", 0.0), 0.0)
        stop = self.group.all_max(stopping.code) or (
            0 if step == self.options.stop_at_step and self.at.ledger.remaining_rollouts else None
        )
        _, seconds = _timed(lambda: self._save(upcoming, score, last=stop is not None))
        stopping.took(0.0, seconds)
        if seconds > 1e-3:
            numbers["timing_s/checkpoint"] = seconds
        numbers["checkpoint/failed_saves"] = self.saver.failed_saves
        recorder.write(step, numbers)
        faults.point("log.metrics")
        self.console.progress(numbers, step)
        if stop is not None:
            why = "interrupted" if stop == EXIT_INTERRUPT else "stopped"
            self.console.say(f"{why} after step {step}; saved. {GO_ON}")
        faults.point("step.end")
        return stop

    # --- what surrounds the loop

    def _push(self) -> dict[str, float]:
        with self.watchdog.phase(
            "sync", "the sampler and all ranks' shards", self.config.rollout.sync_timeout_seconds
        ):
            faults.point("sync.before")
            parity = self.weights.push(self.at.updates)
            faults.point("sync.after")
        return parity

    def _evaluate(self, rewards: RewardPool, *, final: bool) -> EvaluationResult:
        settings, heldout = self.config.evaluation, self.data.heldout
        count = min(len(heldout), settings.limit or len(heldout))
        samples = (
            settings.final_samples_per_prompt if final else None
        ) or settings.samples_per_prompt
        limit = self.config.rollout.generate_timeout_seconds + self.config.watchdog.stall_seconds
        with self.watchdog.phase("evaluation", "the sampler, verifiers and all ranks", limit):
            return evaluate(
                self.engine,
                heldout.prompts[:count],
                heldout.tokens[:count],
                rewards,
                self.group,
                samples_per_prompt=samples,
                pass_k=[k for k in settings.pass_k if k <= samples],
                temperature=settings.temperature,
                success_threshold=self.config.reward.success_threshold,
            )

    def _finish(self, rewards: RewardPool, recorder: Recorder) -> int:
        numbers: dict[str, float | int] = dict(self.at.ledger.metrics())
        score = None
        if len(self.data.heldout):
            after = self._evaluate(rewards, final=True)
            numbers |= after.metrics()
            score, key = after.average, f"eval/avg@{after.samples_per_prompt}"
            change = f" -> {after.average:.3f}"
            if (before := self.at.eval_before.get(key)) is not None:
                change = f" {before:.3f}{change} ({(after.average - before) * 100:+.1f} points)"
            self.console.say(f"held-out accuracy{change}, {_describe(after)}")
        faults.point("finish.evaluated")
        self._save(None, score, last=True)
        faults.point("finish.saved")
        if self.group.is_main:
            save_evidence(
                self.run_dir / "posterior.parquet", self.scheduler, self.data.train.prompts
            )
        where = f"model in {self.run_dir}"
        if self.config.checkpoint.export:
            with self.watchdog.phase("checkpoint", "the export of all ranks' shards"):
                where = export_model(
                    self.policy, self.tokenizer, self.run_dir, self.config, self.group
                )
                faults.point("export.written")
        recorder.write(self.at.step, numbers)
        ledger = self.at.ledger
        self.console.say(
            f"done: {self.at.step} steps, {ledger.spent_rollouts} of "
            f"{ledger.total_rollouts} rollouts; {where}"
        )
        return 0

    def _save(self, upcoming: Work | None, score: float | None, *, last: bool) -> None:
        groups = upcoming.begun.wave.groups if upcoming is not None else None
        with self.watchdog.phase("checkpoint", "the disk and all ranks"):
            self.saver.step_done(
                self.at.step,
                lambda: self.at.state(
                    self.scheduler, pack_groups(groups) if groups is not None else {}
                ),
                score,
                last=last,
            )

    def _restore(self, directory: Path) -> None:
        with self.watchdog.phase("checkpoint", "the disk and all ranks"):
            state = load(directory, self.group, self.policy.engine, identity=self.saver.identity)
        self.at.restore(state, self.scheduler)
        self.restored = state.own
        if self.group.is_main:
            for name in LOGS:
                truncate_jsonl(self.run_dir / name, self.at.step)
        self.group.barrier()
        self.console.say(
            f"resumed from {directory}: step {self.at.step}, "
            f"{self.at.ledger.spent_rollouts} rollouts spent"
        )


def _describe(result: EvaluationResult) -> str:
    return (
        f"avg@{result.samples_per_prompt} {result.average:.3f} +- "
        f"{result.standard_error:.3f} on {result.prompts} prompts"
    ) + "".join(f", pass@{k} {v:.3f}" for k, v in result.pass_at.items())


def _timed(action: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    value = action()
    return value, time.perf_counter() - started
