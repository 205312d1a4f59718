"""The loop: allocate, sample, learn, account, save; and nothing else.

In: a validated Config and the process group. Out: a run directory (metrics.jsonl, ledger.jsonl, checkpoints/, export/) and an
exit code. One pass of `_slice` is one line of metrics.jsonl; a round is one slice, or several where learner.rollouts_per_step
cuts it. Every decision is a function of the seed and of counts summed over all ranks, so all ranks take the same path.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl import checkpoint
from cero_rl.allocator import cero_of, save_evidence
from cero_rl.collect import LengthTracker, collect, evidence_entry
from cero_rl.config import Config
from cero_rl.engine.models import Policy, build_reference
from cero_rl.engine.runtime import Group
from cero_rl.errors import EXIT_INTERRUPT, EXIT_REQUEUE, CheckpointError, DivergedError, EngineError
from cero_rl.evaluate import EvaluationResult, evaluate
from cero_rl.export import export_model
from cero_rl.interrupt import Interrupt
from cero_rl.ledger import Ledger
from cero_rl.metrics import Console, Recorder, append_jsonl, truncate_jsonl
from cero_rl.parity import WeightSync
from cero_rl.premise import premise_correlation
from cero_rl.rewards.pool import RewardPool
from cero_rl.rollout.choose import choose_engine
from cero_rl.samples import dump_samples
from cero_rl.scheduler import Scheduler
from cero_rl.session import Data, build_rollout_engine
from cero_rl.step_numbers import step_numbers
from cero_rl.types import Allocation
from cero_rl.update import UpdateResult, optimize
from cero_rl.walltime import Walltime


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: from the command line."""

    resume: Path | None = None  # a committed checkpoint directory
    stop_at_step: int | None = None  # save and end there
    walltime: Walltime | None = None  # save and end before it is over


def slices(rollouts: np.ndarray, per_step: int | None) -> list[tuple[int, int]]:
    """Cut an allocation's groups [G] into runs of whole groups of at most `per_step` rollouts (a larger group goes alone)."""
    if per_step is None:
        return [(0, len(rollouts))]
    bounds, first, size = [], 0, 0
    for index, count in enumerate(rollouts.tolist()):
        if index > first and size + count > per_step:
            bounds.append((first, index))
            first, size = index, 0
        size += count
    return [*bounds, (first, len(rollouts))]


class Trainer:
    """The state of one run. `run()` works through the budget and returns the exit code."""

    def __init__(
        self, config: Config, options: Options, group: Group, data: Data, scheduler: Scheduler, tokenizer: Any, run_dir: Path
    ) -> None:
        config = choose_engine(config, on_gpu=group.device.type == "cuda")
        self.config, self.options, self.group, self.data, self.run_dir = config, options, group, data, run_dir
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.cero = cero_of(scheduler)  # what only CERO wants to know or be told
        self.ledger = Ledger(config.budget.total_rollouts)
        self.lengths = LengthTracker(len(data.train), first_guess_tokens=config.rollout.max_response_tokens / 2)
        self.successes = np.zeros(len(data.train))
        self.squares = np.zeros(len(data.train))
        self.trials = np.zeros(len(data.train), dtype=np.int64)
        self.groups_done = 0  # of the pending allocation: the frontier of what was trained
        self.step = 0
        self.updates = 0
        self.bad_updates = 0
        self.longest_step = self.longest_save = 0.0  # seconds, in this process
        self.scheduler_seconds = 0.0  # since the last line of metrics
        self.reward_error_said = False
        self.eval_before: dict[str, float | int] = {}
        self.policy = Policy(config, group)
        self.reference = build_reference(config, group) if config.learner.kl_coefficient > 0 else None
        self.engine = build_rollout_engine(config, tokenizer, group)
        self.weights = WeightSync(self.policy, self.engine, data.train.tokens, config, group)
        self.console = Console(active=group.is_main, total_rollouts=config.budget.total_rollouts)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        if self.options.resume is not None:
            self._restore(self.options.resume)
        recorder = Recorder(self.run_dir, self.config, active=self.group.is_main)
        try:
            with RewardPool(self.config.reward) as rewards, Interrupt() as interrupt:
                self.weights.push(self.updates)
                if self.step == 0 and len(self.data.heldout):
                    before = self._evaluate(rewards, final=True)
                    self.eval_before = before.metrics()
                    recorder.write(0, {**self.eval_before, **self.ledger.metrics()})
                    self.console.say(f"held-out before training: {_describe(before)}")
                if stop := self.group.all_max(interrupt.exit_code or self._out_of_time()):
                    if self.options.resume is None:  # else nothing is new
                        self._save()
                    return stop
                while (allocation := self._next_allocation()) is not None:
                    stop = self._round(allocation, rewards, recorder, interrupt)
                    if stop is not None:
                        return stop
                return self._finish(rewards, recorder)
        finally:
            recorder.close()
            self.console.close()

    def _round(self, allocation: Allocation, rewards: RewardPool, recorder: Recorder, interrupt: Interrupt) -> int | None:
        """Work off one allocation from where it stands; an exit code if the run is to stop here."""
        if not len(allocation.prompt_ids):
            self._close_round()
            return None
        for first, last in slices(allocation.rollouts, self.config.learner.rollouts_per_step):
            if last <= self.groups_done:
                continue
            started = time.perf_counter()
            numbers = self._slice(allocation, first, last, rewards)
            self.groups_done = last
            if last == len(allocation.prompt_ids):
                self._close_round()
            numbers["timing_s/scheduler"], self.scheduler_seconds = self.scheduler_seconds, 0.0
            every = self.config.evaluation.every_steps
            if every and self.step % every == 0 and len(self.data.heldout) and self.ledger.remaining_rollouts:
                result, seconds = _timed(lambda: self._evaluate(rewards, final=False))
                numbers |= {**result.metrics(), "timing_s/evaluate": seconds}
                self.console.say(f"held-out after step {self.step}: {_describe(result)}")
            self.longest_step = max(self.longest_step, time.perf_counter() - started)
            signal = self.group.all_max(interrupt.exit_code or self._out_of_time())
            stop = signal or (0 if self.step == self.options.stop_at_step and self.ledger.remaining_rollouts else None)
            due = self.config.checkpoint.every_steps and self.step % self.config.checkpoint.every_steps == 0
            if due or stop is not None:
                _, self.longest_save = _, numbers["timing_s/checkpoint"] = _timed(self._save)
            recorder.write(self.step, numbers)
            self.console.progress(numbers, self.step)
            if stop is not None:
                why = "interrupted" if stop == EXIT_INTERRUPT else "stopped"
                self.console.say(f"{why} after step {self.step}; saved. Go on with the same command and --resume auto")
                return stop
        return None

    def _out_of_time(self) -> int:
        return EXIT_REQUEUE if (w := self.options.walltime) and w.should_stop(self.longest_step, self.longest_save) else 0

    def _slice(self, allocation: Allocation, first: int, last: int, rewards: RewardPool) -> dict[str, float | int]:
        """Sample and learn from groups first:last; returns the step's numbers."""
        started = time.perf_counter()
        prompt_ids, rollouts = allocation.prompt_ids[first:last], allocation.rollouts[first:last]
        value_before = self.scheduler.value
        whole = first == 0 and last == len(allocation.prompt_ids)  # a cut round has one wave: its slices were planned together
        collected = collect(
            prompt_ids, rollouts, next_wave=self.scheduler.next_round if whole else None, keep=self.scheduler.keep,
            stream=allocation.round + 1, pool=self.data.train, engine=self.engine, rewards=rewards,
            lengths=self.lengths, config=self.config, group=self.group,
        )  # fmt: skip
        self.engine.sleep()
        evidence = collected.evidence
        graded = evidence.squares if self.config.scheduler.value == "graded" else None
        if self.cero is not None and self.config.scheduler.streaming:
            self.cero.update_partial(evidence.prompt_ids, evidence.successes, evidence.trials, graded)
        else:  # kept until the round is closed
            self.successes[evidence.prompt_ids] += evidence.successes
            self.squares[evidence.prompt_ids] += evidence.squares
            self.trials[evidence.prompt_ids] += evidence.trials
        self.lengths.update(evidence)
        failed = evidence.requested - int(evidence.generated.sum())
        if failed:
            self.scheduler.refund(failed)
        if self.cero is not None and self.cero.tokens is not None:
            self.cero.spend_tokens(int(evidence.response_tokens.sum()))
        self.ledger.book(int(evidence.generated.sum()), failed)

        learn_started = time.perf_counter()
        result = optimize(self.policy, self.reference, collected, self.config, self.group, self.updates)
        self.updates += self.config.learner.updates_per_batch
        self._watch(result)
        synced = time.perf_counter()
        parity = self.weights.push(self.updates)
        ended = time.perf_counter()
        self.step += 1
        if self.group.is_main:
            entry = {"step": self.step, "round": allocation.round, "groups": len(evidence.prompt_ids), **self.ledger.state()}
            append_jsonl(self.run_dir / "ledger.jsonl", entry)
            append_jsonl(self.run_dir / "evidence.jsonl", evidence_entry(self.step, allocation.round, evidence))
            if self.config.logging.sample_dumps:
                dump_samples(self.run_dir, self.step, collected, self.data.train.prompts, self.config.logging.samples_per_dump)
        premise = premise_correlation(value_before[evidence.prompt_ids], evidence.successes, evidence.trials)
        numbers = step_numbers(collected, result, self.data.train, self.scheduler, self.ledger, self.group, premise)
        numbers["round"] = allocation.round
        if collected.reward_error is not None and not self.reward_error_said:
            self.reward_error_said = True
            self.console.say(f"rewards: some are missing (counted, never 0); the first: {collected.reward_error}")
        numbers |= {
            **parity,
            "step_time": ended - started,
            "timing_s/rollout": collected.rollout_seconds,
            "timing_s/reward": collected.reward_seconds,
            "timing_s/advantage": collected.advantage_seconds,
            "timing_s/reduce_counts": collected.reduce_seconds,
            "timing_s/learner": synced - learn_started,
            "timing_s/sync": ended - synced,
            "perf/tokens_per_second": numbers["num_tokens"] / (ended - started),
        }
        return numbers

    def _next_allocation(self) -> Allocation | None:
        if self.scheduler.pending is not None:  # resumed in the middle of a round
            return self.scheduler.pending
        if self.cero is not None and self.cero.tokens is not None:
            self.cero.set_expected_tokens(self.lengths.expected(np.arange(len(self.data.train))))
        allocation, seconds = _timed(self.scheduler.next_round)
        self.scheduler_seconds += seconds
        return allocation

    def _close_round(self) -> None:
        if self.cero is not None and self.config.scheduler.value == "graded":
            cero, squares = self.cero, np.minimum(self.squares, self.successes)
            _, seconds = _timed(lambda: cero.update(self.successes, self.trials, squares))
        else:
            _, seconds = _timed(lambda: self.scheduler.update(self.successes, self.trials))
        self.scheduler_seconds += seconds
        self.successes[:] = self.squares[:] = 0
        self.trials[:] = 0
        self.groups_done = 0

    def _watch(self, result: UpdateResult) -> None:
        """Stop a run that diverged, or whose sampler does not hold the learner's weights."""
        self.bad_updates = 0 if result.applied else self.bad_updates + result.nonfinite_updates
        limit = self.config.learner.max_nonfinite_steps
        if self.bad_updates >= limit:
            raise DivergedError(
                f"{self.bad_updates} optimizer steps in a row had a non-finite gradient (learner.max_nonfinite_steps = {limit}); "
                "lower optimizer.learning_rate, and resume from the last checkpoint"
            )
        gap, bound = result.metrics["mismatch/logp_abs_mean"], self.config.parity_bound
        if gap > bound:
            raise EngineError(
                f"sampler and learner disagree: mean |log-prob difference| {gap:.3g} on fresh samples, bound {bound} for "
                f"{self.config.model.dtype}; the sampler's weights are not the learner's"
            )

    # --- what surrounds the loop --------------------------------------------------------------------------------------

    def _evaluate(self, rewards: RewardPool, *, final: bool) -> EvaluationResult:
        settings, heldout = self.config.evaluation, self.data.heldout
        count = min(len(heldout), settings.limit or len(heldout))
        samples = (settings.final_samples_per_prompt if final else None) or settings.samples_per_prompt
        return evaluate(
            self.engine, heldout.prompts[:count], heldout.tokens[:count], rewards, self.group,
            samples_per_prompt=samples, pass_k=[k for k in settings.pass_k if k <= samples],
            temperature=settings.temperature, success_threshold=self.config.reward.success_threshold,
        )  # fmt: skip

    def _finish(self, rewards: RewardPool, recorder: Recorder) -> int:
        numbers: dict[str, float | int] = dict(self.ledger.metrics())
        if len(self.data.heldout):
            after = self._evaluate(rewards, final=True)
            numbers |= after.metrics()
            key = f"eval/avg@{after.samples_per_prompt}"
            change = f" -> {after.average:.3f}"
            if key in self.eval_before:
                change = f" {self.eval_before[key]:.3f}{change} ({(after.average - self.eval_before[key]) * 100:+.1f} points)"
            self.console.say(f"held-out accuracy{change}, {_describe(after)}")
        self._save()
        if self.group.is_main:
            save_evidence(self.run_dir / "posterior.parquet", self.scheduler, self.data.train.prompts)
        if self.config.checkpoint.export:
            export_model(self.policy, self.tokenizer, self.run_dir / "export", self.config, self.group)
        recorder.write(self.step, numbers)
        where = self.run_dir / "export" if self.config.checkpoint.export else self.run_dir
        self.console.say(
            f"done: {self.step} steps, {self.ledger.spent_rollouts} of {self.ledger.total_rollouts} rollouts; model in {where}"
        )
        return 0

    # --- save and resume ----------------------------------------------------------------------------------------------

    def _identity(self) -> Mapping[str, Any]:
        return {"data_fingerprint": self.data.fingerprint, "config_sha256": config_identity(self.config)}

    def _save(self) -> Path:
        scalars, arrays = {}, {}
        for name, value in self.scheduler.state_dict().items():
            (arrays if isinstance(value, np.ndarray) else scalars)[f"scheduler.{name}"] = value
        arrays |= {
            "round.successes": self.successes, "round.trials": self.trials, "round.squares": self.squares,
            "lengths.tokens": self.lengths.tokens, "lengths.samples": self.lengths.samples,
        }  # fmt: skip
        scalars |= {
            "step": self.step, "updates": self.updates, "bad_updates": self.bad_updates, "groups_done": self.groups_done,
            "ledger": self.ledger.state(), "eval_before": self.eval_before,
        }  # fmt: skip
        return checkpoint.save(
            self.run_dir, self.step, self.group, self.policy.engine, checkpoint.RunState(scalars, arrays),
            identity=self._identity(), keep_last=self.config.checkpoint.keep_last,
        )  # fmt: skip

    def _restore(self, directory: Path) -> None:
        state = checkpoint.load(directory, self.group, self.policy.engine, identity=self._identity())
        scalars, arrays = state.scalars, state.arrays
        prefix = "scheduler."
        saved = {k[len(prefix) :]: v for k, v in {**scalars, **arrays}.items() if k.startswith(prefix)}
        try:
            self.scheduler.load_state_dict(saved)
        except ValueError as error:
            raise CheckpointError(f"{directory}: {error}") from None
        self.successes, self.trials, self.squares = (arrays[f"round.{name}"] for name in ("successes", "trials", "squares"))
        self.lengths.tokens, self.lengths.samples = arrays["lengths.tokens"], arrays["lengths.samples"]
        self.step, self.updates = scalars["step"], scalars["updates"]
        self.bad_updates, self.groups_done = scalars["bad_updates"], scalars["groups_done"]
        self.eval_before = scalars["eval_before"]
        self.ledger = Ledger(**scalars["ledger"])
        if self.group.is_main:
            for name in ("metrics.jsonl", "ledger.jsonl", "evidence.jsonl", "samples.jsonl"):
                truncate_jsonl(self.run_dir / name, self.step)
        self.group.barrier()
        self.console.say(f"resumed from {directory}: step {self.step}, {self.ledger.spent_rollouts} rollouts spent")


def config_identity(config: Config) -> str:
    """sha256 over the parts of the configuration that decide what the run computes."""
    import hashlib

    kept = config.model_dump_json(exclude={"name", "output_dir", "logging", "checkpoint", "evaluation"})
    return hashlib.sha256(kept.encode()).hexdigest()


def _describe(result: EvaluationResult) -> str:
    return f"avg@{result.samples_per_prompt} {result.average:.3f} +- {result.standard_error:.3f} on {result.prompts} prompts" + "".join(
        f", pass@{k} {v:.3f}" for k, v in result.pass_at.items()
    )


def _timed(action: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    value = action()
    return value, time.perf_counter() - started
