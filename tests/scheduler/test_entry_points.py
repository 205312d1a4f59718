"""Every allocator learns the same of the same counts, whichever door they come through."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from rivals_sim import build

from cero_rl.adapters.rounds import AdvantageRule, close_round, open_round, score_round
from cero_rl.scheduler import SCHEDULER_NAMES, CeroOptions, Evidence, make_scheduler
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.registry import OptionValue, allocator

POOL = 12
RATES = np.linspace(0.0, 1.0, POOL)
OPTIONS: dict[str, dict[str, OptionValue]] = {"thompson": {"first_rollouts": 4}}
Door = Callable[[BudgetedScheduler, npt.NDArray, npt.NDArray], None]


def make(name: str, streaming: bool = False) -> BudgetedScheduler:
    if not streaming:
        return build(name, options=OPTIONS.get(name), seed=3)
    options = CeroOptions(spend_down=True, streaming=True)
    return make_scheduler(
        name,
        num_prompts=POOL,
        rounds=6,
        budget_rollouts=240,
        rollouts_per_unit=2,
        max_units_per_prompt=8,
        capacity_rollouts=80,
        forgetting=0.9,
        cero=options,
        seed=3,
    )


def by_update(scheduler: BudgetedScheduler, wins: npt.NDArray, tries: npt.NDArray) -> None:
    scheduler.update(wins, tries)


def at_once(scheduler: BudgetedScheduler, wins: npt.NDArray, tries: npt.NDArray) -> None:
    assert scheduler.pending is not None
    ids = scheduler.pending.prompt_ids
    scheduler.observe(Evidence(ids, wins[ids], tries[ids]))
    scheduler.close_round()


def with_what_was_generated(
    scheduler: BudgetedScheduler, wins: npt.NDArray, tries: npt.NDArray
) -> None:
    """As the trainer's own counts tell it."""
    assert scheduler.pending is not None
    ids, sizes = scheduler.pending.prompt_ids, scheduler.pending.rollouts.astype(np.int64)
    scheduler.observe(Evidence(ids, wins[ids], tries[ids], generated=sizes))
    scheduler.close_round()


def in_parts(scheduler: BudgetedScheduler, wins: npt.NDArray, tries: npt.NDArray) -> None:
    assert scheduler.pending is not None
    for ids in np.array_split(scheduler.pending.prompt_ids, 3):
        scheduler.observe(Evidence(ids, wins[ids], tries[ids]))
    scheduler.close_round()


def a_part_then_update(scheduler: BudgetedScheduler, wins: npt.NDArray, tries: npt.NDArray) -> None:
    assert scheduler.pending is not None
    first = scheduler.pending.prompt_ids[:1]
    scheduler.observe(Evidence(first, wins[first], tries[first]))
    wins, tries = wins.copy(), tries.copy()
    wins[first] = tries[first] = 0
    scheduler.update(wins, tries)


def by_adapter(scheduler: BudgetedScheduler, wins: npt.NDArray, tries: npt.NDArray) -> None:
    """As TRL and verl tell it: a reward for every rollout, nan where there is none."""
    allocation = open_round(scheduler)
    assert allocation is not None
    rewards = np.full(allocation.total_rollouts, np.nan, dtype=np.float32)
    starts = np.cumsum(allocation.rollouts) - allocation.rollouts
    for prompt, first in zip(allocation.prompt_ids, starts):
        rewards[first : first + tries[prompt]] = 0.0
        rewards[first : first + wins[prompt]] = 1.0
    close_round(scheduler, score_round(allocation, rewards, POOL, AdvantageRule("center")))


DOORS: tuple[Door, ...] = (
    at_once,
    with_what_was_generated,
    in_parts,
    a_part_then_update,
    by_adapter,
)


def play(scheduler: BudgetedScheduler, door: Door) -> list[list[tuple[list[int], list[int]]]]:
    """A run whose counts depend on (round, prompt, size) only; some rollouts have no reward."""
    history = []
    while (wave := scheduler.next_round()) is not None:
        luck = np.random.default_rng([8, wave.round]).random((POOL, 64))
        judged = np.random.default_rng([9, wave.round]).random((POOL, 64)) < 0.9
        judged[5] = False  # a prompt that is never judged
        waves = []
        while wave is not None:
            waves.append((wave.prompt_ids.tolist(), wave.rollouts.tolist()))
            assert scheduler.pending is not None
            ids, sizes = scheduler.pending.prompt_ids, scheduler.pending.rollouts
            wins, tries = np.zeros(POOL, dtype=np.int64), np.zeros(POOL, dtype=np.int64)
            for prompt, size in zip(ids, sizes):
                there = judged[prompt, :size]
                tries[prompt] = there.sum()
                wins[prompt] = (luck[prompt, :size] < RATES[prompt])[there].sum()
            wave = scheduler.next_wave(Evidence(ids, wins[ids].astype(np.float64), tries[ids]))
        history.append(waves)
        door(scheduler, wins, tries)
    return history


def same_state(got: BudgetedScheduler, wanted: BudgetedScheduler) -> None:
    ours, theirs = got.state_dict(), wanted.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_every_door_teaches_the_same(name: str) -> None:
    wanted = make(name)
    history = play(wanted, by_update)
    assert len(history) >= 3
    for door in DOORS:
        scheduler = make(name)
        assert play(scheduler, door) == history, door.__name__
        same_state(scheduler, wanted)


@pytest.mark.parametrize("name", [n for n in SCHEDULER_NAMES if allocator(n).is_cero])
def test_so_does_streaming_where_a_round_comes_in_one_piece(name: str) -> None:
    wanted = make(name, streaming=True)
    history = play(wanted, by_update)
    for door in (at_once, with_what_was_generated, by_adapter):
        scheduler = make(name, streaming=True)
        assert play(scheduler, door) == history, door.__name__
        same_state(scheduler, wanted)


def test_a_warm_start_is_evidence_to_a_rule_that_looks_for_the_unseen() -> None:
    scheduler = build("thompson", options={"first_rollouts": 4}, most=4)
    scheduler.warm_start(np.full(POOL, 3.0), np.full(POOL, 5.0))
    allocation = scheduler.open_round()
    assert allocation is not None
    assert set(allocation.rollouts.tolist()) == {8}
