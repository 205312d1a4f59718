"""tools/gpu_check.py without a GPU: the refusal in one line, and what becomes of a check that
passes, fails, hangs or cannot run."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import bench_timing  # noqa: E402
import gpu_check  # noqa: E402
from gpu_check import Check, Result  # noqa: E402


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path / "build" / "gpu_check")
    monkeypatch.setattr(gpu_check, "ROWS", tmp_path / "rows.jsonl")


def run(code: str, *, limit: float = 60.0, left: float = 100.0, **rest) -> Result:
    return gpu_check.run(
        Check("a check, one", [sys.executable, "-c", code], limit, **rest), time.monotonic() + left
    )


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have a GPU")
@pytest.mark.parametrize("flags", [[], ["--look"]])
def test_without_a_gpu_it_stops_with_one_line(flags):
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu-check: no NVIDIA GPU here: nvidia-smi is not on the PATH; with one")
    assert line.endswith(", ".join(check.name for check in gpu_check.checks()))


def test_a_driver_without_a_gpu_is_no_gpu(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for text, found in (
        ("echo No devices were found; exit 6", False),
        ("echo 'GPU 0: a card'", True),
    ):
        tool.write_text(f"#!/bin/sh\n{text}\n")
        tool.chmod(0o755)
        assert (gpu_check.no_gpu() == "") == found, text


def test_a_check_passes_with_the_last_line_of_its_output():
    result = run("print('first'); print('12 passed')")
    assert (result.check, result.status, result.detail) == ("a check, one", "passed", "12 passed")
    assert (gpu_check.LOGS / "a_check_one.log").read_text() == "first\n12 passed\n"


def test_a_check_fails_with_its_status_and_its_log():
    result = run("import sys; print('what went wrong'); sys.exit(9)")
    assert result.status == "failed"
    assert result.detail == "exit status 9; see build/gpu_check/a_check_one.log: what went wrong"


def test_a_check_that_hangs_is_ended_with_its_children(tmp_path):
    code = (
        "import subprocess; p = subprocess.Popen(['sleep', '60']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()"
    )
    result = run(code, limit=5.0)
    assert result.status == "failed"
    assert result.detail.startswith("not done after 5 s")
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_what_cannot_run_is_skipped_and_said():
    assert run("print()", missing="python cannot import rich") == Result(
        "a check, one", "skipped", 0.0, "python cannot import rich"
    )
    assert run("print()", left=1.0).detail == "no time was left"
    assert gpu_check.lacking("json", "no_such_module") == "python cannot import no_such_module"


def test_a_check_has_our_tree_first_and_its_own_environment():
    code = (
        "import os; print(os.environ['PYTHONPATH'].split(os.pathsep)[0], os.environ['CERO_CUDA'])"
    )
    assert run(code, environment={"CERO_CUDA": "1"}).detail == f"{gpu_check.ROOT} 1"


@pytest.mark.parametrize(("spent", "status"), [(256, "passed"), (255, "failed")])
def test_a_smoke_passes_when_its_ledger_closes(spent, status):
    metrics = gpu_check.LOGS / "smoke_bfloat16" / "bfloat16" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    last = {"budget/spent_rollouts": spent, "budget/total_rollouts": 256}
    metrics.write_text(json.dumps({"step": 1}) + "\n" + json.dumps(last) + "\n")
    result = gpu_check.closed_ledger(
        Result("ZeRO-3 smoke, bfloat16", "passed", 1.0, ""), "bfloat16"
    )
    assert (result.status, result.detail) == (status, f"spent {spent} of 256 rollouts")


def test_a_smoke_without_metrics_has_failed():
    assert gpu_check.closed_ledger(Result("smoke", "passed", 1.0, ""), "float32").status == "failed"
    assert (
        gpu_check.closed_ledger(Result("smoke", "skipped", 0.0, "no deepspeed"), "float32").status
        == "skipped"
    )


def test_the_exit_status_says_whether_anything_failed(capsys):
    passed, failed, skipped = (
        Result("x", status, 1.0, "") for status in ("passed", "failed", "skipped")
    )
    assert gpu_check.report([passed, skipped]) == 0
    assert gpu_check.report([passed, failed]) == 1
    assert gpu_check.report([skipped]) == 1  # nothing was checked
    assert "gpu-check: 1 passed, 0 failed, 1 skipped" in capsys.readouterr().out


def test_the_checks_are_the_promised_ones_and_could_start():
    found = list(gpu_check.checks())
    names = [check.name for check in found]
    assert names == [
        "build",
        "tests",
        "shared prefix",
        "learner",
        "ZeRO-3 smoke, bfloat16",
        "ZeRO-3 smoke, float32",
        "memcheck",
        "racecheck",
        "benchmark",
    ]
    scripts = {
        part
        for check in found
        for part in check.command
        if part.endswith((".py", ".yaml")) and "/" in part
    }
    assert scripts
    assert all((ROOT / script).exists() for script in scripts), scripts


def test_a_row_names_the_machine():
    row = bench_timing.machine()
    assert row.keys() >= {"cpu", "cores", "threads", "torch", "commit", "date", "load"}
    assert all(row[key] for key in ("cpu", "torch", "commit"))
