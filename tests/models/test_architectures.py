"""What the learner computes for windows, caps, scales, sinks and experts, against transformers'
own code in float64; and the trial that refuses what it cannot compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import (
    REFUSED,
    TOKENIZER,
    TRAINED,
    Row,
    assert_same_gradients,
    random_model,
    save_config,
)
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from cero_rl.config import Config, load_config
from cero_rl.errors import CeroError, ConfigError, EngineError
from cero_rl.models.attention import choose_attention, sampler_attention
from cero_rl.models.hub_names import HubNames
from cero_rl.models.load import load_model, load_tokenizer, usable_positions
from cero_rl.models.logprob import PolicyModule
from cero_rl.rollout.engines.transformers import TransformersEngine
from cero_rl.rollout.engines.unfit_for_vllm import refuse_unfit_for_vllm
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.train.preflight import check_model
from cero_rl.train.trial import try_architecture
from cero_rl.train.weight_sync import probe_requests

RECIPE = Path(__file__).resolve().parents[2] / "recipes/digits_cpu.yaml"
BY_NAME = {row.name: row for row in (*TRAINED, *REFUSED)}
# one of each thing that the learner has to do for a model
COMPUTED = (
    "qwen2, window 5",
    "mistral, window 5",
    "phi3, window 5",
    "gemma2, window 5",
    "gemma3_text, window 5",
    "granite",
    "cohere",
    "cohere2, window 5",
    "gpt_oss",
    "gpt2",
    "opt",
)
LENGTHS = (17, 4, 11)  # tokens; longer and shorter than the window
TEMPERATURE = 0.7


def sequences() -> list[torch.Tensor]:
    rng = np.random.default_rng(3)
    return [torch.from_numpy(rng.integers(2, 21, n)) for n in LENGTHS]


def logps_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Alone, by transformers: log-prob of tokens[1:]."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].double() / TEMPERATURE
    return torch.log_softmax(logits, -1).gather(-1, tokens[1:, None]).squeeze(1)


def packed_model(config: Any, like: Any) -> Any:
    model = random_model(config, choose_attention("sdpa"))
    model.load_state_dict(like.state_dict())
    return model


def packed_logps(policy: PolicyModule, parts: list[torch.Tensor], chunks: int = 1) -> torch.Tensor:
    positions = torch.cat([torch.arange(len(tokens)) for tokens in parts])
    edges = torch.from_numpy(np.cumsum([0, *map(len, parts)]).astype(np.int32))
    wanted = positions > 0
    longest = max(map(len, parts))
    tokens = torch.cat(parts)
    trained = int(wanted.sum())
    return policy(tokens, positions, edges, wanted, trained, longest, chunks, False)[0][wanted]


@pytest.mark.parametrize("name", COMPUTED)
def test_log_probs_and_gradients_are_those_of_float64_alone(name: str) -> None:
    config = BY_NAME[name].make_config()
    plain, parts = random_model(config, "eager"), sequences()
    policy = PolicyModule(packed_model(config, plain), temperature=TEMPERATURE).train()
    reference = plain.double()
    wanted = torch.cat([logps_of(reference, tokens) for tokens in parts])
    assert float(wanted.detach().std()) > 0.1
    for chunks in (1, 3):
        got = packed_logps(policy, parts, chunks)
        torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=0)
    weight = torch.linspace(-1, 1, len(wanted))
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert_same_gradients(policy.causal_lm, reference)


@pytest.mark.parametrize("name", COMPUTED)
def test_the_transformers_sampler_reports_what_float64_says(name: str) -> None:
    config = BY_NAME[name].make_config()
    reference = random_model(config, "eager").double()
    model = random_model(config, sampler_attention(config))
    prompts = [tokens.numpy()[:n] for tokens, n in zip(sequences(), (13, 4, 8))]
    engine = TransformersEngine(
        model,
        eos_token_ids=(2, 3, 4),
        pad_token_id=0,
        decode=lambda ids: "",
        max_response_tokens=10,
        max_batch_tokens=10_000,
        seed=1,
    )
    requests = [RolloutRequest(i, prompt, 3, stream_key=i) for i, prompt in enumerate(prompts)]
    for group in engine.generate(requests, stream=0, temperature=TEMPERATURE):
        for completion in group.completions:
            whole = torch.from_numpy(np.concatenate([group.prompt_tokens, completion.token_ids]))
            wanted = logps_of(reference, whole)[len(group.prompt_tokens) - 1 :]
            got = torch.from_numpy(completion.logp_behavior).double()
            torch.testing.assert_close(got, wanted.detach(), atol=2e-5, rtol=0)


@pytest.mark.covers("dropout in the start model")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "name", ["llama, dropout 0.1", "phi", "starcoder2", "gpt2", "gpt_neox", "opt", "mixtral"]
)
def test_in_training_the_learner_is_the_policy_that_sampled(name: str, checkpointing: bool) -> None:
    config = BY_NAME[name].make_config()
    before = config.to_dict()
    model = random_model(config, choose_attention("sdpa"))
    if checkpointing:
        how = {"use_reentrant": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    policy, parts = PolicyModule(model), sequences()
    with torch.no_grad():
        sampled = packed_logps(policy.eval(), parts)
    made = []
    handle = model.base_model.get_submodule(_a_layer(model)).register_forward_pre_hook(
        lambda *_: made.append(1)
    )
    trained = packed_logps(policy.train(), parts)
    torch.testing.assert_close(trained, sampled, atol=1e-6, rtol=0)
    trained.sum().backward()
    handle.remove()
    assert len(made) == (2 if checkpointing else 1), "activations are made again, or they are not"
    for key, value in before.items():
        if "drop" in key or "jitter" in key:
            assert getattr(model.config, key) == value, "an export keeps what the start model says"


def _a_layer(model: Any) -> str:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return next(
        name
        for name, module in model.base_model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    )


# --- refused before anything is loaded


def run_config(folder: Path, *overrides: str) -> Config:
    return load_config(RECIPE, [f"model.path={folder}", *overrides])


def check(row: Row, folder: Path, *overrides: str) -> None:
    path = str(save_config(row, folder))
    check_model(run_config(folder, *overrides), path, load_tokenizer(str(TOKENIZER)))


@pytest.mark.covers("architecture that cannot be trained")
@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_refused_with_the_reason_from_the_configuration_alone(row: Row, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError) as caught:
        check(row, tmp_path / "model")
    assert row.refused in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.covers("model that vLLM samples otherwise")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt_oss", "an update is lost"),
        ("gpt_neox", "other log-probabilities than transformers"),
        ("cohere2, window 5", "a token more than the window of 5"),
        ("qwen2, window 5", "no windows in some of the layers"),
        ("qwen3_moe", None),
        ("mixtral", None),
        ("gemma2, window 5", None),
    ],
)
def test_what_vllm_samples_otherwise_is_refused_by_name(name: str, said: str | None) -> None:
    config = BY_NAME[name].make_config()
    if said is None:
        refuse_unfit_for_vllm("p", config, 36)
        return
    with pytest.raises(ConfigError, match=f"rollout.engine: vllm 0.32 .*{said}"):
        refuse_unfit_for_vllm("p", config, 36)


def test_experts_are_sent_as_a_checkpoint_on_the_hub_holds_them(tmp_path: Path) -> None:
    row = BY_NAME["qwen3_moe"]
    folder = save_config(row, tmp_path / "model")
    model = random_model(row.make_config(), "sdpa")
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    sent = dict(HubNames(model.config).of((n, p.data) for n, p in model.named_parameters()))
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in sent
    assert sent.keys() == stored.keys()
    assert all(torch.equal(sent[name], stored[name]) for name in sent)


@pytest.mark.parametrize("name", ["llama", "gemma2, window 5", "phi3, longrope within its length"])
def test_what_can_be_trained_passes(name: str, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    check(BY_NAME[name], tmp_path / "model", "model.gradient_checkpointing=true")
    assert torch.equal(state, torch.random.get_rng_state()), "a seed set before holds"


class OddConfig(LlamaConfig):
    model_type = "odd"
    odd: str = ""


class Odd(LlamaForCausalLM):
    """Llama, but one thing is done otherwise."""

    config_class = OddConfig

    def forward(self, *inputs: Any, **named: Any) -> Any:
        out = super().forward(*inputs, **named)
        if self.config.odd == "scales its logits":
            out.logits = out.logits * 1.5
        return out


class OddLayer(LlamaDecoderLayer):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.odd = config.odd

    def forward(self, hidden_states: Any, *inputs: Any, **named: Any) -> Any:
        out = super().forward(hidden_states, *inputs, **named)
        if self.odd == "is noisy in training" and self.training:
            out = out + torch.randn_like(out)
        if self.odd == "looks ahead":
            out = out + out.mean(1, keepdim=True)
        if self.odd == "looks back past the cut":
            out = out + 0.5 * out.roll(1, 1)
        if self.odd == "looks at the token before":
            first = named["position_ids"][..., None] == 0
            out = out + 0.5 * out.roll(1, 1).masked_fill(first, 0.0)
        return out


@pytest.mark.covers("architecture that cannot be trained")
@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("nothing", None),
        ("scales its logits", "its attention or its head does what the learner does not do"),
        ("is noisy in training", "computes otherwise in training"),
        ("looks ahead", "depends on the tokens after it"),
        ("looks back past the cut", ""),
        ("looks at the token before", "behind a prompt that is shared .*shared_prefix: false"),
    ],
)
def test_an_architecture_that_nobody_has_heard_of_is_tried(
    odd: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaDecoderLayer", OddLayer)
    AutoConfig.register("odd", OddConfig, exist_ok=True)
    AutoModelForCausalLM.register(OddConfig, Odd, exist_ok=True)
    config = OddConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, head_dim=8)
    config.odd = odd
    asked = {"with_sampler": True, "checkpointing": True, "shared_prefix": True}
    if said is None:
        try_architecture("p", config, **asked)
        return
    with pytest.raises(ConfigError, match=f"which this trainer cannot train: .*{said}"):
        try_architecture("p", config, **asked)
    if odd == "looks at the token before":
        try_architecture("p", config, with_sampler=False)


@pytest.mark.covers("start weights that are not finite")
def test_start_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = save_config(BY_NAME["llama"], tmp_path / "model")
    model = random_model(BY_NAME["llama"].make_config(), "sdpa")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
        model.model.norm.weight[0] = float("inf")
    model.save_pretrained(folder)
    with pytest.raises(EngineError) as caught:
        load_model(str(folder), "float32", "sdpa")
    said = "holds 2 weights that are not finite (model.layers.1.mlp.up_proj.weight, model.norm"
    assert said in str(caught.value)
    assert isinstance(caught.value, CeroError)


def test_the_probe_is_no_longer_than_the_model_can_be_trained_on() -> None:
    config = BY_NAME["phi3, longrope within its length"].make_config()
    positions, _ = usable_positions("p", config)
    assert positions == 64
    requests = probe_requests([np.arange(5), np.arange(9)], positions)
    assert max(len(request.prompt_tokens) for request in requests) == 64 - 8
