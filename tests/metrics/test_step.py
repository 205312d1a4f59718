"""One step's line: the clocks, the books, and every number that is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from step_cases import OneRank, PlainPolicy, made_group, made_rollouts

from cero_rl.errors import CheckpointError
from cero_rl.job import faults
from cero_rl.learner.batch import make_batch, share_with_signal
from cero_rl.learner.update import Learner, UpdateResult
from cero_rl.memory.peaks import Peaks
from cero_rl.metrics import step as module
from cero_rl.metrics.console import Console
from cero_rl.metrics.recorder import Recorder
from cero_rl.metrics.step import NAMES, Clocks, StepLine, StepMetrics
from cero_rl.metrics.throughput import Arithmetic
from cero_rl.models.load import load_model_config
from cero_rl.models.shapes import shape_of
from cero_rl.rollout.collector import Rollouts
from cero_rl.train.evaluate import evaluate
from cero_rl.train.weight_sync import WeightSync

nan = float("nan")
TIMED = ("rollout", "reward", "advantage", "reduce_counts", "learner", "sync", "scheduler")


@pytest.fixture(scope="module")
def rank() -> OneRank:
    return OneRank("evaluation.pass_k=[1,2]")


@pytest.fixture(autouse=True)
def _fresh(rank: OneRank) -> None:
    rank.begin()


def metrics_of(rank: OneRank, run_dir: Path, arithmetic: Arithmetic | None = None) -> StepMetrics:
    console = Console(True, rank.config.budget.total_rollouts)
    recorder = Recorder(run_dir, rank.config, active=True)
    peaks = Peaks(rank.group.device)
    return StepMetrics(
        run_dir,
        rank.config,
        rank.group,
        rank.pool,
        rank.progress,
        console,
        recorder,
        peaks,
        arithmetic,
    )


def lines(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]


def update_of(**metrics: float) -> UpdateResult:
    return UpdateResult(True, 0, 0.0, 0.0, {"loss": 0.5, **metrics})


def write(
    metrics: StepMetrics,
    rollouts: Rollouts,
    *,
    value: np.ndarray | None = None,
    update: UpdateResult | None = None,
    version: int = 0,
    failed_saves: int = 0,
    believed: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Log and write a step that was made by hand; returns its line of metrics.jsonl."""
    worth = np.zeros(len(metrics.pool)) if value is None else value
    line = metrics.open(rollouts.step, worth, 0.5 + worth)
    metrics.progress.step += 1
    line.believes({"cero/set_aside_prompts": 0, **(believed or {})})
    line.log(rollouts, update or update_of(), {}, version)
    line.write(failed_saves)
    return lines(metrics.run_dir, "metrics")[-1]


def by_hand() -> Rollouts:
    """Three groups of prompts 5, 9, 2: one alive, one dead, one that lost a rollout."""
    groups = [
        made_group(5, [2, 3, 4], cut=[2]),
        made_group(9, [1, 1]),
        made_group(2, [5, 6, 7], cut=[0, 1]),
    ]
    rewards = [[1, 0, nan], [1, 1], [0.5, 0.25, nan]]
    return made_rollouts(groups, rewards, requested=[3, 2, 4], timeouts=1, error="no such module")


@pytest.mark.covers("disk full in a log")
@pytest.mark.parametrize("log", ["ledger", "evidence", "metrics"])
def test_a_log_that_cannot_be_written_ends_all_ranks_in_one_line(
    rank: OneRank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
):
    monkeypatch.setattr(faults, "_faults", faults.parse(f"log.{log}:enospc"))
    said = r"logs of step 1: rank 0: OSError: \[Errno 28\] No space left on device"
    with pytest.raises(CheckpointError, match=said):
        write(metrics_of(rank, tmp_path), by_hand())


# --- clocks


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test turns."""
    at = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: at.now))
    return at


def test_clocks_add_up_and_are_taken_once(hand: SimpleNamespace):
    clocks = Clocks()
    for seconds in (2.0, 3.0):
        with clocks.clock("rollout"):
            hand.now += seconds
        hand.now += 50
    with clocks.clock("reward"):
        hand.now += 0.25
    assert clocks.seconds("rollout") == 5.0
    assert clocks.seconds("learner") == 0.0
    assert clocks.take() == {"rollout": 5.0, "reward": 0.25}
    assert clocks.take() == {}
    with clocks.clock("rollout"):
        hand.now += 1
    assert clocks.take() == {"rollout": 1.0}


def test_a_clock_counts_what_was_cut_short(hand: SimpleNamespace):
    clocks = Clocks()

    def lost() -> None:
        with clocks.clock("sync"):
            hand.now += 4
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        lost()
    assert clocks.take() == {"sync": 4.0}


def test_a_clock_inside_another_counts_for_both(hand: SimpleNamespace):
    clocks = Clocks()
    with clocks.clock("rollout"):
        hand.now += 1
        with clocks.clock("scheduler"):
            hand.now += 2
    assert clocks.take() == {"rollout": 3.0, "scheduler": 2.0}


def test_a_steps_seconds_end_where_it_is_logged(rank: OneRank, tmp_path: Path, hand):
    metrics = metrics_of(rank, tmp_path)
    with metrics.clocks.clock("scheduler"):
        hand.now += 1  # before the line is opened: planning belongs to the step
    rollouts = by_hand()
    line = metrics.open(rollouts.step, np.zeros(48), np.zeros(48))
    with line.clock("rollout"):
        hand.now += 8
    line.log(rollouts, update_of(), {}, 0)
    with line.clock("checkpoint"):
        hand.now += 3
    assert (line.step_seconds, line.seconds("checkpoint")) == (8.0, 3.0)
    line.write(0)
    written = lines(tmp_path, "metrics")[0]
    assert written["step_time"] == 8.0
    assert written["perf/tokens_per_second"] == written["num_tokens"] / 8
    assert {name: written[f"timing_s/{name}"] for name in TIMED} == {
        **dict.fromkeys(TIMED, 0.0),
        "rollout": 8.0,
        "scheduler": 1.0,
    }
    assert written["timing_s/checkpoint"] == 3.0
    assert "timing_s/evaluate" not in written
    assert metrics.clocks.take() == {}


def test_a_step_without_a_save_has_no_time_for_one(rank: OneRank, tmp_path: Path, hand):
    metrics = metrics_of(rank, tmp_path)
    line = metrics.open(by_hand().step, np.zeros(48), np.zeros(48))
    with line.clock("checkpoint"):
        hand.now += 1e-4
    hand.now += 1
    line.log(by_hand(), update_of(), {}, 0)
    line.write(0)
    assert "timing_s/checkpoint" not in lines(tmp_path, "metrics")[0]


# --- one whole step on one rank


def named(name: str) -> str | None:
    """The entry of the table that stands for a name."""
    return next(
        (n for n in NAMES if n == name or (n.endswith("*") and name.startswith(n[:-1]))), None
    )


def one_step(rank: OneRank, run_dir: Path) -> tuple[StepLine, Rollouts, Mapping[str, float]]:
    """A turn of the loop with everything that has numbers, up to its line; ZeRO is left out."""
    config, group, watchdog = rank.config, rank.group, rank.watchdog
    policy = cast(Any, PlainPolicy(config))
    learner = Learner(policy, None, config, group)
    weights = WeightSync(policy, rank.engine, rank.pool.tokens, config, group, watchdog)
    shape = shape_of(load_model_config(config.model.path), config)
    metrics = metrics_of(rank, run_dir, Arithmetic(shape, peak=1e9))  # of a made-up device
    step = rank.rounds.next_step()
    assert step is not None
    line = metrics.open(step, rank.scheduler.value, rank.scheduler.posterior_mean)
    rollouts = rank.collector.finish(step, line.clock)
    line.add(rank.rounds.observe(rollouts))
    believed = rank.scheduler.metrics()
    line.believes(believed)
    rank.rounds.close_if_last(step)
    critic, predicted = rank.progress.critic, None
    if critic is not None:
        predicted = critic.predict(rollouts.counts.reward_sums(rollouts.prompt_ids))
        line.add(critic.metrics(predicted))
    if rank.progress.coverage is not None:
        line.add(rank.progress.coverage.metrics())
    batch = make_batch(rollouts, rank.scheduler.keep, config, group, predicted)
    if critic is not None:
        line.add({"baseline/signal_share": share_with_signal(batch, group)})
    with line.clock("learner"):
        update = learner.update(batch, [1e-4], line.clock)
    rank.progress.updates += 1
    rank.progress.step += 1
    line.log(rollouts, update, weights.push(1), 0)
    with line.clock("evaluate"):
        heldout = rank.data.heldout
        result = evaluate(rank.engine, heldout, rank.rewards, group, watchdog, config, final=True)
    line.add(result.metrics())
    line.write(failed_saves=2)
    return line, rollouts, believed


def test_a_whole_step_is_written_under_the_names_of_the_table(tmp_path: Path):
    rank = OneRank(
        "evaluation.pass_k=[1,2]",
        "scheduler.max_units_per_prompt=1",
        "reward.functions=[{function: exact}]",
        "learner.baseline=posterior",
        "learner.live_signal_per_step=100",
        "learner.entropy_target=0.3",
        "learner.positive_weight=0.5",
        "scheduler.cell_columns=[family]",
        "scheduler.refit_prior_every=1",
        "scheduler.direction=first_looks",
        "scheduler.explore_share=0.25",
    )
    line, rollouts, believed = one_step(rank, tmp_path)
    written = lines(tmp_path, "metrics")
    assert len(written) == 1
    numbers = written[0]
    assert not [name for name in numbers if named(name) is None]
    used = {name for name in NAMES if not name.startswith("episodes/")}  # those need an environment
    assert set(map(named, numbers)) == used, "and nothing in the table is out of use"

    every = np.concatenate(rollouts.rewards)
    alive = [len(set(r.tolist())) > 1 for r in rollouts.rewards]
    assert 0 < sum(alive) < len(alive)
    tokens = sum(len(c.token_ids) for g in rollouts.groups for c in g.completions)
    asked = sum(len(g.prompt_tokens) * len(g.completions) for g in rollouts.groups)
    for name, wanted in {
        "step": 1,
        "round": 0,
        "reward": every.mean(),
        "reward_std": every.std(),
        "cero/effective_group_rate": np.mean(alive),
        "frac_reward_zero_std": 1 - np.mean(alive),
        "completions/mean_length": tokens / 32,
        "num_tokens": tokens + asked,
        "budget/spent_rollouts": 32,
        "budget/remaining_rollouts": 96,
        "parity/version": 1,
        "rollout/staleness": 0,
        "cero/waves": 1,
        "skipped_updates": 0,
        "checkpoint/failed_saves": 2,
        "eval/rollouts": 16,
        "step_time": line.step_seconds,
        "skew/rollout": 1,
        "skew/slowest_rank": 0,
    }.items():
        assert numbers[name] == pytest.approx(wanted, rel=1e-6), name
    seconds = numbers["timing_s/learner"]
    learned = numbers["perf/learner_tokens_per_second"] * seconds
    # 6 FLOPs of 787,968 parameters (embedding and head are one), and attention's part
    assert numbers["perf/mfu"] * seconds * 1e9 > 6 * 787_968 * learned > 0
    assert numbers["perf/memory_gib/learner"] >= numbers["perf/memory_gib/optimizer"] > 0
    for name, value in believed.items():
        assert numbers[name] == pytest.approx(value, rel=1e-7), name


def test_the_books_of_a_whole_step(tmp_path: Path):
    rank = OneRank("logging.samples_per_dump=3", "evaluation.pass_k=[1]")
    _, rollouts, _ = one_step(rank, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evidence.jsonl",
        "ledger.jsonl",
        "metrics.jsonl",
        "samples.jsonl",
    ]
    groups = len(rollouts.groups)
    assert lines(tmp_path, "ledger") == [
        {
            "step": 1,
            "round": 0,
            "groups": groups,
            "total_rollouts": 128,
            "spent_rollouts": 32,
            "refunded_rollouts": 0,
        }
    ]
    assert lines(tmp_path, "evidence") == [
        {
            "step": 1,
            "round": 0,
            "prompt_ids": rollouts.prompt_ids.tolist(),
            "generated": [len(g.completions) for g in rollouts.groups],
            "trials": [len(r) for r in rollouts.rewards],
            "successes": [float(r.sum()) for r in rollouts.rewards],
            "worth": [round(1 / 6, 5)] * groups,  # of the prior, which nothing was learnt upon
            "expected": [0.5] * groups,
        }
    ]
    samples = lines(tmp_path, "samples")
    assert len(samples) == 3
    assert not [name for name in lines(tmp_path, "metrics")[0] if named(name) is None]
    chosen = [0, (groups - 1) // 2, groups - 1]  # spread evenly
    for sample, j in zip(samples, chosen):
        group, rewards = rollouts.groups[j], rollouts.rewards[j]
        prompt, first = rank.pool.prompts[group.prompt_id], group.completions[0]
        assert sample == {
            "step": 1,
            "prompt_key": prompt.key,
            "prompt": prompt.text,
            "completion": first.text,
            "answer": prompt.answer,
            "reward": float(rewards[0]),
            "group_reward_mean": float(rewards.mean()),
            "group_rollouts": len(group.completions),
            "finish_reason": first.finish_reason,
            "policy_version": 0,
        }


# --- numbers of rollouts made by hand


def test_the_numbers_of_rollouts(rank: OneRank, tmp_path: Path):
    rank.progress.ledger.book(8, 1)
    rollouts = by_hand()
    worth = np.arange(48) / 256
    numbers = write(metrics_of(rank, tmp_path), rollouts, value=worth, failed_saves=1)
    known = np.array([1, 0, 1, 1, 0.5, 0.25])
    prompt = {i: len(rank.pool.tokens[i]) for i in (5, 9, 2)}
    for name, wanted in {
        "reward": known.mean(),
        "reward_std": known.std(),
        "cero/effective_group_rate": 2 / 3,
        "frac_reward_zero_std": 1 / 3,
        "completions/mean_length": 29 / 8,
        "completions/clipped_ratio": 3 / 8,
        "num_tokens": 29 + 3 * prompt[5] + 2 * prompt[9] + 3 * prompt[2],
        "reward/timeout_rate": 1 / 8,
        "reward/error_rate": 1 / 8,
        "cero/rollouts_mean": 8 / 3,
        "cero/rollouts_max": 3,
        "cero/waves": 1,
        "budget/spent_rollouts": 8,
        "budget/refunded_rollouts": 1,
        "checkpoint/failed_saves": 1,
        "loss": 0.5,
    }.items():
        assert numbers[name] == pytest.approx(wanted, rel=1e-7), name
    evidence = lines(tmp_path, "evidence")[0]
    assert evidence["generated"] == [3, 2, 3]
    assert evidence["trials"] == [2, 2, 2]
    assert evidence["successes"] == [1.0, 2.0, 0.75]
    assert evidence["worth"] == np.round(worth[[5, 9, 2]], 5).tolist()
    assert evidence["expected"] == np.round(0.5 + worth[[5, 9, 2]], 5).tolist()


def test_a_step_without_any_reward_has_numbers_still(rank: OneRank, tmp_path: Path):
    numbers = write(metrics_of(rank, tmp_path), made_rollouts([made_group(1, [2])], [[nan]]))
    assert (numbers["reward"], numbers["reward_std"]) == (0.0, 0.0)
    assert numbers["reward/error_rate"] == 1.0
    assert numbers["frac_reward_zero_std"] == 1.0
    assert lines(tmp_path, "samples")[0]["reward"] is None
    assert lines(tmp_path, "samples")[0]["group_reward_mean"] is None


def test_a_step_in_which_everything_failed_has_numbers_still(rank: OneRank, tmp_path: Path):
    rollouts = made_rollouts([made_group(1, []), made_group(2, [])], [[], []], requested=[4, 4])
    numbers = write(metrics_of(rank, tmp_path), rollouts, version=7)
    assert (numbers["reward"], numbers["completions/mean_length"]) == (0.0, 0.0)
    assert (numbers["num_tokens"], numbers["cero/rollouts_max"]) == (0, 0)
    assert numbers["rollout/staleness"] == 0
    assert not (tmp_path / "samples.jsonl").exists()


def test_staleness_is_of_the_oldest_completion(rank: OneRank, tmp_path: Path):
    groups = [made_group(1, [1, 1], versions=[6, 4]), made_group(2, [1], versions=[5])]
    rollouts = made_rollouts(groups, [[1, 0], [1]])
    assert write(metrics_of(rank, tmp_path), rollouts, version=6)["rollout/staleness"] == 2


def test_the_premise_is_checked_against_what_was_believed(rank: OneRank, tmp_path: Path):
    groups = [made_group(i, [1] * 4) for i in (3, 4, 5, 6)]
    rollouts = made_rollouts(groups, [[1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    metrics = metrics_of(rank, tmp_path)
    value = np.zeros(48)
    value[[3, 4, 5, 6]] = [0.1, 0.2, 0.3, 0.1]
    assert write(metrics, rollouts, value=value)["cero/proxy_rank_corr"] == pytest.approx(1.0)
    value[[3, 4, 5, 6]] = [0.3, 0.2, 0.1, 0.3]
    assert write(metrics, rollouts, value=value)["cero/proxy_rank_corr"] == pytest.approx(-1.0)
    flat = write(metrics, rollouts)["cero/proxy_rank_corr"]
    assert flat is None, "equal worth ranks nothing"


def test_numbers_that_are_not_finite_become_null(rank: OneRank, tmp_path: Path):
    update = update_of(loss=nan, grad_norm=float("inf"), kl=-float("inf"), entropy=0.25)
    numbers = write(metrics_of(rank, tmp_path), by_hand(), update=update)
    assert numbers["loss"] is numbers["grad_norm"] is numbers["kl"] is None
    assert numbers["entropy"] == 0.25
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_missing_reward_is_said_once(rank: OneRank, tmp_path: Path, capsys):
    metrics = metrics_of(rank, tmp_path)
    write(metrics, made_rollouts([made_group(1, [1, 1])], [[1, 0]]))
    assert "missing" not in capsys.readouterr().out
    for _ in range(3):
        write(metrics, by_hand())
    printed = capsys.readouterr().out.splitlines()
    said = [line for line in printed if line.startswith("rewards: ")]
    assert said == [
        "rewards: 2 of 8 of step 2 are missing (counted, never 0); the first: no such module"
    ]


def test_samples_can_be_left_out(tmp_path: Path):
    rank = OneRank("logging.sample_dumps=false")
    write(metrics_of(rank, tmp_path), by_hand())
    assert not (tmp_path / "samples.jsonl").exists()


def test_each_step_adds_a_line_to_every_book(rank: OneRank, tmp_path: Path, capsys):
    metrics = metrics_of(rank, tmp_path)
    for _ in range(3):
        write(metrics, by_hand())
    for name in ("metrics", "ledger", "evidence"):
        assert [entry["step"] for entry in lines(tmp_path, name)] == [1, 2, 3]
    assert [entry["step"] for entry in lines(tmp_path, "samples")] == [1] * 3 + [2] * 3 + [3] * 3
    progress = [line for line in capsys.readouterr().out.splitlines() if "ETA" in line]
    assert len(progress) == 1, "one line now and then"
    assert progress[0].startswith("step 1  reward 0.625  live groups 67%  budget 0/128 (0%)")


def test_an_alert_is_told_when_it_begins(
    rank: OneRank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = metrics_of(rank, tmp_path)
    for share in (0.2, 0.6, 0.7, 0.4, 0.51):
        write(metrics, by_hand(), believed={"cero/starved_share": share})
    said = [text for text in capsys.readouterr().out.splitlines() if "starvation" in text]
    assert [text.split()[1] for text in said] == ["60%", "51%"]
    assert "scheduler.explore_share" in said[0]
