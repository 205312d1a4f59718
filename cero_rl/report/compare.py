"""Several runs side by side: arms told from their configurations, paired seeds, differences.

Runs whose settings differ in the seed alone are one arm. In: `Facts` of each run, the baseline's
first. Out: `Comparison`. Raises ConfigError for runs that are not comparable: another pool, other
held-out prompts, another budget, one seed twice in an arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cero_rl.errors import ConfigError
from cero_rl.report.facts import Facts
from cero_rl.report.paired import (
    CANNOT_TELL,
    Difference,
    difference,
    holm,
    speed_up_along,
)
from cero_rl.report.reader import Run, flat
from cero_rl.scheduler.posterior import Floats

# settings that say where a run writes and how it is watched, not what it is
_NOT_ITS_ARM = (
    "name",
    "output_dir",
    "seed",
    "checkpoint.",
    "logging.",
    "watchdog.",
    "profile.",
    "zero.",
)
_POOL = ("source", "split", "config_name", "limit", "prompt_column", "answer_column")
_HELD = (
    "heldout_source",
    "heldout_split",
    "heldout_config_name",
    "heldout_fraction",
    "heldout_limit",
)
Curve = tuple[Floats, Floats]  # rollouts, accuracy


@dataclass(frozen=True)
class Against:
    """An arm against the baseline, on the seeds that both have."""

    end: Difference  # of final held-out accuracy
    along: Difference | None  # of its mean along the run, where both were evaluated alike
    speed_up: tuple[float, float, float] | None
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Arms over paired seeds: differences with intervals, and the sentence they allow."""

    facts: Sequence[Facts]
    arms: Mapping[str, Mapping[int, Facts]]  # name (its first run's) -> seed -> run
    baseline: str
    against: Mapping[str, Against | None]  # None: no seed in common
    differing: Mapping[str, Sequence[str]]  # key -> value in each run

    @property
    def verdict(self) -> str:
        """In words; no winner from one seed."""
        said = [f"Baseline: {self.baseline}."]
        for name, found in self.against.items():
            if found is None:
                said.append(f"{name}: no seed in common with the baseline, nothing is paired.")
                continue
            end = found.end
            if end.pairs < 2:
                said.append(
                    f"{name}: {end.mean:+.4f} on one seed, which names no winner; run more seeds."
                )
                continue
            words = {"higher": "higher than", "lower": "lower than"}
            judged = words.get(end.verdict, f"{CANNOT_TELL} from")
            said.append(
                f"{name}: {judged} the baseline, {end.mean:+.4f} ({end.low:+.4f} .. "
                f"{end.high:+.4f}, 95 % over {end.pairs} paired seeds)."
            )
        if len(self.against) > 1:
            said.append(
                f"{len(self.against)} arms against one baseline: intervals are not corrected for "
                "that, the p values (Holm) are."
            )
        return " ".join(said)

    def as_json(self) -> dict[str, Any]:
        """Plain data, as `cero-rl compare --format json` prints it."""
        return {
            "baseline": self.baseline,
            "verdict": self.verdict,
            "arms": {
                name: {str(seed): facts.run.name for seed, facts in runs.items()}
                for name, runs in self.arms.items()
            },
            "against_baseline": {
                name: None if found is None else _against_json(found)
                for name, found in self.against.items()
            },
            "config_diff": {key: list(values) for key, values in self.differing.items()},
            "runs": [facts.summary for facts in self.facts],
        }


def compare(facts: Sequence[Facts]) -> Comparison:
    """Runs side by side, the baseline's first; runs that differ in the seed alone are one arm.
    Raises ConfigError for runs of another pool, other held-out prompts or another budget, and for a
    seed that stands twice in an arm."""
    runs = [f.run for f in facts]
    for run in runs[1:]:
        _refuse_unlike(runs[0], run)
    arms: dict[str, dict[int, Facts]] = {}
    name_of: dict[tuple[tuple[str, str], ...], str] = {}
    for each in facts:
        run = each.run
        settings = {k: v for k, v in flat(run.config).items() if not k.startswith(_NOT_ITS_ARM)}
        name = name_of.setdefault(tuple(sorted(settings.items())), run.name)
        seeds = arms.setdefault(name, {})
        if (twin := seeds.get(run.config.seed)) is not None:
            raise ConfigError(
                f"{run.path}: the same settings and seed as {twin.run.path}; name one of them, or "
                "run another seed"
            )
        seeds[run.config.seed] = each
    baseline = next(iter(arms))
    against = {name: _against(own, arms[baseline]) for name, own in arms.items()}
    del against[baseline]
    adjusted = holm({n: found.end.p for n, found in against.items() if found is not None})
    return Comparison(
        facts=facts,
        arms=arms,
        baseline=baseline,
        against={
            name: None
            if found is None
            else Against(found.end, found.along, found.speed_up, adjusted[name])
            for name, found in against.items()
        },
        differing=differing(runs),
    )


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Keys of the configuration whose values are not all the same."""
    settings = [flat(run.config) for run in runs]
    names = dict.fromkeys(key for each in settings for key in each)
    rows = {name: [each.get(name, "") for each in settings] for name in names}
    return {
        name: values
        for name, values in rows.items()
        if len(set(values)) > 1 and name not in ("name", "output_dir")
    }


def _refuse_unlike(first: Run, other: Run) -> None:
    words = f"{other.path}: not comparable with {first.path}"
    if first.keys and other.keys:
        if list(first.keys) != list(other.keys):
            raise ConfigError(f"{words}: another pool of prompts; compare runs of one pool")
    else:
        _refuse_other_data(first, other, _POOL, f"{words}: another pool", "compare runs of one")
    held = f"{words}: other held-out prompts"
    _refuse_other_data(first, other, _HELD, held, "judge both on the same")
    budgets = [run.config.budget.total_rollouts for run in (first, other)]
    if budgets[0] != budgets[1]:
        raise ConfigError(
            f"{words}: another budget (budget.total_rollouts {budgets[1]} against {budgets[0]}); "
            "compare runs of one budget"
        )
    for run in (first, other):
        if not run.finished:
            raise ConfigError(
                f"{run.path}: is not finished ({int(run.steps[-1]['step'])} steps so far), so its "
                "end cannot be compared; wait for it, or go on with --resume auto"
            )


def _refuse_other_data(
    first: Run, other: Run, names: Sequence[str], words: str, remedy: str
) -> None:
    one, two = first.config.data.model_dump(), other.config.data.model_dump()
    for name in names:
        if one[name] != two[name]:
            raise ConfigError(
                f"{words} (data.{name} {two[name]!r} against {one[name]!r}); {remedy}"
            )


def _against(own: Mapping[int, Facts], base: Mapping[int, Facts]) -> Against | None:
    seeds = [s for s in own if s in base and _final(own[s]) and _final(base[s])]
    if not seeds:
        return None
    pairs = [(own[s].accuracy, base[s].accuracy) for s in seeds]
    end = difference([a.value[-1] - b.value[-1] for a, b in pairs])
    along = None
    if all(np.array_equal(a.rollouts, b.rollouts) and a.value.size > 1 for a, b in pairs):
        along = difference([float(a.value[1:].mean() - b.value[1:].mean()) for a, b in pairs])
    curves = [
        {s: (arm[s].accuracy.rollouts, arm[s].accuracy.value) for s in seeds} for arm in (own, base)
    ]
    return Against(end, along, speed_up_along(curves[0], curves[1]), math.nan)


def _final(facts: Facts) -> bool:
    value = facts.accuracy.value
    return value.size > 0 and bool(np.isfinite(value).all())


def _against_json(found: Against) -> dict[str, Any]:
    def plain(one: Difference) -> dict[str, Any]:
        values = {
            "mean": one.mean,
            "low_95": one.low,
            "high_95": one.high,
            "bootstrap_low_95": one.bootstrap_low,
            "bootstrap_high_95": one.bootstrap_high,
            "p": one.p,
        }
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        return {"pairs": one.pairs, **finite, "verdict": one.verdict}

    speed = found.speed_up
    return {
        "end": plain(found.end),
        "along_the_run": None if found.along is None else plain(found.along),
        "speed_up": None
        if speed is None
        else [value if math.isfinite(value) else None for value in speed],
        "p_holm": found.p_holm if math.isfinite(found.p_holm) else None,
    }
