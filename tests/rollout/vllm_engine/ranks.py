"""Starting a driver of this folder on several ranks, and the shipped training command on small
sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from warm_ranks import environment, free_port

ROOT = Path(__file__).resolve().parents[3]


def drive(name: str, *arguments: str, world: int = 1, code: int = 0) -> str:
    """Run tests/rollout/vllm_engine/NAME with the same arguments on `world` ranks; every rank must
    leave with `code`. Returns what they printed."""
    port = str(free_port())
    ranks = []
    for rank in range(world):
        env = {
            **environment(),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        command = [sys.executable, str(ROOT / "tests/rollout/vllm_engine" / name), *arguments]
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(
            subprocess.Popen(
                command,
                env=env,
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    texts = []
    try:
        for rank in ranks:
            texts.append(rank.communicate(timeout=400)[0])
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [code] * world, "\n".join(texts)
    return "\n".join(texts)


def train(
    out: Path, name: str, settings: list[str], *, ranks: int = 2
) -> subprocess.CompletedProcess[str]:
    line = [
        "deepspeed",
        "--num_accelerators",
        str(ranks),
        "--master_port",
        str(free_port()),
        "--log_level",
        "warning",
    ]
    line += ["recipes/train_cero.py", "--config", "recipes/digits_cpu.yaml"]
    for setting in [
        "logging.tensorboard=false",
        "checkpoint.every_steps=0",
        f"output_dir={out}",
        f"name={name}",
        *settings,
    ]:
        line += ["--set", setting]
    return subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=500
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
