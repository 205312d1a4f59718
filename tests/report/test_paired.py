"""Paired seeds: intervals beside scipy's, what may be said, arms told from configurations, runs
that are not comparable."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run
from scipy import stats

from cero_rl.commands.main import main
from cero_rl.report.compare import compare
from cero_rl.report.facts import facts_of
from cero_rl.report.page import page_of_comparison
from cero_rl.report.paired import (
    difference,
    holm,
    reach,
    speed_up_along,
    t_probability,
    t_quantile,
)
from cero_rl.report.reader import read_run


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 11, 30, 101])
def test_students_t_is_scipys(freedom: int):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    for t in (0.0, 0.3, 1.0, 2.5, 9.0):
        wanted = 1 - 2 * stats.t.sf(t, freedom)
        assert t_probability(t, freedom) == pytest.approx(wanted, abs=1e-12)
    assert t_probability(math.inf, freedom) == 1.0


def test_a_difference_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.4, 0.1, 8), rng.normal(0.35, 0.1, 8)
    found, wanted = difference(a - b), stats.ttest_rel(a, b)
    low, high = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(wanted.pvalue)
    boot = stats.bootstrap(
        (a - b,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.bootstrap_low, found.bootstrap_high) == pytest.approx(tuple(boot), abs=0.006)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.02, 0.03, 0.025], "higher"),
        ([-0.02, -0.03, -0.025], "lower"),
        ([0.02, -0.03, 0.025], "cannot tell"),
        ([0.2], "one seed: no interval, no winner"),
        ([0.1, 0.1], "higher"),
    ],
)
def test_what_can_be_said(values: list[float], verdict: str):
    assert difference(values).verdict == verdict


def test_no_pair_is_no_difference():
    with pytest.raises(ValueError, match="share no seed"):
        difference([])


def test_holm_adjusts_step_by_step():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert found["a"] == pytest.approx(0.03)
    assert found["b"] == found["c"] == pytest.approx(0.06)
    assert math.isnan(found["d"])


def line(slope: float) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(0, 1000, 11)
    return x, 0.3 + slope * x


def test_a_speed_up_along_curves_is_that_of_their_slopes():
    slow = {s: line(1e-4) for s in range(5)}
    fast = {s: line(2.5e-4) for s in range(5)}
    assert reach([line(1e-4)], 0.35) == pytest.approx(500)
    assert reach([line(1e-4)], 0.5) == math.inf
    assert speed_up_along(fast, slow) == pytest.approx((2.5, 2.5, 2.5))
    assert speed_up_along(slow, fast) is None, "it does not get there"
    assert speed_up_along({0: line(1e-4)}, slow) is None, "one seed"


# --- runs


UNIFORM = ("scheduler.name=uniform",)


def pairs(place: Path, seeds: int, gains: tuple[float, ...] = (0.22, 0.25, 0.21)) -> list[Path]:
    """Arms uniform and cero of as many seeds; a seed's runs share what is common to both."""
    runs = []
    for seed in range(seeds):
        also = f"seed={seed}"
        runs.append(make_run(place, f"uniform_{seed}", also, *UNIFORM, gain=0.1 + 0.02 * seed))
        gain = gains[seed] - 0.12 + 0.02 * seed
        runs.append(make_run(place, f"cero_{seed}", also, gain=gain))
    return runs


def test_arms_are_told_by_settings_and_pairs_by_seeds(tmp_path: Path):
    found = compare([facts_of(read_run(run)) for run in pairs(tmp_path, 3)])
    assert {name: sorted(seeds) for name, seeds in found.arms.items()} == {
        "uniform_0": [0, 1, 2],
        "cero_0": [0, 1, 2],
    }
    assert found.baseline == "uniform_0"
    against = found.against["cero_0"]
    assert against is not None
    wanted = np.array([0.22, 0.25, 0.21]) - 0.22
    assert against.end.mean == pytest.approx(wanted.mean())
    assert against.end.verdict == "cannot tell"
    assert "cero_0: cannot tell from the baseline, +0.0067" in found.verdict
    assert list(found.differing) == ["seed", "scheduler.name"]
    page = page_of_comparison(found)
    for words in ("cannot tell", "scheduler.name", "&#34;uniform&#34;", "uniform_0, cero_0"):
        assert words in page


def test_one_seed_names_no_winner(tmp_path: Path, capsys):
    runs = [str(run) for run in pairs(tmp_path, 1, gains=(0.9,))]
    assert main(["compare", *runs]) == 0
    said = capsys.readouterr().out
    assert "which names no winner; run more seeds" in said
    assert "one seed: no interval, no winner" in said
    assert "higher" not in said
    assert main(["compare", *runs, "--format", "json"]) == 0
    end = json.loads(capsys.readouterr().out)["against_baseline"]["cero_0"]["end"]
    assert (end["pairs"], end["low_95"]) == (1, None)


@pytest.mark.covers("runs that are not comparable")
def test_runs_that_are_not_comparable_are_refused(tmp_path: Path, capsys):
    first = make_run(tmp_path, "first")
    others = {
        "another pool of prompts": make_run(tmp_path, "pool", "data.limit=41"),
        "another budget (budget.total_rollouts 192 against 384)": make_run(
            tmp_path, "budget", "budget.total_rollouts=192"
        ),
        "other held-out prompts (data.heldout_limit 16 against None)": make_run(
            tmp_path, "held", "data.heldout_limit=16"
        ),
        "the same settings and seed as": make_run(tmp_path, "again"),
        "is not finished (12 steps so far)": make_run(tmp_path, "cut", *UNIFORM, finished=False),
    }
    for said, other in others.items():
        for verb in ("compare", "report"):
            before = sorted(tmp_path.rglob("*"))
            assert main([verb, str(first), str(other)]) == 2
            err = capsys.readouterr().err
            assert said in err
            assert err.count("\n") == 1
            assert sorted(tmp_path.rglob("*")) == before
    assert main(["compare", str(first)]) == 2
    assert "give two or more, or use cero-rl report" in capsys.readouterr().err
