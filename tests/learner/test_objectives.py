"""Every objective against a float64 reference written from the papers' formulas: loops over
responses and tokens in numpy, gradients by hand. Largest errors are printed with `pytest -s`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from learner_cases import advantages, make_batch, plan_on_ranks, source_index
from step_cases import PlainPolicy, config_of, made_group, made_rollouts

from cero_rl.config.learner import PRESETS, LearnerConfig
from cero_rl.distributed.group import Group
from cero_rl.learner.batch import TrainingBatch
from cero_rl.learner.batch import make_batch as training_batch
from cero_rl.learner.losses import LOSSES, METRIC_NAMES, policy_loss
from cero_rl.learner.mismatch import importance_weights
from cero_rl.learner.returns import with_kl_in_reward
from cero_rl.learner.update import Learner
from cero_rl.types import MicroBatch

LENGTHS = [4, 1, 7, 3, 5, 2]  # response tokens; each sequence has one prompt token before them
ADVANTAGES = [1.5, -0.7, -2.0, 0.0, 0.9, -1.1]


def responses(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Learner's and old log-probabilities of each response, up to a factor of e^1.5 apart."""
    rng = np.random.default_rng(seed)
    old = [-3 * rng.random(n) for n in LENGTHS]
    return [o + rng.uniform(-1.5, 1.5, len(o)) for o in old], old


def micro_of(old: list[np.ndarray], behavior: list[np.ndarray] | None = None) -> MicroBatch:
    nan = np.array([np.nan])
    flat = lambda rows: torch.from_numpy(np.concatenate([np.append(nan, row) for row in rows]))
    ones = [np.ones(n) for n in LENGTHS]
    total = sum(LENGTHS) + len(LENGTHS)
    return MicroBatch(
        tokens=torch.zeros(total, dtype=torch.int64),
        positions=torch.zeros(total, dtype=torch.int64),
        cu_seqlens=torch.tensor(np.cumsum([0, *(n + 1 for n in LENGTHS)]), dtype=torch.int32),
        seq_rollout=torch.arange(len(LENGTHS), dtype=torch.int32),
        loss_mask=~flat(ones).isnan(),
        logp_behavior=flat(old if behavior is None else behavior),
        token_adv=flat([a * one for a, one in zip(ADVANTAGES, ones)]),
        seq_weight=flat(ones),
        head_chunks=1,
        is_dummy=False,
        trained_tokens=sum(LENGTHS),
        max_seqlen_tokens=max(LENGTHS) + 1,
        logp_old=flat(old),
    )


def reference(
    kind: str, now: np.ndarray, old: np.ndarray, advantage: float, low: float, high: float, c: float
) -> tuple[float, np.ndarray]:
    """(sum of one response's token losses, its gradient by the log-probability of each token)."""
    if kind == "cispo":  # -sg(clip(r)) A log pi
        weight = np.clip(np.exp(now - old), 1 - low, 1 + high)
        return float(-(weight * advantage * now).sum()), -weight * advantage
    loss, gradient = 0.0, np.zeros(len(now))
    # GSPO: s = (pi(y) / pi_old(y)) ** (1 / |y|), the same for every token
    response = math.exp(float((now - old).sum()) / len(now))
    for t in range(len(now)):
        ratio = response if kind == "gspo" else math.exp(now[t] - old[t])
        clipped = min(max(ratio, 1 - low), 1 + high)
        gain = min(ratio * advantage, clipped * advantage)
        slope = ratio * advantage if ratio * advantage <= clipped * advantage else 0.0
        if advantage < 0 and kind == "ppo" and c * advantage > gain:
            gain, slope = c * advantage, 0.0
        loss -= gain
        if kind == "gspo":  # d s / d log pi_u = s / |y| for every u of the response
            gradient -= slope / len(now)
        else:
            gradient[t] -= slope
    return loss, gradient


@pytest.mark.parametrize(
    ("kind", "low", "high", "dual"),
    [
        ("ppo", 0.2, 0.28, None),
        ("ppo", 0.2, 0.2, 3.0),
        ("gspo", 0.1, 0.15, None),
        ("cispo", 1.0, 1.5, None),
        ("cispo", 0.4, 0.2, None),
    ],
)
def test_surrogates(kind: str, low: float, high: float, dual: float | None) -> None:
    config = LearnerConfig(loss=kind, clip_low=low, clip_high=high, dual_clip=dual)
    worst = 0.0
    decided = {"ppo": 0, "dual": 0}
    for seed in range(20):
        now, old = responses(seed)
        micro = micro_of(old)
        logp = micro_of(now).logp_old
        assert logp is not None
        logp.requires_grad_()
        terms = policy_loss(logp, torch.zeros_like(logp), micro, config)
        terms.loss_sum.backward()
        assert logp.grad is not None
        decided["ppo"] += int(terms.metric_sums[3:5].sum())
        decided["dual"] += int(terms.metric_sums[5])
        wanted = [
            reference(kind, n, o, a, low, high, dual or math.inf)
            for n, o, a in zip(now, old, ADVANTAGES)
        ]
        assert float(terms.loss_sum.detach()) == pytest.approx(sum(w[0] for w in wanted), abs=1e-9)
        gradient = logp.grad[micro.loss_mask].numpy()
        error = np.abs(gradient - np.concatenate([w[1] for w in wanted])).max()
        worst = max(worst, float(error))
        assert not logp.grad[~micro.loss_mask].any()
    print(f"{kind} dual_clip={dual}: largest error of a gradient {worst:.1e}")
    assert worst < 1e-12
    assert decided["ppo"] > 0
    assert (decided["dual"] > 0) == (dual is not None)


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("sampling", ["auto", "truncate"])
def test_the_samplers_log_probs_in_the_place_of_old_ones(kind: str, sampling: str) -> None:
    """The ratio is pi / pi_sampler and no weight stands beside it; the mismatch is still told."""
    now, behavior = responses(seed=3)
    config = LearnerConfig.model_validate(
        {"loss": kind, "old_logps": "sampler", "importance_sampling": sampling}
    )
    micro = micro_of(behavior)
    nan = np.array([np.nan])
    logp = torch.from_numpy(np.concatenate([np.append(nan, row) for row in now])).requires_grad_()
    terms = policy_loss(logp, torch.zeros_like(logp), micro, config)
    terms.loss_sum.backward()
    limits = (config.clip_low, config.clip_high, math.inf)
    wanted = [reference(kind, n, b, a, *limits) for n, b, a in zip(now, behavior, ADVANTAGES)]
    assert terms.loss_sum.item() == pytest.approx(sum(loss for loss, _ in wanted), rel=1e-12)
    gradients = np.concatenate([np.append(0.0, gradient) for _, gradient in wanted])
    np.testing.assert_allclose(logp.grad.nan_to_num(), gradients, atol=1e-12)
    sums = dict(zip(METRIC_NAMES, terms.metric_sums.tolist()))
    assert sums["weight"] == sums["tokens"] == sum(LENGTHS)
    assert sums["cut"] == 0
    apart = sum(float((n - b).sum()) for n, b in zip(now, behavior))
    assert sums["log_ratio"] == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize(("kind", "passes"), [("learner", 3), ("sampler", 2)])
def test_the_samplers_log_probs_save_a_forward_pass(kind: str, passes: int) -> None:
    """Of a step of two updates."""
    config = config_of("learner.updates_per_batch=2", f"learner.old_logps={kind}")
    policy: Any = PlainPolicy(config)
    inner, seen = policy.logps, []

    def watched(micro: MicroBatch, *, with_entropy: bool) -> Any:
        seen.append(micro)
        return inner(micro, with_entropy=with_entropy)

    policy.logps = watched
    batch = make_batch(np.random.default_rng(0), [[3, 2], [4]], [[1.0, 0.0], [1.0]])
    batch.tokens.remainder_(16)
    given = TrainingBatch(batch, *advantages(batch))
    result = Learner(policy, None, config, Group.alone()).update(given, [1e-3, 1e-3])
    assert len(seen) == passes * result.metrics["micro_batches"]


def test_every_named_loss_is_in_the_map() -> None:
    assert set(get_args(LearnerConfig.model_fields["loss"].annotation)) == set(LOSSES)
    names = set(get_args(LearnerConfig.model_fields["algorithm"].annotation))
    assert names == set(PRESETS)
    for name in names:  # each is a whole configuration
        LearnerConfig(algorithm=name)


@pytest.mark.parametrize("mask", ["token", "sequence", "geometric", "kpop"])
@pytest.mark.parametrize("sampling", ["none", "truncate"])
def test_masks_beside_the_weight(mask: str, sampling: str) -> None:
    low, high, limit = 0.8, 1.3, 0.02
    given = {} if mask == "kpop" else {"importance_mask_range": (low, high)}
    config = LearnerConfig.model_validate(
        {"importance_sampling": sampling, "importance_mask": mask, "kpop_threshold": limit, **given}
    )
    rng = np.random.default_rng(5)
    worst, left_out, kept = 0.0, 0, 0
    for seed in range(20):
        _, learner = responses(seed)
        sampler = [np.minimum(x + rng.normal(0, 0.3, len(x)), 0.0) for x in learner]
        micro = micro_of(learner, sampler)
        assert micro.logp_old is not None
        edges, tokens = micro.cu_seqlens, micro.loss_mask
        done = importance_weights(micro.logp_old, micro.logp_behavior, tokens, edges, config)
        wanted = []
        for p, b in zip(learner, sampler):
            ratio = np.exp(p - b)
            inside = np.ones(len(p), dtype=bool)
            if mask == "token":
                inside = (ratio >= low) & (ratio <= high)
            elif mask == "sequence":
                inside &= low <= ratio.prod() <= high
            elif mask == "geometric":
                inside &= low <= ratio.prod() ** (1 / len(p)) <= high
            else:
                one, two = np.exp(p), np.clip(np.exp(b), 1e-6, 1 - 1e-6)
                divergence = lambda x, y: x * np.log(x / y) + (1 - x) * np.log((1 - x) / (1 - y))
                inside = (divergence(one, two) <= limit) & (divergence(two, one) <= limit)
            weight = np.minimum(ratio, 2.0) if sampling == "truncate" else np.ones(len(p))
            wanted.append(np.where(inside, weight, 0.0))
            left_out, kept = left_out + int((~inside).sum()), kept + int(inside.sum())
        found = done.weight[tokens].numpy()
        worst = max(worst, float(np.abs(found - np.concatenate(wanted)).max()))
        assert done.cut[tokens][torch.from_numpy(found == 0)].all()
        assert (done.weight[~tokens] == 1).all()
    print(f"mask {mask}, {sampling}: largest error {worst:.1e}, left out {left_out}, kept {kept}")
    assert worst < 1e-12
    assert min(left_out, kept) > 20


REWARDS = [[1.0, 0.0, 0.0, 0.5], [1.0, 1.0], [0.0], [0.25, 0.75, 0.0]]
TOKENS = [[3, 5, 2, 9], [4, 4], [7], [1, 6, 2]]


def made(**learner: Any) -> torch.Tensor:
    """Advantages of the groups above."""
    rollouts = made_rollouts([made_group(j, n) for j, n in enumerate(TOKENS)], REWARDS)
    config = config_of()
    config = config.model_copy(update={"learner": LearnerConfig.model_validate(learner)})
    keep = lambda samples: np.ones(samples.rewards.shape, dtype=bool)
    return training_batch(rollouts, keep, config, Group.alone()).advantages


def whitened(values: list[list[float]]) -> np.ndarray:
    """By writing every token out."""
    tokens = np.concatenate([np.full(n, v) for r, t in zip(values, TOKENS) for v, n in zip(r, t)])
    flat = np.concatenate([np.array(r) for r in values])
    return (flat - tokens.mean()) / tokens.std(ddof=1)


def test_reinforce_plus_plus() -> None:
    found = made(algorithm="reinforce_pp")
    error = np.abs(found.numpy() - whitened(REWARDS)).max()
    print(f"reinforce_pp: largest error {error:.1e}")
    assert error < 1e-6
    against_group = [[r - sum(rewards) / len(rewards) for r in rewards] for rewards in REWARDS]
    found = made(algorithm="reinforce_pp_baseline")
    error = np.abs(found.numpy() - whitened(against_group)).max()
    print(f"reinforce_pp_baseline: largest error {error:.1e}")
    assert error < 1e-6


def test_equal_rewards_have_nothing_to_whiten_by() -> None:
    rollouts = made_rollouts([made_group(0, [3, 4])], [[1.0, 1.0]])
    config = config_of().model_copy(update={"learner": LearnerConfig(algorithm="reinforce_pp")})
    keep = lambda samples: np.ones(samples.rewards.shape, dtype=bool)
    assert training_batch(rollouts, keep, config, Group.alone()).advantages.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_declared_deviation_of_a_group(ddof: int) -> None:
    found = made(advantage="std", advantage_ddof=ddof, advantage_eps=1e-12).numpy()
    wanted = []
    for rewards in REWARDS:
        r = np.array(rewards)
        flat = len(r) < 2 or r.std() == 0
        wanted.append(np.zeros(len(r)) if flat else (r - r.mean()) / r.std(ddof=ddof))
    assert found == pytest.approx(np.concatenate(wanted), abs=1e-6)


def test_with_ddof_0_groups_of_every_size_weigh_alike() -> None:
    """The root mean square of a live group's advantages: 1 with ddof 0, sqrt((n-1)/n) with 1."""
    for ddof, of_size in ((0, lambda n: 1.0), (1, lambda n: math.sqrt((n - 1) / n))):
        found = made(advantage="std", advantage_ddof=ddof, advantage_eps=1e-12).numpy()
        for first, size in ((0, 4), (7, 3)):
            rms = math.sqrt(float((found[first : first + size].astype(np.float64) ** 2).mean()))
            assert rms == pytest.approx(of_size(size), rel=1e-6)


@pytest.mark.parametrize("kind, power", [("size", 1.0), ("sqrt_size", 0.5)])
def test_a_group_weighs_by_its_size(kind: str, power: float) -> None:
    weight = np.array([4, 2, 1, 3]) ** power
    weight /= weight.mean()
    wanted = made(advantage="center").numpy() * np.repeat(weight, [4, 2, 1, 3])
    assert made(advantage="center", group_weight=kind).numpy() == pytest.approx(wanted, abs=1e-6)


def test_kl_in_the_reward() -> None:
    """Every token's return is its response's reward less beta times the KL from it on; over two
    micro-batches, whitened together."""
    rng = np.random.default_rng(8)
    batch = make_batch(rng, [[3, 5], [2, 4]], [[1, 0], [1, 0.5]])
    config = LearnerConfig(
        algorithm="reinforce_pp", kl_coefficient=0.3, max_micro_batch_tokens=14, clip_high=0.2
    )
    old, ref = (torch.from_numpy(-rng.random(len(batch.tokens)) * 2) for _ in range(2))
    (plan,) = plan_on_ranks([batch], config)
    assert len(plan.micro_batches) > 1
    micros = []
    for micro in plan.micro_batches:
        at = source_index(micro, batch)
        reward = batch.rewards.double()[micro.seq_rollout.long()].repeat_interleave(
            torch.diff(micro.cu_seqlens.long())
        )
        micros.append(replace(micro, token_adv=reward, logp_old=old[at], logp_reference=ref[at]))
    done = with_kl_in_reward(micros, config, Group.alone())
    wanted, found = [], []
    for before, after in zip(micros, done):
        for first, last in zip(before.cu_seqlens[:-1].tolist(), before.cu_seqlens[1:].tolist()):
            for t in range(first, last):
                if not before.loss_mask[t]:
                    assert float(after.token_adv[t]) == 0.0
                    continue
                assert before.logp_old is not None
                assert before.logp_reference is not None
                rest = range(t, last)
                kl = sum(float(before.logp_old[u] - before.logp_reference[u]) for u in rest)
                wanted.append(float(before.token_adv[t]) - 0.3 * kl)
                found.append(float(after.token_adv[t]))
    values = np.array(wanted)
    error = np.abs(np.array(found) - (values - values.mean()) / values.std(ddof=1)).max()
    print(f"KL in the reward: largest error {error:.1e}")
    assert error < 1e-6


def test_kl_in_the_reward_leaves_the_loss() -> None:
    now, old = responses(1)
    micro = replace(micro_of(old), logp_reference=micro_of(old).logp_old)
    logp = micro_of(now).logp_old
    assert logp is not None
    losses = {
        place: float(
            policy_loss(
                logp,
                torch.zeros_like(logp),
                micro,
                LearnerConfig(kl_coefficient=0.5, kl_in=place),
            ).loss_sum
        )
        for place in ("loss", "reward")
    }
    plain = float(policy_loss(logp, torch.zeros_like(logp), micro, LearnerConfig()).loss_sum)
    assert losses["reward"] == plain
    assert losses["loss"] > plain


@pytest.mark.covers("objective settings that contradict each other")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"old_logps": "sampler", "importance_sampling": "mask"},
            "old_logps: sampler with a mask",
        ),
        (
            {"old_logps": "sampler", "importance_mask": "kpop"},
            "old_logps: sampler with a mask",
        ),
        ({"loss": "gspo", "dual_clip": 3.0}, "dual_clip: 3.0 with loss: gspo"),
        ({"dual_clip": 1.1}, "below 1 \\+ clip_high"),
        ({"advantage": "rloo", "advantage_ddof": 0}, "advantage_ddof: 0 with advantage: rloo"),
        ({"baseline": "posterior", "group_weight": "size"}, "group_weight: size with baseline"),
        ({"importance_mask": "token", "importance_mask_range": [2, 3]}, "two ratios around 1"),
        ({"importance_mask": "kpop", "importance_mask_range": [0.5, 3]}, "has no range"),
    ],
)
def test_settings_that_contradict(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LearnerConfig.model_validate(given)
