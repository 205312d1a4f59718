"""One rank of a learner's step under real ZeRO-3, on a fixed batch of ragged groups; saves what
test_zero3.py compares.

RANK=0 WORLD_SIZE=2 ... python tests/zero/zero3_driver.py OUT_DIR CASE key=value ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cero_rl.config import load_config
from cero_rl.job.process import run_and_exit
from cero_rl.ops import group_advantage
from cero_rl.types import Completion, RolloutGroup

ROOT = Path(__file__).resolve().parents[2]
SIZES = (8, 3, 1, 5, 2, 8, 4)  # rollouts of each group; the third can have no advantage


def make_groups() -> tuple[list[RolloutGroup], list[np.ndarray]]:
    """Groups and rewards [n] of the whole world; one reward is missing, one group is all right."""
    rng = np.random.default_rng(0)
    groups, rewards = [], []
    for prompt_id, size in enumerate(SIZES):
        completions = []
        for _ in range(size):
            length = int(rng.integers(1, 12))
            completions.append(
                Completion(
                    rng.integers(1, 21, length), np.full(length, -1.0, np.float32), "", "stop", 0
                )
            )
        groups.append(
            RolloutGroup(
                prompt_id, rng.integers(2, 21, int(rng.integers(3, 10))), tuple(completions)
            )
        )
        rewards.append(rng.integers(0, 2, size).astype(np.float32))
    rewards[0][0], rewards[3][:] = np.nan, 1.0
    return groups, rewards


def settings(overrides: list[str]):
    return load_config(ROOT / "recipes/digits_cpu.yaml", ["optimizer.warmup_steps=0", *overrides])


def leave_and_come_back(engine: Any) -> int:
    """How many tensors of the learner's states lie elsewhere afterwards."""
    from cero_rl.zero.offload import HostStates

    def states() -> list[torch.Tensor]:
        moments = engine.optimizer.optimizer.state.values()
        kept = [state[name] for state in moments for name in ("exp_avg", "exp_avg_sq")]
        return [*engine.optimizer.fp32_partitioned_groups_flat, *kept]

    before = [tensor.data_ptr() for tensor in states()]
    host = HostStates(engine, pinned=False)
    host.leave()
    waiting = [tensor.data_ptr() for tensor in states()]
    host.come_back()
    after = [tensor.data_ptr() for tensor in states()]
    return sum(a != b and b != c for a, b, c in zip(before, waiting, after, strict=True))


def main() -> int:
    from deepspeed.utils import safe_get_full_grad

    from cero_rl.learner.batch import TrainingBatch
    from cero_rl.learner.packing import build_step_plan, pack_rollouts
    from cero_rl.learner.update import Learner
    from cero_rl.models.logprob import forward_micro
    from cero_rl.rollout.deal import deal_groups
    from cero_rl.zero import launch
    from cero_rl.zero.gather import full_state_dict
    from cero_rl.zero.policy import Policy, build_reference

    out, case, *overrides = Path(sys.argv[1]), sys.argv[2], *sys.argv[3:]
    config = settings(overrides)
    group = launch.start(timeout_seconds=120)
    policy = Policy(config, group)
    reference = (
        build_reference(config, group, policy) if config.learner.kl_coefficient > 0 else None
    )
    groups, rewards = make_groups()
    mine = np.flatnonzero(
        deal_groups(np.array(SIZES, dtype=np.float64), group.world_size) == group.rank
    )
    batch = pack_rollouts([groups[i] for i in mine], [rewards[i] for i in mine])
    stats = group_advantage(
        batch.rewards,
        batch.group_offsets,
        norm=config.learner.advantage,
        eps=config.learner.advantage_eps,
    )
    gradients: list[dict[str, np.ndarray]] = []
    step = policy.step

    def recording_step(rate: float):
        gradients.append(
            {
                name: safe_get_full_grad(p).float().numpy().copy()
                for name, p in policy.named_parameters()
            }
        )
        return step(rate)

    policy.step = recording_step  # pyright: ignore[reportAttributeAccessIssue]
    saved: dict[str, np.ndarray] = {}
    sizes = torch.diff(batch.group_offsets.long())
    signal = torch.repeat_interleave(stats.live, sizes)

    def learn(label: str, advantages: torch.Tensor) -> None:
        learner = Learner(policy, reference, config, group)
        rates = [config.optimizer.learning_rate] * config.learner.updates_per_batch
        result = learner.update(TrainingBatch(batch, advantages, signal), rates)
        weights = full_state_dict(policy.weights(), keep=True)
        saved.update(
            {f"{label}/weights/{name}": tensor.float().numpy() for name, tensor in weights.items()}
        )
        saved[f"{label}/applied"] = np.array(result.applied)
        saved[f"{label}/micro_batches"] = np.array(result.metrics["micro_batches"])
        saved[f"{label}/grad_norm"] = np.array(result.metrics["grad_norm"])
        saved[f"{label}/loss"] = np.array(result.metrics["loss"])

    def logps(engine: object) -> list[np.ndarray]:
        """Of every response token of this rank, in the order of the step's plan."""
        found = []
        plan = build_step_plan(
            batch,
            stats.adv,
            signal,
            config=config.learner,
            max_response_tokens=16,
            group=group,
            head_chunk_tokens=512,
        )
        policy.train(False)
        with torch.no_grad():
            for micro in plan.micro_batches:
                logp = forward_micro(engine, micro, with_entropy=False)[0]
                found.append(logp[micro.loss_mask].numpy())
        policy.train(True)
        return found

    if case == "poisoned":  # one bad number on the last rank, then the same batch without it
        bad = stats.adv.clone()
        if group.rank == group.world_size - 1:
            bad[stats.adv.abs().argmax()] = torch.nan
        learn("poisoned", bad)
    learn("clean", stats.adv)
    if case.startswith("steps"):  # two more, between which the states may leave and come back
        for label in ("second", "third"):
            if case == "steps_leaving":
                saved[f"{label}/moved"] = np.array(leave_and_come_back(policy.engine))
            learn(label, stats.adv)
    if reference is not None:  # after the update, when policy and reference differ
        saved["logp/reference"], saved["logp/policy"] = (
            np.concatenate(logps(reference)),
            np.concatenate(logps(policy.engine)),
        )
    for index, gradient in enumerate(gradients):
        saved.update({f"gradient/{index}/{name}": value for name, value in gradient.items()})
    np.savez(out / f"{case}-{group.rank}.npz", **saved)
    launch.stop()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
