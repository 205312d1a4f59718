"""The configuration's scheduler section becomes the scheduler it names, with every option, or
one clear error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cero_rl.config import Config, load_config
from cero_rl.config import scheduler as config_scheduler
from cero_rl.data.prompts import Prompt, make_prompt
from cero_rl.errors import CheckpointError, ConfigError, DataError
from cero_rl.scheduler import SCHEDULER_NAMES, Evidence
from cero_rl.scheduler.budgeted import BudgetedScheduler
from cero_rl.scheduler.cero import Cero
from cero_rl.scheduler.rivals.keep import KeepRule
from cero_rl.train.scheduler import (
    build_scheduler,
    cells_of,
    pass_rates,
    save_evidence,
    scheduler_for_pool,
)

RECIPE = Path(__file__).resolve().parents[2] / "recipes/digits_cpu.yaml"
# for allocators that size their groups
SIZED = ("scheduler.rollouts_per_unit=2", "scheduler.max_units_per_prompt=16")


def config(*overrides: str) -> Config:
    return load_config(RECIPE, ["scheduler.rounds=4", "budget.total_rollouts=512", *overrides])


def pool(count: int = 64) -> list[Prompt]:
    rows = [
        {"family": "ab"[i % 2], "pass_rate": None if i % 4 == 0 else (i % 4) / 4}
        for i in range(count)
    ]
    return [make_prompt(f"question {i}", "1", "test", row) for i, row in enumerate(rows)]


def play(scheduler: BudgetedScheduler) -> int:
    spent = 0
    while (allocation := scheduler.open_round()) is not None:
        trials = allocation.rollouts.astype(np.int64)
        wins = (trials // 2).astype(np.float64)
        scheduler.observe(Evidence(allocation.prompt_ids, wins, trials))
        scheduler.close_round()
        spent += allocation.total_rollouts
    return spent


def test_the_configuration_offers_every_allocator_but_the_one_that_must_know_the_truth() -> None:
    assert set(config_scheduler.NAMES) == set(SCHEDULER_NAMES) - {"oracle"}


def test_who_sizes_groups_needs_small_units_beside_the_name_and_nobody_else_does() -> None:
    """What the README says of the recipes' twins."""
    sized = "knapsack vip gvm_p hit_utility hora speed_rl pilot_commit vigor reinforce_ada aero"
    remedy = "set e.g. rollouts_per_unit = 2 and max_units_per_prompt = 16"
    for name in config_scheduler.NAMES:
        build_scheduler(load_config(RECIPE, [f"scheduler.name={name}", *SIZED]), 240)
        alone = load_config(RECIPE, [f"scheduler.name={name}"])
        if name in sized.split():
            with pytest.raises(ConfigError, match=remedy):
                build_scheduler(alone, 240)
        else:
            build_scheduler(alone, 240)


def test_wave_schedulers_are_those_that_ask_for_more() -> None:
    asks = set()
    for name in config_scheduler.NAMES:
        scheduler = build_scheduler(config(f"scheduler.name={name}", *SIZED), 64)
        if type(scheduler)._choose_more is not BudgetedScheduler._choose_more:
            asks.add(name)
    assert asks == set(config_scheduler.WAVE_SCHEDULERS)


@pytest.mark.parametrize(
    ("overrides", "attribute", "value"),
    [
        (["scheduler.plan=resolve"], "plan", "resolve"),
        (["scheduler.cap_shares=4"], "cap_shares", 4.0),
        (
            [
                "scheduler.explore_units=1",
                "scheduler.rollouts_per_unit=4",
                "scheduler.max_units_per_prompt=2",
            ],
            "explore_units",
            1,
        ),
        (
            [
                "scheduler.proximal=0.1",
                "scheduler.rollouts_per_unit=2",
                "scheduler.max_units_per_prompt=4",
            ],
            "proximal",
            0.1,
        ),
        (["scheduler.refit_prior_every=3"], "refit_prior_every", 3),
        (["scheduler.value=hit"], "value", "hit"),
        (["scheduler.token_costs=true"], "token_costs", True),
        (["scheduler.price_init=0.25"], "price_init", 0.25),
        (["scheduler.spend_down=false"], "spend_down", False),
        (["scheduler.step_scale=3"], "step_size", 1.5),
        (["scheduler.streaming=true", "learner.rollouts_per_step=64"], "streaming", True),
        (["scheduler.streaming=true", "learner.live_signal_per_step=9"], "streaming", True),
        (["budget.total_tokens=9999"], "budget_tokens", 9999),
    ],
)
def test_options_reach_cero(overrides: list[str], attribute: str, value: object) -> None:
    scheduler = build_scheduler(config(*overrides), 64)
    assert isinstance(scheduler, Cero)
    assert getattr(scheduler.options, attribute) == value


def test_other_allocators_take_their_options_and_keep_rules_and_spend_the_budget() -> None:
    thompson = build_scheduler(
        config("scheduler.name=thompson", "scheduler.forgetting=0.98", "scheduler.keep_rule=pods"),
        64,
    )
    assert thompson.keep_rule == KeepRule("pods", 0.5)
    assert not thompson.keeps_all
    assert play(thompson) == 512
    vip = build_scheduler(
        config("scheduler.name=vip", "scheduler.options={objective: rloo}", *SIZED), 64
    )
    assert play(vip) == 512


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler.options={objective: rloo}"], "takes its options as keys of this section"),
        (
            ["scheduler.name=vip", "scheduler.options={objektive: rloo}", *SIZED],
            "has no option 'objektive'",
        ),
        (["scheduler.name=vigor"], "max_units_per_prompt"),
        (["scheduler.name=vigor", "learner.rollouts_per_step=64", *SIZED], "several waves"),
        (
            ["scheduler.name=vigor", "learner.live_signal_per_step=4", *SIZED],
            "learner.live_signal_per_step: .* several waves",
        ),
        (["scheduler.plan=thompson", "scheduler.value=hit"], "needs value = 'variance'"),
        (["scheduler.value=progress"], "labels_column"),
        (["scheduler.name=uniform", "budget.total_tokens=1000"], "counts rollouts only"),
        (["scheduler.streaming=true"], "rounds that rollouts_per_step cuts"),
        (["scheduler.name=ceros"], "scheduler.name"),
    ],
)
def test_what_does_not_fit_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_scheduler(config(*overrides), 64)
    assert "\n" not in str(caught.value)


def test_measured_pass_rates_become_a_prior_per_prompt() -> None:
    scheduler = scheduler_for_pool(
        config("scheduler.pass_rate_column=pass_rate", "scheduler.pass_rate_strength=8"), pool()
    )
    wanted = [
        (1 + 8 * r) / 10 if i % 4 else 0.5 for i, r in enumerate(i % 4 / 4 for i in range(64))
    ]
    assert scheduler.posterior_mean.tolist() == pytest.approx(wanted)
    with pytest.raises(DataError, match=r"no column 'rate' .* family, pass_rate"):
        scheduler_for_pool(config("scheduler.pass_rate_column=rate"), pool())
    with pytest.raises(DataError, match="wanted a number in"):
        pass_rates([make_prompt("q", "1", "test", {"pass_rate": 1.5})], "pass_rate")


def test_families_come_from_a_column() -> None:
    scheduler = scheduler_for_pool(
        config("scheduler.value=progress", "scheduler.labels_column=family"), pool()
    )
    assert play(scheduler) == 512


def test_a_run_begins_with_the_evidence_of_an_earlier_one(tmp_path: Path) -> None:
    prompts, path = pool(), tmp_path / "posterior.parquet"
    first = scheduler_for_pool(config(), prompts)
    play(first)
    save_evidence(path, first, prompts)
    moved = prompts[32:] + pool(80)[64:]
    second = scheduler_for_pool(config(f"scheduler.warm_start={path}"), moved)
    assert second.posterior_mean[:32].tolist() == pytest.approx(first.posterior_mean[32:].tolist())
    assert second.value[32:].tolist() == pytest.approx([1 / 6] * 16)
    with pytest.raises(CheckpointError, match="knows none of the"):
        scheduler_for_pool(config(f"scheduler.warm_start={path}"), pool(200)[136:])
    with pytest.raises(CheckpointError, match=r"posterior\.parquet of an earlier run"):
        scheduler_for_pool(config(f"scheduler.warm_start={tmp_path / 'no.parquet'}"), prompts)


def test_cells_come_from_columns_and_prompt_lengths() -> None:
    prompts, lengths = pool(), np.repeat([5, 9, 9, 30], 16)
    keys = [
        "scheduler.cell_columns=[family]",
        "scheduler.cell_length_bins=3",
        "scheduler.refit_prior_every=1",
    ]
    cells = cells_of(config(*keys).scheduler, prompts, lengths)
    assert cells is not None
    by_hand = [(prompt.columns["family"], length) for prompt, length in zip(prompts, lengths)]
    assert len(set(by_hand)) == int(cells.max()) + 1 == 6
    assert len(set(zip(by_hand, cells.tolist()))) == 6
    scheduler = scheduler_for_pool(config(*keys), prompts, lengths)
    assert isinstance(scheduler, Cero)
    assert scheduler.cells is not None
    np.testing.assert_array_equal(scheduler.cells.labels, cells)
    assert play(scheduler) == 512
    # without a tokenizer lengths are not known yet: checked with the columns alone
    alone = cells_of(config(*keys).scheduler, prompts, None)
    assert alone is not None
    assert alone.max() == 1
    assert cells_of(config().scheduler, prompts, lengths) is None
    assert isinstance(build_scheduler(config(*keys), 64), Cero)


def test_weights_and_wear_come_from_columns() -> None:
    rows = [{"weight": 1 if i % 2 else 0.25, "wear": 0.5 + i % 2} for i in range(64)]
    prompts = [make_prompt(f"question {i}", "1", "test", row) for i, row in enumerate(rows)]
    scheduler = scheduler_for_pool(config("scheduler.weights_column=weight"), prompts)
    assert scheduler.value.tolist() == pytest.approx([1 / 24, 1 / 6] * 32)
    worn = scheduler_for_pool(config("scheduler.wear_column=wear"), prompts)
    assert play(worn) == 512
    with pytest.raises(DataError, match=r"wear_column: prompt 0 has .* in \[0\.01, 100\]$"):
        scheduler_for_pool(
            config("scheduler.wear_column=wear"), [make_prompt("q", "1", "test", {"wear": 0})] * 64
        )
    for row, found in (({"weight": None}, "None"), ({"weight": True}, "True"), ({"weight": 2}, 2)):
        bad = [*prompts[:-1], make_prompt("q", "1", "test", row)]
        with pytest.raises(
            DataError,
            match=rf"weights_column: prompt 63 has weight = {found}, wanted a number in \[0, 1\]$",
        ):
            scheduler_for_pool(config("scheduler.weights_column=weight"), bad)


def test_cells_that_do_not_fit_are_refused() -> None:
    refit = "scheduler.refit_prior_every=1"
    with pytest.raises(DataError, match=r"cell_columns: no column 'topic' .* family, pass_rate"):
        scheduler_for_pool(config("scheduler.cell_columns=[topic]", refit), pool())
    with pytest.raises(DataError, match="600 cells of 600 prompts, wanted at most 512"):
        scheduler_for_pool(
            config("scheduler.cell_length_bins=600", refit), pool(600), np.arange(600)
        )
    with pytest.raises(ConfigError, match="cells need refit_prior_every > 0, got 0"):
        scheduler_for_pool(config("scheduler.cell_columns=[family]"), pool())
