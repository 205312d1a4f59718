"""What a run counts, through a checkpoint's files and back, in the middle of a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from step_cases import config_of

from cero_rl.checkpoint.commit import RunState
from cero_rl.checkpoint.progress import Progress
from cero_rl.config import Config
from cero_rl.errors import CheckpointError
from cero_rl.rollout.counts import GroupCounts
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.sizes import Evidence, StateDict
from cero_rl.scheduler.state import STATE_VERSION
from cero_rl.train.scheduler import build_scheduler

PROMPTS = 48
CUT = "learner.rollouts_per_step=8"
SETTINGS = [
    ("scheduler.name=uniform", CUT),
    ("scheduler.name=cero", CUT),
    ("scheduler.name=cero", "scheduler.streaming=true", CUT),
    ("scheduler.name=cero", "scheduler.value=graded", CUT),
    ("scheduler.name=cero", "scheduler.token_costs=true", "budget.total_tokens=500", CUT),
    ("scheduler.name=greso", CUT),
    ("scheduler.name=thompson", "scheduler.keep_rule=pods", CUT),
    ("scheduler.name=hora",),
    (
        "learner.baseline=posterior",
        "learner.live_signal_per_step=4",
        "learner.entropy_target=0.3",
        "learner.positive_weight=0.5",
    ),
    ("scheduler.name=reinforce_ada",),
]


def answer(scheduler: BudgetedScheduler, first: int, last: int) -> Evidence:
    """Evidence of the open round's groups first : last: some right, some missing, some failed."""
    assert scheduler.pending is not None
    ids = scheduler.pending.prompt_ids[first:last]
    asked = scheduler.pending.rollouts[first:last].astype(np.int64)
    trials = asked - ids % 2
    wins = np.minimum(trials, ids % 5) * 0.75
    failed = int(((ids % 2 == 1) & (ids % 3 == 0)).sum())  # of those without a reward
    return Evidence(ids, wins, trials, wins * 0.75, failed, response_tokens=3 * int(asked.sum()))


def in_mid_round(config: Config) -> tuple[Progress, BudgetedScheduler]:
    """A run that has closed a round, and answered a part of the next or opened its second wave."""
    progress, scheduler = Progress.fresh(config, PROMPTS), build_scheduler(config, PROMPTS)
    lengths = progress.lengths.expected_of_all
    assert scheduler.open_round(lengths) is not None
    scheduler.observe(answer(scheduler, 0, len(scheduler.pending.prompt_ids)))
    scheduler.close_round()
    assert scheduler.open_round(lengths) is not None
    groups = len(scheduler.pending.prompt_ids)
    if scheduler.waves:
        assert scheduler.next_wave(answer(scheduler, 0, groups)) is not None
    else:
        scheduler.observe(answer(scheduler, 0, groups // 2))
    ids = np.array([3, 5])
    counts = GroupCounts.zeros(2)
    counts.generated[:], counts.response_tokens[:] = [4, 2], [13, 9]
    progress.lengths.update(ids, counts)
    progress.ledger.book(37, 3)
    progress.step, progress.updates, progress.bad_updates = 5, 10, 1
    progress.eval_before = {"eval/avg@1": 0.25}
    if progress.critic is not None and progress.live_signal is not None:
        progress.critic.advance(1.5)
        progress.live_signal.observe(3.0, 2.0)
    if progress.coverage is not None:
        progress.coverage.observe(0.1, 1.0)
    return progress, scheduler


def travelled(state: RunState, directory: Path) -> RunState:
    """Through the files of a checkpoint."""
    (directory / "state.json").write_text(json.dumps(state.scalars, sort_keys=True))
    save_file({k: np.array(v) for k, v in state.arrays.items()}, directory / "arrays.safetensors")
    scalars = json.loads((directory / "state.json").read_text())
    return RunState(scalars, load_file(directory / "arrays.safetensors"), state.own)


def comparable(state: StateDict) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in state.items()}


def rest_of_the_run(progress: Progress, scheduler: BudgetedScheduler) -> list[Any]:
    """Every allocation and the belief at its end."""
    made: list[Any] = []
    while True:
        assert scheduler.pending is not None
        groups = len(scheduler.pending.prompt_ids)
        if not scheduler.answered_groups and scheduler.waves:
            while scheduler.next_wave(answer(scheduler, 0, groups)) is not None:
                groups = len(scheduler.pending.prompt_ids)
        made.append([scheduler.pending.prompt_ids.tolist(), scheduler.pending.rollouts.tolist()])
        scheduler.observe(answer(scheduler, scheduler.answered_groups, groups))
        scheduler.close_round()
        if scheduler.open_round(progress.lengths.expected_of_all) is None:
            return [*made, scheduler.value.tolist(), scheduler.remaining_rollouts]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_in_the_middle_of_a_round_comes_back_whole(tmp_path: Path, settings):
    config = config_of(*settings)
    progress, scheduler = in_mid_round(config)
    state = travelled(progress.state(scheduler, {"ahead.tokens": np.arange(2)}), tmp_path)
    assert state.own["ahead.tokens"].tolist() == [0, 1]
    again, other = Progress.fresh(config, PROMPTS), build_scheduler(config, PROMPTS)
    again.restore(state, other)
    assert comparable(other.state_dict()) == comparable(scheduler.state_dict())
    assert other.answered_groups == scheduler.answered_groups
    assert other.value.tolist() == scheduler.value.tolist()
    assert (again.step, again.updates, again.bad_updates) == (5, 10, 1)
    assert again.eval_before == {"eval/avg@1": 0.25}
    assert again.ledger == progress.ledger
    for name in ("critic", "live_signal", "coverage"):
        mine, its = getattr(progress, name), getattr(again, name)
        assert (mine is None) == (its is None)
        assert mine is None or comparable(its.state_dict()) == comparable(mine.state_dict())
    assert again.lengths.expected_of_all().tolist() == progress.lengths.expected_of_all().tolist()
    assert rest_of_the_run(again, other) == rest_of_the_run(progress, scheduler)


def test_a_state_is_the_same_whatever_a_rank_holds_itself():
    progress, scheduler = in_mid_round(config_of(CUT))
    one, other = progress.state(scheduler, {}), progress.state(scheduler, {"x": np.zeros(1)})
    assert one.scalars == other.scalars
    assert comparable(one.arrays) == comparable(other.arrays)


def refused(state: RunState, config: Config) -> str:
    """Why a fresh run of `config` does not take this state; it must stay as it was."""
    progress, scheduler = Progress.fresh(config, PROMPTS), build_scheduler(config, PROMPTS)
    before = comparable(scheduler.state_dict())
    with pytest.raises(CheckpointError) as caught:
        progress.restore(state, scheduler)
    assert progress.step == progress.ledger.spent_rollouts == 0
    assert comparable(scheduler.state_dict()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((), "'scheduler' is 'uniform' but this run has 'cero'"),
        (("scheduler.name=uniform", "seed=1"), "'seed' is 0 but this run has 1"),
        (("scheduler.name=uniform", "scheduler.rounds=8"), "'rounds' is 4 but this run has 8"),
    ],
)
def test_another_schedulers_state_is_refused_by_name(settings: tuple[str, ...], words: str):
    progress, scheduler = in_mid_round(config_of("scheduler.name=uniform"))
    assert words in refused(progress.state(scheduler, {}), config_of(*settings))


def test_a_state_of_another_version_is_refused_by_its_number():
    config = config_of(CUT)
    progress, scheduler = in_mid_round(config)
    state = progress.state(scheduler, {})
    state.scalars["scheduler.state_version"] = STATE_VERSION - 1
    words = refused(state, config)
    assert f"version {STATE_VERSION - 1}" in words
    assert f"version {STATE_VERSION}:" in words


@pytest.mark.parametrize(
    "name", ["state_version", "pending_ids", "observed_successes", "posterior_a", "round", "price"]
)
def test_a_field_that_is_missing_is_named(name: str):
    config = config_of(CUT)
    progress, scheduler = in_mid_round(config)
    state = progress.state(scheduler, {})
    (state.scalars if f"scheduler.{name}" in state.scalars else state.arrays).pop(
        f"scheduler.{name}"
    )
    assert f"no field {name!r}" in refused(state, config)
