"""What every allocator owes: the budget, legal groups, determinism, a state that goes on where
it was, no favoured index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rivals_sim import SIZED, Table, build, play_all, play_round

from cero_rl.scheduler import SCHEDULER_NAMES, Evidence

RATES = np.linspace(0.0, 1.0, 12)


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_budget_groups_and_waves(name: str, data: st.DataObject) -> None:
    unit = data.draw(st.integers(1, 3))
    most = data.draw(st.integers(2 if name in SIZED else 1, 9))
    pool, rounds = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 6))
    capacity = data.draw(st.integers(1, pool * most))
    budget = data.draw(st.integers(1, rounds * capacity))
    seed = data.draw(st.integers(0, 3))
    scheduler = build(
        name,
        pool=pool,
        rounds=rounds,
        budget=budget * unit,
        unit=unit,
        most=most,
        capacity=capacity * unit,
        seed=seed,
    )
    rates = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=pool, max_size=pool))
    spent = 0
    for waves in play_all(scheduler, Table(np.array(rates), seed)):
        total = np.zeros(pool, dtype=np.int64)
        for ids, rollouts in waves:
            assert len(set(ids)) == len(ids)
            assert all(count >= unit and count % unit == 0 for count in rollouts)
            total[np.array(ids, dtype=np.int64)] += np.array(rollouts, dtype=np.int64)
        assert total.max(initial=0) <= unit * most
        assert total.sum() <= capacity * unit
        spent += int(total.sum())
    assert spent + scheduler.remaining_rollouts == budget * unit
    if name in (
        "uniform",
        "greedy",
        "thompson",
        "preset",
        "oracle",
        "knapsack",
        "vip",
        "gvm_p",
        "hit_utility",
        "greso",
        "fixed_price",
    ):
        assert spent == budget * unit


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_the_same_plan_on_every_rank(name: str) -> None:
    histories = [play_all(build(name, seed=3), Table(RATES, 1)) for _ in range(2)]
    assert histories[0] == histories[1]
    assert len(histories[0]) >= 3


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
@pytest.mark.parametrize("keep", [None, "pods"])
def test_state_round_trips_between_rounds_and_waves(name: str, keep: str | None) -> None:
    wanted = play_all(build(name, seed=2, keep=keep), Table(RATES, 5))
    first, table = build(name, seed=2, keep=keep), Table(RATES, 5)
    history = [play_round(first, table), play_round(first, table)]
    resumed = build(name, seed=2, keep=keep)
    # as npz gives it back
    resumed.load_state_dict({key: np.asarray(value) for key, value in first.state_dict().items()})
    assert [*history, *play_all(resumed, table)] == wanted

    # in the middle of a round: after its first wave
    first, table = build(name, seed=2, keep=keep), Table(RATES, 5)
    play_round(first, table)
    opened = play_round(first, table, waves=1)
    resumed = build(name, seed=2, keep=keep)
    resumed.load_state_dict(first.state_dict())
    pending, other = first.pending, resumed.pending
    assert opened is not None
    assert pending is not None
    assert other is not None
    successes = pending.rollouts // 2 * (np.arange(pending.prompt_ids.size) % 2)
    so_far = Evidence(
        pending.prompt_ids, successes.astype(np.float64), pending.rollouts.astype(np.int64)
    )
    waves = [scheduler.next_wave(so_far) for scheduler in (first, resumed)]
    if waves[0] is None:
        assert waves[1] is None
    else:
        assert waves[1] is not None
        assert waves[0].prompt_ids.tolist() == waves[1].prompt_ids.tolist()
        assert waves[0].rollouts.tolist() == waves[1].rollouts.tolist()


@pytest.mark.parametrize(
    "name",
    [n for n in SCHEDULER_NAMES if n not in ("cero", "uniform", "random_matched", "fixed_price")],
)
def test_a_saved_state_fits_only_its_own_options(name: str) -> None:
    state = build(name).state_dict()
    with pytest.raises(ValueError, match="'scheduler' is"):
        build("uniform" if name != "uniform" else "cero").load_state_dict(state)
    with pytest.raises(ValueError, match="forgetting"):
        build(name, forgetting=0.8).load_state_dict(state)


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in SCHEDULER_NAMES
        if n not in ("thompson", "random_matched", "cero", "fixed_price", "uniform")
    ],
)
def test_no_index_is_favoured(name: str) -> None:
    """Renaming the prompts renames the plans: beyond the seed's tie order (renamed alike)
    indices do not matter."""
    new_name = np.random.default_rng(0).permutation(12)
    old_name = np.argsort(new_name)
    first, second = build(name, seed=1), build(name, seed=1)
    rank = first._tie_rank[old_name]  # type: ignore[attr-defined]
    second._tie_rank = rank  # type: ignore[attr-defined]
    table, other = Table(RATES, 5), Table(RATES[old_name], 5)
    other.luck = table.luck[old_name]
    prompts = [scheduler.__dict__.get("_prompts") for scheduler in (first, second)]
    if prompts[0] is not None:
        shuffled = prompts[0].shuffled
        prompts[1].shuffled = lambda epoch: new_name[shuffled(epoch)]
        prompts[1].order = new_name[prompts[0].order]
    if name == "greso":
        draws = np.random.default_rng(9).random(12)
        first._draws = lambda: _Fixed(draws)  # type: ignore[attr-defined]
        second._draws = lambda: _Fixed(draws[old_name])  # type: ignore[attr-defined]
    renamed = [
        [(new_name[np.array(ids, dtype=np.int64)].tolist(), sizes) for ids, sizes in waves]
        for waves in play_all(first, table)
    ]
    assert renamed == play_all(second, other)


class _Fixed:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def random(self, count: int) -> np.ndarray:
        assert count == self.values.shape[0]
        return self.values
