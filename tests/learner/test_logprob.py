"""Packed log-probabilities and gradients against transformers' own one-sequence forward pass, on
tiny random models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import (
    AGGREGATIONS,
    CPU,
    VOCABULARY,
    make_batch,
    plan_on_ranks,
    source_index,
    tiny_model,
)
from transformers import AttentionInterface

from cero_rl.config.learner import LearnerConfig
from cero_rl.errors import ConfigError
from cero_rl.learner.losses import policy_loss
from cero_rl.learner.packing import _dummy
from cero_rl.models import attention
from cero_rl.models.attention import PACKED, choose_attention, packed_attention, packed_layout
from cero_rl.models.logprob import PolicyModule, forward_micro, head_chunk_tokens
from cero_rl.types import MicroBatch, RolloutBatch, StepPlan

MODELS = ("Qwen3", "Qwen2", "Llama")
TEMPERATURE = 0.7


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(transformers' sdpa model, the same weights with packed attention)"""
    plain, packed = tiny_model(request.param), tiny_model(request.param, attention="packed")
    packed.load_state_dict(plain.state_dict())
    return plain, packed


@pytest.fixture(scope="module")
def batch() -> RolloutBatch:
    return make_batch(
        np.random.default_rng(1), [[3, 7, 1, 8], [2, 2], [5, 6]], [[1, 0, 0, 1], [1, 0], [0, 1]]
    )


def plan(
    batch: RolloutBatch, budget: int, *, chunk: int = 1000, aggregation: str = "seq_mean"
) -> StepPlan:
    return plan_on_ranks(
        [batch],
        LearnerConfig(max_micro_batch_tokens=budget, aggregation=aggregation),
        head_chunk_tokens=chunk,
    )[0]


def forward(
    policy: PolicyModule, micro: MicroBatch, *, with_entropy: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    return forward_micro(policy, micro, with_entropy=with_entropy)


def reference_logps(model: Any, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence by sequence through transformers; 0 on prompts. (logp f32[T], entropy f32[T])"""
    logps, entropies = [], []
    for start, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist()):
        tokens = batch.tokens[start:end]
        every = torch.log_softmax(
            model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float() / TEMPERATURE, -1
        )
        first = torch.zeros(1)
        logps.append(torch.cat([first, every.gather(-1, tokens[1:, None]).squeeze(1)]))
        entropies.append(
            torch.cat([first, torch.distributions.Categorical(logits=every).entropy()])
        )
    mask = batch.loss_mask
    return torch.where(mask, torch.cat(logps), 0.0), torch.where(mask, torch.cat(entropies), 0.0)


@pytest.mark.parametrize("budget, chunk", [(1000, 1000), (25, 5), (1, 2), (1000, 1)])
def test_packed_log_probs_and_entropy_are_those_of_separate_sequences(
    pair: tuple, batch: RolloutBatch, budget: int, chunk: int
) -> None:
    plain, packed = pair
    policy = PolicyModule(packed, temperature=TEMPERATURE)
    with torch.no_grad():
        wanted_logp, wanted_entropy = reference_logps(plain, batch)
        # the model is far from uniform, so the comparison says something
        assert float(wanted_logp[batch.loss_mask].std()) > 0.5
        for micro in plan(batch, budget, chunk=chunk).micro_batches:
            source = source_index(micro, batch)
            logp, entropy = forward(policy, micro)
            assert logp.dtype == torch.float32
            torch.testing.assert_close(logp, wanted_logp[source], atol=1e-5, rtol=0)
            torch.testing.assert_close(entropy, wanted_entropy[source], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                forward(policy, micro, with_entropy=False)[1], torch.zeros_like(entropy)
            )


def gradients(model: Any, plan_: StepPlan) -> list[torch.Tensor]:
    config = LearnerConfig()
    policy = PolicyModule(model, temperature=TEMPERATURE)
    model.zero_grad()
    for micro in plan_.micro_batches:
        logp, entropy = forward(policy, micro)
        assert not entropy.requires_grad
        (policy_loss(logp, entropy, micro, config).loss_sum / plan_.denominator).backward()
    return [p.grad.clone() for p in model.parameters()]


def test_gradient_is_that_of_separate_sequences(pair: tuple, batch: RolloutBatch) -> None:
    plain, packed = pair
    whole = plan(batch, 1000)
    micro = whole.micro_batches[0]
    plain.zero_grad()
    logp = reference_logps(plain, batch)[0][source_index(micro, batch)]
    (
        policy_loss(logp, torch.zeros_like(logp), micro, LearnerConfig()).loss_sum
        / whole.denominator
    ).backward()
    for got, parameter in zip(gradients(packed, whole), plain.parameters()):
        torch.testing.assert_close(got, parameter.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batch_size_and_head_chunks_do_not_change_the_gradient(
    batch: RolloutBatch, aggregation: str
) -> None:
    model = tiny_model("Qwen3", attention="packed")
    whole = gradients(model, plan(batch, 1000, aggregation=aggregation))
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    for budget, chunk in ((25, 1000), (1, 1000), (1000, 4), (25, 3)):
        split = plan(batch, budget, chunk=chunk, aggregation=aggregation)
        for got, wanted in zip(gradients(model, split), whole):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_does_not_change_the_gradient(batch: RolloutBatch) -> None:
    model = tiny_model("Qwen3", attention="packed").train()
    whole = plan(batch, 30, chunk=6)
    wanted = gradients(model, whole)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for got, want in zip(gradients(model, whole), wanted):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head_chunks", [1, 3])
def test_a_dummy_runs_the_same_modules_and_gives_every_parameter_a_zero_gradient(
    head_chunks: int,
) -> None:
    model = tiny_model("Llama", attention="packed")
    rows: list[int] = []
    handle = model.lm_head.register_forward_hook(
        lambda module, arguments, output: rows.append(arguments[0].shape[0])
    )
    policy = PolicyModule(model, temperature=TEMPERATURE)
    micro = _dummy(head_chunks, CPU)
    logp, entropy = forward(policy, micro)
    assert rows == [1] * head_chunks
    policy_loss(logp, entropy, micro, LearnerConfig()).loss_sum.backward()
    handle.remove()
    assert not logp.any()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_only_response_rows_of_one_chunk_go_through_the_head(batch: RolloutBatch) -> None:
    model = tiny_model("Qwen2", attention="packed")
    rows: list[int] = []
    model.lm_head.register_forward_hook(
        lambda module, arguments, output: rows.append(arguments[0].shape[0])
    )
    tokens = len(batch.tokens)
    micro = plan(batch, tokens, chunk=6).micro_batches[0]
    logp, _ = forward(PolicyModule(model), micro)
    assert sum(rows) == int(batch.loss_mask.sum())
    assert len(rows) == micro.head_chunks == -(-tokens // 6)
    assert max(rows) <= 6
    logp.sum().backward()
    assert len(rows) == 2 * micro.head_chunks  # recomputed chunk by chunk, not kept
    assert head_chunk_tokens(VOCABULARY) > head_chunk_tokens(150_000) >= 256


@pytest.fixture
def spied_masks() -> Iterator[list[Any]]:
    masks: list[Any] = []

    def spy(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any) -> Any:
        masks.append(attention_mask)
        return packed_attention(module, query, key, value, attention_mask, **rest)

    AttentionInterface.register(PACKED, spy)
    yield masks
    choose_attention("sdpa")


@pytest.mark.parametrize("name", MODELS)
def test_transformers_builds_no_mask(
    name: str, batch: RolloutBatch, spied_masks: list[Any]
) -> None:
    model = tiny_model(name)
    model.set_attn_implementation(PACKED)
    forward(PolicyModule(model), plan(batch, 1000).micro_batches[0])
    assert spied_masks == [None, None]  # one a layer


def test_packed_layout() -> None:
    cells, shape = packed_layout(torch.tensor([0, 3, 4, 6], dtype=torch.int32), 3, 6)
    assert shape == (3, 3)
    assert cells.tolist() == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize(("gpu", "flash"), [(True, True), (True, False), (False, False)])
def test_choose_attention(monkeypatch: pytest.MonkeyPatch, gpu: bool, flash: bool) -> None:
    import transformers.utils.import_utils

    monkeypatch.setattr(attention.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(transformers.utils.import_utils, "is_flash_attn_2_available", lambda: flash)
    assert choose_attention("sdpa") == PACKED
    assert choose_attention("auto", "bfloat16") == ("flash_attention_2" if flash else PACKED)
    assert choose_attention("auto", "float32") == PACKED
    if flash:
        assert choose_attention("flash_attention_2", "bfloat16") == "flash_attention_2"
        with pytest.raises(ConfigError, match=r"cannot compute in model\.dtype: float32"):
            choose_attention("flash_attention_2", "float32")
    else:
        with pytest.raises(
            ConfigError, match="flash-attn is not installed" if gpu else "torch sees no GPU"
        ):
            choose_attention("flash_attention_2", "bfloat16")
