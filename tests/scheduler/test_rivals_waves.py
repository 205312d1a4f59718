"""The wave rules and keep rules on cases worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rivals_sim import Table, answered, build, play_all

from cero_rl.scheduler import Evidence, Samples
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.registry import OptionValue
from cero_rl.scheduler.rivals.keep import KeepRule
from cero_rl.types import Allocation


def opened(scheduler: BudgetedScheduler) -> Allocation:
    allocation = scheduler.open_round()
    assert allocation is not None
    return allocation


def more(scheduler: BudgetedScheduler, wins: dict[int, int]) -> dict[int, int]:
    """The next wave as {prompt: rollouts}, {} if the round is closed."""
    wave = scheduler.next_wave(answered(scheduler, wins))
    return {} if wave is None else dict(zip(wave.prompt_ids.tolist(), wave.rollouts.tolist()))


def samples(*groups: list[float], lengths: list[int] | None = None) -> Samples:
    sizes = [len(group) for group in groups]
    rewards = np.array([reward for group in groups for reward in group], dtype=np.float64)
    tokens = np.array(lengths if lengths is not None else [10] * rewards.shape[0])
    return Samples(
        np.arange(len(groups)),
        rewards,
        np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        tokens,
    )


def test_vigor_halves_the_prompts_and_doubles_their_rollouts() -> None:
    # 64 rollouts a round = 8 prompts x 2 + 4 x 4 + 2 x 8 + 1 x 16
    scheduler = build("vigor", pool=8, rounds=1, budget=64, unit=2, most=16, capacity=64)
    first = opened(scheduler)
    assert first.rollouts.tolist() == [2] * 8
    a, b, c, d = first.prompt_ids[[1, 3, 5, 6]].tolist()
    second = more(scheduler, {a: 1, b: 1, c: 1, d: 1})  # four mixed pairs, four of one outcome
    assert second == {a: 4, b: 4, c: 4, d: 4}
    # 3/6 is the most uncertain; 1/6 beats 6/6 and 0/6
    third = more(scheduler, {a: 3, b: 1, c: 6, d: 0})
    assert third == {a: 8, b: 8}
    assert more(scheduler, {a: 7, b: 2}) == {a: 16}
    assert more(scheduler, {a: 10}) == {}
    assert scheduler.remaining_rollouts == 0


def test_dapo_draws_fresh_batches_until_enough_groups_live() -> None:
    # an equal share is 4 groups of 4; a round may spend 3 times that
    scheduler = build("dapo", pool=20, rounds=4, budget=64, unit=4, most=1, capacity=48)
    first = opened(scheduler)
    assert first.rollouts.tolist() == [4] * 4
    live = first.prompt_ids.tolist()
    # one lives, one is all right, two are all wrong
    second = more(scheduler, {live[0]: 2, live[1]: 4})
    assert len(second) == 4
    assert not set(second) & set(live)
    fresh = list(second)
    wins = {live[0]: 2, **dict.fromkeys(fresh[:2], 1)}
    third = more(scheduler, wins)  # three live, four are wanted
    assert len(third) == 4
    assert more(scheduler, wins) == {}  # the capacity is out
    scheduler.update(np.zeros(20), np.zeros(20, dtype=np.int64))
    assert scheduler.remaining_rollouts == 64 - 48


def test_dapo_closes_when_it_has_them_and_trains_only_live_groups() -> None:
    scheduler = build("dapo", pool=20, rounds=4, budget=64, unit=4, most=1, capacity=48)
    first = opened(scheduler)
    assert more(scheduler, dict.fromkeys(first.prompt_ids.tolist(), 1)) == {}
    mask = scheduler.keep(samples([0, 0, 0], [1, 0], [1, 1], [0.2, 0.7]))
    assert mask.tolist() == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 2


def test_hora_gives_the_rest_where_a_hit_is_likeliest() -> None:
    scheduler = build(
        "hora",
        pool=2,
        rounds=1,
        budget=16,
        unit=1,
        most=9,
        capacity=16,
        options={"group_rollouts": 8, "pilot_rollouts": 2},
    )
    first = opened(scheduler)
    a, b = first.prompt_ids.tolist()
    wave = more(scheduler, {a: 2})  # Beta(3, 1) against Beta(1, 3), 12 rollouts left
    misses = lambda alpha, beta, n: np.prod([(beta + j) / (alpha + beta + j) for j in range(n)])
    value = {n: 2 - misses(3, 1, n) - misses(1, 3, 12 - n) for n in range(5, 8)}  # no group above 9
    assert wave == {
        a: max(value, key=lambda n: value[n]),
        b: 12 - max(value, key=lambda n: value[n]),
    }
    assert more(scheduler, {a: 2}) == {}


def test_reinforce_ada_stops_a_prompt_at_its_exit() -> None:
    options = {"group_rollouts": 8, "wave_rollouts": 4, "keep_rollouts": 4}
    scheduler = build(
        "reinforce_ada", pool=3, rounds=1, budget=24, unit=4, most=6, capacity=24, options=options
    )
    a, b, c = opened(scheduler).prompt_ids.tolist()
    assert more(scheduler, {a: 2, b: 1, c: 4}) == {b: 4, c: 4}  # a has two right and two wrong
    assert more(scheduler, {a: 2, b: 3, c: 8}) == {c: 4}  # c has no wrong answer yet
    positive = build(
        "reinforce_ada",
        pool=3,
        rounds=1,
        budget=24,
        unit=4,
        most=6,
        capacity=24,
        options={**options, "exit": "positive"},
    )
    a, b, c = opened(positive).prompt_ids.tolist()
    assert more(positive, {a: 1, c: 4}) == {b: 4}
    mask = scheduler.keep(samples([1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [1, 0]))
    assert mask.tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        True,
        True,
        False,
        True,
        False,
        True,
        True,
    ]


def test_speed_rl_screens_continues_and_screens_again() -> None:
    options = {"pilot_rollouts": 4, "commit_rollouts": 12}
    scheduler = build(
        "speed_rl", pool=30, rounds=1, budget=64, unit=2, most=8, capacity=64, options=options
    )
    first = opened(scheduler)
    assert first.rollouts.tolist() == [4] * 8  # half of 64
    a, b = first.prompt_ids[[0, 4]].tolist()
    assert more(scheduler, {a: 2, b: 4}) == {a: 12}  # b is all right
    again = more(scheduler, {a: 9, b: 4})
    assert list(again.values()) == [4, 4]  # half of the 20 left, in whole pilots
    assert not set(again) & set(first.prompt_ids.tolist())
    c = next(iter(again))
    assert more(scheduler, {a: 9, b: 4, c: 1}) == {c: 12}
    assert scheduler.remaining_rollouts == 0


def test_pilot_commit_wants_a_pass_rate_in_the_band() -> None:
    options = {"pilot_rollouts": 4, "commit_rollouts": 6, "lowest_rate": 0.5, "highest_rate": 0.75}
    scheduler = build(
        "pilot_commit", pool=30, rounds=1, budget=40, unit=2, most=8, capacity=40, options=options
    )
    first = opened(scheduler)
    a, b, c, d, e = first.prompt_ids.tolist()
    assert more(scheduler, {a: 1, b: 2, c: 3, d: 4}) == {b: 6, c: 6}
    assert more(scheduler, {b: 2, c: 3}) == {}
    assert scheduler.keep(samples([1, 0, 0, 0], [1] * 10)).tolist() == [False] * 4 + [True] * 10
    assert e not in (a, b, c, d)


def test_aero_rescues_until_the_first_right_answer() -> None:
    options = {"group_rollouts": 8, "explore_rollouts": 4, "extra_rollouts": 2}
    scheduler = build(
        "aero", pool=3, rounds=1, budget=24, unit=2, most=8, capacity=24, options=options
    )
    a, b, c = opened(scheduler).prompt_ids.tolist()
    assert more(scheduler, {a: 3}) == {b: 2, c: 2}
    assert more(scheduler, {a: 3, b: 1}) == {c: 2}
    assert more(scheduler, {a: 3, b: 1}) == {c: 2}
    assert more(scheduler, {a: 3, b: 1, c: 1}) == {}
    mask = scheduler.keep(samples([0, 0, 1, 0, 0], [1, 1, 0, 1], [0, 0]))
    assert mask.tolist() == [True, False, True, False, False] + [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    "name, least", [("dapo", 1), ("reinforce_ada", 1), ("aero", 1), ("speed_rl", 2)]
)
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("rate", [0.0, 0.03, 0.5, 1.0])
def test_no_rule_asks_for_more_waves_than_its_limit(
    name: str, least: int, limit: int, rate: float
) -> None:
    """AERO asked for up to 63 where its option said 6."""
    limit = max(limit, least)
    options: dict[str, OptionValue] = {"max_waves": limit}
    scheduler = build(
        name, pool=200, rounds=3, budget=1200, most=64, capacity=800, options=options, seed=4
    )
    waves = [len(played) for played in play_all(scheduler, Table(np.full(200, rate), 2))]
    assert max(waves) <= limit


def test_aero_looks_again_as_often_as_it_may() -> None:
    for limit in (1, 2, 5):
        options: dict[str, OptionValue] = {"max_waves": limit, "group_rollouts": 32}
        scheduler = build(
            "aero", pool=20, rounds=1, budget=64, most=32, capacity=64, options=options
        )
        (waves,) = play_all(scheduler, Table(np.zeros(20), 2))
        assert len(waves) == limit


@pytest.mark.parametrize("name, most", [("vigor", 4), ("hora", 2), ("pilot_commit", 2)])
def test_rules_with_a_fixed_number_of_waves_keep_to_it(name: str, most: int) -> None:
    scheduler = build(name, pool=200, rounds=3, budget=1200, most=64, capacity=800, seed=4)
    table = Table(np.linspace(0.0, 1.0, 200), 2)
    assert max(len(played) for played in play_all(scheduler, table)) <= most


@pytest.mark.covers("rewards missing in a committed group")
def test_pilot_commit_trains_what_it_committed_to_however_many_rewards_are_missing() -> None:
    options = {"pilot_rollouts": 4, "commit_rollouts": 6}
    scheduler = build("pilot_commit", most=8, options=options)
    ids, offsets = np.array([3, 5]), np.array([0, 2, 6])
    known = Samples(ids, np.array([1.0, 0, 1, 0, 1, 0]), offsets, np.ones(6, dtype=np.int64))
    assert scheduler.keep(known).tolist() == [False] * 6, "as far as it can tell: pilots"
    # of the ten rollouts of prompt 3 eight have no reward; prompt 5 had pilots only
    committed = replace(known, asked=np.array([10, 4]))
    assert scheduler.keep(committed).tolist() == [True] * 2 + [False] * 4


def test_greso_skips_after_dead_groups_and_moves_its_thresholds() -> None:
    scheduler = build("greso", pool=10, rounds=20, budget=400, unit=2, most=1, capacity=20)
    skip = scheduler.skip_probability  # type: ignore[attr-defined]
    assert skip().tolist() == [0.0] * 10
    allocation = opened(scheduler)
    assert sorted(allocation.prompt_ids.tolist()) == list(range(10))
    trials = np.full(10, 2)
    # half all right: too many; none all wrong
    scheduler.update(np.array([2] * 5 + [1] * 5), trials)
    assert skip() == pytest.approx([1 - 0.49] * 5 + [0.0] * 5)
    opened(scheduler)
    scheduler.update(np.array([2, 2, 1, 0, 0, 0, 0, 0, 0, 0]), trials)
    # keep_wrong: 0.50 + 0.01, then 7 of 10 are too many: - 0.01
    expected = [1 - 0.48**2] * 2 + [0.0] + [1 - 0.50] * 7
    assert skip() == pytest.approx(expected)


def test_thompson_starts_small_and_spends_exactly() -> None:
    scheduler = build(
        "thompson",
        pool=6,
        rounds=2,
        budget=24,
        unit=2,
        most=4,
        capacity=12,
        options={"first_rollouts": 2},
    )
    allocation = opened(scheduler)
    assert allocation.rollouts.tolist() == [2] * 6
    trials = np.zeros(6, dtype=np.int64)
    trials[allocation.prompt_ids] = 2
    scheduler.update(np.zeros(6), trials)
    assert sorted(opened(scheduler).rollouts.tolist()) == [4, 8]


def test_preset_shapes() -> None:
    sizes = {}
    for shape in ("rising", "falling", "bell"):
        scheduler = build(
            "preset",
            pool=40,
            rounds=4,
            budget=80,
            unit=2,
            most=1,
            capacity=40,
            options={"shape": shape},
        )
        sizes[shape] = []
        while (allocation := scheduler.next_round()) is not None:
            sizes[shape].append(allocation.total_rollouts)
            scheduler.update(np.zeros(40), np.zeros(40, dtype=np.int64))
        assert sum(sizes[shape]) == 80
    assert sizes["rising"] == [8, 16, 24, 32]
    assert sizes["falling"] == [32, 24, 16, 8]
    assert sizes["bell"][0] < sizes["bell"][1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=7),
    st.sampled_from([0.3, 0.5, 0.8]),
)
def test_pods_keeps_the_subset_of_largest_variance(rewards: list[float], share: float) -> None:
    import itertools

    mask = KeepRule("pods", share).mask(samples(rewards, [0.0, 1.0]))
    kept = min(max(int(np.ceil(len(rewards) * share - 1e-9)), 2), len(rewards))
    assert mask[: len(rewards)].sum() == kept
    best = max(np.var(subset) for subset in itertools.combinations(rewards, kept))
    assert np.var(np.array(rewards)[mask[: len(rewards)]]) == pytest.approx(best)
    assert mask[len(rewards) :].all()


def test_pods_of_binary_rewards_is_balanced() -> None:
    mask = KeepRule("pods", 0.5).mask(samples([0, 1, 0, 0, 0, 1, 0, 1]))
    kept = np.array([0, 1, 0, 0, 0, 1, 0, 1])[mask]
    assert sorted(kept.tolist()) == [0, 0, 1, 1]


def test_gfpo_keeps_the_shortest_or_the_most_efficient() -> None:
    group = samples([0.0, 1.0, 1.0, 0.0], lengths=[5, 30, 20, 10])
    assert KeepRule("gfpo", 0.5).mask(group).tolist() == [True, False, False, True]
    assert KeepRule("gfpo_efficiency", 0.5).mask(group).tolist() == [False, True, True, False]


def test_a_keep_rule_sees_what_the_scheduler_lets_through() -> None:
    scheduler = build(
        "dapo", pool=20, rounds=4, budget=64, unit=4, most=1, capacity=48, keep="pods"
    )
    mask = scheduler.keep(samples([0, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]))
    assert mask.tolist()[:4] == [False] * 4
    assert mask[4:8].sum() == mask[8:].sum() == 2
    assert not scheduler.keeps_all
    assert not build("dapo").keeps_all
    assert not build("cero", keep="gfpo").keeps_all
    assert build("cero").keeps_all


def test_a_state_belongs_to_its_keep_rule() -> None:
    scheduler, plain = build("dapo", keep="pods"), build("dapo")
    state = scheduler.state_dict()
    scheduler.load_state_dict(state)
    for field, other in (("keep_rule", "gfpo"), ("keep_share", 0.25)):
        with pytest.raises(ValueError, match=f"field '{field}' is {other!r}"):
            scheduler.load_state_dict({**state, field: other})
    with pytest.raises(ValueError, match="'keep_rule'"):
        scheduler.load_state_dict(plain.state_dict())


def test_a_state_with_a_keep_rule_is_refused_by_a_run_without_one() -> None:
    with pytest.raises(ValueError, match="'keep_rule'"):
        build("dapo").load_state_dict(build("dapo", keep="pods").state_dict())


def test_options_are_checked() -> None:
    wrong = [
        ("vigor", {"wave": 3}, "no option 'wave'; its options: start_rollouts, waves"),
        ("uniform", {"x": 1}, "no option 'x'; its options: none"),
        ("knapsack", {"min_rollouts": 2.5}, "wanted an integer"),
        ("gvm_p", {"alpha": "small"}, "wanted a number"),
        ("vip", {"objective": "grpo"}, "wanted 'dr_grpo' or 'rloo'"),
        ("vip", {"min_rollouts": 2}, "not convex"),
        ("greso", {"target_dead": 1.5}, "target_dead"),
        ("pilot_commit", {"lowest_rate": 0.9}, "lowest_rate"),
        ("hora", {"pilot_rollouts": 8}, "pilot_rollouts"),
    ]
    for name, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            build(name, options=options)
    with pytest.raises(ValueError, match="unknown scheduler 'grpo', wanted one of cero, uniform"):
        build("grpo")
    with pytest.raises(ValueError, match="max_units_per_prompt = 1 leaves no choice"):
        build("knapsack", most=1, capacity=20, budget=120)
    with pytest.raises(ValueError, match="keep share"):
        KeepRule("pods", 0.0)


def test_a_closed_round_stays_closed() -> None:
    scheduler = build("vigor", pool=8, rounds=1, budget=64, unit=2, most=16, capacity=64)
    opened(scheduler)

    def nothing() -> Evidence:
        assert scheduler.pending is not None
        ids = scheduler.pending.prompt_ids
        return Evidence(ids, np.zeros(ids.size), np.zeros(ids.size, dtype=np.int64))

    while scheduler.next_wave(nothing()) is not None:
        pass
    assert scheduler.next_wave(nothing()) is None
