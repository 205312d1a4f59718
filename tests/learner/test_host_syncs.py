"""No micro-batch of a step waits for its device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_syncs import HostSyncs
from learner_cases import advantages, make_batch
from step_cases import PlainPolicy, config_of

from cero_rl.config import Config
from cero_rl.distributed.group import Group
from cero_rl.learner.batch import TrainingBatch
from cero_rl.learner.update import Learner

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import bench_timing

SMALL = ("learner.max_micro_batch_tokens=24", "learner.shared_prefix=false")


def prepared(config: Config, group: Group) -> tuple[Learner, TrainingBatch]:
    """A learner and a step of several micro-batches."""
    shapes = [[3, 8, 5, 2], [7, 1], [4, 6, 8]]
    rewards = [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0], [0.0, 0.0, 1.0]]
    batch = make_batch(np.random.default_rng(0), shapes, rewards)
    batch.tokens.remainder_(16)  # the model's vocabulary
    policy: Any = PlainPolicy(config)
    policy.causal_lm.to(group.device)
    return Learner(policy, None, config, group), TrainingBatch(batch, *advantages(batch))


def counted(learner: Learner, batch: TrainingBatch) -> tuple[HostSyncs, float]:
    """What the micro-batches of one optimizer step asked for, and how many they were."""
    syncs, backward = HostSyncs(), learner._backward

    def watched(*args: Any, **kwargs: Any) -> None:
        with syncs:
            backward(*args, **kwargs)

    learner._backward = watched
    result = learner.update(batch, [0.1])
    assert result.applied
    return syncs, result.metrics["micro_batches"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["learner.importance_sampling=truncate", "learner.importance_level=sequence"],
        ["learner.importance_sampling=mask", "learner.importance_level=geometric"],
        ["learner.loss=gspo"],
    ],
    ids=lambda overrides: "-".join(overrides) or "plain",
)
def test_no_micro_batch_waits(overrides: list[str]) -> None:
    syncs, micro_batches = counted(*prepared(config_of(*SMALL, *overrides), Group.alone()))
    assert micro_batches > 2
    assert syncs.by_package("cero_rl") == 0, syncs.found


def test_the_count_sees_a_wait() -> None:
    with HostSyncs() as syncs:
        values = torch.tensor([1.0, 0.0, 2.0])
        float(values.sum())
        values.nonzero()
        values[values > 0]
        torch.repeat_interleave(values, torch.tensor([1, 2, 3]))
        torch.repeat_interleave(values, torch.tensor([1, 2, 3]), output_size=6)
        values.nonzero_static(size=2)
        values.sum() + values[torch.tensor([0, 1])].sum()
    assert sum(syncs.found.values()) == 4, syncs.found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_micro_batch_waits_on_a_gpu() -> None:
    """Torch's own debug mode sees what the count on a CPU cannot: copies."""
    learner, batch = prepared(config_of(*SMALL), Group.alone("cuda"))
    found: list[int] = []
    backward = learner._backward

    def watched(*args: Any, **kwargs: Any) -> None:
        found.append(bench_timing.count_syncs(lambda: backward(*args, **kwargs)))

    learner._backward = watched
    learner.update(batch, [0.1])
    assert len(found) > 2
    assert not any(found), found
