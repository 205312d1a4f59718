"""What needs a GPU and no network, in one command of at most 9 minutes.

Build, tests, ZeRO-3 smokes, sanitizers, benchmark:

    make gpu-check                  in the project's virtual environment
    make gpu-check PY=python3       with a python that has torch (no network is needed; what it
                                    lacks is skipped and said)

One JSON line a check goes to docs/bench/gpu_check.jsonl, the benchmark's rows to
docs/bench/advantage_cuda.jsonl; logs are in build/gpu_check/. Ends with 1 if a check failed, and
at once if there is no GPU. A skipped check is not a passed one: it is listed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "gpu_check"
ROWS = ROOT / "docs" / "bench" / "gpu_check.jsonl"
LIMIT_SECONDS = 540.0  # of all checks together


@dataclass(frozen=True)
class Check:
    name: str
    command: list[str]
    limit_seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""  # why it cannot run here; then it is skipped


@dataclass(frozen=True)
class Result:
    check: str
    status: str  # passed | failed | skipped
    seconds: float
    detail: str


def no_gpu() -> str:
    """Empty, or the reason in one line. Needs no torch: it runs before anything is installed."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "no NVIDIA GPU here: nvidia-smi is not on the PATH"
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=60)
    if listed.returncode != 0 or "GPU" not in listed.stdout:
        return (
            "no NVIDIA GPU here: nvidia-smi -L says "
            f"{(listed.stdout + listed.stderr).strip()[:120]!r}"
        )
    return ""


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def lacking(*modules: str) -> str:
    absent = [module for module in modules if not has(module)]
    return f"python cannot import {', '.join(absent)}" if absent else ""


def find_sanitizer() -> str | None:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def smoke(dtype: str) -> Check:
    """Four rounds of the digit strings on one GPU under ZeRO-3; its ledger must close."""
    runs = LOGS / f"smoke_{dtype}"
    settings = [
        f"name={dtype}",
        f"output_dir={runs}",
        f"model.dtype={dtype}",
        "scheduler.rounds=4",
        "budget.total_rollouts=256",
        "optimizer.warmup_steps=1",
        "data.heldout_limit=64",
        "evaluation.final_samples_per_prompt=1",
        "evaluation.pass_k=[1]",
        "checkpoint.every_steps=2",
    ]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # as the script `deepspeed`, which need not be on the PATH
    launcher = "from deepspeed.launcher.runner import main; main()"
    command = [
        sys.executable,
        "-c",
        launcher,
        "--num_accelerators",
        "1",
        "--master_port",
        str(port),
        "--log_level",
        "warning",
    ]
    command += ["recipes/train_cero.py", "--config", "recipes/digits_cpu.yaml", "--overwrite"]
    for setting in settings:
        command += ["--set", setting]
    missing = lacking(
        "deepspeed", "transformers", "pydantic", "datasets", "math_verify", "tensorboard"
    )
    return Check(f"ZeRO-3 smoke, {dtype}", command, 90, {"OMP_NUM_THREADS": "4"}, missing)


def checks() -> Iterator[Check]:
    python = sys.executable
    cases = "tests/ops/gpu_cases.py"
    yield Check(
        "build",
        [python, "setup.py", "build_ext", "--inplace", "--force"],
        150,
        {"CERO_CUDA": "1"},
        lacking("setuptools"),
    )
    if has("pytest", "hypothesis"):
        command = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/ops"]
        yield Check("tests", command, 120, {"CERO_REQUIRE_GPU": "1"})
    else:  # the same checks without a test runner
        yield Check("tests", [python, cases], 120)
    for name, files in (
        ("shared prefix", ["tests/models/test_shared_attention.py"]),
        ("learner", ["tests/learner/test_host_syncs.py", "tests/learner/test_batch.py"]),
    ):
        command = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
        yield Check(name, command, 120, {}, lacking("pytest", "hypothesis", "transformers"))
    yield smoke("bfloat16")
    yield smoke("float32")
    sanitizer = find_sanitizer()
    for tool in ("memcheck", "racecheck"):
        command = [
            sanitizer or "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            python,
            cases,
            "--sanitizer",
        ]
        # The caching allocator would hide an access beyond the end of a tensor.
        yield Check(
            tool,
            command,
            150,  # torch is slow to start under it
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            "" if sanitizer else "compute-sanitizer was not found",
        )
    yield Check(
        "benchmark",
        [python, "tools/bench_advantage.py", "--device", "cuda"],
        200,
        missing=lacking("rich", "numpy"),
    )


def run(check: Check, deadline: float) -> Result:
    """One check in a process group of its own, ended with everything it started when its time is
    over."""
    if check.missing:
        return Result(check.name, "skipped", 0.0, check.missing)
    limit = min(check.limit_seconds, deadline - time.monotonic())
    if limit < 5:
        return Result(check.name, "skipped", 0.0, "no time was left")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        **check.environment,
    }
    log = LOGS / f"{check.name.replace(' ', '_').replace(',', '')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            check.command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Result(
                check.name,
                "failed",
                round(limit, 1),
                f"not done after {limit:.0f} s; see {log.relative_to(ROOT)}",
            )
    seconds = round(time.monotonic() - started, 1)
    written = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = written[-1].strip()[:200] if written else ""
    if status != 0:
        return Result(
            check.name,
            "failed",
            seconds,
            f"exit status {status}; see {log.relative_to(ROOT)}: {last}",
        )
    return Result(check.name, "passed", seconds, last)


def closed_ledger(result: Result, dtype: str) -> Result:
    """A smoke has passed when its run spent its budget to the last rollout."""
    if result.status != "passed":
        return result
    metrics = LOGS / f"smoke_{dtype}" / dtype / "metrics.jsonl"
    if not metrics.exists():
        return Result(result.check, "failed", result.seconds, f"no {metrics.relative_to(ROOT)}")
    last = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    spent, total = last["budget/spent_rollouts"], last["budget/total_rollouts"]
    return Result(
        result.check,
        "passed" if spent == total else "failed",
        result.seconds,
        f"spent {spent} of {total} rollouts",
    )


def report(results: list[Result]) -> int:
    counts = {
        status: sum(r.status == status for r in results)
        for status in ("passed", "failed", "skipped")
    }
    print(
        f"gpu-check: {counts['passed']} passed, {counts['failed']} failed, "
        f"{counts['skipped']} skipped; rows in {ROWS.relative_to(ROOT)}"
    )
    return 1 if counts["failed"] or not counts["passed"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--look", action="store_true", help="only look whether there is a GPU; needs no torch"
    )
    arguments = parser.parse_args()
    reason = no_gpu() or ("" if arguments.look else lacking("torch"))
    if not reason and not arguments.look:
        import torch

        if not torch.cuda.is_available():
            reason = (
                f"torch {torch.__version__} sees no GPU; install a CUDA build of it, or pass "
                "PY=<a python that has one>"
            )
        else:
            os.environ.setdefault(
                "TORCH_CUDA_ARCH_LIST", ".".join(map(str, torch.cuda.get_device_capability()))
            )
    if reason:
        would = ", ".join(check.name for check in checks())
        print(
            f"gpu-check: {reason}; with one it runs, in at most {LIMIT_SECONDS / 60:.0f} minutes: "
            f"{would}",
            file=sys.stderr,
        )
        return 1
    return 0 if arguments.look else run_all()


def run_all() -> int:
    from bench_timing import machine

    where: dict[str, Any] = machine()
    print(
        f"gpu-check: {where['gpu']}, torch {where['torch']}, CUDA {where['cuda']}, commit "
        f"{where['commit']}"
    )
    deadline, results = time.monotonic() + LIMIT_SECONDS, []
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    with ROWS.open("a", encoding="utf-8") as file:
        for check in checks():
            print(f"  {check.name:<24}", end="", flush=True)
            result = run(check, deadline)
            if check.name.startswith("ZeRO-3 smoke"):
                result = closed_ledger(result, check.name.rsplit(" ", 1)[1])
            print(f"{result.status:<8}{result.seconds:6.1f} s  {result.detail}", flush=True)
            file.write(json.dumps({"bench": "gpu_check", **asdict(result), **where}) + "\n")
            file.flush()
            results.append(result)
            if check.name == "build" and result.status == "failed":
                break  # nothing behind it could be about this tree
    return report(results)


if __name__ == "__main__":
    sys.exit(main())
