"""`cero-rl diagnose` on the shipped tiny model: page, JSON, runs, and pools that say little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from step_cases import MODEL, ROOT, SMALL

from cero_rl.commands.main import main
from cero_rl.config import dump_config, load_config

RECIPE = str(ROOT / "recipes/digits_cpu.yaml")
POOL = ROOT / "recipes/assets/digits_unfiltered.jsonl"


def diagnose(target: Path | str, *arguments: str, settings: tuple[str, ...] = ()) -> int:
    words = ["diagnose", str(target), *arguments]
    for setting in settings:
        words += ["--set", setting]
    return main(words)


def found_in(
    capsys: pytest.CaptureFixture[str], target: Path | str, *arguments: str, **more: Any
) -> dict[str, Any]:
    assert diagnose(target, "--json", *arguments, **more) == 0
    return json.loads(capsys.readouterr().out)


def small(*more: str) -> tuple[str, ...]:
    return (*SMALL, "data.heldout_limit=24", *more)


def test_page_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    arguments = ("--by", "family", "--by", "kind", "--prompts", "48", "--out", str(path))
    assert diagnose(RECIPE, *arguments, settings=small("data.limit=200")) == 0
    out, err = capsys.readouterr()
    assert "training pool: 48 of 200 prompts, 768 rollouts" in out
    assert "gradient noise scale: " in out
    assert "the run's step: 32 rollouts = 4 groups; x = batch / noise scale = " in out
    assert "value of a group by family" in out
    assert "held-out: 24 of 24 prompts sampled" in err
    assert "Loading weights" not in err
    found = json.loads(path.read_text())
    pool = found["pool"]
    assert pool["rollouts"] == 768
    assert sum(pool["histogram"].values()) == pytest.approx(1.0)
    assert 0 < pool["live"]["value"] < 1
    assert set(found["tables"]) == {"family", "kind", "pass rate"}
    kinds = {row["name"]: row for row in found["tables"]["kind"]}
    assert set(kinds) == {"impossible", "learnable", "luck", "solved"}
    assert kinds["impossible"]["live"] == 0
    assert sum(row["prompts"] for row in kinds.values()) == 48
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1.0)
    live = sum(row["share"] * row["live"] for row in kinds.values())
    assert live == pytest.approx(pool["live"]["value"])
    if found["mean_value"]["value"] > 2 * found["mean_value"]["error"]:
        total = sum(row["share"] * row["value"]["value"] for row in kinds.values())
        assert total == pytest.approx(1.0)
        assert set(found["gains"]) >= {"p(1-p)", "sqrt p(1-p)", "band .1 to .9"}


def test_twice_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--prompts", "12", "--samples", "2")
    first = found_in(capsys, RECIPE, *arguments, settings=small())
    assert found_in(capsys, RECIPE, *arguments, settings=small()) == first
    assert first["noise"] is None or first["noise"]["group_rollouts"] == 2


def test_without_held_out_prompts_it_says_what_it_cannot_tell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = small("data.heldout_source=null", "data.heldout_fraction=0")
    found = found_in(capsys, RECIPE, "--prompts", "40", "--by", "family", settings=settings)
    assert found["heldout"] is found["mean_value"] is found["cosine"] is None
    assert found["gains"] == {}
    assert found["noise"] is not None
    assert all(row["value"] is None for row in found["tables"]["family"])
    assert "no held-out prompts" in found["notes"][0]


def test_groups_of_one_and_a_small_pool(capsys: pytest.CaptureFixture[str]) -> None:
    found = found_in(
        capsys, RECIPE, "--prompts", "90", "--samples", "1", settings=small("data.limit=20")
    )
    assert (found["pool"]["prompts"], found["pool"]["rollouts"]) == (20, 100)  # 1 + 4
    assert found["noise"] is None
    assert found["pool"]["live"]["value"] == 0
    assert found["notes"][0] == "the pool holds 20 prompts, all of them were taken"
    assert any("no group of 1 has a gradient" in note for note in found["notes"])


def test_with_a_critic_groups_of_one_teach(capsys: pytest.CaptureFixture[str]) -> None:
    settings = small(
        "data.limit=24",
        "learner.baseline=posterior",
        "scheduler.rollouts_per_unit=1",
        "scheduler.max_units_per_prompt=1",
        "scheduler.rounds=8",
        "budget.total_rollouts=160",
    )
    found = found_in(capsys, RECIPE, settings=settings)
    assert found["pool"]["live"]["value"] == 0
    assert found["pool"]["taught"]["value"] == 1
    assert found["noise"]["group_rollouts"] == 1
    assert any("the critic knows the pool and no prompt yet" in n for n in found["notes"])


def test_a_pool_of_one_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    for limit in ("1", "2"):
        settings = small(
            f"data.limit={limit}",
            "scheduler.rounds=1",
            "budget.total_rollouts=8",
        )
        found = found_in(capsys, RECIPE, settings=settings)
        assert found["noise"] is None
        assert found["pool"]["prompts"] == int(limit)


def test_a_pool_in_which_nothing_lives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys that no answer meets: all dead, and so are the held-out prompts."""
    rows = [json.loads(line) for line in POOL.read_text().splitlines()[:60]]
    data = tmp_path / "dead.jsonl"
    data.write_text("".join(json.dumps({**row, "answer": "x"}) + "\n" for row in rows))
    settings = small(f"data.source={data}", "data.heldout_source=null")
    arguments = ("--prompts", "30", "--samples", "4", "--by", "family")
    assert diagnose(RECIPE, *arguments, settings=settings) == 0
    out = capsys.readouterr().out
    assert "live groups 0.000 +- 0.000, pass rate 0.000" in out
    assert "note: no held-out prompt is passed and failed" in out
    assert "note: no group of 4 has a gradient" in out
    assert "noise scale:" not in out
    found = found_in(capsys, RECIPE, *arguments, settings=settings)
    assert found["gains"] == {}
    assert found["noise"] is None


def test_missing_rewards_are_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "judge.py"
    plugin.write_text(
        "def judge(data_source, solution_str, ground_truth, extra_info):\n"
        "    return None if solution_str[:1] == '0' else float(solution_str == ground_truth)\n"
        "def never(data_source, solution_str, ground_truth, extra_info):\n"
        "    raise ValueError('no verdict')\n"
    )
    settings = small(f"reward.function={plugin}:judge", "reward.workers=1", "data.limit=24")
    found = found_in(capsys, RECIPE, "--prompts", "24", settings=settings)
    pool = found["pool"]
    assert 0 < pool["missing"] < pool["rollouts"]
    said = f"{pool['missing']} of {pool['rollouts']} training rollouts have no reward"
    assert any(note.startswith(said) for note in found["notes"])
    settings = small(f"reward.function={plugin}:never", "reward.workers=1", "data.limit=8")
    assert diagnose(RECIPE, "--prompts", "8", settings=settings) == 5
    assert (
        "none of 128 rollouts has a reward, the first: ValueError: no verdict"
        in capsys.readouterr().err
    )


def made_run(tmp_path: Path, *settings: str) -> Path:
    """A run's directory as far as diagnose looks: configuration and export."""
    run = tmp_path / "run"
    shutil.copytree(MODEL, run / "export")
    config = load_config(RECIPE, [*small("data.limit=60"), *settings])
    (run / "config.resolved.yaml").write_text(dump_config(config))
    return run


def test_a_run_that_learnt_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The export is the start model: with common draws both gains are 0 to the last bit."""
    run = made_run(tmp_path)
    found = found_in(capsys, run, "--prompts", "40", "--samples", "4", "--by", "family")
    assert found["model"] == str(run / "export")
    rows = {row["name"]: row["transfer"] for row in found["transfer"]}
    assert "all" in rows
    for row in rows.values():
        assert row["train"]["value"] == row["heldout"]["value"] == 0
        assert row["ratio"]["value"] is None
        assert 0 < row["covered"] <= 1
    assert diagnose(run, "--prompts", "12", "--samples", "2") == 0
    assert "transfer: gain in pass rate since the start" in capsys.readouterr().out


def test_a_run_without_its_start_model_has_no_transfer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path, "model.path=models/that/went")
    found = found_in(capsys, run, "--prompts", "12", "--samples", "2")
    assert found["transfer"] == []
    assert any("start model" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((RECIPE, "--prompts", "0"), 2, "--prompts 0: wanted an integer >= 1"),
        ((RECIPE, "--samples", "-1"), 2, "--samples -1: wanted"),
        ((str(ROOT / "docs"),), 2, "has no config.resolved.yaml"),
        ((str(ROOT / "no.yaml"),), 2, "no.yaml"),
    ],
)
def test_bad_arguments(
    arguments: tuple[str, ...], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose(*arguments, settings=small()) == status
    assert words in capsys.readouterr().err


def test_a_column_that_the_data_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(RECIPE, "--by", "familie", settings=small()) == 3
    err = capsys.readouterr().err
    assert "--by familie: no such column in the training data; it has answer, family, kind" in err


def test_a_run_with_nothing_to_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path)
    shutil.rmtree(run / "export")
    assert diagnose(run) == 4
    assert "neither export/ nor a committed checkpoint" in capsys.readouterr().err
