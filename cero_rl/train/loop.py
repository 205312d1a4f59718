"""The loop: sample, book, learn, sync, record, save; and nothing else.

In: a validated Config, the process group, the data and a scheduler. Out: a run directory
(metrics.jsonl, ledger.jsonl, checkpoints/, export/) and an exit code. One turn of `run` is one
optimizer step and one line of metrics.jsonl. docs/architecture.md has a picture of it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cero_rl.checkpoint.export import export_model
from cero_rl.checkpoint.identity import Identity
from cero_rl.checkpoint.progress import Progress
from cero_rl.checkpoint.restore import is_universal
from cero_rl.checkpoint.retention import Score
from cero_rl.checkpoint.rollout_store import pack_groups, unpack_groups
from cero_rl.checkpoint.saver import Saver
from cero_rl.config import Config
from cero_rl.data.pool import Data
from cero_rl.distributed.group import Group
from cero_rl.errors import EXIT_INTERRUPT, RewardError
from cero_rl.job import faults
from cero_rl.job.stopping import Interrupt, Stopping, Walltime
from cero_rl.job.watchdog import Watchdog
from cero_rl.learner.batch import TrainingBatch, make_batch, share_with_signal
from cero_rl.learner.schedule import Spending, learning_rates
from cero_rl.learner.update import Learner, UpdateResult, refuse_divergence
from cero_rl.memory.peaks import Peaks
from cero_rl.metrics.console import Console
from cero_rl.metrics.ending import Rows, ending
from cero_rl.metrics.recorder import Recorder
from cero_rl.metrics.step import StepLine, StepMetrics
from cero_rl.metrics.throughput import Arithmetic
from cero_rl.rewards.missing import first_reason
from cero_rl.rewards.several import Judge
from cero_rl.rollout.collector import Collector, Rollouts
from cero_rl.rollout.engines.build import build_rollout_engine
from cero_rl.scheduler.protocol import Scheduler
from cero_rl.train.evaluate import EvaluationResult, evaluate
from cero_rl.train.profile import StepProfiler
from cero_rl.train.rounds import Rounds
from cero_rl.train.run_directory import restore
from cero_rl.train.scheduler import cells_of, save_evidence
from cero_rl.train.weight_sync import WeightSync
from cero_rl.types import Step
from cero_rl.zero.policy import Policy, build_reference

GO_ON = "Go on with the same command and --resume auto"


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: from the command line."""

    resume: Path | None = None  # a committed checkpoint directory whose manifest holds
    stop_at_step: int | None = None  # save and end there
    walltime: Walltime | None = None  # save and end before it is over


class Trainer:
    """The state of one run. `train()` works through the budget and returns the exit code."""

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
        identity: Identity,
    ) -> None:
        self.config = config
        self.options = options
        self.group = group
        self.data = data
        self.scheduler = scheduler
        self.tokenizer = tokenizer
        self.run_dir = run_dir
        self.watchdog = watchdog
        self.peaks = Peaks(group.device)
        cells = cells_of(config.scheduler, data.train.prompts, data.train.lengths)
        self.progress = Progress.fresh(config, len(data.train), cells)
        self.console = Console(group.is_main, config.budget.total_rollouts)
        self.interrupt = Interrupt()
        self.stopping = Stopping(self.interrupt, options.walltime)
        universal = options.resume is not None and is_universal(options.resume)
        self.policy = Policy(config, group, universal=universal)
        reference = None
        if config.learner.kl_coefficient > 0:
            reference = build_reference(config, group, self.policy)
        self.learner = Learner(self.policy, reference, config, group)
        self.engine = build_rollout_engine(config, tokenizer, group)
        prompts = data.train.tokens
        self.weights = WeightSync(self.policy, self.engine, prompts, config, group, watchdog)
        if self.policy.adapter is not None:
            self.console.say(f"  {self.policy.adapter.describe()}")
        described = {"identity": identity.for_manifest(), **self.policy.identity(group)}
        say = self.console.say
        self.saver = Saver(run_dir, group, self.policy.engine, config, described, say)
        self.rewards = Judge(config.reward)
        self.collector = Collector(
            data.train,
            self.engine,
            self.rewards,
            self.progress.lengths,
            scheduler.next_wave,
            config,
            group,
            watchdog,
        )
        self.peaks.note("build")

    def train(self) -> int:
        """Resume where that is asked for, then `run` with everything open that must be closed."""
        if self.options.resume is not None:
            self.restore(self.options.resume)
        first_step = self.progress.step + 1 if self.progress.step else 0
        active = self.group.is_main
        recorder = Recorder(self.run_dir, self.config, active=active, first_step=first_step)
        profiler = StepProfiler(self.config.profile, self.run_dir, self.console.say, active=active)
        with (
            closing(self.console),
            closing(recorder),
            closing(profiler),
            self.rewards,
            self.interrupt,
        ):
            self.recorder, self.profiler = recorder, profiler
            self.metrics = StepMetrics(
                self.run_dir,
                self.config,
                self.group,
                self.data.train,
                self.progress,
                self.console,
                recorder,
                self.peaks,
                Arithmetic.of(self.config, self.group.device),
            )
            per_step = self.config.learner.rollouts_per_step
            clock = self.metrics.clocks.clock
            episodes = self.config.rollout.environment is not None
            self.rounds = Rounds(
                self.scheduler, self.progress, per_step, clock, with_episodes=episodes
            )
            return self.run()

    # --- the loop

    def run(self) -> int:
        self.sync()  # sampler := policy; the parity probe proves it
        self.evaluate_at_start()
        if (stop := self.stop_before_start()) is not None:
            return stop
        rollouts = None
        while (step := self.rounds.next_step()) is not None:
            faults.at_step(self.progress.step + 1)
            self.profiler.before(self.progress.step + 1)
            line = self.open_line(step)
            rollouts = self.collector.finish(step, line.clock)  # wave after wave
            line.add(self.rounds.observe(rollouts))  # ledger books, scheduler observes
            line.believes(self.scheduler.metrics())
            self.rounds.close_if_last(step)
            self.begin_ahead()  # overlap: the next step's rollouts; else the sampler sleeps
            with line.clock("advantage"):
                batch = self.batch_of(rollouts, line)  # measured by their groups, or the critic
            with line.clock("learner"):
                update = self.update(batch)  # all ranks step, or all skip
            with line.clock("rollout"):
                self.collector.settle()  # nobody samples while weights change
            version = self.count_update(update)
            with line.clock("sync"):
                parity = self.sync()
            self.progress.step += 1
            line.log(rollouts, update, parity, version)  # ledger, evidence, samples
            line.show(rollouts, batch)  # now and then, to a person
            score = self.evaluate_if_due(line)
            stop = self.stop_agreed(line, rollouts)  # one answer on all ranks
            line.write(self.saver.failed_saves)  # metrics.jsonl, trackers, console
            self.save(line, score, last=stop is not None)  # after the step's lines: they are kept
            self.profiler.after(self.progress.step)
            faults.point("step.end")
            if stop is not None:
                return self.leave(stop)
        return self.finish(rollouts)

    # --- its verbs

    def sync(self) -> dict[str, float]:
        """The policy's weights to the sampler, proved. Returns parity/* metrics."""
        self.policy.rest()
        return self.weights.push(self.progress.updates)

    def open_line(self, step: Step) -> StepLine:
        """With what the scheduler believes before the step, and why it chose its prompts."""
        plan = self.scheduler
        return self.metrics.open(step, plan.value, plan.posterior_mean, plan.reasons())

    def begin_ahead(self) -> None:
        if not self.config.rollout.overlap:
            self.engine.sleep()
        elif (step := self.rounds.peek()) is not None:
            self.collector.begin(step)

    def batch_of(self, rollouts: Rollouts, line: StepLine) -> TrainingBatch:
        """What trains. The critic predicts a step's groups before it learns from them."""
        keep, critic, predicted = self.scheduler.keep, self.progress.critic, None
        if critic is not None:
            sums = rollouts.counts.reward_sums(rollouts.prompt_ids)
            predicted = critic.predict(sums)
            critic.observe(sums, predicted)
            line.add(critic.metrics(predicted))
        coverage, weight = self.progress.coverage, None
        if coverage is not None:
            weight = coverage.positive_weight
            line.add(coverage.metrics())
        batch = make_batch(rollouts, keep, self.config, self.group, predicted, weight)
        if critic is not None:
            line.add({"baseline/signal_share": share_with_signal(batch, self.group)})
        return batch

    def learning_rates(self) -> list[float]:
        """Of each update on this step's batch, from the budget that it spent."""
        progress = self.progress
        batch = Spending(
            progress.spent_before_step,
            progress.budget_position,
            progress.ledger.total_rollouts,
            progress.decay_from,
        )
        rates, progress.decay_from = learning_rates(
            self.config.optimizer,
            batch,
            updates_before=progress.updates,
            passes=self.config.learner.updates_per_batch,
        )
        return rates

    def update(self, batch: TrainingBatch) -> UpdateResult:
        with self.watchdog.phase("learner", "its own passes and all ranks' shards"):
            self.policy.work()
            return self.learner.update(batch, self.learning_rates(), self.metrics.clocks.clock)

    def count_update(self, update: UpdateResult) -> int:
        """Refuse a run that diverged; returns the version of the weights that learned."""
        version = self.progress.updates
        self.progress.updates += self.config.learner.updates_per_batch
        bad = refuse_divergence(update, self.progress.bad_updates, self.config)
        self.progress.bad_updates = bad
        self.progress.learned_steps += update.applied
        updates = update.path / self.config.optimizer.learning_rate  # at the full rate
        if self.progress.critic is not None:
            self.progress.critic.advance(updates)
        if self.progress.coverage is not None and update.metrics["trained_tokens"]:
            self.progress.coverage.observe(update.metrics["entropy"], updates)
        return version

    def evaluate(self, *, final: bool) -> EvaluationResult:
        return evaluate(
            self.engine,
            self.data.heldout,
            self.rewards,
            self.group,
            self.watchdog,
            self.config,
            final=final,
        )

    def evaluate_at_start(self) -> None:
        if self.progress.step or not len(self.data.heldout):
            return
        before = self.evaluate(final=True)
        self.progress.eval_before = before.metrics()
        self.recorder.write(0, {**before.metrics(), **self.progress.ledger.metrics()})
        self.console.say(f"held-out before training: {before.describe()}")
        if before.missing_rate > self.config.reward.max_missing_rate:
            raise RewardError(
                f"reward: of {before.rollouts} held-out samples {before.judged} have a reward "
                f"(reward.max_missing_rate = {self.config.reward.max_missing_rate:.0%}); "
                f"{before.reason}. Nothing is spent yet: mend the reward and start anew"
            )

    def evaluate_if_due(self, line: StepLine) -> Score | None:
        """Held-out accuracy, where this step has one."""
        every = self.config.evaluation.every_steps
        due = every and self.progress.step % every == 0 and self.progress.ledger.remaining_rollouts
        if not due or not len(self.data.heldout):
            return None
        with line.clock("evaluate"):
            result = self.evaluate(final=False)
        line.add(result.metrics())
        self.console.say(f"held-out after step {self.progress.step}: {result.describe()}")
        return result.score

    def too_few_rewards(self, rollouts: Rollouts) -> RewardError | None:
        """Were too many rewards missing lately? A collective where some are."""
        missing, settings = self.progress.missing_rewards, self.config.reward
        generated = int(rollouts.counts.generated.sum())
        missing.add(generated, rollouts.counts.missing, settings)
        return self.window_judged(rollouts, last=not self.progress.ledger.remaining_rollouts)

    def window_judged(self, rollouts: Rollouts, *, last: bool) -> RewardError | None:
        missing = self.progress.missing_rewards
        if (problem := missing.too_many(self.config.reward, last=last)) is None:
            return None
        missing.forget()
        reason = first_reason(self.group.gather_json(rollouts.reward_error))
        return RewardError(
            f"reward: {problem}; {reason}. Saved after step {self.progress.step}: mend the reward "
            f"and go on with --resume auto --accept-new-reward"
        )

    def stop_before_start(self) -> int | None:
        """The exit code of a run that was told to stop before its first step, or None."""
        step, last = self.progress.step, self.options.stop_at_step
        if stop := self.group.all_max(self.stopping.code):
            self.console.say(f"stopped before step {step + 1}, nothing to save. {GO_ON}")
            return stop
        if last is not None and step >= last:
            self.console.say(f"step {step} is done, --stop-at-step {last} asks for no more")
            return 0
        return None

    def stop_agreed(self, line: StepLine, rollouts: Rollouts) -> int | RewardError | None:
        """The exit code to stop with after this step (signals, walltime, --stop-at-step), or the
        error to end with, or None."""
        self.stopping.took(step_seconds=line.step_seconds + line.seconds("evaluate"))
        if unjudged := self.too_few_rewards(rollouts):
            return unjudged
        if stop := self.group.all_max(self.stopping.code):
            return stop
        asked = self.progress.step == self.options.stop_at_step
        return 0 if asked and self.progress.ledger.remaining_rollouts else None

    def leave(self, stop: int | RewardError) -> int:
        """After the save: the exit code, said, or the error."""
        if isinstance(stop, RewardError):
            raise stop
        why = "interrupted" if stop == EXIT_INTERRUPT else "stopped"
        self.console.say(f"{why} after step {self.progress.step}; saved. {GO_ON}")
        return stop

    def save(self, line: StepLine, score: Score | None, *, last: bool) -> None:
        before = line.seconds("checkpoint")
        with line.clock("checkpoint"):
            self.save_now(score, last=last)
        self.stopping.took(save_seconds=line.seconds("checkpoint") - before)

    def save_now(self, score: Score | None, *, last: bool) -> None:
        ahead = self.collector.ahead()
        own = pack_groups(ahead) if ahead is not None else {}
        state = partial(self.progress.state, self.scheduler, own)
        with self.watchdog.phase("checkpoint", "the disk and all ranks"):
            self.saver.step_done(self.progress.step, state, score, last=last)

    # --- before and after

    def restore(self, directory: Path) -> None:
        """Go on from a checkpoint, with the rollouts that were generated ahead of it."""
        engine, identity = self.policy.engine, self.saver.identity
        self.engine.sleep()  # the optimizer's state comes; the sync that follows wakes the sampler
        with self.watchdog.phase("checkpoint", "the disk and all ranks"):
            own = restore(
                self.run_dir,
                directory,
                self.group,
                engine,
                identity,
                self.progress,
                self.scheduler,
                self.config.budget.total_rollouts,
            )
        self.saver.goes_on_from(directory)
        self.collector.resume_with(lambda requests: unpack_groups(own, requests))
        spent = self.progress.ledger.spent_rollouts
        self.console.say(
            f"resumed from {directory}: step {self.progress.step}, {spent} rollouts spent"
        )

    def finish(self, rollouts: Rollouts | None) -> int:
        """After the last step, whose `rollouts` they are; None if an earlier attempt took it."""
        ledger, step = self.progress.ledger, self.progress.step
        spent = f"{step} steps, {ledger.spent_rollouts} of {ledger.total_rollouts} rollouts"
        if self.group.all_max(int(self.recorder.is_final(step))):
            self.console.say(f"done before: {spent}; nothing to add")
            if self.export_is_missing():
                self.console.say(self.export())
            return 0
        # rollouts may be left of a budget: its tokens or its rounds are spent
        unjudged = rollouts and self.window_judged(rollouts, last=True)
        self.save_now(None, last=True)
        if unjudged:
            raise unjudged
        faults.point("finish.saved")
        numbers: dict[str, float | int] = dict(ledger.metrics())
        accuracy: dict[str, float | int] = {}
        if len(self.data.heldout):
            after = self.evaluate(final=True)
            faults.point("finish.evaluated")
            accuracy = after.metrics()
            numbers |= accuracy
            before = self.progress.eval_before
            self.console.say(
                f"held-out accuracy{after.change_from(before)}, {after.describe(before)}"
            )
            with self.watchdog.phase("checkpoint", "the disk and all ranks"):
                self.saver.scored(after.score)
        with self.watchdog.phase("posterior", "the disk"):
            self.group.together("writing posterior.parquet", self.write_posterior)
        where = self.export() if self.config.checkpoint.export else f"model in {self.run_dir}"
        self.recorder.write(step, numbers, final=True)  # the last: it says that all is there
        faults.point("finish.logged")
        if not self.progress.learned_steps:
            self.console.say("no step had a group whose rewards differ: nothing was learned")
        if left := ledger.leftover():
            self.console.say(left)
        if self.group.is_main:
            self.console.ending(f"done: {spent}; {where}", self.ending(accuracy))
        return 0

    def ending(self, after: dict[str, float | int]) -> Rows:
        ledger, before = self.progress.ledger, self.progress.eval_before
        exported = self.config.checkpoint.export
        prompts = self.data.train.prompts
        return ending(self.run_dir, ledger, prompts, before, after, exported=exported)

    def write_posterior(self) -> None:
        if self.group.is_main:
            posterior = self.run_dir / "posterior.parquet"
            save_evidence(posterior, self.scheduler, self.data.train.prompts)

    def export_is_missing(self) -> bool:
        missing = self.config.checkpoint.export and not (self.run_dir / "export").exists()
        return bool(self.group.all_max(int(missing)))

    def export(self) -> str:
        with self.watchdog.phase("export", "the disk and all ranks' shards"):
            where = export_model(self.policy, self.tokenizer, self.run_dir, self.config, self.group)
            faults.point("export.written")
        return where
