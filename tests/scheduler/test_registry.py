"""Every allocator by its name: one protocol, a cut anywhere in a round, options of the right
type."""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pytest
from rivals_sim import Wave, build

from cero_rl.scheduler import ALLOCATORS, SCHEDULER_NAMES, Evidence, Samples
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.registry import allocator, make_options
from cero_rl.types import Allocation

POOL, UNIT, MOST, BUDGET, CAPACITY, ROUNDS = 12, 2, 8, 240, 80, 6
RATES = np.linspace(0.0, 1.0, POOL)
WRONG = {  # by the type of an option's default
    bool: [1, 0.5, "true", None],
    int: [True, 2.5, "2", None],
    float: [True, "2", None],
    str: [True, 1, 0.5, None],
    type(None): [True, 2.5, "2"],
}


def make(name: str) -> BudgetedScheduler:
    return build(
        name, pool=POOL, rounds=ROUNDS, budget=BUDGET, unit=UNIT, most=MOST, capacity=CAPACITY
    )


def rewards(pending: Allocation) -> list[npt.NDArray[np.float64]]:
    """Of each group so far: a prompt's m-th rollout of a round has one outcome, whoever asks."""
    luck = np.random.default_rng([5, pending.round]).random((POOL, UNIT * MOST))
    drawn = zip(pending.prompt_ids.tolist(), pending.rollouts.tolist())
    return [(luck[prompt, :count] < RATES[prompt]).astype(np.float64) for prompt, count in drawn]


def evidence(scheduler: BudgetedScheduler) -> Evidence:
    pending = scheduler.pending
    assert pending is not None
    wins = np.array([group.sum() for group in rewards(pending)])
    return Evidence(pending.prompt_ids, wins, pending.rollouts.astype(np.int64))


def samples(scheduler: BudgetedScheduler) -> Samples:
    pending = scheduler.pending
    assert pending is not None
    sizes = pending.rollouts.astype(np.int64)
    flat = np.concatenate([np.empty(0), *rewards(pending)])
    lengths = np.random.default_rng([6, pending.round]).integers(1, 50, flat.shape[0])
    offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(sizes)))
    return Samples(pending.prompt_ids, flat, offsets, lengths)


def as_wave(allocation: Allocation) -> Wave:
    return allocation.prompt_ids.tolist(), allocation.rollouts.tolist()


def next_wave(scheduler: BudgetedScheduler) -> Wave | None:
    wave = scheduler.next_wave(evidence(scheduler))
    return None if wave is None else as_wave(wave)


def finish_round(scheduler: BudgetedScheduler) -> list[Wave]:
    """The further waves of an open round, which it ends."""
    waves = []
    while (wave := next_wave(scheduler)) is not None:
        waves.append(wave)
    scheduler.keep(samples(scheduler))
    scheduler.observe(evidence(scheduler))
    scheduler.close_round()
    return waves


def finish_run(scheduler: BudgetedScheduler) -> list[list[Wave]]:
    rounds = []
    while (first := scheduler.open_round()) is not None:
        rounds.append([as_wave(first), *finish_round(scheduler)])
    return rounds


def resumed(scheduler: BudgetedScheduler, name: str) -> BudgetedScheduler:
    """A fresh instance that goes on from its state, through npz's 0-d arrays."""
    fresh = make(name)
    fresh.load_state_dict({key: np.asarray(value) for key, value in scheduler.state_dict().items()})
    return fresh


def test_names_are_those_of_the_classes() -> None:
    assert tuple(ALLOCATORS) == SCHEDULER_NAMES
    for name, each in ALLOCATORS.items():
        assert each.kind.name == name
        assert allocator(name) is each
    assert [n for n in SCHEDULER_NAMES if ALLOCATORS[n].is_cero] == [
        "cero",
        "random_matched",
        "fixed_price",
    ]
    assert [n for n in SCHEDULER_NAMES if ALLOCATORS[n].kind.simulation_only] == ["oracle"]


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_the_protocol_round_trip(name: str) -> None:
    scheduler = make(name)
    spent = waves = 0
    while (first := scheduler.open_round()) is not None:
        before = scheduler.remaining_rollouts + first.total_rollouts
        played = [as_wave(first)]
        while (wave := next_wave(scheduler)) is not None:
            played.append(wave)
        pending = scheduler.pending
        assert pending is not None
        assert pending.total_rollouts == sum(sum(sizes) for _, sizes in played)
        assert np.unique(pending.prompt_ids).shape == pending.prompt_ids.shape
        assert (pending.rollouts % UNIT == 0).all()
        assert pending.rollouts.max(initial=0) <= UNIT * MOST
        assert pending.total_rollouts <= CAPACITY
        assert scheduler.remaining_rollouts == before - pending.total_rollouts >= 0

        mask = scheduler.keep(samples(scheduler))
        assert mask.shape == (pending.total_rollouts,)
        assert mask.dtype == bool
        assert mask.all() or not scheduler.keeps_all

        numbers = scheduler.metrics()
        assert {"cero/posterior_mean", "cero/value_mean"} <= set(numbers)
        assert all(isinstance(number, (float, int)) for number in numbers.values())
        assert np.isfinite(list(numbers.values())).all()
        assert 0.0 < numbers["cero/posterior_mean"] < 1.0
        assert 0.0 < numbers["cero/value_mean"] <= 0.25

        scheduler.observe(evidence(scheduler))
        assert scheduler.answered_groups == pending.prompt_ids.shape[0]
        scheduler.close_round()
        assert scheduler.pending is None
        spent += pending.total_rollouts
        waves = max(waves, len(played))
    assert 0 < spent <= BUDGET
    assert spent + scheduler.remaining_rollouts == BUDGET
    assert (waves > 1) == ALLOCATORS[name].kind.waves
    wins, losses = scheduler.evidence()
    assert wins.shape == losses.shape == scheduler.value.shape == (POOL,)
    assert (wins >= 0.0).all()
    assert (losses >= 0.0).all()
    assert wins.sum() + losses.sum() > 0.0


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
@pytest.mark.parametrize("done", [0, 2])
def test_a_cut_in_the_middle_of_a_round_changes_nothing(name: str, done: int) -> None:
    scheduler = make(name)
    for _ in range(done):
        assert scheduler.open_round() is not None
        finish_round(scheduler)
    assert scheduler.open_round() is not None
    opened = resumed(scheduler, name)
    second = next_wave(scheduler)
    waved = resumed(scheduler, name)
    assert opened.pending is not None
    assert waved.pending is not None
    assert next_wave(opened) == second
    rest = [[finish_round(each), finish_run(each)] for each in (scheduler, opened, waved)]
    assert rest[0] == rest[1] == rest[2]
    for each in (opened, waved):
        got, wanted = each.state_dict(), scheduler.state_dict()
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(got[key], value, err_msg=key)


@dataclass(frozen=True)
class EveryKind:
    flag: bool = False
    count: int = 3
    share: float = 0.5
    mode: str = "a"
    limit: int | None = None


def test_an_option_has_the_type_of_its_default() -> None:
    good = {"flag": True, "count": 4, "share": 1, "mode": "b", "limit": 7}
    assert make_options(EveryKind, "any", good) == EveryKind(True, 4, 1, "b", 7)
    assert make_options(EveryKind, "any", {"limit": None, "share": 0.25}) == EveryKind(share=0.25)
    assert make_options(EveryKind, "any", {}) == EveryKind()
    kinds = {
        "flag": "true or false",
        "count": "an integer",
        "share": "a number",
        "mode": "a string",
        "limit": "an integer",
    }
    for key, kind in kinds.items():
        for value in WRONG[type(getattr(EveryKind(), key))]:
            with pytest.raises(ValueError, match=f"'any': option {key} = {value!r}, wanted {kind}"):
                make_options(EveryKind, "any", {key: value})
    with pytest.raises(ValueError, match="no option 'size'; its options: flag, count, share, mode"):
        make_options(EveryKind, "any", {"size": 1})


@pytest.mark.parametrize("name", [n for n in SCHEDULER_NAMES if not ALLOCATORS[n].is_cero])
def test_every_options_type_is_checked(name: str) -> None:
    kind = ALLOCATORS[name].options
    for field in fields(kind):
        assert make_options(kind, name, {field.name: field.default}) == kind()
        for value in WRONG[type(field.default)]:
            with pytest.raises(ValueError, match=f"'{name}': option {field.name} = {value!r}"):
                build(name, options={field.name: value})
