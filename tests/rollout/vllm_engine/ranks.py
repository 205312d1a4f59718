"""Starting a driver of this folder on several ranks, and the shipped training command on small
sizes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import warm_ranks
from warm_ranks import WarmRank, environment, free_port

ROOT = Path(__file__).resolve().parents[3]


def drive(name: str, *arguments: str, world: int = 1, code: int = 0) -> str:
    """Run tests/rollout/vllm_engine/NAME with the same arguments on `world` ranks that have vLLM
    imported; every rank must leave with `code`. Returns what they printed."""
    where = {**environment(), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    where["MASTER_PORT"] = str(free_port())
    line = [f"tests/rollout/vllm_engine/{name}", *arguments]
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        logs = [Path(folder) / f"{rank}.log" for rank in range(world)]
        ranks = [
            WarmRank(
                line,
                ROOT,
                {**where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                log,
                imports="warm_vllm",
            )
            for rank, log in enumerate(logs)
        ]
        try:
            codes = [rank.wait(timeout=400) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        text = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)
    assert codes == [code] * world, text
    return text


def train(
    out: Path, name: str, settings: list[str], *, ranks: int = 2, imports: str = "warm_vllm"
) -> subprocess.CompletedProcess[str]:
    """The shipped training command on small sizes. imports: of the ranks, before they begin."""
    line = ["recipes/train_cero.py", "--config", "recipes/digits_cpu.yaml"]
    for setting in [
        "logging.tensorboard=false",
        "checkpoint.every_steps=0",
        f"output_dir={out}",
        f"name={name}",
        *settings,
    ]:
        line += ["--set", setting]
    where = {**environment(), "MASTER_PORT": str(free_port())}
    logs = Path(tempfile.mkdtemp(prefix="ranks-", dir=out))
    return warm_ranks.run(line, ROOT, where, logs, ranks=ranks, seconds=280.0, imports=imports)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
