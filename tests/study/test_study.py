"""A study: which runs it consists of, that it goes on where it stopped, and its statistics on runs
whose truth is known."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cero_rl.commands.main import main
from cero_rl.report.paired import interval, needed
from cero_rl.study import plan, tables

ROOT = Path(__file__).resolve().parents[2]

TEXT = """
recipe: recipes/digits_cpu.yaml
baseline: uniform
results: {results}
seeds: [0, 1]
budgets: [64, 128]
settings: {{round: 32, warmup: 0.5, data.limit: 40, data.heldout_limit: 16,
  evaluation.samples_per_prompt: 2, evaluation.pass_k: [1, 2],
  evaluation.final_samples_per_prompt: 2}}
pools: {{digits: {{data.source: recipes/assets/digits_unfiltered.jsonl}}}}
arms:
  uniform: {{scheduler.name: uniform}}
  critic: {{scheduler.name: uniform, learner.baseline: posterior}}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)  # paths of a study are relative to where it is started
    path = tmp_path / "small.yaml"
    path.write_text(TEXT.format(results=tmp_path / "rows.jsonl"))
    return path


def test_a_seed_is_finished_before_the_next(file: Path):
    jobs = list(plan.jobs_of(plan.read_study(file), plan.Chosen()))
    assert [(j.seed, j.budget, j.arm) for j in jobs[:5]] == [
        (0, 64, "uniform"),
        (0, 64, "critic"),
        (0, 128, "uniform"),
        (0, 128, "critic"),
        (1, 64, "uniform"),
    ]
    assert len({j.digest for j in jobs}) == 2, "the settings of an arm, whatever the seed"
    settings = plan.settings_of(jobs[3])
    assert settings["scheduler.rounds"] == 4
    assert settings["budget.total_rollouts"] == 128
    assert settings["learner.baseline"] == "posterior"
    assert settings["optimizer.warmup_steps"] == 2
    assert settings["evaluation.every_steps"] == 1
    assert not {"round", "warmup"} & settings.keys()
    two = plan.Job("digits", "uniform", 0, 1024, {**jobs[3].settings, "points": 2})
    assert plan.settings_of(two)["evaluation.every_steps"] == 16
    assert "points" not in plan.settings_of(two)


def test_a_pool_may_bring_its_recipe_and_names_its_file(file: Path, capsys):
    own = "data.source: recipes/assets/easy_sums.jsonl, recipe: recipes/none.yaml, sha256: {}"
    data = (ROOT / "recipes/assets/easy_sums.jsonl").read_bytes()
    right, wrong = hashlib.sha256(data).hexdigest(), "f" * 64
    pool = "pools: {digits: {data.source: recipes/assets/digits_unfiltered.jsonl}"
    file.write_text(file.read_text().replace(pool, f"{pool}, sums: {{{own.format(right)}}}"))
    given = ["study", str(file), "--seeds", "0", "--budgets", "64", "--jobs", "1"]
    given += ["--arms", "uniform", "--pools", "sums", "--work-dir", str(file.parent / "work")]
    assert main(given) == 1, "the recipe is the pool's: there is none of that name"
    assert "recipes/none.yaml" in capsys.readouterr().err
    (job,) = plan.jobs_of(plan.read_study(file), plan.Chosen([0], [64], ["sums"], ["uniform"]))
    assert not {"recipe", "sha256"} & plan.settings_of(job).keys()
    file.write_text(file.read_text().replace(right, wrong))
    assert main(given) == 2
    assert f"is {right}, wanted {wrong}" in capsys.readouterr().err
    file.write_text(file.read_text().replace("easy_sums.jsonl", "none.jsonl"))
    assert main(given) == 2
    assert "pool sums: recipes/assets/none.jsonl is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: uniform", "baseline: nobody", "baseline 'nobody' is none of its arms"),
        ("baseline: uniform", "base: uniform", "odd ones: ['base', 'baseline']"),
        ("arms:", "arms: [", "while parsing"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds: one stands twice in [0, 0]"),
        ("seeds: [0, 1]", "seeds: 3", "seeds: got 3, wanted a list of integers"),
        ("settings: {", "settings: 3 # {", "settings: wanted a mapping of settings"),
    ],
)
@pytest.mark.covers("study file that is none")
def test_a_file_that_is_no_study_is_refused(file: Path, old: str, new: str, message: str, capsys):
    text = file.read_text().replace(old, new)
    if new.startswith("settings: 3"):  # what it held goes as well
        text = "\n".join(line for line in text.splitlines() if not line.startswith("  eval"))
    file.write_text(text)
    assert main(["study", str(file)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(file.parent.glob("rows*"))


@pytest.mark.covers("study file that is none")
@pytest.mark.parametrize("more", [[], ["--tables"]])
def test_an_arm_that_the_study_has_not_is_named(file: Path, more: list[str], capsys):
    assert main(["study", str(file), *more, "--arms", "nobody"]) == 2
    assert "--arms nobody: the study has uniform, critic" in capsys.readouterr().err
    assert main(["study", str(file), "--tables"]) == 2
    assert "holds no results of what was asked for" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_study_that_is_stopped_leaves_no_run_behind(file: Path, tmp_path: Path, how: int):
    words = ["study", str(file), "--jobs", "1", "--budgets", "64"]
    wait = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    wait += "from cero_rl.commands.main import main; sys.exit(main(sys.argv[1:]))"
    work = tmp_path / "work"
    started = subprocess.Popen(
        [sys.executable, "-c", wait, *words, "--work-dir", str(work)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    mine = f"output_dir={work}"

    def runs() -> list[int]:
        found = subprocess.run(["pgrep", "-f", mine], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split() if int(pid) != started.pid]

    until(lambda: any((work / "digits-uniform-0-64").glob("config.resolved.yaml")))
    if how == signal.SIGINT:  # a terminal tells the whole group
        os.killpg(started.pid, how)
    else:
        started.kill()
    _, said = started.communicate(timeout=60)
    until(lambda: not runs())
    if how == signal.SIGINT:
        assert started.returncode == 130
        assert said.splitlines()[-1] == "stopped with 4 runs to go; the same command goes on"
        assert "Traceback" not in said
    assert not (tmp_path / "rows.jsonl").exists()


def until(done, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_a_study_runs_and_goes_on_where_it_stopped(file: Path, tmp_path: Path, capsys):
    work = ["--seeds", "0", "--budgets", "64", "--work-dir", str(tmp_path / "work")]
    assert main(["study", str(file), "--arms", "uniform", *work]) == 0
    with (tmp_path / "rows.jsonl").open("a") as results:
        results.write('{"pool": "digits", "ar')  # a kill's half a line is no result
    assert main(["study", str(file), *work]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 1 of them in rows.jsonl" in said
    assert "one seed: no interval, no winner; run more seeds." in said
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(r["arm"], r["budget"], r["steps"]) for r in rows] == [
        ("uniform", 64, 2),
        ("critic", 64, 2),
    ]
    for row in rows:
        assert row["rollouts"][0] == 0
        assert row["rollouts"][-1] == 64
        assert sum(row["spending"].values()) == pytest.approx(1.0, abs=1e-3)
        assert row["pass_at"].keys() == {"pass@1", "pass@2"}
    assert rows[0]["accuracy"][0] == rows[1]["accuracy"][0], "the same draws of the same model"


# --- statistics


def made(arm: str, gain: float, seeds: int = 12, budgets: tuple[int, ...] = (250, 500, 1000)):
    """Runs that end at .3 + .05 ln(budget) + gain, plus noise that a seed's arms share."""
    rng = np.random.default_rng(5)
    common, own = (
        rng.normal(0, 0.02, seeds),
        np.random.default_rng(len(arm)).normal(0, 0.002, seeds),
    )
    return [
        {
            "pool": "p",
            "arm": arm,
            "seed": seed,
            "budget": budget,
            "accuracy": [0.1, 0.3 + 0.05 * np.log(budget) + gain + common[seed] + own[seed]],
        }
        for seed in range(seeds)
        for budget in budgets
    ]


def test_a_speed_up_is_that_of_the_curves():
    rows = made("uniform", 0.0) + made("fast", 0.05 * np.log(1.6))
    runs = tables.by_arm(rows, "p")
    found = tables.speed_up(runs, "fast", "uniform")
    assert found is not None
    assert found.ratio == pytest.approx(1.6, abs=0.08)
    assert found.low < 1.6 < found.high
    assert found.high - found.low < 0.3, "seeds are paired: what they share is no error"
    assert str(tables.speed_up(runs, "uniform", "uniform")) == "1.00 (1.00 .. 1.00)"


def test_what_is_never_reached_is_no_finite_budget():
    budgets = np.array([100.0, 200.0])
    assert needed(budgets, np.array([0.3, 0.4]), 0.35) == pytest.approx(100 * 2**0.5)
    assert needed(budgets, np.array([0.3, 0.4]), 0.45) == pytest.approx(200 * 2**0.5)
    assert needed(budgets, np.array([0.3, 0.4]), 0.6) == float("inf")
    assert needed(budgets, np.array([0.3, 0.3]), 0.31) == float("inf")
    assert needed(budgets, np.array([0.3, 0.4]), 0.25) == pytest.approx(100 * 0.5**0.5)
    assert needed(budgets, np.array([0.3, 0.4]), 0.0) == pytest.approx(50.0)


def test_an_interval_is_that_of_students_t():
    assert interval(np.array([0.01, 0.03, 0.02])) == "+0.0200 +- 0.0248"
    assert interval(np.array([0.01])) == "+0.0100 (1 seed)"


def test_one_seed_and_one_budget_have_no_speed_up():
    for rows in (made("uniform", 0, seeds=2), made("uniform", 0, budgets=(1000,))):
        runs = tables.by_arm(rows, "p")
        assert tables.speed_up(runs, "uniform", "uniform") is None


def test_the_tables_of_the_committed_study_name_what_seeds_allow(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    asked = ["study", "docs/studies/frontier.yaml", "--tables", "--arms", "uniform", "critic"]
    assert main([*asked, "thompson", "--budgets", "51200"]) == 0
    said = capsys.readouterr().out
    cells = [line.strip("| ").split(" | ") for line in said.splitlines()]
    rows = {cell[0]: cell for cell in cells}
    assert rows["critic"][5] == "+0.0379 +- 0.0047"
    assert rows["critic"][4] == "higher"
    assert rows["thompson"][4] == "cannot tell", "two seeds"
    assert "2 arms against one baseline: intervals are not corrected for that" in said
    page = tmp_path / "study.html"
    assert main([*asked, "--format", "html", "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure") == 3
    assert "+0.0379 +- 0.0047" in text
