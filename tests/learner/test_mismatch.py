"""Importance weights between sampler and learner against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_cases import advantages, make_batch, plan_on_ranks

from cero_rl.config.learner import LearnerConfig
from cero_rl.learner.losses import METRIC_NAMES, policy_loss
from cero_rl.learner.mismatch import (
    HISTOGRAM_BINS,
    histogram,
    importance_weights,
    ratio_quantiles,
    sequence_sums,
)

NAN = float("nan")
# Two sequences of 3 and 4 tokens, the first token of each is the prompt. p/b: 4, 1/2 | 1/4, 1, 8
CU = torch.tensor([0, 3, 7], dtype=torch.int32)
MASK = torch.tensor([False, True, True, False, True, True, True])
LEARNER = torch.log(torch.tensor([NAN, 0.8, 0.25, NAN, 0.2, 0.5, 0.8]))
SAMPLER = torch.log(torch.tensor([NAN, 0.2, 0.5, NAN, 0.8, 0.5, 0.1]))


def weights(
    kind: str, level: str = "token", cap: float = 2.0, floor: float = 0.5
) -> tuple[list[float], list[bool]]:
    config = LearnerConfig.model_validate(
        {
            "importance_sampling": kind,
            "importance_level": level,
            "importance_cap": cap,
            "importance_floor": floor,
        }
    )
    done = importance_weights(LEARNER, SAMPLER, MASK, CU, config)
    return done.weight.tolist(), done.cut.tolist()


def test_truncated_by_token() -> None:
    weight, cut = weights("truncate", cap=3.0)
    assert weight == pytest.approx([1, 3, 0.5, 1, 0.25, 1, 3])
    assert cut == [False, True, False, False, False, False, True]


def test_masked_by_token() -> None:
    weight, cut = weights("mask", cap=5.0, floor=0.4)
    assert weight == pytest.approx([1, 4, 0.5, 1, 0, 1, 0])
    assert cut == [False, False, False, False, True, False, True]


def test_by_sequence_every_token_has_the_product() -> None:
    # products: 4 * 1/2 = 2 and 1/4 * 1 * 8 = 2; with a cap of 1.5 both are cut
    assert weights("truncate", "sequence", cap=3.0)[0] == pytest.approx([1, 2, 2, 1, 2, 2, 2])
    assert weights("truncate", "sequence", cap=1.5)[0] == pytest.approx(
        [1, 1.5, 1.5, 1, 1.5, 1.5, 1.5]
    )
    weight, cut = weights("mask", "sequence", cap=1.5)
    assert weight == pytest.approx([1, 0, 0, 1, 0, 0, 0])
    assert cut == MASK.tolist()


@pytest.mark.parametrize("kind", ["none", "auto"])
def test_off_means_one(kind: str) -> None:
    weight, cut = weights(kind)
    assert weight == [1.0] * 7
    assert not any(cut)


def test_an_absurd_ratio_stays_finite() -> None:
    config = LearnerConfig(importance_sampling="mask", importance_level="sequence")
    mask, edges = torch.tensor([False, True]), torch.tensor([0, 2], dtype=torch.int32)
    done = importance_weights(torch.tensor([0.0, -1000.0]), torch.zeros(2), mask, edges, config)
    assert done.weight.tolist() == [1.0, 0.0]


def test_sequence_sums() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert sequence_sums(values, CU).tolist() == [6.0, 6.0, 6.0, 22.0, 22.0, 22.0, 22.0]


def test_quantiles_from_histograms_that_add_up() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e-6, 1e-3, 0.3):
        logs = torch.from_numpy(rng.normal(0, scale, 20_000))
        mask = torch.ones(20_000, dtype=torch.bool)
        counts = histogram(logs[:5000], mask[:5000]) + histogram(logs[5000:], mask[5000:])
        assert counts.shape == (HISTOGRAM_BINS,)
        found = ratio_quantiles(counts.tolist())
        for name, q in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
            wanted = float(np.quantile(logs.numpy(), q))
            assert math.log(found[f"mismatch/ratio_{name}"]) == pytest.approx(
                wanted, rel=0.1, abs=0.05 * scale
            )
    assert ratio_quantiles([0.0] * HISTOGRAM_BINS) == {
        f"mismatch/ratio_{q}": 1.0 for q in ("q01", "q50", "q99")
    }


def test_the_loss_weights_the_surrogate_and_not_the_kl_term() -> None:
    """One on-policy step: the surrogate's gradient is -weight * advantage, with the weight
    constant."""
    rng = np.random.default_rng(1)
    batch = make_batch(rng, [[3, 5], [2]], [[1, 0], [1]])
    config = LearnerConfig(
        importance_sampling="truncate",
        aggregation="token_mean",
        kl_coefficient=0.5,
        kl_estimator="k1",
    )
    (plan,) = plan_on_ranks([batch], config)
    assert advantages(batch)[1].tolist() == [True, True, False]
    for micro in plan.micro_batches:
        micro = replace(micro, logp_reference=micro.logp_behavior)
        # ratio e^0.9 = 2.46, cut at 2
        logp = (micro.logp_behavior + torch.where(micro.loss_mask, 0.9, 0.0)).requires_grad_()
        terms = policy_loss(logp, torch.zeros_like(logp), micro, config)
        terms.loss_sum.backward()
        wanted = torch.where(
            micro.loss_mask, (-2.0 * micro.token_adv + 0.5) * micro.seq_weight, 0.0
        )
        torch.testing.assert_close(logp.grad, wanted)
        sums = dict(zip(METRIC_NAMES, terms.metric_sums.tolist()))
        assert sums["cut"] == sums["tokens"] > 0
        assert sums["weight"] == pytest.approx(2.0 * sums["tokens"])
        assert sums["log_ratio"] == pytest.approx(0.9 * sums["tokens"], rel=1e-5)
