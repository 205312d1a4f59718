"""Packing invariants: every trained token once, budgets, equal counts over ranks, weights that
sum to the denominator."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import (
    AGGREGATIONS,
    MAX_RESPONSE_TOKENS,
    advantages,
    make_batch,
    make_group,
    plan_on_ranks,
    source_index,
)

from cero_rl.config.learner import LearnerConfig
from cero_rl.distributed.group import Group
from cero_rl.learner.packing import build_step_plan, pack_rollouts, split_by_tokens
from cero_rl.types import Completion, RolloutBatch, RolloutGroup

REWARDS = st.sampled_from([0.0, 1.0, float("nan")])
ROLLOUTS = st.lists(st.tuples(st.integers(0, MAX_RESPONSE_TOKENS), REWARDS), min_size=1, max_size=5)
RANKS = st.lists(st.lists(ROLLOUTS, max_size=4), min_size=1, max_size=3)


def batches_of(ranks: list[list[list[tuple[int, float]]]], seed: int = 0) -> list[RolloutBatch]:
    rng = np.random.default_rng(seed)
    return [
        make_batch(rng, [[n for n, _ in g] for g in groups], [[r for _, r in g] for g in groups])
        for groups in ranks
    ]


def test_pack_rollouts_lays_out_prompt_then_response_and_leaves_missing_rewards_out() -> None:
    rng = np.random.default_rng(0)
    groups = [
        make_group(rng, 7, 2, [3, 1, 2]),
        make_group(rng, 3, 1, [2]),
        make_group(rng, 9, 4, [0, 5]),
    ]
    batch = pack_rollouts(
        groups, [np.array(r, np.float32) for r in ([1, np.nan, 0], [np.nan], [0.5, 1])]
    )
    assert batch.prompt_ids.tolist() == [7, 3, 9]
    assert batch.group_offsets.tolist() == [0, 2, 2, 4]
    assert batch.rewards.tolist() == [1, 0, 0.5, 1]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 13, 22]
    kept = [(groups[0], 0), (groups[0], 2), (groups[2], 0), (groups[2], 1)]
    for (group, index), start, end in zip(
        kept, batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist()
    ):
        m, completion = len(group.prompt_tokens), group.completions[index]
        assert batch.tokens[start:end].tolist() == [*group.prompt_tokens, *completion.token_ids]
        assert batch.loss_mask[start:end].tolist() == [False] * m + [True] * (end - start - m)
        assert (
            batch.logp_behavior[start:end].tolist() == [0.0] * m + completion.logp_behavior.tolist()
        )


def test_pack_rollouts_of_nothing() -> None:
    batch = pack_rollouts([], [])
    assert batch.num_rollouts == 0
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.group_offsets.tolist() == [0]
    assert batch.tokens.dtype == torch.int64
    assert batch.loss_mask.dtype == torch.bool


def test_pack_rollouts_refuses_what_does_not_fit() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="2 completions but 1 rewards"):
        pack_rollouts([make_group(rng, 0, 2, [3, 1])], [np.ones(1, np.float32)])
    with pytest.raises(ValueError, match="prompt 4: got 0 prompt tokens"):
        pack_rollouts([make_group(rng, 4, 0, [3])], [np.ones(1, np.float32)])


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 40))
def test_split_by_tokens_partitions_within_the_budget(lengths: list[int], budget: int) -> None:
    runs = split_by_tokens(np.array(lengths, dtype=np.int64), budget)
    assert sorted(i for run in runs for i in run) == list(range(len(lengths)))
    for run in runs:
        assert len(run) == 1 or sum(lengths[i] for i in run) <= budget
    ordered = [lengths[i] for run in runs for i in run]
    assert ordered == sorted(lengths, reverse=True)


@given(RANKS, RANKS)
@settings(max_examples=20, deadline=None)
def test_the_number_of_calls_of_the_head_is_the_runs_and_not_the_steps(one, other) -> None:
    """ZeRO-3 records what is gathered when, and starts anew where that changes."""
    config = LearnerConfig(max_micro_batch_tokens=40)
    steps = [
        plan_on_ranks(batches_of(ranks), config, head_chunk_tokens=3) for ranks in (one, other)
    ]
    seen = {m.head_chunks for plans in steps for plan in plans for m in plan.micro_batches}
    assert seen <= {-(-max(40, MAX_RESPONSE_TOKENS) // 3)}


@settings(max_examples=60, deadline=None)
@given(
    RANKS,
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(["keep", "drop"]),
    st.sampled_from([0.0, 0.1]),
    st.integers(1, 40),
    st.integers(1, 9),
)
def test_plan_invariants(
    ranks: list, aggregation: str, zero_variance: str, kl: float, budget: int, chunk: int
) -> None:
    batches = batches_of(ranks)
    config = LearnerConfig(
        aggregation=aggregation,
        zero_variance=zero_variance,
        kl_coefficient=kl,
        max_micro_batch_tokens=budget,
    )
    plans = plan_on_ranks(batches, config, head_chunk_tokens=chunk)
    assert len({len(p.micro_batches) for p in plans}) == 1
    assert len({p.denominator for p in plans}) == 1
    assert len({m.head_chunks for p in plans for m in p.micro_batches}) <= 1
    carries_loss = False
    for batch, plan in zip(batches, plans):
        adv, signal = advantages(batch)
        owner = torch.arange(batch.num_rollouts).repeat_interleave(
            (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).long()
        )
        wanted = batch.loss_mask & (
            torch.ones_like(batch.loss_mask)
            if zero_variance == "keep" and kl > 0
            else signal[owner]
        )
        seen = torch.zeros(len(batch.tokens), dtype=torch.int64)
        for micro in plan.micro_batches:
            if micro.is_dummy:
                assert not micro.loss_mask.any()
                assert not micro.seq_weight.any()
                continue
            assert len(micro.seq_rollout) == 1 or len(micro.tokens) <= budget
            assert int(micro.loss_mask.sum()) <= chunk * micro.head_chunks
            source = source_index(micro, batch)
            for name in ("tokens", "loss_mask", "logp_behavior"):
                assert torch.equal(getattr(micro, name), getattr(batch, name)[source])
            assert torch.equal(
                micro.token_adv, torch.where(micro.loss_mask, adv[owner[source]], 0.0)
            )
            assert bool((micro.seq_weight[~micro.loss_mask] == 0).all())
            assert micro.max_seqlen_tokens == int(micro.positions.max()) + 1
            seen[source] += micro.loss_mask.long()
        assert torch.equal(seen, wanted.long())
        carries_loss |= bool(wanted.any())
    assert bool(plans[0].micro_batches) == carries_loss  # otherwise all ranks skip together
    if carries_loss:
        assert plans[0].denominator > 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(1, MAX_RESPONSE_TOKENS), min_size=2, max_size=5), max_size=4),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(["keep", "drop"]),
    st.integers(1, 40),
)
def test_weights_over_all_ranks_sum_to_the_denominator(
    shapes: list, aggregation: str, zero_variance: str, budget: int
) -> None:
    if not any(shapes):
        shapes = [*shapes, [[2, 3]]]
    ranks = [
        [[(n, float(i == 0)) for i, n in enumerate(group)] for group in groups] for groups in shapes
    ]
    batches = batches_of(ranks)
    config = LearnerConfig(
        aggregation=aggregation, zero_variance=zero_variance, max_micro_batch_tokens=budget
    )
    plans = plan_on_ranks(batches, config)
    total = sum(
        float(m.seq_weight[m.loss_mask].sum(dtype=torch.float64))
        for p in plans
        for m in p.micro_batches
    )
    # a sequence that uses all of its allowance counts 1, a shorter one less
    if aggregation == "constant":
        tokens = sum(n for groups in shapes for group in groups for n in group)
        rollouts = sum(len(group) for groups in shapes for group in groups)
        assert total == tokens
        assert plans[0].denominator == rollouts * MAX_RESPONSE_TOKENS
    else:
        assert total / plans[0].denominator == pytest.approx(1.0, abs=1e-5)


def test_zero_variance_option_decides_who_is_in_the_denominator() -> None:
    batch = batches_of([[[(2, 1.0), (3, 0.0)], [(4, 1.0), (1, 1.0)]]])
    longest = MAX_RESPONSE_TOKENS
    expected = {
        "token_mean": (10, 5),
        "seq_mean": (4, 2),
        "group_mean": (2, 1),
        "prompt_mean": (2, 1),
        "constant": (4 * longest, 2 * longest),
    }
    for aggregation, (keep, drop) in expected.items():
        for option, wanted in (("keep", keep), ("drop", drop)):
            plan = plan_on_ranks(
                batch, LearnerConfig(aggregation=aggregation, zero_variance=option)
            )[0]
            assert plan.denominator == wanted
            # the dead group needs no forward pass
            assert sum(len(m.seq_rollout) for m in plan.micro_batches) == 2


@pytest.mark.parametrize(
    ("aggregation", "weights", "denominator"),
    [
        ("token_mean", [1, 1, 1, 1, 1], 5),
        ("seq_mean", [1 / 3] * 3 + [1 / 2] * 2, 2),
        ("group_mean", [1 / 6] * 3 + [1 / 4] * 2, 1),
        ("prompt_mean", [1 / 5] * 5, 1),
        ("constant", [1] * 5, 2 * MAX_RESPONSE_TOKENS),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_only_sampled_tokens_train_and_are_counted(
    aggregation: str, weights: list[float], denominator: float, shared: bool
) -> None:
    """Two episodes of two turns behind the prompt 7 8: what the environment said between the turns
    is forwarded, and neither trains nor weighs."""

    def episode(tokens: list[int], mask: list[int]) -> Completion:
        sampled = np.array(mask, dtype=bool)
        logp = np.where(sampled, -0.5, 0.0).astype(np.float32)
        return Completion(np.array(tokens), logp, "", "stop", 0, sampled=sampled)

    two = (episode([1, 2, 9, 9, 3], [1, 1, 0, 0, 1]), episode([4, 9, 5], [1, 0, 1]))
    group = RolloutGroup(0, np.array([7, 8]), two)
    batch = pack_rollouts([group], [np.array([1.0, 0.0], dtype=np.float32)])
    assert batch.loss_mask.int().tolist() == [0, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    assert batch.prompt_lengths.tolist() == [2, 2]
    adv, signal = advantages(batch)
    plan = build_step_plan(
        batch,
        adv,
        signal,
        config=LearnerConfig(aggregation=aggregation, shared_prefix=shared),
        max_response_tokens=MAX_RESPONSE_TOKENS,
        head_chunk_tokens=1000,
        group=Group.alone("cpu"),
        longest_shared=1000 if shared else 0,
    )
    (micro,) = plan.micro_batches
    assert len(micro.tokens) == (10 if shared else 12)  # the prompt once, or twice
    assert plan.denominator == denominator
    trained = {
        int(micro.tokens[t]): (float(micro.seq_weight[t]), float(micro.token_adv[t]))
        for t in micro.loss_mask.nonzero().squeeze(1).tolist()
    }
    assert [trained[t][0] for t in (1, 2, 3, 4, 5)] == pytest.approx(weights)
    assert [trained[t][1] for t in (1, 2, 3, 4, 5)] == [0.5, 0.5, 0.5, -0.5, -0.5]
    assert not micro.seq_weight[~micro.loss_mask].any()
    assert not micro.token_adv[~micro.loss_mask].any()


def test_a_prompt_weighs_alike_in_the_group_mean_whatever_its_group() -> None:
    """Groups of 8 and of 2: in the mean over rollouts the first weighs 4 times the second, in the
    mean over prompts as much; where groups are equal the two are the same bits."""

    def shares(sizes: tuple[int, int], aggregation: str) -> list[float]:
        batches = batches_of([[[(3, float(i % 2)) for i in range(n)] for n in sizes]])
        plan = plan_on_ranks(batches, LearnerConfig(aggregation=aggregation))[0]
        of_group = [0.0, 0.0]
        for micro in plan.micro_batches:
            lengths = micro.cu_seqlens.diff().long()
            owner = micro.seq_rollout.long().repeat_interleave(lengths)
            for group, mine in enumerate((owner < sizes[0], owner >= sizes[0])):
                of_group[group] += float(micro.seq_weight[mine & micro.loss_mask].sum())
        return [total / plan.denominator for total in of_group]

    assert shares((8, 2), "seq_mean") == pytest.approx([0.8, 0.2])
    assert shares((8, 2), "group_mean") == pytest.approx([0.5, 0.5])
    assert shares((8, 8), "group_mean") == shares((8, 8), "seq_mean")


@pytest.mark.parametrize("zero_variance", ["keep", "drop"])
def test_no_live_group_anywhere_is_an_empty_plan(zero_variance: str) -> None:
    plans = plan_on_ranks(
        batches_of([[[(2, 1.0), (3, 1.0)]], [[(4, 0.0)]], []]),
        LearnerConfig(zero_variance=zero_variance),
    )
    assert [p.micro_batches for p in plans] == [(), (), ()]


def test_only_empty_responses_is_an_empty_plan() -> None:
    config = LearnerConfig(aggregation="token_mean", kl_coefficient=0.1)
    assert plan_on_ranks(batches_of([[[(0, 1.0), (0, 0.0)]]]), config)[0].micro_batches == ()


def test_a_rank_without_rollouts_gets_dummies() -> None:
    plans = plan_on_ranks(batches_of([[[(2, 1.0), (3, 0.0)]], []]), LearnerConfig())
    assert [m.is_dummy for m in plans[0].micro_batches] == [False]
    assert [m.is_dummy for m in plans[1].micro_batches] == [True]


def test_plan_is_deterministic() -> None:
    batch = batches_of([[[(2, 1.0), (3, 0.0), (3, 1.0)], [(3, 1.0), (1, 0.0)]]])
    first, second = (
        plan_on_ranks(batch, LearnerConfig(max_micro_batch_tokens=9))[0] for _ in range(2)
    )
    assert len(first.micro_batches) > 1
    for a, b in zip(first.micro_batches, second.micro_batches, strict=True):
        for field in fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
