"""One run that goes on with what may change: another learning rate, a moved start model, a longer
budget, another number of ranks at stage 0, and without the file that it was warm-started with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from launch import ROOT, launch, lines

from cero_rl.checkpoint.ownership import foreign_in_run

pytestmark = pytest.mark.slow
SETTINGS = ["zero.stage=0", "scheduler.capacity_rollouts=96"]


@pytest.mark.covers("resumed with a stated change", "another world size")
def test_a_run_goes_on_with_what_may_change(tmp_path: Path) -> None:
    start = shutil.copytree(ROOT / "recipes/assets/tiny_digits", tmp_path / "start")
    first = launch(
        tmp_path, "a", "--stop-at-step", "2", ranks=2, settings=[*SETTINGS, f"model.path={start}"]
    )
    assert first.returncode == 0, first.stdout + first.stderr
    moved = start.rename(tmp_path / "moved")
    new = [
        f"model.path={moved}",
        "optimizer.learning_rate=2e-4",
        "budget.total_rollouts=448",
        "scheduler.warm_start=gone.parquet",
        "learner.max_micro_batch_tokens=512",
        "rollout.max_batch_tokens=4096",
    ]
    done = launch(tmp_path, "a", "--resume", "auto", ranks=1, settings=[*SETTINGS, *new])
    assert done.returncode == 0, done.stdout + done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("changed since")]
    changes = {words.split()[0]: words for words in said.split(": ", 1)[1].split("; ")}
    assert changes["budget.total_rollouts"] == "budget.total_rollouts was 384, is 448"
    assert changes["optimizer.learning_rate"].endswith("is 0.0002")
    assert set(changes) == {name.partition("=")[0] for name in new}, said
    run = tmp_path / "a"
    ledger = lines(run / "ledger.jsonl")
    assert ledger[-1]["spent_rollouts"] == ledger[-1]["total_rollouts"] == 448
    assert [entry["step"] for entry in ledger] == list(range(1, len(ledger) + 1))
    assert (run / "export/model.safetensors").exists()
    assert foreign_in_run(run) is None, "all of it may be replaced by --overwrite"
    resolved = yaml.safe_load((run / "config.resolved.yaml").read_text())
    assert resolved["budget"]["total_rollouts"] == 448
    starts = [e for e in lines(run / "attempts.jsonl") if "start_step" in e]
    assert [("changes" in entry) for entry in starts] == [False, True]
    new.append("learner.clip_low=0.1")
    worse = launch(tmp_path, "a", "--resume", "auto", ranks=1, settings=[*SETTINGS, *new])
    assert "changed since" not in worse.stdout
    assert worse.returncode == 4
    assert "learner.clip_low was 0.2, is 0.1. Give the old value back" in worse.stderr
    assert json.loads((run / "latest.json").read_text())["step"] == ledger[-1]["step"]
