"""Settings that go together: what a preset fills, and that what is given stands."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cero_rl.config import Config
from cero_rl.config.presets import departures, fill


def config(scheduler: dict[str, Any], **sections: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"path": "m"},
            "data": {"source": "d.jsonl"},
            "budget": {"total_rollouts": 51200},
            "scheduler": {"rounds": 400, **scheduler},
            **sections,
        }
    )


def test_published_fills_nothing():
    plain, named = config({}), config({"preset": "published"})
    assert plain == named
    assert plain.learner.baseline == "group"
    assert plain.scheduler.plan == "duals"
    assert plain.scheduler.rollouts_per_unit == 8


def test_cero_plus_is_one_posterior_as_critic_and_allocator():
    plus = config({"preset": "cero_plus"})
    assert plus.learner.baseline == "posterior"
    assert plus.learner.advantage == "batch_std"
    assert (plus.scheduler.name, plus.scheduler.plan) == ("cero", "resolve")
    assert plus.scheduler.rollouts_per_unit == 1
    assert plus.scheduler.forgetting == pytest.approx(0.998)
    assert plus.scheduler.refit_prior_every == 1
    assert plus.capacity_rollouts == 128


def test_forgetting_follows_the_length_of_the_run():
    """As much of the first round's evidence is left at the end, however many rounds there are."""
    for rounds in (40, 200, 1600):
        plus = config({"preset": "cero_plus", "rounds": rounds})
        assert plus.scheduler.forgetting**rounds == pytest.approx(0.45, abs=0.01)


def test_what_is_given_stands():
    given = {"preset": "cero_plus", "name": "uniform", "rollouts_per_unit": 4, "saturation": 1.0}
    own = config(given, learner={"min_advantage": 0.0, "algorithm": "dapo"})
    assert own.scheduler.name == "uniform"
    assert own.scheduler.rollouts_per_unit == 4
    assert own.scheduler.saturation == 1.0
    assert own.learner.min_advantage == 0.0
    assert own.learner.baseline == "posterior"
    assert own.learner.aggregation == "token_mean"


def test_what_was_given_in_its_place_is_told():
    """A recipe's own group size is easily forgotten under a preset."""
    given = config({"preset": "cero_plus", "rollouts_per_unit": 4}, learner={"min_advantage": 0.0})
    assert departures(given.model_dump()) == [
        "scheduler.rollouts_per_unit is 4, given; the preset has 1",
        "learner.min_advantage is 0.0, given; the preset has 0.05",
    ]
    for plain in ({}, {"preset": "cero_plus"}, {"preset": "cero_plus", "pass_rate_column": "rate"}):
        assert departures(config(plain).model_dump()) == []
    alone = config({"preset": "cero_plus"}, learner={"baseline": "group"})
    assert departures(alone.model_dump()) == []


def test_with_a_group_baseline_it_is_the_allocator_alone():
    plus = config({"preset": "cero_plus"}, learner={"baseline": "group"})
    assert plus.scheduler.plan == "resolve"
    assert plus.scheduler.rollouts_per_unit == 8, "a group of one would teach nothing"
    assert plus.learner.advantage == "std"


def test_measured_pass_rates_take_the_place_of_cells():
    plus = config({"preset": "cero_plus", "pass_rate_column": "rate"})
    assert plus.scheduler.refit_prior_every == 0
    assert plus.scheduler.plan == "resolve"


@pytest.mark.parametrize(
    "scheduler", [None, 3, {"preset": "cero_plus", "rounds": "many"}, {"preset": 1}]
)
def test_what_is_no_section_is_left_to_the_fields(scheduler: object):
    with pytest.raises(ValidationError):
        Config.model_validate(fill({"scheduler": scheduler}))
