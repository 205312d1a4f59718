"""Under the deepspeed launcher: one real ZeRO-3 step with small sub-groups, as a model of billions
of parameters has, and a checkpoint.

sub_groups_driver.py OUT_DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import cero_rl.zero.policy as models
from cero_rl.config import Config, load_config
from cero_rl.job.process import run_and_exit
from cero_rl.zero import launch

ROOT = Path(__file__).resolve().parents[2]
ordinary = models.policy_config


def small_sub_groups(config: Config, world_size: int, **how: bool) -> dict[str, Any]:
    settings = ordinary(config, world_size, **how)
    settings["zero_optimization"]["sub_group_size"] = 100_000
    return settings


def main() -> int:
    out = next(a for a in sys.argv[1:] if not a.startswith("--local_rank"))
    config = load_config(
        ROOT / "recipes/digits_cpu.yaml",
        [f"model.path={ROOT / 'recipes/assets/tiny_digits'}", "model.dtype=bfloat16"],
    )
    group = launch.start()
    models.policy_config = small_sub_groups
    policy = models.Policy(config, group)
    tokens = torch.arange(2, 18)
    mask = torch.arange(16) > 4
    logp, _ = policy.engine(
        tokens, torch.arange(16), torch.tensor([0, 16], dtype=torch.int32), mask, 11, 16, 1, False
    )
    policy.backward(-logp.sum())
    assert policy.step(1e-3).applied
    assert len(policy.engine.optimizer.fp32_partitioned_groups_flat) > 2
    policy.engine.save_checkpoint(out, tag="zero", save_latest=False)
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
