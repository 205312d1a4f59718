"""Direction from first looks: its regression against least squares, what counts as a look, and a
simulated run in which luck, wrong keys and memorised prompts must lose their weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scheduler_sim import play

from cero_rl.scheduler import CeroOptions, CeroScheduler, Evidence, Samples
from cero_rl.scheduler.direction import FirstLooks

FAIR = 20.0


def meter(labels: list[int] | np.ndarray, memory: float = 1e9, ucb: float = 0.0) -> FirstLooks:
    return FirstLooks(labels, FAIR, 0.1, ucb, memory)


def see(looks: FirstLooks, ids: list[int], wins: list[float], tries: list[int]) -> None:
    arrays = np.array(ids), np.array(wins, dtype=float), np.array(tries)
    looks.observe(*arrays, np.full(len(ids), 0.3))


def test_slopes_are_weighted_least_squares_with_a_level_per_probe() -> None:
    """Two cells; prompts 0 and 1 are probes of the first. By hand: rows of a design matrix with one
    column per level and one for the exposure, weights fading with the rounds of the cell."""
    rng, labels = np.random.default_rng(5), np.array([0, 0] + [0] * 40 + [1] * 40)
    looks, memory = meter(labels, memory=6.0), 6.0
    looks.probes[:2] = True
    rows: list[list[list[float]]] = [[], []]  # of each cell: level, exposure, y, weight
    exposure, seen = [0.0, 0.0], set()
    for _ in range(8):
        ids = [int(i) for i in rng.choice(82, 14, replace=False)]
        ids = [0, 1, *[i for i in ids if i > 1]]
        tries = rng.integers(1, 6, len(ids))
        wins = rng.binomial(tries, np.where(labels[ids] == 0, 0.3 + 0.05 * exposure[0], 0.5))
        see(looks, ids, wins.tolist(), tries.tolist())
        spent = [0.0, 0.0]
        for i, won, tried in zip(ids, wins, tries):
            cell, probe = int(labels[i]), i < 2
            if probe or i not in seen:
                weight = tried if probe else tried / (1.0 + (tried - 1.0) * 0.2)
                level = i if probe else 2
                rows[cell].append([level, exposure[cell], won / tried, weight])
            if not probe:
                alone = 4 * 0.3 * 0.7
                spent[cell] += alone if tried == 1 else tried * (0 < won < tried)
            seen.add(i)
        for cell in (0, 1):
            exposure[cell] += spent[cell] / int((labels == cell).sum())
        looks.close_round()
        for cell in {int(labels[i]) for i in ids}:
            for row in rows[cell]:
                row[3] *= math.exp(-1.0 / memory)
    precision, fits = np.zeros(2), np.zeros(2)
    for cell in (0, 1):
        level, x, y, w = np.array(rows[cell]).T
        design = np.column_stack([*(level == one for one in np.unique(level)), x]).astype(float)
        root = np.sqrt(w)[:, None]
        fits[cell] = np.linalg.lstsq(design * root, y * root[:, 0], rcond=None)[0][-1]
        covariance = np.linalg.inv((design * w[:, None]).T @ design)
        mean = ((w * y).sum() + 1) / (w.sum() + 2)
        precision[cell] = 1.0 / (covariance[-1, -1] * mean * (1 - mean))
    scale = 0.25 / FAIR
    common = (precision @ fits) / (precision.sum() + scale**-2)
    excess = precision @ (fits - common) ** 2 - 1
    room = precision.sum() - (precision**2).sum() / precision.sum()
    variance = max(excess / room, (0.5 * max(common, scale)) ** 2)
    posterior = (precision * fits + common / variance) / (precision + 1 / variance)
    got = looks.slopes()
    np.testing.assert_allclose(got[0], posterior, rtol=1e-6)
    np.testing.assert_allclose(got[1], (precision + 1 / variance) ** -0.5, rtol=1e-6)


def test_without_evidence_all_cells_have_the_benefit_of_the_doubt() -> None:
    looks = meter([0, 1, 1, 2])
    looks.close_round()
    np.testing.assert_array_equal(looks.factor(), 1.0)
    see(looks, [0, 1], [2.0, 0.0], [4, 4])  # one look each tells no slope
    looks.close_round()
    np.testing.assert_array_equal(looks.factor(), 1.0)


def test_a_second_look_and_one_without_a_reward_do_not_count() -> None:
    def state(*rounds: tuple[list[int], list[float], list[int]]) -> np.ndarray:
        looks = meter([0, 0, 1, 1])
        for ids, wins, tries in rounds:
            see(looks, ids, wins, tries)
        return looks._sums

    once = state(([0, 2], [1.0, 2.0], [2, 2]))
    np.testing.assert_array_equal(state(([0, 2], [1.0, 2.0], [2, 2]), ([2], [2.0], [2])), once)
    np.testing.assert_array_equal(
        state(([0, 2, 1], [1.0, 2.0, 0.0], [2, 2, 0]), ([2], [2.0], [2])), once
    )
    later = state(([0, 2], [1.0, 2.0], [2, 2]), ([1], [0.0], [2]))
    assert later[0, 0] > once[0, 0]


def test_known_prompts_of_a_warm_start_give_no_first_look() -> None:
    options = {"cells": np.arange(12) % 3, "direction": "first_looks"}
    scheduler = CeroScheduler(12, 10, 240, 2, 1, 24, **options)
    scheduler.warm_start(np.full(12, 1.0), np.where(np.arange(12) < 6, 1.0, 0.0))
    assert scheduler.direction is not None
    assert scheduler.direction.looked_share == 1.0


# --- a world: families that learn and pass it on, one that memorises, luck, wrong keys

POOL, ROUNDS, PER_ROUND = 1200, 120, 240
FAMILIES = ("learns", "learns", "memorises", "luck", "wrong keys")
PASSES_ON = np.array([3.0, 3.0, 0.0, 0.0, 0.0])
KEEPS = np.array([0.5, 0.5, 1.5, 0.0, 1.0])


def simulate(seed: int, **options) -> tuple[CeroScheduler, np.ndarray, float]:
    """A run; factors f64[K, 5] by round, and held-out success at its end."""
    rng = np.random.default_rng([seed, 2])
    family = rng.integers(0, 5, POOL)
    logit = np.select(
        [family <= 2, family == 3],
        [rng.normal(-0.5, 1.3, POOL), rng.normal(-0.4, 0.3, POOL)],
        rng.normal(-1.5, 0.7, POOL),
    )
    scheduler = CeroScheduler(
        POOL,
        ROUNDS,
        ROUNDS * PER_ROUND,
        4,
        1,
        PER_ROUND,
        step_size=5 / ROUNDS**0.5,
        cap_shares=4.0,
        refit_prior_every=5,
        spend_down=True,
        seed=seed,
        cells=family,
        **options,
    )
    own, skill, factors = np.zeros(POOL), np.zeros(5), []
    while (allocation := scheduler.next_round()) is not None:
        ids, sizes = allocation.prompt_ids, allocation.rollouts.astype(np.int64)
        rates = 1.0 / (1.0 + np.exp(-(logit + own + skill[family])[ids]))
        wins = rng.binomial(sizes, rates)
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        rewards = np.zeros(int(sizes.sum()))
        samples = Samples(ids, rewards, offsets, np.ones_like(rewards, dtype=np.int64))
        trains = scheduler.keep(samples)[offsets[:-1]]
        signal = trains * wins * (sizes - wins) / sizes
        step = signal / (2.0 * math.sqrt(8.0 * signal.sum() + 1e-9))
        own[ids] += 4.0 * KEEPS[family[ids]] * step
        per_prompt = np.bincount(family[ids], step, 5) / np.bincount(family)
        skill += 5.0 * PASSES_ON * per_prompt
        scheduler.observe(Evidence(ids, wins.astype(np.float64), sizes))
        scheduler.close_round()
        if scheduler.direction is not None:
            factors.append(scheduler.direction.by_cell())
    heldout = np.random.default_rng([seed, 3]).normal(-0.5, 1.3, 600)
    ability = np.mean([1.0 / (1.0 + np.exp(-(heldout + skill[each]))) for each in range(3)])
    return scheduler, np.array(factors), float(ability)


def test_luck_wrong_keys_and_memorised_prompts_lose_their_weight() -> None:
    """Over six runs. (A cell has ten probes here and first looks for a quarter of a run.)"""
    late, gains = [], []
    for seed in range(6):
        scheduler, factors, ability = simulate(seed, direction="first_looks", probe_share=0.04)
        assert scheduler.remaining_rollouts == 0
        late.append(factors[60:].mean(axis=0))
        gains.append(ability - simulate(seed)[2])
    mean = np.mean(late, axis=0)
    assert mean[:2].min() > 0.75
    assert np.min(late, axis=0)[:2].min() > 0.4  # a family that learns is never put down
    assert mean[2:].max() < 0.65
    assert mean[3] < 0.55
    assert np.mean(gains) > 0.02
    assert min(gains) > -0.01


def test_where_all_families_learn_alike_none_is_put_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PASSES_ON", np.full(5, 3.0))
    monkeypatch.setitem(globals(), "KEEPS", np.full(5, 0.5))
    _, factors, _ = simulate(0, direction="first_looks", probe_share=0.04)
    assert factors[60:].mean(axis=0).min() > 0.5


# --- in the scheduler


def build(**options) -> CeroScheduler:
    given = {"cells": np.arange(60) % 3, "direction": "first_looks", "direction_floor": 0.2}
    return CeroScheduler(60, 20, 20 * 40, 4, 1, 40, spend_down=True, seed=1, **{**given, **options})


@pytest.mark.parametrize("plan", ["duals", "resolve", "thompson"])
def test_the_factor_multiplies_the_worth_in_every_plan(plan) -> None:
    scheduler = build(plan=plan)
    play(scheduler, np.full(60, 0.5), 0, stop_round=12)
    state = scheduler.state_dict()
    state["direction_omega"] = np.array([1.0, 0.2, 0.5])
    scheduler.load_state_dict(state)
    plain = scheduler.posterior.value()
    np.testing.assert_allclose(scheduler.value, plain * np.tile([1.0, 0.2, 0.5], 20))
    metrics = scheduler.metrics()
    assert metrics["cero/direction_mean"] == pytest.approx(1.7 / 3)
    assert metrics["cero/looked_share"] > 0.9


def test_direction_follows_the_pool() -> None:
    scheduler = build(probe_share=0.1)
    play(scheduler, np.random.default_rng(0).random(60), 0, stop_round=6)
    assert scheduler.direction is not None
    assert scheduler.reserve is not None
    probes, sums = scheduler.reserve.probes, scheduler.direction.state()["direction_sums"]
    previous = np.concatenate((np.arange(60), np.full(20, -1)))
    labels = np.concatenate((np.arange(60) % 3, np.full(20, 3)))
    scheduler.set_pool(previous, cells=labels)
    np.testing.assert_array_equal(scheduler.reserve.probes[:60], probes)
    assert scheduler.reserve.probes[60:].sum() == 2
    assert scheduler.direction.probes is scheduler.reserve.probes
    after = np.reshape(scheduler.direction.state()["direction_sums"], (5, 4))
    np.testing.assert_array_equal(after[:, :3], np.reshape(sums, (5, 3)))
    np.testing.assert_array_equal(after[:, 3], 0.0)
    resumed = CeroScheduler(
        80,
        20,
        800,
        4,
        1,
        40,
        spend_down=True,
        seed=1,
        cells=labels,
        direction="first_looks",
        direction_floor=0.2,
        probe_share=0.1,
    )
    resumed.load_state_dict(scheduler.state_dict())
    np.testing.assert_array_equal(
        play(resumed, np.full(80, 0.4), 1), play(scheduler, np.full(80, 0.4), 1)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "gradients"}, "direction = 'gradients', wanted 'off' or 'first_looks'"),
        ({"direction": "first_looks"}, "needs cells"),
        ({"direction_floor": 1.5}, "direction_floor = 1.5"),
        ({"direction_ucb": -1.0}, "direction_ucb = -1"),
        ({"direction_memory_rounds": 0.0}, "direction_memory_rounds = 0"),
        ({"probe_share": 0.1}, "probe_share = 0.1 needs direction"),
        ({"probe_share": 0.3}, r"shares in \[0, 0.25\]"),
        ({"explore_share": 0.6}, r"explore_share = 0.6"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CeroOptions(**options)


def test_options_belong_to_the_saved_identity() -> None:
    with pytest.raises(ValueError, match=r"'direction_floor' is 0\.3"):
        build().load_state_dict(build(direction_floor=0.3).state_dict())
    with pytest.raises(ValueError, match="field 'direction'"):
        build(direction="off", refit_prior_every=2).load_state_dict(
            build(refit_prior_every=2).state_dict()
        )
    with pytest.raises(ValueError, match="field 'probe_share'"):
        build().load_state_dict(build(probe_share=0.1).state_dict())
