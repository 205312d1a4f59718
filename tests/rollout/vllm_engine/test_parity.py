"""Every way in which a sampler is known to run another policy without an error, put into the real
engine (`parity_driver.py`) and into the real server: the probe finds each, and names it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import drive
from server_box import ServerBox, make_engine, push

from cero_rl.commands.main import main
from cero_rl.models.load import load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("parity")
    drive("parity_driver.py", str(out), str(model))
    return json.loads((out / "cases.json").read_text())


@pytest.mark.covers("sampler of another policy")
@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("base_model", "base_model"),
        ("one_update_old", "previous_weights"),
        ("bfloat16_one_update_old", "other_checksum"),
        ("stale_head", "stale_head"),
        ("stale_prefix_cache", "stale_prefix_cache"),
        ("adapter_not_applied", "adapter_not_applied"),
        ("zero_filled", "zero_filled"),
        ("other_temperature", "other_temperature"),
        ("raw_logps", "raw_logps"),
        ("other_tokenizer", "other_tokenizer"),
        ("other_version", "other_version"),
    ],
)
def test_the_probe_names_what_raises_no_error(cases: dict[str, Any], case: str, code: str) -> None:
    report = cases[case]
    assert [finding["code"] for finding in report["findings"]] == [code]
    assert report["same"] is False
    seen_by_gap = code not in ("other_checksum", "other_version", "other_tokenizer")
    assert (float(report["gap"]) > report["bound"]) == seen_by_gap


@pytest.mark.parametrize(
    "case", ["healthy", "after_stale_prefix_cache", "adapter", "raw_as_wanted", "bfloat16"]
)
def test_what_runs_the_weights_passes(cases: dict[str, Any], case: str) -> None:
    report = cases[case]
    assert report["findings"] == []
    assert 0.0 < report["gap"] < report["bound"] / 2
    assert abs(report["sigmas"]) < 4.0
    assert report["tokenizer"] == "same"
    assert report["reports"] == (
        "raw" if case in ("adapter", "raw_as_wanted", "bfloat16") else "processed"
    )
    assert report["checksum"] == ("same" if case == "bfloat16" else "not told")


@pytest.mark.long
@pytest.mark.covers("server of another policy")
def test_the_command_asks_a_server(
    server: ServerBox, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["parity", "--model", str(model), "--url", server.url, "--key-file"]
    asked += [str(server.key_file), "--json"]
    engine, policy = make_engine(server), load_model(str(model), "float32", "sdpa")
    try:
        assert main(asked) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["checksum"], report["tokenizer"]) == ("same", "not told")
        assert report["weights"].startswith("v0-")
        with torch.no_grad():
            policy.model.norm.weight.mul_(1.01)
        push(engine, policy, 1)
        assert main([*asked, "--other", f"previous={model}", "--version", "v0"]) == 6
    finally:
        engine.close()
    report = json.loads(capsys.readouterr().out)
    codes = [finding["code"] for finding in report["findings"]]
    assert codes == ["other_weights", "other_version", "other_checksum"]
    assert math.isclose(report["gap"], report["others"]["previous"])
