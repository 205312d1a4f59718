"""The allocator's reasons in words, from what a run wrote down and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

from cero_rl.report.reader import Run, read_run
from cero_rl.view.reasons import reason_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("reasons")))


def under(run: Run, **settings: object) -> Run:
    """The same run of another scheduler."""
    scheduler = run.config.scheduler.model_copy(update=settings)
    return replace(run, config=run.config.model_copy(update={"scheduler": scheduler}))


def test_a_slope_is_held_against_the_price(run: Run) -> None:
    run = under(run, plan="duals", proximal=0.0)
    above, below = reason_of(run, 0), reason_of(run, 7)
    assert above.short == "slope 0.70 > price 0.50"
    assert "more than the price of a unit, 0.50: rank 1 of 8 in its round." in above.text
    assert "worth 0.250, at an expected success rate of 0.50." in above.text
    assert "Size 4, the largest group there is (rollouts_per_unit 4 x" in above.text
    assert below.short == "slope 0.40 <= price 0.50"
    assert "(scheduler.spend_down): rank 8 of 8 in its round." in below.text


def test_first_and_later_looks(run: Run) -> None:
    prompt = int(run.groups.prompt[0])
    first, second = np.flatnonzero(run.groups.prompt == prompt)[:2].tolist()
    assert "The first look at it in this run" in reason_of(run, first).text
    age = int(run.groups.step[second] - run.groups.step[first])
    said = reason_of(run, second).text
    assert f"Before: 4 rollouts in 1 group, the last {age} steps ago." in said


def test_saturation_is_what_the_slope_lost(run: Run) -> None:
    run = under(run, plan="resolve")
    later = np.flatnonzero(run.groups.prompt == run.groups.prompt[0])[1]
    said = reason_of(run, int(later)).text
    assert "what it had before leaves 70% of that (saturation)" in said
    assert "(plan: resolve)" in said
    assert "price" not in said


def test_a_reserve_comes_before_every_worth(run: Run) -> None:
    reserved = run.groups.reserved.copy()
    reserved[:2] = [1, 2]
    run = replace(run, groups=replace(run.groups, reserved=reserved))
    assert reason_of(run, 0).short == "probe"
    assert "(scheduler.probe_share)" in reason_of(run, 0).text
    assert reason_of(run, 1).short == "floor"
    assert "(scheduler.explore_share)" in reason_of(run, 1).text


def test_sizes_below_the_largest_have_a_reason(run: Run) -> None:
    run = under(run, max_units_per_prompt=4, explore_units=1)
    first = reason_of(run, 0).text
    assert "Size 4: the most for a prompt that nothing is known of (explore_units), of 16" in first
    last_of_round = int(np.flatnonzero(run.groups.round == 4)[-1])
    assert "what its round had left, of at most 16" in reason_of(run, last_of_round).text
    middle = int(np.flatnonzero(run.groups.round == 4)[0])
    proximal = reason_of(under(run, proximal=0.1), middle).text
    assert "a further unit would have gained nothing (proximal 0.1)" in proximal


def test_missing_rewards_are_counted(run: Run) -> None:
    step3 = int(np.flatnonzero(run.groups.step == 3)[0])
    assert reason_of(run, step3).text.endswith("1 of them have no reward.")


@pytest.mark.parametrize(
    "name, short",
    [("uniform", "next in order"), ("greso", "greso"), ("random_matched", "drawn")],
)
def test_other_allocators_say_what_is_known(run: Run, name: str, short: str) -> None:
    assert reason_of(under(run, name=name), 0).short == short


def test_what_an_older_version_left_out_is_said(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    text = (path / "evidence.jsonl").read_text()
    (path / "evidence.jsonl").write_text(text.replace('"slope"', '"slant"'))
    reason = reason_of(read_run(path), 0)
    assert reason.short == "not recorded"
    assert "not written down (an older version made this run)" in reason.text
