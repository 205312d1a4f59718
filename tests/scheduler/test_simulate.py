"""The simulator against a tiny loop of its own, its worlds, replay, and the arithmetic of its
intervals."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cero_rl.scheduler import SCHEDULER_NAMES, make_scheduler
from cero_rl.scheduler.simulation import (
    KINDS,
    Case,
    Entry,
    Outcome,
    PoolSpec,
    Suite,
    build_world,
    make_suites,
    optimum_curve,
    read_evidence,
    replay_suite,
    run_suite,
    simulate,
    smooth,
    summarise,
)
from cero_rl.scheduler.simulation.suites import UNIFORM
from cero_rl.scheduler.simulation.summary import estimate, t975
from cero_rl.scheduler.simulation.worlds import LearningWorld, World, uniforms

MIXED = PoolSpec("mixed", prompts=40, shares=(0.4, 0.1, 0.2, 0.3), heldout=50, skills=3)
VIGOR = Entry("vigor", "vigor", unit=2, most=16, slack=2.0)
ENTRIES = (Entry("uniform", "uniform"), Entry("cero", "cero"), VIGOR, Entry("oracle", "oracle"))


def suite(dynamics: str = "static", entries: tuple[Entry, ...] = ENTRIES) -> Suite:
    pool = dataclasses.replace(MIXED, dynamics=dynamics, drift=0.1)
    return Suite("tiny", "", (Case(pool, rounds=10, budget_rollouts=10 * 64, entries=entries),))


def same(first: Outcome, second: Outcome) -> bool:
    pairs = zip(dataclasses.astuple(first), dataclasses.astuple(second))
    return all(
        np.array_equal(a, b, equal_nan=True) if isinstance(a, (np.ndarray, float)) else a == b
        for a, b in pairs
    )


def test_static_run_agrees_with_a_loop() -> None:
    pool, rounds, budget, seed = 40, 10, 640, 4
    entry = ENTRIES[0]
    outcome = simulate(entry.build(pool, rounds, budget, seed), build_world(MIXED, seed))
    world, scheduler = build_world(MIXED, seed), entry.build(pool, rounds, budget, seed)
    spent = groups = live = in_live = 0
    value, exposure = 0.0, [0] * pool
    by_kind = dict.fromkeys(KINDS, 0)
    while (allocation := scheduler.next_round()) is not None:
        successes, trials = np.zeros(pool), np.zeros(pool, dtype=np.int64)
        for prompt, size in zip(allocation.prompt_ids.tolist(), allocation.rollouts.tolist()):
            rewards = [int(world.draw(np.array([prompt]), np.array([1]))[0]) for _ in range(size)]
            p = world.rates[prompt]
            c = 4 * p * (1 - p) / (budget / pool)
            value += math.exp(-c * exposure[prompt]) - math.exp(-c * (exposure[prompt] + size))
            exposure[prompt] += size
            groups, spent = groups + 1, spent + size
            if len(set(rewards)) == 2:
                live, in_live = live + 1, in_live + size
            by_kind[KINDS[world.kind[prompt]]] += size
            successes[prompt], trials[prompt] = sum(rewards), size
        scheduler.update(successes, trials)
    assert (outcome.spent_rollouts, outcome.groups, outcome.live_groups, outcome.live_rollouts) == (
        spent,
        groups,
        live,
        in_live,
    )
    assert outcome.value == pytest.approx(value / pool, abs=1e-12)
    for share, kind, lift in zip(MIXED.shares, KINDS, outcome.kind_lift):
        assert lift == pytest.approx(by_kind[kind] / spent / share)
    assert outcome.trained_rollouts == spent
    assert outcome.ability == outcome.ability_start == pytest.approx(world.rates.mean())


def test_the_oracle_has_no_regret_and_nobody_beats_it() -> None:
    (result,) = run_suite(
        suite(entries=tuple(dataclasses.replace(e, unit=1, most=16) for e in ENTRIES)), seeds=3
    )
    rows = summarise(result)
    # whole rollouts against a continuous optimum
    assert rows[-1].regret.mean == pytest.approx(0.0, abs=2e-4)
    for row in rows[:-1]:
        assert row.regret.mean > rows[-1].regret.mean - 1e-9
        assert row.curve_regret[0] == 0.0
        assert np.isnan(row.curve_regret[-1]) or row.curve_regret[-1] == pytest.approx(
            row.regret.mean
        )
        assert not (row.curve_regret < -1e-9).any()


@pytest.mark.parametrize("dynamics", ["static", "drift", "learning"])
def test_seeds_are_paired_and_repeat_bit_for_bit(dynamics: str) -> None:
    first, second = run_suite(suite(dynamics), seeds=2), run_suite(suite(dynamics), seeds=2)
    for a, b in zip(first[0].outcomes, second[0].outcomes):
        assert all(same(x, y) for x, y in zip(a, b))
    # other company, other order: the same runs
    only = run_suite(suite(dynamics, (ENTRIES[2], ENTRIES[0])), seeds=2)
    assert all(same(x, y) for x, y in zip(only[0].outcomes[0], first[0].outcomes[2]))
    assert not same(first[0].outcomes[0][0], first[0].outcomes[0][1])
    rows = summarise(first[0])
    assert rows[0].gain.mean == rows[0].gain.half_width == 0.0


def test_worker_processes_change_nothing() -> None:
    seen: list[tuple[int, int]] = []
    here, there = (
        run_suite(suite("learning"), 2),
        run_suite(suite("learning"), 2, 2, lambda done, total: seen.append((done, total))),
    )
    assert all(
        same(x, y) for a, b in zip(here[0].outcomes, there[0].outcomes) for x, y in zip(a, b)
    )
    assert seen == [(1, 2), (2, 2)]


def test_luck_belongs_to_the_rollout() -> None:
    """A prompt's m-th rollout has one outcome, whoever asks, together or one by one."""
    one, other = build_world(MIXED, 7), build_world(MIXED, 7)
    together = one.draw(np.array([3, 20]), np.array([4, 3]))
    second = other.draw(np.array([20]), np.array([3]))
    first = np.concatenate(
        [other.draw(np.array([3]), np.array([2])), other.draw(np.array([3]), np.array([2]))]
    )
    assert together.tolist() == [*first.tolist(), *second.tolist()]
    many = uniforms(1, np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300))
    assert stats.kstest(many, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(many[:-300], many[300:])[0, 1]) < 0.01


def test_learning_needs_signal_and_learnability() -> None:
    spec = dataclasses.replace(MIXED, dynamics="learning", skills=1)
    world = build_world(spec, 0)
    before, held = world.rates.copy(), world.ability()
    luck, learnable = np.flatnonzero(world.kind == 2), np.flatnonzero(world.kind == 3)
    world.finish_round(learnable[:1], np.zeros(1))
    assert np.array_equal(world.rates, before)
    world.finish_round(luck, np.ones(luck.size))
    assert np.array_equal(world.rates, before)
    assert world.ability() == held
    world.finish_round(learnable[:1], np.ones(1))
    gained = world.rates - before
    assert gained[learnable[0]] > gained[learnable[1:]].max()  # itself most
    assert (gained[learnable] > 0).all()  # its neighbours too
    assert world.ability() > held
    assert np.array_equal(world.rates[luck], before[luck])
    world.finish_round(np.empty(0, dtype=np.int64), np.empty(0))


def test_a_prompt_wears_out_as_a_teacher() -> None:
    world = build_world(dataclasses.replace(MIXED, dynamics="learning", wear=0.5), 0)
    one = np.flatnonzero(world.kind == 3)[:1]
    held = [world.ability()]
    for _ in range(4):
        world.finish_round(one, np.ones(1))
        held.append(world.ability())
    gains = np.diff(held)
    assert (gains > 0).all()
    assert (gains[1:] < 0.6 * gains[:-1]).all()


def test_drift_is_the_same_for_all() -> None:
    spec = dataclasses.replace(MIXED, dynamics="drift", drift=0.2)
    one, other = build_world(spec, 3), build_world(spec, 3)
    one.draw(np.array([0]), np.array([50]))
    for world in (one, other):
        world.finish_round(np.array([0]), np.array([5.0]))
    assert np.array_equal(one.rates, other.rates)
    assert not np.array_equal(one.rates, build_world(spec, 3).rates)


def test_unspent_budget_is_reported() -> None:
    # no room to spend later what a round has left
    entry = Entry("speed", "speed_rl", unit=2, most=8)
    world = World(np.ones(40), np.zeros(40, dtype=np.int8), 0)
    outcome = simulate(entry.build(40, 10, 640, 0), world)
    assert outcome.spent_rollouts < 640
    assert outcome.budget_rollouts == 640
    assert np.isnan(outcome.curve_value[-1])
    assert outcome.live_groups == outcome.trained_rollouts == 0


def test_kept_rollouts_carry_the_signal() -> None:
    """PODS on a group of 16: the same rollouts are paid for, half of them train."""
    outcome = simulate(
        Entry("pods", "uniform", unit=16, keep="pods").build(40, 10, 640, 0), build_world(MIXED, 0)
    )
    assert outcome.spent_rollouts == 640
    assert outcome.trained_rollouts == 320


def test_optimum_curve_rises_and_bends() -> None:
    curve = optimum_curve(build_world(MIXED, 1), 640)
    assert curve[0] == 0.0
    assert (np.diff(curve) > 0).all()
    assert (np.diff(curve, 2) < 1e-12).all()


def evidence(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(round_: int, ids: list[int], trials: list[int], successes: list[float]) -> dict:
    return {
        "step": round_ + 1,
        "round": round_,
        "prompt_ids": ids,
        "generated": trials,
        "trials": trials,
        "successes": successes,
    }


def test_replay_smooths_recorded_rates(tmp_path: Path) -> None:
    path = evidence(
        tmp_path / "e.jsonl",
        [line(0, [5, 9], [8, 8], [8, 0]), line(3, [5], [8], [4]), line(4, [2], [0], [0])],
    )
    recorded = smooth(read_evidence(path))
    assert recorded.prompt_ids.tolist() == [5, 9]  # prompt 2 never had a reward
    assert recorded.rollouts == 24
    mean = 12 / 24
    # rounds 0, 3, 4 are rows 0, 1, 2: distance counts recorded rounds
    assert recorded.rates[:, 0] == pytest.approx(
        [
            (8 + 0.9 * 4 + 2 * mean) / (8 + 7.2 + 2),
            (7.2 + 4 + 2 * mean) / (7.2 + 8 + 2),
            (6.48 + 3.6 + 2 * mean) / (6.48 + 7.2 + 2),
        ]
    )
    assert recorded.rates[0, 1] == pytest.approx(2 * mean / 10)
    replayed = replay_suite(recorded)
    assert replayed.cases[0].budget_rollouts == 16
    assert replayed.cases[0].rounds == 3


def test_replay_of_a_run_with_larger_groups_than_the_entries(tmp_path: Path) -> None:
    """The sizes that then did not fit were none that the user had given."""
    lines = [line(k, [0, 1, 2], [200, 160, 40], [100, 20, 30]) for k in range(3)]
    recorded = smooth(read_evidence(evidence(tmp_path / "e.jsonl", lines)))
    suite = replay_suite(recorded)
    for entry in suite.cases[0].entries:
        scheduler = entry.build(3, 3, 1200, 0)
        assert 3 * scheduler.spec.capacity_rollouts >= 1200
    case = dataclasses.replace(suite.cases[0], entries=suite.cases[0].entries[:6])
    few = dataclasses.replace(suite, cases=(case,))
    (result,) = run_suite(few, seeds=2)
    assert summarise(result)[0].spent.mean == 1.0


def test_replay_runs_every_allocator(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [
        line(k, ids.tolist(), [8] * 16, rng.integers(0, 9, 16).tolist())
        for k in range(12)
        for ids in [rng.permutation(60)[:16]]
    ]
    recorded = smooth(read_evidence(evidence(tmp_path / "e.jsonl", lines)))
    (result,) = run_suite(replay_suite(recorded), seeds=2)
    for row in summarise(result):
        assert 0.5 < row.spent.mean <= 1.0, row.entry.label
        assert 0.0 < row.value.mean < 1.0


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no evidence"),
        ("{}\n", "line 1"),
        (
            '{"round": 0, "prompt_ids": [1], "trials": [8, 8], "successes": [1]}\n',
            "differ in length",
        ),
        ("nonsense\n", "line 1"),
    ],
)
def test_damaged_evidence_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "evidence.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_evidence(path)


def test_counts_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="damaged"):
        smooth(read_evidence(evidence(tmp_path / "a.jsonl", [line(0, [0], [4], [5])])))
    with pytest.raises(ValueError, match="no rollout with a reward"):
        smooth(read_evidence(evidence(tmp_path / "b.jsonl", [line(0, [0], [0], [0])])))


def test_intervals_are_those_of_student() -> None:
    for degrees in (1, 2, 5, 19, 30, 31, 60, 500):
        assert t975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=2e-4)
    numbers = np.array([0.3, 0.5, 0.1, 0.4, np.nan])
    low, high = stats.t.interval(0.95, 3, loc=numbers[:4].mean(), scale=stats.sem(numbers[:4]))
    got = estimate(numbers)
    assert (got.mean - got.half_width, got.mean + got.half_width) == pytest.approx(
        (low, high), rel=1e-4
    )
    assert not estimate([0.1, -0.1, 0.05]).clear
    assert math.isnan(estimate([1.0]).mean)


def test_gain_is_paired() -> None:
    (result,) = run_suite(suite("learning"), seeds=3)
    row = summarise(result)[2]
    differences = [a.ability - b.ability for a, b in zip(result.outcomes[2], result.outcomes[0])]
    assert row.gain.mean == pytest.approx(np.mean(differences))
    assert row.gain.half_width == pytest.approx(
        stats.t.ppf(0.975, 2) * stats.sem(differences), rel=1e-4
    )


def test_suites_hold_every_scheduler_and_one_budget() -> None:
    suites = make_suites()
    assert {entry.scheduler for entry in suites["rivals"].cases[0].entries} == set(SCHEDULER_NAMES)
    for found in suites.values():
        for case in found.cases:
            labels = [entry.label for entry in case.entries]
            assert len(set(labels)) == len(labels)
            for entry in case.entries:
                assert (
                    entry.build(
                        case.pool.prompts, case.rounds, case.budget_rollouts, 0
                    ).remaining_rollouts
                    == case.budget_rollouts
                )


def test_bad_pools_and_runs_are_refused() -> None:
    for changes in (
        {"shares": (1.0, 0.5, 0.0, 0.0)},
        {"prompts": 0},
        {"dynamics": "wild"},
        {"wear": 0.0},
        {"drift": -1.0},
    ):
        with pytest.raises(ValueError, match="pool 'mixed'"):
            dataclasses.replace(MIXED, **changes)
    with pytest.raises(ValueError, match="at least 2"):
        run_suite(suite(), seeds=1)
    with pytest.raises(ValueError, match="not a multiple"):
        run_suite(Suite("s", "", (Case(MIXED, 4, 100, ENTRIES),)), seeds=2)


def test_the_oracle_is_told_the_rates_of_the_round() -> None:
    told = []
    scheduler = make_scheduler(
        "oracle",
        num_prompts=8,
        rounds=3,
        budget_rollouts=48,
        rollouts_per_unit=4,
        max_units_per_prompt=1,
        capacity_rollouts=16,
    )
    oracle: Any = scheduler
    known = oracle.set_rates
    oracle.set_rates = lambda rates: (told.append(rates.copy()), known(rates))
    spec = PoolSpec("d", prompts=8, skills=1, dynamics="drift", drift=0.3)
    simulate(scheduler, build_world(spec, 0))
    assert len(told) == 4  # three rounds and the end
    assert not np.array_equal(told[0], told[1])


def test_late_skills_are_out_of_reach_until_their_round_comes() -> None:
    spec = PoolSpec("late", prompts=400, dynamics="learning", late=0.5, opening=(2, 4))
    late, open_ = build_world(spec, 3), build_world(dataclasses.replace(spec, late=0.0), 3)
    closed = late.rates < 0.5 * open_.rates
    assert 120 < closed.sum() < 280
    np.testing.assert_array_equal(late.rates[~closed], open_.rates[~closed])
    assert isinstance(late, LearningWorld)
    nothing, found = np.zeros(0, dtype=np.int64), []
    for _ in range(5):
        found.append((int(late.opened_late.sum()), late.ability()))
        late.finish_round(nothing, np.zeros(0))
    opened = [count for count, _ in found]
    assert opened[:2] == [0, 0]
    assert opened[2] > 0
    assert opened == sorted(opened)
    assert opened[4] == closed.sum()
    np.testing.assert_array_equal(late.rates, open_.rates)
    assert found[0][1] < found[4][1] == pytest.approx(open_.ability())
    with pytest.raises(ValueError, match="two rounds in order"):
        dataclasses.replace(spec, opening=(4, 2))
    case = Case(spec, 8, 8 * 64, (UNIFORM,))
    (result,) = run_suite(Suite("late", "", (case,)), seeds=2)
    (row,) = summarise(result)
    assert 0.7 < row.late_lift.mean < 1.4  # uniform: as much as any
