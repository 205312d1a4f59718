"""`cero-rl plan`: table, verdict, exit code, JSON, and what it says where it cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cero_rl.commands.main import main

ROOT = Path(__file__).resolve().parents[2]
GPU_RECIPES = ("gsm8k_qwen3_0_6b", "qwen2_5_7b", "qwen3_8b", "dsr1_qwen_1_5b")


def plan(recipe: str, *words: str) -> int:
    return main(["plan", "--config", str(ROOT / f"recipes/{recipe}.yaml"), *words])


@pytest.mark.parametrize("recipe", GPU_RECIPES)
def test_every_gpu_recipe_fits_where_its_head_says(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = 1 if recipe.startswith("gsm8k") else 8
    assert plan(recipe, "--gpus", str(ranks), "--gpu-memory", "80", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"]
    assert told["model"]["source"] == "published architecture, kept in this package"
    sizes = {phase["phase"]: phase["bytes"] for phase in told["phases"]}
    assert sizes[told["peak"]] == max(sizes.values())
    for phase in told["phases"]:
        assert phase["bytes"] == sum(item["bytes"] for item in phase["items"])


def test_what_does_not_fit_is_named_with_the_key_that_helps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan("qwen3_8b", "--gpus", "2", "--gpu-memory", "80") == 2
    said = capsys.readouterr().out
    assert "does not fit: build needs" in said
    assert "the key that helps most: --set " in said
    assert "as it is, it fits on 8 ranks" in said


def test_a_model_out_of_reach_is_one_line_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert plan("qwen3_8b", "--set", "model.path=nobody/nothing") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: model.path: no config.json could be read from 'nobody/nothing'")
    assert line.count("nobody/nothing") == 1
    assert "--shape FILE" in line
    shape = tmp_path / "config.json"
    shape.write_text(json.dumps({"model_type": "qwen3", "num_hidden_layers": "many"}))
    assert plan("qwen3_8b", "--shape", str(shape)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {shape}: is no model's configuration")


def test_a_shape_of_ones_own_on_cpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = tmp_path / "config.json"
    shape.write_text((ROOT / "recipes/assets/tiny_digits/config.json").read_text())
    words = ["--cpu", "--gpus", "2", "--gpu-memory", "4", "--shape", str(shape)]
    assert plan("digits_cpu", *words) == 0
    said = capsys.readouterr().out
    assert f"790,528 parameters ({shape})" in said
    assert "2 x CPU process of 4.0 GiB usable" in said
    assert "fits: peak" in said


@pytest.mark.parametrize(("flag", "value"), [("--gpus", "0"), ("--gpu-memory", "-1")])
def test_sizes_below_zero_are_refused(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("qwen3_8b", flag, value) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag} {value}".split(".")[0])
