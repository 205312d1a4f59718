"""Every option: the budget holds, a resumed run repeats it, bad values are refused in one
sentence, and the defaults change nothing."""

import numpy as np
import pytest
from scheduler_sim import dense, know_rates, play

from cero_rl.scheduler import CeroOptions, CeroScheduler, Evidence, StateDict

SIZES = {
    "num_prompts": 24,
    "rounds": 16,
    "budget_rollouts": 16 * 24,
    "rollouts_per_unit": 2,
    "max_units_per_prompt": 4,
    "capacity_rollouts": 32,
    "seed": 4,
}
LABELS = np.arange(24) % 4
OPTIONS = [
    {"utility": "logarithmic"},
    {"utility": "hyperbolic"},
    {"value": "hit"},
    {"value": "live"},
    {"value": "deviation", "weights": np.linspace(0.1, 1.0, 24)},
    {"value": "maxrl"},
    {"wear": np.linspace(0.5, 4.0, 24), "proximal": 0.05},
    {"wear": np.linspace(0.5, 4.0, 24), "plan": "resolve"},
    {"value": "pass_at_k", "pass_k": 2},
    {"value": "progress", "labels": LABELS, "progress_floor": 0.3},
    {"plan": "resolve"},
    {"plan": "thompson", "forgetting": 0.95},
    {"cap_shares": 4.0, "step_size": 2.0},
    {"proximal": 0.05},
    {"explore_units": 1},
    {"token_costs": True},
    {"token_costs": True, "plan": "thompson", "budget_tokens": 5000},
    {"refit_prior_every": 3},
    {"cells": LABELS, "direction": "first_looks", "probe_share": 0.1, "explore_share": 0.2},
    {
        "utility": "hyperbolic",
        "value": "live",
        "proximal": 0.02,
        "explore_units": 2,
        "token_costs": True,
        "refit_prior_every": 4,
    },
]


def build(options: dict, spend_down: bool = True, streaming: bool = False) -> CeroScheduler:
    scheduler = CeroScheduler(**SIZES, spend_down=spend_down, streaming=streaming, **options)
    if scheduler.tokens is not None:
        scheduler.set_expected_tokens(np.linspace(10.0, 40.0, 24))
    return scheduler


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("spend_down", [False, True])
def test_budget_capacity_and_group_sizes(options: dict, spend_down: bool) -> None:
    scheduler, rates = build(options, spend_down), np.random.default_rng(1).random(24)
    history = np.array(play(scheduler, rates, 3))
    assert history.sum() + scheduler.remaining_rollouts == 384
    assert scheduler.remaining_rollouts >= 0
    assert (history.sum(axis=1) <= 32).all()
    assert history.max() <= 8
    np.testing.assert_array_equal(scheduler.exposure, history.sum(axis=0) // 2)
    # Re-solving and Thompson spread what is left themselves; small first groups may leave a round
    # unfilled, tokens may run out.
    if (spend_down or options.get("plan") in ("resolve", "thompson")) and not {
        "explore_units",
        "budget_tokens",
    } & options.keys():
        assert scheduler.remaining_rollouts == 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("streaming", [False, True], ids=["waiting", "streaming"])
def test_a_resumed_run_repeats_the_uninterrupted_one(options: dict, streaming: bool) -> None:
    rates = np.random.default_rng(1).random(24)
    through, first, resumed = (build(options, streaming=streaming) for _ in range(3))
    wanted = play(through, rates, 3)
    got = play(first, rates, 3, stop_round=6)
    resumed.load_state_dict(first.state_dict())
    got += play(resumed, rates, 3)
    np.testing.assert_array_equal(np.array(got), np.array(wanted))
    same_state(resumed.state_dict(), through.state_dict())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("streaming", [False, True], ids=["waiting", "streaming"])
def test_a_run_resumed_in_the_middle_of_a_round_repeats_it(options: dict, streaming: bool) -> None:
    rates = np.random.default_rng(1).random(24)
    first, resumed = (build(options, streaming=streaming) for _ in range(2))
    play(first, rates, 3, stop_round=6)
    allocation = first.next_round()
    assert allocation is not None
    ids, sizes = allocation.prompt_ids, allocation.rollouts.astype(np.int64)
    wins = np.random.default_rng([3, 6]).binomial(dense(allocation, 24), rates)[ids]
    first.observe(Evidence(ids[:2], wins[:2], sizes[:2]))
    resumed.load_state_dict(first.state_dict())
    for each in (first, resumed):
        each.observe(Evidence(ids[2:], wins[2:], sizes[2:]))
        each.close_round()
    same_state(resumed.state_dict(), first.state_dict())
    np.testing.assert_array_equal(
        np.array(play(resumed, rates, 3)), np.array(play(first, rates, 3))
    )
    same_state(resumed.state_dict(), first.state_dict())


def same_state(got: StateDict, wanted: StateDict) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"utility": "sqrt"}, "utility = 'sqrt'"),
        ({"value": "entropy"}, "value = 'entropy'"),
        ({"value": "progress"}, "labels and value = 'progress' go together"),
        ({"labels": LABELS}, "labels and value = 'progress' go together"),
        ({"value": "progress", "labels": LABELS[:3]}, "labels: wanted 24 integers"),
        ({"value": "progress", "labels": LABELS, "progress_floor": 2.0}, "progress_floor = 2"),
        (
            {"value": "progress", "labels": LABELS, "progress_memory_rounds": 0.0},
            "progress_memory_rounds = 0",
        ),
        ({"plan": "greedy"}, "plan = 'greedy'"),
        ({"plan": "thompson", "value": "hit"}, "plan = 'thompson' draws success rates"),
        ({"proximal": -0.1}, "proximal = -0.1"),
        ({"proximal": 0.1, "plan": "resolve"}, "proximal = 0.1 with plan = 'resolve'"),
        ({"cap_shares": 0.0}, "cap_shares = 0"),
        ({"explore_units": 5}, "explore_units = 5, wanted 0 .* max_units_per_prompt = 4"),
        ({"budget_tokens": 0}, "budget_tokens = 0"),
        ({"refit_prior_every": -1}, "refit_prior_every = -1"),
        (
            {"refit_prior_every": 2, "prior": (np.ones(24), np.ones(24))},
            "one prior for all prompts",
        ),
        ({"prior": (np.ones(3), np.ones(3))}, "prior has shape"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CeroScheduler(**SIZES, **options)


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="stepsize"):
        CeroScheduler(**SIZES, stepsize=0.1)
    with pytest.raises(TypeError, match="positional"):
        CeroScheduler(*SIZES.values(), 1.0, (1.0, 1.0), 1.0, 0.1)  # pyright: ignore


def test_keywords_are_the_fields_of_the_record() -> None:
    given = {"step_size": 0.3, "plan": "resolve", "cap_shares": 4.0, "streaming": True}
    assert CeroScheduler(**SIZES, **given).options == CeroOptions(**given)
    assert CeroScheduler(**SIZES).options == CeroOptions()


def test_options_are_part_of_the_saved_identity() -> None:
    state = build({}).state_dict()
    for options, field in (
        ({"utility": "hyperbolic"}, "utility"),
        ({"value": "live"}, "value_name"),
        ({"plan": "resolve"}, "plan"),
        ({"proximal": 0.1}, "proximal"),
        ({"cap_shares": 4.0}, "cap_shares"),
        ({"explore_units": 1}, "explore_units"),
        ({"token_costs": True}, "token_costs"),
        ({"refit_prior_every": 2}, "refit_prior_every"),
        ({"prior": (np.full(24, 1.0), np.full(24, 1.0))}, "prior_a"),
    ):
        with pytest.raises(ValueError, match=f"field '{field}'"):
            build(options).load_state_dict(state)


def test_small_first_groups_then_whole_ones() -> None:
    scheduler = CeroScheduler(
        8, 10, 10 * 16, 2, 4, 16, explore_units=1, price_init=0.0, spend_down=True
    )
    know = play(scheduler, np.full(8, 0.5), 0, stop_round=3)
    assert know[0].tolist() == [2] * 8
    assert max(know[1].max(), know[2].max()) == 8


def test_warm_prompts_are_not_explored_again() -> None:
    scheduler = CeroScheduler(8, 10, 10 * 16, 2, 4, 16, explore_units=1, price_init=0.0)
    scheduler.warm_start(np.full(8, 2.0), np.full(8, 2.0))
    allocation = scheduler.next_round()
    assert allocation is not None
    assert allocation.rollouts.tolist() == [8, 8]


def test_proximal_rounds_give_ragged_groups() -> None:
    scheduler = CeroScheduler(12, 30, 30 * 24, 2, 4, 24, proximal=0.1, spend_down=True)
    know_rates(scheduler, np.linspace(0.02, 0.5, 12))
    sizes = np.unique(np.array(play(scheduler, np.linspace(0.02, 0.5, 12), 0)))
    assert {2, 4, 6} & set(sizes.tolist())


def test_thompson_draws_anew_each_round_and_by_seed() -> None:
    def first_two(seed: int) -> list[list[int]]:
        scheduler = CeroScheduler(60, 10, 400, 4, 1, 40, plan="thompson", seed=seed)
        rounds = []
        for _ in range(2):
            allocation = scheduler.next_round()
            assert allocation is not None
            rounds.append(allocation.prompt_ids.tolist())
            scheduler.update(np.zeros(60), np.zeros(60))
        return rounds

    assert first_two(0) == first_two(0)
    assert first_two(0) != first_two(1)
    assert first_two(0)[0] != first_two(0)[1]


def test_token_costs_prefer_short_prompts_and_the_token_budget_holds() -> None:
    tokens, rates = np.where(np.arange(40) < 20, 10.0, 90.0), np.full(40, 0.5)
    plain, costed = (
        CeroScheduler(
            40,
            30,
            1200,
            4,
            1,
            40,
            step_size=0.5,
            spend_down=True,
            token_costs=on,
            budget_tokens=20_000,
        )
        for on in (False, True)
    )
    rollouts, spent = [], []
    for scheduler in (plain, costed):
        scheduler.set_expected_tokens(tokens)
        total, used = np.zeros(40), 0
        while (allocation := scheduler.next_round()) is not None:
            counts = dense(allocation, 40)
            used += int(counts @ tokens)
            scheduler.spend_tokens(int(counts @ tokens))
            total += counts
            scheduler.update(counts * rates, counts)
        rollouts.append(total)
        spent.append(used)
    assert max(spent) <= 20_000
    assert rollouts[1][:20].sum() > 1.2 * rollouts[0][:20].sum()
    with pytest.raises(ValueError, match="40 positive finite"):
        plain.set_expected_tokens(np.zeros(40))
    with pytest.raises(ValueError, match="needs token_costs"):
        CeroScheduler(40, 30, 1200, 4, 1, 40).spend_tokens(3)


def test_progress_tells_a_learnt_family_from_luck() -> None:
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    scheduler = CeroScheduler(
        60,
        40,
        40 * 240,
        4,
        1,
        240,
        value="progress",
        labels=labels,
        price_init=0.0,
        spend_down=True,
    )
    rates = np.select([labels == 0, labels == 1], [0.15, 0.99], 0.15)  # luck, solved, learnable
    for _ in range(12):
        allocation = scheduler.next_round()
        assert allocation is not None
        counts = dense(allocation, 60)
        scheduler.update(rng.binomial(counts, rates), counts)
        rates = np.where(labels == 2, np.minimum(rates + 0.03, 0.5), rates)
    assert scheduler.progress is not None
    progress = scheduler.progress.by_label()
    assert progress[2] > 2 * max(progress[0], progress[1])
    assert scheduler.value[labels == 2].mean() > 2 * scheduler.value[labels == 0].mean()


def test_refit_finds_the_pool_and_restarts_prompts_not_served() -> None:
    rates = np.random.default_rng(3).beta(0.2, 0.6, 200)
    scheduler = CeroScheduler(
        200, 40, 40 * 80, 8, 1, 80, refit_prior_every=5, price_init=0.0, spend_down=True, seed=1
    )
    play(scheduler, rates, 0, stop_round=15)
    a, b = scheduler.posterior.prior
    assert float(a / (a + b)) == pytest.approx(0.25, abs=0.1)
    assert float(a + b) < 2.0
    unserved = scheduler.exposure == 0
    assert unserved.any()
    np.testing.assert_allclose(
        scheduler.value[unserved], a * b / ((a + b) * (a + b + 1)), rtol=1e-9
    )


def test_a_lower_exposure_cap_keeps_slopes_from_bouncing() -> None:
    """A solved prompt whose slope is 0: as published it jumps by the whole step; with the cap it
    climbs by its share of it."""
    jumps = []
    for cap_shares in (None, 4.0):
        scheduler = CeroScheduler(
            20, 100, 100, 1, 1, 10, step_size=0.8, cap_shares=cap_shares, price_init=1.0
        )
        know_rates(scheduler, np.full(20, 1e-9))
        scheduler.load_state_dict({**scheduler.state_dict(), "slope": np.zeros(20)})
        scheduler.next_round()
        scheduler.update(np.zeros(20), np.zeros(20))
        jumps.append(scheduler.slope.max())
    assert jumps[0] == pytest.approx(0.8)
    # the fair share is 5 units, the published cap 100
    assert jumps[1] == pytest.approx(0.8 * 4 * 5 / 100)
