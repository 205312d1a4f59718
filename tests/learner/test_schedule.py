"""The learning rate follows the budget: above 0 for every rollout of it, however many steps that
makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.checkpoint.progress import Progress
from cero_rl.config import Config, load_config
from cero_rl.config.learner import OptimizerConfig
from cero_rl.learner.schedule import Spending, learning_rates
from cero_rl.rollout.counts import GroupCounts
from cero_rl.scheduler.sizes import Evidence
from cero_rl.train.rounds import cuts
from cero_rl.train.scheduler import build_scheduler

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 2400
RATE = 1e-4
SIX_THOUSAND = ["budget.total_rollouts=6144", "scheduler.rounds=12"]  # 12 shares of 512
RUNS = {  # settings of the recipe; each makes another number of steps than full rounds would
    "uniform, capacity of 2 shares": ["scheduler.name=uniform", "scheduler.capacity_rollouts=1024"],
    "greso, capacity of 3 shares": ["scheduler.name=greso", "scheduler.capacity_rollouts=1536"],
    "vigor": [
        "scheduler.name=vigor",
        "scheduler.rollouts_per_unit=2",
        "scheduler.max_units_per_prompt=16",
        "scheduler.capacity_rollouts=1536",
    ],
    "steps of 100": ["scheduler.name=uniform", "learner.rollouts_per_step=100"],
    "steps of 300, two passes": ["learner.rollouts_per_step=300", "learner.updates_per_batch=2"],
    "one failed group in three": ["scheduler.name=uniform", "scheduler.capacity_rollouts=1024"],
    "tokens end first": ["budget.total_tokens=30000"],
}


def run_along(config: Config, *, fails: bool = False) -> Iterator[tuple[float, list[float]]]:
    """(share of the budget spent before the step, its learning rates), step by step: the real
    scheduler and ledger, with drawn evidence in the place of a model."""
    rng = np.random.default_rng(0)
    progress = Progress.fresh(config, PROMPTS)
    scheduler = build_scheduler(config, PROMPTS)
    rates_of = rng.uniform(0, 1, PROMPTS)

    def evidence(ids: np.ndarray, rollouts: np.ndarray) -> Evidence:
        lost = int(rollouts[::3].sum()) if fails else 0
        trials = np.where(np.arange(len(ids)) % 3 == 0, 0, rollouts) if fails else rollouts
        return Evidence(
            ids,
            rng.binomial(trials, rates_of[ids]).astype(np.float64),
            trials.astype(np.int64),
            None,
            failed_rollouts=lost,
            response_tokens=int(trials.sum()) * 10,
        )

    while (allocation := scheduler.open_round(progress.lengths.expected_of_all)) is not None:
        whole = config.learner.rollouts_per_step is None
        found = evidence(allocation.prompt_ids, allocation.rollouts)
        while whole and scheduler.next_wave(found) is not None:
            assert scheduler.pending is not None
            allocation = scheduler.pending
            found = evidence(allocation.prompt_ids, allocation.rollouts)
        for first, last in cuts(allocation.rollouts, config.learner.rollouts_per_step):
            ids, sizes = allocation.prompt_ids[first:last], allocation.rollouts[first:last]
            found = found if whole else evidence(ids, sizes)
            scheduler.observe(found)
            before = progress.budget_position
            generated = int(found.trials.sum())
            counts = GroupCounts.zeros(len(ids))
            counts.generated[:] = found.trials
            counts.response_tokens[:] = found.trials * 10
            progress.lengths.update(ids, counts)
            progress.ledger.book(generated, found.failed_rollouts)
            if not generated:
                continue
            total = progress.ledger.total_rollouts
            batch = Spending(before, progress.budget_position, total, progress.decay_from)
            passes = config.learner.updates_per_batch
            rates, progress.decay_from = learning_rates(
                config.optimizer, batch, updates_before=progress.updates, passes=passes
            )
            progress.updates += passes
            yield before / total, rates
        scheduler.close_round()


@pytest.mark.covers("rounds that make more steps than planned")
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("name", RUNS)
def test_the_rate_is_above_0_to_the_last_rollout_and_follows_the_budget(name: str, schedule: str):
    config = load_config(
        ROOT / "recipes/digits_cpu.yaml",
        [*SIX_THOUSAND, "optimizer.warmup_steps=1", f"optimizer.schedule={schedule}", *RUNS[name]],
    )
    steps = list(run_along(config, fails="failed" in name))
    start = steps[1][0]  # the warm-up's one step; of two passes the second is not part of it
    if config.learner.updates_per_batch == 2:
        start /= 2
    for share, rates in steps[1:]:
        done = (share - start) / (1 - start)
        wanted = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        assert rates[0] == pytest.approx(RATE * wanted, rel=1e-9)
        assert 0 < rates[-1] <= rates[0] <= RATE
    assert steps[-1][0] > 0.75, "the run is near its budget's end"
    assert steps[-1][1][-1] < 0.3 * RATE, "and so is the rate"


def test_full_rounds_keep_the_rate_that_a_count_of_steps_would_give():
    """Bit for bit: budget and rounds of a power of two, so every quotient is the same number."""
    config = load_config(
        ROOT / "recipes/digits_cpu.yaml",
        ["scheduler.name=uniform", "optimizer.warmup_steps=5", *SIX_THOUSAND],
    )
    rates = [rate for _, (rate,) in run_along(config)]
    rise = [RATE * (i + 1) / 5 for i in range(5)]
    assert rates == [*rise, *(RATE * (1.0 - i / 7) for i in range(7))]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(0, 40),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_any_cut_of_a_budget_falls_from_the_peak_and_never_to_0(
    sizes: list[int], warmup: int, passes: int, growth: int
):
    """Batches of any size; the budget may grow on the way (set_budget, a resume with more)."""
    optimizer = OptimizerConfig(learning_rate=RATE, schedule="linear", warmup_steps=warmup)
    total = sum(sizes)
    spent = updates = 0
    decay_from = 0.0
    found: list[float] = []
    for index, size in enumerate(sizes):
        grown = total + growth * index
        batch = Spending(spent, spent + size, grown, decay_from)
        rates, decay_from = learning_rates(optimizer, batch, updates_before=updates, passes=passes)
        updates += passes
        spent += size
        found += rates
    assert len(found) == passes * len(sizes)
    assert all(0 < rate <= RATE for rate in found)
    if not growth:
        rise, fall = found[:warmup], found[warmup:]
        assert rise == sorted(rise)
        assert fall == sorted(fall, reverse=True)


def test_a_resume_that_moves_the_position_of_a_budget_in_tokens_goes_on_from_there():
    """Half of the tokens are spent: position 50 of 100 rollouts, then 25 of 50. The rate would have
    stayed at its peak to the end."""
    optimizer = OptimizerConfig(learning_rate=RATE, schedule="linear")
    (first,), decay_from = learning_rates(
        optimizer, Spending(25, 30, 50, 50.0), updates_before=9, passes=1
    )
    (then,), decay_from = learning_rates(
        optimizer, Spending(45, 49, 50, decay_from), updates_before=10, passes=1
    )
    assert decay_from == 25
    assert (first, then) == pytest.approx((RATE, 0.2 * RATE))


def test_no_warm_up_ends_above_the_peak():
    for steps in range(1, 60):
        optimizer = OptimizerConfig(learning_rate=RATE, warmup_steps=steps)
        rates, _ = learning_rates(
            optimizer, Spending(0, 10, 10, 0.0), updates_before=0, passes=steps
        )
        assert max(rates) <= RATE
        assert rates[-1] == pytest.approx(RATE, rel=1e-12)


def test_constant_stays():
    optimizer = OptimizerConfig(learning_rate=RATE, warmup_steps=1)
    batch = Spending(0, 10, 10, 0.0)
    rates, decay_from = learning_rates(optimizer, batch, updates_before=0, passes=2)
    assert rates == [RATE, RATE]
    assert decay_from == 5
