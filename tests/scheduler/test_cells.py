"""Prior by cell: its formulas against plain loops, what it predicts of prompts nobody has seen, and
that a run with cells resumes, grows and forgets like any other."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_sim import play

from cero_rl.scheduler import CeroOptions, CeroScheduler, make_scheduler
from cero_rl.scheduler.cells import Cells
from cero_rl.scheduler.cero import Cero

RNG = np.random.default_rng(7)


def looks(count: int, prompts: int) -> list[tuple[np.ndarray, ...]]:
    """Rounds of (ids, wins, tries)."""
    rounds = []
    for _ in range(count):
        ids = RNG.choice(prompts, size=6, replace=False)
        tries = RNG.integers(0, 5, 6)
        rounds.append((ids, RNG.binomial(tries, 0.4).astype(float), tries))
    return rounds


def test_a_cells_mean_is_the_weighted_fading_mean_drawn_toward_the_pools() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    cells, evidence = Cells(labels, 10, memory_rounds=4.0), np.zeros(10)
    sums = np.zeros((3, 4))  # weighted wins, weighted tries, tries
    for ids, wins, tries in looks(5, 9):
        cells.observe(ids, wins, tries, evidence[ids])
        for prompt, won, tried in zip(ids, wins, tries):
            if tried:
                weight = tried / (tried + evidence[prompt])
                sums[:, labels[prompt]] += weight * won, weight * tried, tried
            evidence[prompt] += tried
        cells.close_round()
        looked = np.isin(np.arange(4), labels[ids[tries > 0]])
        sums *= np.exp(-np.where(looked, 0.25, 0.25 / 5.0))
    rate = [w / t if t else 0.0 for w, t in sums[:2].T]
    known = [n / (n + 8.0) for n in sums[2]]
    share = [k * int((labels == c).sum()) for c, k in enumerate(known)]
    pool = sum(s * r for s, r in zip(share, rate)) / sum(share)
    wanted = [k * r + (1 - k) * pool for k, r in zip(known, rate)]
    np.testing.assert_allclose(cells.means(), wanted, rtol=1e-12)
    assert known[3] == 0.0  # never looked at: the pool's mean
    spread = np.std(np.array(wanted)[labels])
    assert cells.spread() == pytest.approx(float(spread))


def test_nothing_known_is_one_half() -> None:
    np.testing.assert_array_equal(Cells([0, 1, 1], 3, 5.0).means(), [0.5, 0.5])


def test_strengths_recover_what_drew_the_rates() -> None:
    """Two cells of 3,000 prompts, alike within to different degrees."""
    strengths, means = np.array([2.0, 10.0]), np.array([0.3, 0.6])
    labels = np.repeat([0, 1], 3000)
    rates = RNG.beta((strengths * means)[labels], (strengths * (1 - means))[labels])
    tries = RNG.integers(1, 12, 6000)
    wins, tries = RNG.binomial(tries, rates).astype(float), tries.astype(float)
    got = Cells(labels, 6000, 5.0).strengths(wins, tries - wins)
    np.testing.assert_allclose(got, strengths, rtol=0.12)


def test_strengths_are_bounded_and_lean_on_the_pool_where_little_is_known() -> None:
    labels = np.repeat([0, 1, 2], 40)
    split = np.where(np.arange(120) % 2, 8.0, 0.0)  # cell 0: all right or all wrong
    wins = np.where(labels == 0, split, np.where(labels == 1, 4.0, 0.0))
    tries = np.where(labels == 2, 0.0, 8.0)  # cell 2: never seen
    got = Cells(labels, 120, 5.0).strengths(wins, tries - wins)
    assert got[0] == pytest.approx(1.0 / 0.95 - 1.0)
    assert got[1] == pytest.approx(16.0)
    assert got[0] < got[2] < got[1]
    np.testing.assert_allclose(
        Cells(labels, 120, 5.0).strengths(np.zeros(120), np.zeros(120)), [4.0] * 3
    )


def test_the_fit_is_a_beta_prior_of_every_prompt() -> None:
    cells = Cells([0, 1, 0], 3, 5.0)
    cells.observe(np.array([0, 1]), np.array([8.0, 0.0]), np.array([8, 8]), np.zeros(2))
    wins, losses = np.array([8.0, 0.0, 0.0]), np.array([0.0, 8.0, 0.0])
    a, b = cells.fit(wins, losses)
    mean, strength = cells.means(), cells.strengths(wins, losses)
    np.testing.assert_allclose(a, (strength * mean)[[0, 1, 0]])
    np.testing.assert_allclose(a + b, strength[[0, 1, 0]])
    assert a[2] / (a[2] + b[2]) > 0.7  # never seen, its cell was right


@pytest.mark.parametrize(
    ("labels", "memory", "message"),
    [
        ([0, 1], 1.0, "cells: wanted 3 integers"),
        ([0, 1, -1], 1.0, "cells: wanted 3 integers"),
        ([0.0, 1.0, 1.0], 1.0, "cells: wanted 3 integers"),
        ([0, 1, 1], 0.0, "cell_memory_rounds = 0"),
    ],
)
def test_bad_cells(labels: list, memory: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cells(labels, 3, memory)


# --- in the scheduler

POOL, GROUPS = 240, np.arange(240) % 4
SIZES = (POOL, 30, 30 * 64, 4, 1, 64)


def build(**options) -> CeroScheduler:
    given = {"cells": GROUPS, "refit_prior_every": 2, "price_init": 0.0, "spend_down": True}
    return CeroScheduler(*SIZES, seed=3, **{**given, **options})


def test_prompts_never_seen_are_predicted_by_their_cell() -> None:
    rates = np.array([0.0, 0.5, 0.97, 0.02])[GROUPS]
    scheduler = build(forgetting=0.98)
    play(scheduler, rates, 0, stop_round=3)
    unseen = scheduler.exposure == 0
    assert unseen.sum() > 150
    mean = [scheduler.posterior_mean[unseen & (c == GROUPS)].mean() for c in range(4)]
    assert mean[0] < 0.15 < mean[1] < 0.75 < mean[2]
    assert mean[3] < 0.2
    assert scheduler.metrics()["cero/cell_spread"] > 0.2
    np.testing.assert_allclose(
        scheduler.slope[unseen], np.minimum(4.0 * scheduler.value[unseen], 1.0)
    )
    history = play(scheduler, rates, 0, stop_round=6)  # rounds 3, 4, 5
    share = np.bincount(GROUPS, np.sum(history, axis=0), 4) / np.sum(history)
    assert share[1] > 0.6  # the pool's prior alone would leave it at a quarter


def test_old_evidence_follows_the_cell() -> None:
    """A cell that becomes easy: prompts served before and not since are taken for easier."""
    scheduler = make_scheduler(
        "random_matched",
        num_prompts=POOL,
        rounds=30,
        budget_rollouts=960,
        rollouts_per_unit=4,
        max_units_per_prompt=1,
        capacity_rollouts=32,
        forgetting=0.8,
        cero=CeroOptions(
            cells=GROUPS, cell_memory_rounds=3.0, refit_prior_every=2, spend_down=True
        ),
    )
    assert isinstance(scheduler, Cero)
    play(scheduler, np.full(POOL, 0.05), 0, stop_round=4)
    served, before = scheduler.exposure > 0, scheduler.posterior_mean
    history = play(scheduler, np.where(GROUPS == 1, 0.9, 0.05), 1, stop_round=10)
    idle = served & (np.sum(history, axis=0) == 0)
    easy, hard = idle & (GROUPS == 1), idle & (GROUPS == 2)
    assert min(easy.sum(), hard.sum()) >= 2
    assert scheduler.posterior_mean[easy].min() > before[easy].max() + 0.2
    assert scheduler.posterior_mean[hard].max() < 0.3


def test_without_cells_and_with_one_cell_prior_off_the_pool_is_fitted() -> None:
    rates = RNG.random(POOL)
    plain, cells = build(cells=None), build(cell_prior=False)
    np.testing.assert_array_equal(play(plain, rates, 0), play(cells, rates, 0))
    assert isinstance(cells.posterior.prior[0], float)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plan": "resolve"},
        {"plan": "thompson", "forgetting": 0.9},
        {"value": "progress", "labels": GROUPS, "streaming": True},
        {"value": "graded"},
        {"cell_prior": False},
    ],
    ids=str,
)
def test_a_run_with_cells_resumes_bitwise(options: dict) -> None:
    rates = RNG.random(POOL)
    graded = options.get("value") == "graded"

    def go(scheduler: CeroScheduler, stop: int | None) -> list:
        if not graded:
            return play(scheduler, rates, 5, stop)
        history = []
        while scheduler.round != stop and (given := scheduler.next_round()) is not None:
            rollouts = np.zeros(POOL, dtype=np.int64)
            rollouts[given.prompt_ids] = given.rollouts
            wins = np.random.default_rng([5, given.round]).binomial(rollouts, rates)
            scheduler.update(wins, rollouts, wins)
            history.append(rollouts)
        return history

    through, first, resumed = build(**options), build(**options), build(**options)
    wanted = go(through, None)
    got = go(first, 7)
    resumed.load_state_dict(first.state_dict())
    got += go(resumed, None)
    np.testing.assert_array_equal(got, wanted)
    for key, value in through.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[key], value, err_msg=key)


def test_states_with_and_without_cells_do_not_mix() -> None:
    with pytest.raises(ValueError, match="field 'cell_prior'"):
        build().load_state_dict(build(cells=None).state_dict())
    with pytest.raises(ValueError, match="field 'cell_prior'"):
        build(cells=None).load_state_dict(build().state_dict())
    with pytest.raises(ValueError, match="field 'cell_memory_rounds'"):
        build(cell_memory_rounds=3.0).load_state_dict(build().state_dict())
    with pytest.raises(ValueError, match="do not fit this run's cells"):
        build(cells=np.arange(POOL) % 9).load_state_dict(build().state_dict())


def test_the_pool_may_grow_by_prompts_of_known_and_new_cells() -> None:
    rates = np.array([0.05, 0.5, 0.95, 0.05])[GROUPS]
    scheduler = build()
    play(scheduler, rates, 0, stop_round=8)
    previous = np.concatenate((np.arange(20, POOL), np.full(40, -1)))
    labels = np.concatenate((GROUPS[20:], np.repeat([0, 1, 2, 4], 10)))
    with pytest.raises(ValueError, match="cells: wanted where the run has them"):
        scheduler.set_pool(previous)
    evidence = scheduler.evidence()[0][20:]
    scheduler.set_pool(previous, cells=labels)
    mean = scheduler.posterior_mean[POOL - 20 :].reshape(4, 10)
    assert mean[0].max() < 0.3
    assert 0.3 < mean[1].min() <= mean[1].max() < 0.7
    assert mean[2].min() > 0.7
    assert 0.3 < mean[3].min() <= mean[3].max() < 0.7
    np.testing.assert_allclose(scheduler.evidence()[0][: POOL - 20], evidence, atol=1e-12)
    resumed = CeroScheduler(
        POOL + 20,
        *SIZES[1:],
        seed=3,
        cells=labels,
        refit_prior_every=2,
        price_init=0.0,
        spend_down=True,
    )
    resumed.load_state_dict(scheduler.state_dict())
    rates = np.full(POOL + 20, 0.4)
    np.testing.assert_array_equal(play(resumed, rates, 1), play(scheduler, rates, 1))


def test_cells_without_a_refit_do_nothing_and_are_refused() -> None:
    with pytest.raises(ValueError, match="cells need refit_prior_every > 0"):
        build(refit_prior_every=0)


def test_units_of_one_rollout_and_small_first_looks() -> None:
    scheduler = CeroScheduler(
        POOL, 30, 30 * 64, 1, 4, 64, explore_units=1, cells=GROUPS, refit_prior_every=2
    )
    history = play(scheduler, np.array([0.0, 0.5, 0.97, 0.02])[GROUPS], 0)
    assert history[0].max() == 1
    assert max(round_.max() for round_ in history) == 4
    assert np.sum(history) <= 30 * 64


def live_share(cells: np.ndarray | None, seed: int) -> float:
    """Of the rollouts of a run over 1,000 prompts, 80 % of them dead by their length, 6 each."""
    rng = np.random.default_rng([seed, 1])
    length = rng.integers(0, 10, 1000)
    rates = 1.0 / (1.0 + np.exp(-(5.0 - 3.0 * length + rng.normal(0.0, 0.7, 1000))))
    if cells is not None:
        cells = rng.permutation(length) if cells.size == 0 else length
    scheduler = CeroScheduler(
        1000,
        100,
        6000,
        4,
        1,
        60,
        spend_down=True,
        seed=seed,
        step_size=0.5,
        cap_shares=4.0,
        refit_prior_every=1,
        cells=cells,
    )
    live = total = 0
    while (given := scheduler.next_round()) is not None:
        rollouts = np.zeros(1000, dtype=np.int64)
        rollouts[given.prompt_ids] = given.rollouts
        wins = rng.binomial(rollouts, rates)
        live += int(rollouts[(wins > 0) & (wins < rollouts)].sum())
        total += int(rollouts.sum())
        scheduler.update(wins, rollouts)
    return live / total


def test_cells_that_tell_find_what_lives_and_cells_by_chance_cost_nothing() -> None:
    plain, told, chance = (
        np.mean([live_share(cells, seed) for seed in range(4)])
        for cells in (None, np.ones(1), np.empty(0))
    )
    assert told > plain + 0.15
    assert chance > plain - 0.03
