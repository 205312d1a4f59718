"""Plans in which a group's prompt stands once: every token where it belongs, and the loss, the
metrics and the gradient of prompts that are copied."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import AGGREGATIONS, make_group, tiny_model

from cero_rl.config.learner import LearnerConfig
from cero_rl.distributed.group import Group
from cero_rl.learner.losses import policy_loss
from cero_rl.learner.packing import build_step_plan, pack_rollouts
from cero_rl.models.logprob import PolicyModule, forward_micro
from cero_rl.types import RolloutBatch, StepPlan

ANY_LENGTH = 2**31
SHAPES = [(5, [3, 7, 1, 8]), (9, [2, 2]), (1, [5, 6, 3]), (12, [8]), (6, [4, 4, 4])]


def batch_of(shapes: list[tuple[int, list[int]]] = SHAPES, *, turns: bool = False) -> RolloutBatch:
    rng = np.random.default_rng(0)
    groups = [
        make_group(rng, i, prompt, lengths, turns=turns)
        for i, (prompt, lengths) in enumerate(shapes)
    ]
    rewards = [rng.random(len(g.completions)).astype(np.float32) for g in groups]
    return pack_rollouts(groups, rewards)


def plan_of(
    batch: RolloutBatch,
    *,
    shared: bool | str,
    longest: int = ANY_LENGTH,
    signal: torch.Tensor | None = None,
    chunk: int = 1000,
    **config: Any,
) -> StepPlan:
    advantages = torch.linspace(-1, 1, batch.num_rollouts)
    return build_step_plan(
        batch,
        advantages,
        torch.ones(batch.num_rollouts, dtype=torch.bool) if signal is None else signal,
        config=LearnerConfig(shared_prefix=shared, **config),
        max_response_tokens=8,
        head_chunk_tokens=chunk,
        group=Group.alone("cpu"),
        longest_shared=longest if shared else 0,
    )


def by_token(plan: StepPlan, batch: RolloutBatch, name: str) -> dict[tuple[int, int], float]:
    """A field of every trained token, by rollout and position."""
    found: dict[tuple[int, int], float] = {}
    for micro in plan.micro_batches:
        lengths = micro.cu_seqlens.diff().long()
        rollout = micro.seq_rollout.long().repeat_interleave(lengths)
        for t in micro.loss_mask.nonzero().squeeze(1).tolist():
            place = int(rollout[t]), int(micro.positions[t])
            assert place not in found, "a token is trained twice"
            found[place] = getattr(micro, name)[t].item()
    return found


LENGTHS = st.lists(st.integers(0, 8), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), LENGTHS), min_size=1, max_size=5),
    st.integers(1, 60),
    st.integers(0, 2**31),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from([5, 9, ANY_LENGTH]),
)
def test_every_token_stands_where_its_copied_twin_stands(
    shapes: list, budget: int, seed: int, aggregation: str, longest: int
) -> None:
    batch = batch_of(shapes)
    signal = torch.rand(batch.num_rollouts, generator=torch.Generator().manual_seed(seed)) < 0.7
    how = {"signal": signal, "aggregation": aggregation, "max_micro_batch_tokens": budget}
    copied = plan_of(batch, shared=False, **how)
    plan = plan_of(batch, shared=True, longest=longest, **how)
    assert plan.denominator == copied.denominator
    for name in ("tokens", "logp_behavior", "token_adv", "seq_weight"):
        assert by_token(plan, batch, name) == by_token(copied, batch, name)
    group_of = np.repeat(np.arange(len(shapes)), [len(lengths) for _, lengths in shapes])
    edges = batch.cu_seqlens.tolist()
    for micro in plan.micro_batches:
        parents = micro.seq_parent
        if parents is None:
            parents = torch.arange(len(micro.seq_rollout))
        starts, rollouts = micro.cu_seqlens.tolist(), micro.seq_rollout.tolist()
        sequences = 0
        for s, parent in enumerate(parents.tolist()):
            own = slice(starts[s], starts[s + 1])
            whole = batch.tokens[edges[rollouts[s]] : edges[rollouts[s] + 1]]
            before = slice(starts[parent], starts[parent + 1]) if parent != s else slice(0, 0)
            joined = torch.cat([micro.tokens[before], micro.tokens[own]])
            positions = torch.cat([micro.positions[before], micro.positions[own]])
            assert positions.tolist() == list(range(len(joined)))
            if not micro.loss_mask[own].any():  # a prompt, behind which its responses follow
                assert parent == s
                assert joined.tolist() == whole[: len(joined)].tolist()
                assert int((parents == s).sum()) > 2
                continue
            sequences += 1
            assert joined.tolist() == whole.tolist()
            if parent != s:
                assert group_of[rollouts[parent]] == group_of[rollouts[s]]
                assert len(joined) <= longest
        assert sequences == 1 or len(micro.tokens) <= budget


def test_a_group_beyond_the_budget_is_split_and_repeats_its_prompt() -> None:
    batch = batch_of([(6, [8, 7, 6, 5, 4, 3, 2, 1])])
    plan = plan_of(batch, shared=True, max_micro_batch_tokens=21)
    assert [len(m.tokens) for m in plan.micro_batches] == [21, 21, 12]
    whole = plan_of(batch, shared=True, max_micro_batch_tokens=42)
    assert [len(m.tokens) for m in whole.micro_batches] == [42]
    assert sum(len(m.tokens) for m in plan_of(batch, shared=False).micro_batches) == 84


def test_groups_of_one_are_packed_as_ever() -> None:
    batch = batch_of([(40, [n]) for n in (3, 8, 5, 1, 7)])
    for signal in (None, torch.tensor([True, False, True, True, False])):
        one = plan_of(batch, shared=True, signal=signal, max_micro_batch_tokens=100)
        other = plan_of(batch, shared=False, signal=signal, max_micro_batch_tokens=100)
        assert len(one.micro_batches) == len(other.micro_batches)
        for mine, its in zip(one.micro_batches, other.micro_batches):
            assert mine.seq_parent is None
            for field in fields(mine):
                x, y = getattr(mine, field.name), getattr(its, field.name)
                assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize(
    ("prompt", "lengths", "longest", "shares"),
    [
        (32, [8] * 4, ANY_LENGTH, True),
        (31, [8] * 4, ANY_LENGTH, False),  # too short to gain
        (32, [8], ANY_LENGTH, False),
        (32, [150, 150], ANY_LENGTH, False),  # saves less than a tenth
        (32, [100, 100], ANY_LENGTH, True),
        (32, [8, 9], 40, False),  # beyond the model's window
        (32, [8, 9], 41, True),
    ],
)
def test_auto_shares_where_it_saves_enough(
    prompt: int, lengths: list[int], longest: int, shares: bool
) -> None:
    batch = batch_of([(prompt, lengths)])
    plan = plan_of(batch, shared="auto", longest=longest)
    assert (plan.micro_batches[0].seq_parent is not None) == shares


def passes(model: Any, plan: StepPlan, config: LearnerConfig, fixed: Any) -> tuple[Any, ...]:
    """(loss, metric sums, gradients) over a plan, with old and reference log-probs by `fixed`."""
    policy, reference = PolicyModule(model, temperature=0.7).train(), PolicyModule(fixed).eval()
    model.zero_grad()
    loss, sums, counts = 0.0, torch.zeros(1), torch.zeros(1)
    for micro in plan.micro_batches:
        with torch.no_grad():
            given = forward_micro(reference, micro, with_entropy=False)[0]
        for name in ("logp_old", "logp_reference"):
            object.__setattr__(micro, name, given)
        terms = policy_loss(*forward_micro(policy, micro, with_entropy=True), micro, config)
        (terms.loss_sum / plan.denominator).backward()
        loss += float(terms.loss_sum.detach()) / plan.denominator
        sums, counts = sums + terms.metric_sums, counts + terms.ratio_counts
    return loss, sums, counts, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "budget, chunk, turns", [(1000, 1000, False), (30, 1000, False), (30, 3, False), (30, 3, True)]
)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_loss_metrics_and_gradient_are_those_of_copied_prompts(
    name: str, checkpointing: bool, budget: int, chunk: int, turns: bool
) -> None:
    """With old and reference log-probs by the same forward, sequence-level importance weights, a
    KL term, and rollouts that are left out."""
    model, fixed = (tiny_model(name, attention="packed") for _ in range(2))
    with torch.no_grad():
        for parameter in fixed.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batch_of(turns=turns)
    signal = torch.ones(batch.num_rollouts, dtype=torch.bool)
    signal[torch.tensor([1, 4, 5, 10])] = False  # one of a group, a whole group, one of another
    settings = {
        "max_micro_batch_tokens": budget,
        "importance_sampling": "truncate",
        "importance_level": "sequence",
        "kl_coefficient": 0.1,
        "zero_variance": "drop",
    }
    config = LearnerConfig(**settings)
    plans = [
        plan_of(batch, shared=x, signal=signal, chunk=chunk, **settings) for x in (True, False)
    ]
    shared, copied = plans
    assert any(m.seq_parent is not None for m in shared.micro_batches)
    assert sum(len(m.tokens) for m in shared.micro_batches) < sum(
        len(m.tokens) for m in copied.micro_batches
    )
    got, wanted = (passes(model, plan, config, fixed) for plan in plans)
    assert abs(got[0] - wanted[0]) < 1e-5
    torch.testing.assert_close(got[1], wanted[1], atol=1e-3, rtol=1e-5)
    assert got[2].sum() == wanted[2].sum() == int(got[1][0])
    assert max(float(g.abs().max()) for g in wanted[3]) > 1e-2
    for mine, other in zip(got[3], wanted[3]):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_a_prompt_predicts_the_first_token_of_every_response() -> None:
    """All responses differ in their first token alone; nothing but the prompt's last position can
    tell what each is worth."""
    packed, plain = tiny_model("Qwen3", attention="packed"), tiny_model("Qwen3")
    batch = batch_of([(6, [1] * 5)])
    (micro,) = plan_of(batch, shared=True).micro_batches
    assert len(micro.tokens) == 6 + 5
    with torch.no_grad():
        logp, entropy = forward_micro(PolicyModule(packed), micro, with_entropy=True)
        every = torch.log_softmax(plain(batch.tokens[None, :6]).logits[0, -1], -1)
    torch.testing.assert_close(logp[6:], every[micro.tokens[6:]], atol=1e-5, rtol=0)
    wanted = torch.distributions.Categorical(logits=every).entropy()
    torch.testing.assert_close(entropy[6:], wanted.expand(5), atol=1e-5, rtol=0)
