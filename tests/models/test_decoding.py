"""The sampler's attention and its cache against float64 and against transformers' own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer

from cero_rl.models.decoding import RoomyLayer, closed_up, decoding_attention, register
from cero_rl.rollout.engines.transformers import TransformersEngine
from cero_rl.rollout.protocol import RolloutRequest

BATCH, HEADS, SHARED, SIZE = 5, 6, 2, 8


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """float64, one head at a time: [B, H, 1, D]."""
    out = torch.empty_like(query, dtype=torch.float64)
    for row in range(len(query)):
        for head in range(HEADS):
            shared = head // (HEADS // SHARED)
            scores = key[row, shared].double() @ query[row, head, 0].double() * SIZE**-0.5
            if mask is not None:
                scores[~mask[row, 0, 0]] = -torch.inf
            out[row, head, 0] = torch.softmax(scores, -1) @ value[row, shared].double()
    return out


@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_one_token_is_what_float64_says(
    dtype: torch.dtype, bound: float, masked: bool
) -> None:
    made = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, HEADS, 1, SIZE, generator=made).to(dtype)
    key, value = torch.randn(2, BATCH, SHARED, 9, SIZE, generator=made).to(dtype)
    mask = torch.ones(BATCH, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., :4] = mask[3, ..., :8] = False
    seen = mask if masked else None
    got, _ = decoding_attention(None, query, key, value, seen)
    wanted = by_hand(query, key, value, seen).transpose(1, 2)
    torch.testing.assert_close(got.double(), wanted, atol=bound, rtol=0)


def test_the_cache_with_room_holds_what_a_growing_one_holds() -> None:
    def states(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        keys, values = torch.randn(2, rows, SHARED, tokens, SIZE, generator=made)
        return keys, values

    made, spread = torch.Generator().manual_seed(1), torch.tensor([0, 0, 1, 2, 2, 2])
    plain = DynamicLayer()
    plain.update(*states(3, 4))
    roomy = RoomyLayer(plain, spread, room=3)
    plain.batch_select_indices(spread)
    for live in ([1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1], [1, 0, 1, 0]):
        order = closed_up(torch.tensor(live, dtype=torch.bool))
        for layer in (plain, roomy):
            layer.batch_select_indices(order)
        new = states(len(order), 1)
        for one, other in zip(plain.update(*new), roomy.update(*new)):
            assert torch.equal(one, other)
        assert roomy.get_seq_length() == plain.get_seq_length()


def test_live_rows_move_only_into_the_place_of_ended_ones() -> None:
    order = closed_up(torch.tensor([0, 1, 0, 1, 1, 0, 1], dtype=torch.bool))
    assert order.tolist() == [4, 1, 6, 3]


def test_a_completion_depends_on_its_seed_and_not_on_its_neighbours() -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation=register(),
    )
    engine = TransformersEngine(
        Qwen3ForCausalLM(config),
        eos_token_ids=(1, 2),
        pad_token_id=0,
        decode=lambda ids: " ".join(map(str, ids)),
        max_response_tokens=12,
        max_batch_tokens=1000,
        seed=3,
    )
    lengths = (3, 9, 1, 14)
    requests = [
        RolloutRequest(i, np.arange(n) % 20 + 3, 5, stream_key=i + 1) for i, n in enumerate(lengths)
    ]
    together = engine.generate(requests, stream=0, temperature=1.0)
    ends = {len(c.token_ids) for group in together for c in group.completions}
    assert len(ends) > 3, "rows end at different tokens"
    for request, group in zip(requests, together):
        (alone,) = engine.generate([request], stream=0, temperature=1.0)
        for one, other in zip(group.completions, alone.completions):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            np.testing.assert_allclose(one.logp_behavior, other.logp_behavior, atol=2e-6)
    limits = (4, None, 1, 7)
    short = engine.generate(
        [replace(r, max_tokens=n) for r, n in zip(requests, limits)], stream=0, temperature=1.0
    )
    for limit, cut, group in zip(limits, short, together):
        for one, other in zip(cut.completions, group.completions):
            assert one.token_ids.tolist() == other.token_ids[:limit].tolist()
            np.testing.assert_allclose(one.logp_behavior, other.logp_behavior[:limit], atol=2e-6)
            whole = other.finish_reason == "stop" and len(other.token_ids) <= (limit or 12)
            assert one.finish_reason == ("stop" if whole else "length")
