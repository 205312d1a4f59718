"""Settings that go together: `scheduler.preset` fills what a configuration leaves open.

`published` is the method of arXiv 2606.05606 and 2610.09679 and fills nothing. `cero_plus` is the
combination that docs/study.md measured: one posterior as critic and as allocator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["published", "cero_plus"]


def _cero_plus(rounds: int) -> dict[str, dict[str, Any]]:
    """Forgetting by the length of the run, in rounds."""
    return {
        "scheduler": {
            "name": "cero",
            "plan": "resolve",
            "saturation": 0.05,
            "rollouts_per_unit": 1,
            "refit_prior_every": 1,
            "forgetting": 1.0 - 0.8 / max(rounds, 2),
        },
        "learner": {"baseline": "posterior", "min_advantage": 0.05},
    }


def _settings(scheduler: Mapping[str, Any], learner: object) -> dict[str, dict[str, Any]]:
    """Of cero_plus beside what is given."""
    rounds = scheduler.get("rounds")
    preset = _cero_plus(rounds if isinstance(rounds, int) else 1)
    if scheduler.get("pass_rate_column") is not None:  # a prior of its own for every prompt
        del preset["scheduler"]["refit_prior_every"]
    if isinstance(learner, Mapping) and learner.get("baseline") == "group":  # the allocator alone
        del preset["learner"], preset["scheduler"]["rollouts_per_unit"]
    return preset


def fill(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of their preset where none is given. What is no preset, or no number
    of rounds, is left to the fields' own checks."""
    given = dict(data)
    scheduler = given.get("scheduler")
    if not isinstance(scheduler, Mapping) or scheduler.get("preset") != "cero_plus":
        return given
    for section, settings in _settings(scheduler, given.get("learner")).items():
        own = given.get(section, {})
        if isinstance(own, Mapping):
            given[section] = {**settings, **own}
    return given


def departures(config: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """For a person: what of the preset a whole configuration (its sections as mappings) does not
    have, because something else was given. Empty without a preset."""
    scheduler = config["scheduler"]
    if scheduler["preset"] != "cero_plus":
        return []
    return [
        f"{section}.{key} is {config[section][key]}, given; the preset has {value}"
        for section, settings in _settings(scheduler, config["learner"]).items()
        for key, value in settings.items()
        if config[section][key] != value
    ]
