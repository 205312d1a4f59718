"""Starting the real training command on small sizes, for the tests of this folder."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import warm_ranks
from warm_ranks import environment, free_port

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "scheduler.rounds=6",
    "budget.total_rollouts=384",
    "data.limit=120",
    "data.heldout_limit=24",
    "optimizer.warmup_steps=1",
    "evaluation.every_steps=0",
    "evaluation.samples_per_prompt=2",
    "evaluation.final_samples_per_prompt=2",
    "evaluation.pass_k=[1,2]",
    "checkpoint.every_steps=2",
    "logging.tensorboard=false",
    "scheduler.step_scale=5",
]


def line(out: Path, name: str, *flags: str, settings: list[str] | None = None) -> list[str]:
    """The training script and its arguments."""
    words = ["recipes/train_cero.py", "--config", "recipes/digits_cpu.yaml", *flags]
    for setting in [*SMALL, f"output_dir={out}", f"name={name}", *(settings or [])]:
        words += ["--set", setting]
    return words


def command(
    out: Path, name: str, *flags: str, ranks: int = 2, settings: list[str] | None = None
) -> list[str]:
    """The same under the deepspeed launcher."""
    launcher = ["deepspeed", "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [*launcher, "--log_level", "warning", *line(out, name, *flags, settings=settings)]


def launch(
    out: Path, name: str, *flags: str, ranks: int = 2, settings: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Train on ranks that were imported beforehand (tests/warm_ranks.py)."""
    logs = Path(tempfile.mkdtemp(prefix="ranks-", dir=out))
    environment_ = {**environment(), "MASTER_PORT": str(free_port())}
    words = line(out, name, *flags, settings=settings)
    return warm_ranks.run(words, ROOT, environment_, logs, ranks=ranks)


def launch_for_real(
    out: Path, name: str, *flags: str, ranks: int = 2, settings: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Train as a user does, with the deepspeed launcher."""
    return subprocess.run(
        command(out, name, *flags, ranks=ranks, settings=settings),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def repeatable(entry: dict[str, Any]) -> dict[str, Any]:
    """A metrics line without what the clock and the machine decide."""
    return {
        k: v
        for k, v in entry.items()
        if not k.startswith(("timing_s/", "perf/", "skew/")) and k != "step_time"
    }
