"""Losses against naive per-token loops, clip edge cases, KL estimators by exact enumeration,
masks that must be NaN-safe."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_cases import (
    AGGREGATIONS,
    MAX_RESPONSE_TOKENS,
    advantages,
    make_batch,
    plan_on_ranks,
    source_index,
)

from cero_rl.config.learner import LearnerConfig
from cero_rl.learner.losses import METRIC_NAMES, kl_estimate, policy_loss, reduce_metrics
from cero_rl.types import MicroBatch, RolloutBatch

NAN = float("nan")
# response lengths by rank and group
SHAPES = [[[2, 5, 3], [4, 1], [3, 3, 6]], [[8, 1, 2, 2], [5]], []]
# one dead group, one lone rollout, one missing reward
REWARDS = [[[1, 0, 0], [1, 1], [0, 1, NAN]], [[0, 0, 1, 1], [1]], []]


def batches() -> list[RolloutBatch]:
    rng = np.random.default_rng(3)
    return [make_batch(rng, shapes, rewards) for shapes, rewards in zip(SHAPES, REWARDS)]


def token_fields(batch: RolloutBatch, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logp (with gradient), logp_old and logp_reference for every packed token of a batch, far
    enough apart to clip."""
    generator = torch.Generator().manual_seed(seed)
    logp, old, reference = (
        -torch.rand(len(batch.tokens), generator=generator, dtype=torch.float64) * 2
        for _ in range(3)
    )
    return logp.requires_grad_(), old, reference


def one_token(
    logp: float, advantage: float, *, old: float | None = None, reference: float | None = None
) -> tuple[torch.Tensor, MicroBatch]:
    """Token 0 is the prompt and masked; token 1 is the response."""
    pair = lambda value: None if value is None else torch.tensor([NAN, value])
    micro = MicroBatch(
        tokens=torch.zeros(2, dtype=torch.int64),
        positions=torch.arange(2),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        seq_rollout=torch.zeros(1, dtype=torch.int32),
        loss_mask=torch.tensor([False, True]),
        logp_behavior=torch.tensor([NAN, logp]),
        token_adv=torch.tensor([NAN, advantage]),
        seq_weight=torch.tensor([NAN, 1.0]),
        head_chunks=1,
        is_dummy=False,
        trained_tokens=1,
        max_seqlen_tokens=2,
        logp_old=pair(old),
        logp_reference=pair(reference),
    )
    return torch.tensor([NAN, logp], requires_grad=True), micro


def naive_loss(
    all_batches: list[RolloutBatch], fields: list[tuple], config: LearnerConfig
) -> torch.Tensor:
    """The textbook loss: loops over groups, rollouts and tokens, then the aggregation as its
    definition reads."""
    groups: list[list[list[torch.Tensor]]] = []
    for batch, (logp, old, reference) in zip(all_batches, fields):
        adv, signal = advantages(batch)
        for j in range(len(batch.prompt_ids)):
            own = signal[int(batch.group_offsets[j]) : int(batch.group_offsets[j + 1])]
            if config.zero_variance == "drop" and not own.any():
                continue
            rollouts = []
            for r in range(int(batch.group_offsets[j]), int(batch.group_offsets[j + 1])):
                tokens = []
                for t in range(int(batch.cu_seqlens[r]), int(batch.cu_seqlens[r + 1])):
                    if not batch.loss_mask[t]:
                        continue
                    ratio = torch.exp(logp[t] - old[t])
                    clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
                    loss = -torch.min(ratio * adv[r], clipped * adv[r])
                    if config.kl_coefficient > 0:
                        log_ratio = logp[t] - reference[t]
                        kl = {
                            "k1": log_ratio,
                            "k2": log_ratio**2 / 2,
                            "k3": torch.exp(-log_ratio) - 1 + log_ratio,
                        }[config.kl_estimator]
                        loss = loss + config.kl_coefficient * kl
                    tokens.append(loss)
                rollouts.append(tokens)
            groups.append(rollouts)
    sequences = [tokens for group in groups for tokens in group]
    everything = torch.stack([loss for tokens in sequences for loss in tokens])
    if config.aggregation == "token_mean":
        return everything.mean()
    if config.aggregation == "seq_mean":
        return torch.stack([torch.stack(tokens).mean() for tokens in sequences]).mean()
    if config.aggregation == "group_mean":
        by_rollout = [[torch.stack(tokens).mean() for tokens in group] for group in groups]
        return torch.stack([torch.stack(group).mean() for group in by_rollout]).mean()
    if config.aggregation == "prompt_mean":
        return torch.stack(
            [torch.stack([loss for tokens in group for loss in tokens]).mean() for group in groups]
        ).mean()
    return everything.sum() / (len(sequences) * MAX_RESPONSE_TOKENS)


def packed_loss(
    all_batches: list[RolloutBatch], fields: list[tuple], config: LearnerConfig, **how: object
) -> torch.Tensor:
    plans = plan_on_ranks(all_batches, config, **how)
    total = torch.zeros((), dtype=torch.float64)
    for batch, plan, (logp, old, reference) in zip(all_batches, plans, fields):
        for micro in plan.micro_batches:
            if micro.is_dummy:
                terms = policy_loss(
                    torch.full((2,), NAN, requires_grad=True), torch.zeros(2), micro, config
                )
                assert float(terms.loss_sum.detach()) == 0
                assert not terms.metric_sums.any()
                continue
            source = source_index(micro, batch)
            micro = replace(
                micro,
                logp_old=old[source],
                logp_reference=reference[source] if config.kl_coefficient > 0 else None,
            )
            total = (
                total + policy_loss(logp[source], torch.zeros(len(source)), micro, config).loss_sum
            )
    return total / plans[0].denominator


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("zero_variance", ["keep", "drop"])
@pytest.mark.parametrize(
    "kl_coefficient, estimator", [(0.0, "k3"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3")]
)
def test_packed_loss_and_gradient_are_the_naive_ones(
    aggregation: str, zero_variance: str, kl_coefficient: float, estimator: str
) -> None:
    config = LearnerConfig(
        aggregation=aggregation,
        zero_variance=zero_variance,
        kl_coefficient=kl_coefficient,
        kl_estimator=estimator,
        clip_low=0.1,
        clip_high=0.3,
        max_micro_batch_tokens=14,
    )
    ranks = batches()
    fields = [token_fields(batch, seed) for seed, batch in enumerate(ranks)]
    leaves = [f[0] for f in fields if len(f[0])]
    naive, packed = naive_loss(ranks, fields, config), packed_loss(ranks, fields, config)
    torch.testing.assert_close(packed, naive, rtol=1e-6, atol=1e-6)
    for got, wanted in zip(torch.autograd.grad(packed, leaves), torch.autograd.grad(naive, leaves)):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_dead_groups_under_keep_give_the_same_gradient_forwarded_or_not(aggregation: str) -> None:
    config = LearnerConfig(aggregation=aggregation, zero_variance="keep", max_micro_batch_tokens=14)
    ranks = batches()
    fields = [token_fields(batch, seed) for seed, batch in enumerate(ranks)]
    leaves = [f[0] for f in fields if len(f[0])]
    left_out = packed_loss(ranks, fields, config)
    forwarded = packed_loss(
        ranks,
        fields,
        config,
        signals=[torch.ones(b.num_rollouts, dtype=torch.bool) for b in ranks],
    )
    torch.testing.assert_close(left_out, forwarded, rtol=0, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(left_out, leaves), torch.autograd.grad(forwarded, leaves)
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope, low, high",
    [
        (1.0, 2.0, -2.0, -2.0, 0, 0),
        (1.5, 2.0, -2.6, 0.0, 0, 1),  # above the range with a positive advantage: cut, no gradient
        (1.5, -2.0, 3.0, 3.0, 0, 0),  # the pessimistic side is never cut
        (0.5, -2.0, 1.6, 0.0, 1, 0),
        (0.5, 2.0, -1.0, -1.0, 0, 0),
        (1.25, 2.0, -2.5, -2.5, 0, 0),  # inside the asymmetric range
        (0.85, -2.0, 1.7, 1.7, 0, 0),
        (1.5, 0.0, 0.0, 0.0, 0, 0),
    ],
)
def test_clip_range(
    ratio: float, advantage: float, loss: float, slope: float, low: int, high: int
) -> None:
    logp, micro = one_token(math.log(ratio) - 1.0, advantage, old=-1.0)
    terms = policy_loss(logp, torch.zeros(2), micro, LearnerConfig(clip_low=0.2, clip_high=0.3))
    terms.loss_sum.backward()
    assert logp.grad is not None
    assert float(terms.loss_sum.detach()) == pytest.approx(loss, abs=1e-5)
    assert logp.grad.tolist() == pytest.approx([0.0, slope], abs=1e-5)
    metrics = dict(zip(METRIC_NAMES, terms.metric_sums.tolist()))
    assert (metrics["clip_low"], metrics["clip_high"]) == (low, high)


def test_without_old_log_probs_the_ratio_is_exactly_one() -> None:
    logp, micro = one_token(-1.2345, 0.7)
    terms = policy_loss(logp, torch.zeros(2), micro, LearnerConfig(clip_low=0.0, clip_high=0.0))
    terms.loss_sum.backward()
    assert float(terms.loss_sum.detach()) == pytest.approx(-0.7)
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([0.0, -0.7])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("poison", [NAN, float("-inf"), float("inf")])
def test_masked_positions_cannot_reach_loss_gradient_or_metrics(
    poison: float, estimator: str
) -> None:
    logp, micro = one_token(-1.0, 1.0, old=-1.1, reference=-0.9)
    micro = replace(
        micro,
        **{
            n: torch.where(micro.loss_mask, getattr(micro, n), poison)
            for n in ("logp_behavior", "token_adv", "seq_weight", "logp_old", "logp_reference")
        },
    )
    logp = torch.where(micro.loss_mask, logp.detach(), poison).requires_grad_()
    terms = policy_loss(
        logp,
        torch.tensor([poison, 0.5]),
        micro,
        LearnerConfig(kl_coefficient=0.1, kl_estimator=estimator),
    )
    terms.loss_sum.backward()
    assert logp.grad is not None
    assert float(logp.grad[0]) == 0.0
    assert bool(
        torch.isfinite(
            torch.cat(
                [logp.grad, terms.metric_sums, terms.loss_sum[None], terms.largest_logp_gap[None]]
            )
        ).all()
    )


def test_an_exploded_ratio_stays_finite() -> None:
    logp, micro = one_token(-0.1, 0.0, old=-200.0, reference=100.0)
    terms = policy_loss(logp, torch.zeros(2), micro, LearnerConfig(kl_coefficient=0.1))
    assert math.isfinite(float(terms.loss_sum.detach()))


def test_kl_estimators_by_enumeration() -> None:
    """Expectations over the policy of value and gradient, exact on five outcomes."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), -1)
    logp = torch.log_softmax(logits, -1)
    chance = logp.exp().detach()
    forward = (logp.exp() * (logp - reference)).sum()
    backward = (reference.exp() * (reference - logp)).sum()
    gradient = lambda x: torch.autograd.grad(x, logits, retain_graph=True)[0]
    estimates = {name: kl_estimate(logp, reference, name) for name in ("k1", "k2", "k3")}
    means = {name: (chance * value).sum() for name, value in estimates.items()}
    torch.testing.assert_close(means["k1"], forward)
    torch.testing.assert_close(means["k3"], forward)
    assert bool((estimates["k3"] >= 0).all())
    torch.testing.assert_close(
        gradient(means["k1"]), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(gradient(means["k2"]), gradient(forward))
    torch.testing.assert_close(gradient(means["k3"]), gradient(backward))
    with pytest.raises(ValueError, match="kl_estimator: got 'k4'"):
        kl_estimate(logp, reference, "k4")


def test_metrics_are_means_per_trained_token() -> None:
    logp, micro = one_token(-1.0, 1.0, old=-1.0, reference=-1.5)
    micro = replace(micro, logp_behavior=torch.tensor([NAN, -1.25]))
    terms = policy_loss(
        logp, torch.tensor([NAN, 0.75]), micro, LearnerConfig(kl_coefficient=0.1, kl_estimator="k1")
    )
    # two ranks with the same token
    metrics = reduce_metrics(
        (2 * terms.metric_sums).tolist(), maximum=float(terms.largest_logp_gap)
    )
    expected = {
        "kl": 0.5,
        "entropy": 0.75,
        "mismatch/logp_abs_mean": 0.25,
        "mismatch/logp_abs_max": 0.25,
        "trained_tokens": 2.0,
        "mismatch/kl": -0.25,
        "mismatch/weight_mean": 1.0,
        "mismatch/cut_fraction": 0.0,
    }
    unclipped = {f"clip_ratio/{name}_mean": 0.0 for name in ("low", "high", "region", "dual")}
    assert metrics == pytest.approx(expected | unclipped)
    assert set(reduce_metrics([0.0] * len(METRIC_NAMES), maximum=0.0).values()) == {0.0}
