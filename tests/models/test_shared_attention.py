"""A prompt that stands once before its responses: attention against a mask over the whole pack in
float64, and models of many architectures against their own code, one sequence at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from architectures import TRAINED, assert_same_gradients, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from cero_rl.errors import ConfigError
from cero_rl.models.attention import (
    PACKED,
    choose_attention,
    longest_shared,
    packed_attention,
)
from cero_rl.models.logprob import PolicyModule
from cero_rl.models.shared_attention import shared_attention, shared_layout

BY_NAME = {row.name: row for row in TRAINED}
MODELS = (
    "llama",
    "llama, one key head",
    "qwen2, tied",
    "qwen3",
    "mistral, window 5",
    "phi3, window 5",
    "gemma2, window 5",
    "gemma3_text, window 5",
    "gpt_oss",
    "gpt2",
    "opt",
    "mixtral",
    "deepseek_v3",
)
TEMPERATURE = 0.7
# (prompt, its responses) or a sequence that continues nothing
PACK = ((9, (8, 3, 8, 5)), (1, (4, 1)), (13, ()), (6, (2, 7, 7)))
LONGEST = 17
Pack = tuple[tuple[int, tuple[int, ...]], ...]


def edges_and_parents(pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    lengths: list[int] = []
    parents: list[int] = []
    for prompt, responses in pack:
        parents += [len(lengths)] * (1 + len(responses))
        lengths += [prompt, *responses]
    edges = np.cumsum([0, *lengths]).astype(np.int32)
    return torch.from_numpy(edges), torch.tensor(parents, dtype=torch.int32)


def seen_in(edges: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """bool[T, T] by the words of the definition: token by token."""
    tokens = int(edges[-1])
    segment = [s for s in range(len(parents)) for _ in range(int(edges[s]), int(edges[s + 1]))]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for query in range(tokens):
        for key in range(query + 1):
            mine, its = segment[query], segment[key]
            seen[query, key] = mine == its or int(parents[mine]) == its
    return seen


def masked_attention(
    q: Any, k: Any, v: Any, seen: Any, scale: float, softcap: float | None, sinks: Any
) -> torch.Tensor:
    """[1, H, T, D] -> [1, T, H, Dv], with the mask of the whole pack."""
    heads = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(heads, 1).transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
    weights = torch.softmax(scores, -1)[..., : k.shape[2]]
    return (weights @ v.repeat_interleave(heads, 1)).transpose(1, 2)


GROUPS = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), max_size=5).map(tuple))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(GROUPS, min_size=1, max_size=4).filter(lambda pack: any(r for _, r in pack)),
    st.sampled_from(["plain", "capped", "sinks", "wide values"]),
)
def test_attention_and_its_gradients_are_those_of_a_mask_over_the_pack(
    pack: list, kind: str
) -> None:
    edges, parents = edges_and_parents(tuple(pack))
    tokens, draw = int(edges[-1]), torch.Generator().manual_seed(len(pack))
    shapes = [(4, 8), (2, 8), (2, 12 if kind == "wide values" else 8)]
    q, k, v = (
        torch.randn(1, heads, tokens, size, dtype=torch.float64, generator=draw) * 2
        for heads, size in shapes
    )
    sinks = torch.randn(4, dtype=torch.float64, generator=draw) if kind == "sinks" else None
    inputs = [x.requires_grad_() for x in (q, k, v, sinks) if x is not None]
    softcap = 1.5 if kind == "capped" else None
    got = shared_attention(q, k, v, shared_layout(edges, parents), 0.4, softcap, sinks)
    wanted = masked_attention(q, k, v, seen_in(edges, parents), 0.4, softcap, sinks)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    weight = torch.randn(wanted.shape, dtype=torch.float64, generator=draw)
    for mine, other in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
    ):
        torch.testing.assert_close(mine, other, atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "capped", "sinks"])
def test_flex_attention_takes_the_same_pack(kind: str) -> None:
    """On a CPU, where it has a forward pass alone."""
    edges, parents = edges_and_parents(PACK)
    q, k, v = (torch.randn(1, h, int(edges[-1]), 16) for h in (4, 2, 2))
    softcap, sinks = 1.5 if kind == "capped" else None, torch.randn(4) if kind == "sinks" else None
    flex = shared_attention(q, k, v, shared_layout(edges, parents, flex=True), None, softcap, sinks)
    parts = shared_attention(q, k, v, shared_layout(edges, parents), None, softcap, sinks)
    torch.testing.assert_close(flex, parts, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["plain", "capped", "sinks"])
def test_flex_attention_on_a_gpu_has_the_gradients_of_the_cpu(kind: str) -> None:
    edges, parents = edges_and_parents(PACK)
    softcap, sinks = 1.5 if kind == "capped" else None, torch.randn(4) if kind == "sinks" else None
    inputs = [torch.randn(1, h, int(edges[-1]), 16) for h in (4, 2, 2)]
    results = []
    for device in ("cpu", "cuda"):
        here = [x.to(device).requires_grad_() for x in inputs]
        layout = shared_layout(edges.to(device), parents.to(device))
        logits = None if sinks is None else sinks.to(device)
        out = shared_attention(*here, layout, None, softcap, logits)
        out.square().sum().backward()
        results.append([out.detach().cpu(), *(x.grad.cpu() for x in here)])
    for mine, other in zip(*results):
        torch.testing.assert_close(mine, other, atol=2e-2, rtol=2e-2)  # TF32


def logps_alone(model: Any, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """By transformers: log-probs of what follows the prompt."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].double() / TEMPERATURE
    every = torch.log_softmax(logits, -1)
    return every.gather(-1, tokens[1:, None]).squeeze(1)[prompt - 1 :]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_and_gradients_are_those_of_float64_alone(name: str, checkpointing: bool) -> None:
    config = BY_NAME[name].make_config()
    if getattr(config, "sliding_window", None):
        config.sliding_window = LONGEST
    plain = random_model(config, "eager")
    model = random_model(config, choose_attention("sdpa"))
    model.load_state_dict(plain.state_dict())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy, reference = PolicyModule(model, temperature=TEMPERATURE).train(), plain.double()
    edges, parents = edges_and_parents(PACK)
    rng = np.random.default_rng(3)
    tokens = torch.from_numpy(rng.integers(2, 21, int(edges[-1])))
    positions, mask, alone = [], [], []
    for s, (start, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist())):
        parent = int(parents[s])
        before = tokens[edges[parent] : edges[parent + 1]] if parent != s else tokens[:0]
        positions.append(torch.arange(len(before), len(before) + end - start))
        is_prompt = parent == s and int((parents == s).sum()) > 1
        mask.append((positions[-1] > 0) & (not is_prompt))
        if not is_prompt:
            whole = torch.cat([before, tokens[start:end]])
            alone.append(logps_alone(reference, whole, max(len(before), 1)))
    wanted, trained = torch.cat(alone), torch.cat(mask)
    assert float(wanted.detach().std()) > 0.1
    for chunks in (1, 3):
        many = int(trained.sum())
        logp = policy(
            tokens, torch.cat(positions), edges, trained, many, 13, chunks, False, parents
        )[0]
        torch.testing.assert_close(logp[trained].double(), wanted, atol=2e-5, rtol=0)
        assert not logp[~trained].any()
    weight = torch.linspace(-1, 1, len(wanted))
    (logp[trained] * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert_same_gradients(policy.causal_lm, reference)


def test_no_prompt_is_shared_beyond_a_window_or_by_another_implementation() -> None:
    edges, parents = edges_and_parents(PACK)
    q, k, v = (torch.randn(1, h, int(edges[-1]), 16) for h in (4, 2, 2))
    layout = shared_layout(edges, parents)
    assert layout.longest == LONGEST
    packed_attention(None, q, k, v, None, sliding_window=LONGEST, shared=layout)
    with pytest.raises(ValueError, match="have 17 tokens, more than the window of 16"):
        packed_attention(None, q, k, v, None, sliding_window=LONGEST - 1, shared=layout)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    config = BY_NAME["mistral, window 5"].make_config()
    config._attn_implementation = PACKED
    assert longest_shared(config, "auto", cpu) == longest_shared(config, True, gpu) == 5
    assert longest_shared(config, "auto", gpu) == longest_shared(config, False, cpu) == 0
    config.sliding_window = None
    assert longest_shared(config, True, cpu) > 10**6
    config._attn_implementation = "flash_attention_2"
    assert longest_shared(config, True, gpu) == 0


def test_flash_attention_that_must_share_prompts_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers.utils.import_utils

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(transformers.utils.import_utils, "is_flash_attn_2_available", lambda: True)
    assert choose_attention("auto", "bfloat16", shares=True) == PACKED
    with pytest.raises(ConfigError, match="shared_prefix: got true with model"):
        choose_attention("flash_attention_2", "bfloat16", shares=True)
