"""tools/gpu_session.py: every measurement can be started, and what a run leaves becomes a row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_session  # noqa: E402
from gpu_session import PARTS, REAL, TRIAL, Case, Sizes  # noqa: E402

from cero_rl.config import load_config  # noqa: E402


@pytest.mark.parametrize("sizes", [REAL, TRIAL], ids=["real", "trial"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_setting_is_one_of_a_valid_configuration(sizes: Sizes, dtype: str) -> None:
    cases = [case for part in PARTS.values() for case in part(sizes, dtype)]
    assert len({case.name for case in cases}) == len(cases) >= 9
    for case in cases:
        if case.recipe:
            config = load_config(ROOT / f"recipes/{case.recipe}.yaml", list(case.settings))
            assert config.model.dtype == dtype or case.name.startswith("quickstart")


def test_shapes_of_published_and_of_own_models() -> None:
    assert gpu_session.shape_of("Qwen/Qwen3-8B")["hidden_size"] == 4096
    own = gpu_session.shape_of("100m")
    assert (own["num_attention_heads"], own["vocab_size"]) == (12, 151936)


def test_a_run_becomes_medians_of_its_steps_and_the_most_of_its_memory(tmp_path: Path) -> None:
    case = Case("a_run", recipe="quickstart_cpu")
    lines = [{"step": 0, "eval/avg@1": 0.25}]
    for step, seconds, gib in ((1, 9.0, 5.0), (2, 2.0, 1.0), (3, 4.0, 3.0), (4, 3.0, 2.0)):
        lines.append({"step": step, "step_time": seconds, "perf/memory_gib/learner": gib})
    lines.append({"step": 4, "eval/avg@1": 0.5})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    row = gpu_session.of_run(case, tmp_path)
    assert row["steps"] == 3  # the first warms up
    assert row["median"] == {"step_time": 3.0}
    assert row["memory_gib"] == {"learner": 3.0}
    assert row["heldout_accuracy"] == [0.25, 0.5]
    assert row["told_gib"]["learner"] > 0


def test_a_case_that_fails_is_a_row_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "WORK", tmp_path)
    row = gpu_session.measure(Case("wrong", ("model.dtipe=float32",), "quickstart_cpu"))
    assert row["status"] == "exit status 2"
    assert "model.dtipe" in row["said"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    line = [sys.executable, str(ROOT / "tools/gpu_session.py"), "train"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "gpu_session: no GPU here; --trial proves the session on a CPU\n"
