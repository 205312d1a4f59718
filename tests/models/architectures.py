"""Tiny random models of many architectures, made from configurations: the rows of
`make test-architectures` and the cases of the fast tests."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

TOKENIZER = Path(__file__).resolve().parents[2] / "recipes/assets/tiny_digits"
VOCABULARY = 24  # the tokenizer has 21 tokens: every row has a padded vocabulary
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,  # heads of 32, the smallest that vLLM has on a CPU
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _longrope(original: int) -> dict[str, Any]:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 128 / original}
    factors = {"short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    return {
        "sliding_window": None,
        "original_max_position_embeddings": original,
        "rope_parameters": {**rope, **factors, "original_max_position_embeddings": original},
    }


GPT2 = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128}


@dataclass(frozen=True)
class Row:
    """`config` is what differs from SIZES. `refused`: words of the reason, where it is not trained;
    `settings`: of the run."""

    name: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    settings: tuple[str, ...] = ()

    def make_config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **{**SIZES, **self.config})


def _windowed(model_type: str, window: int = 5, **config: Any) -> Row:
    return Row(f"{model_type}, window {window}", model_type, {"sliding_window": window, **config})


STATE = "carry a state from token to token"
TRAINED = (
    Row("llama", "llama", {"tie_word_embeddings": False}),
    Row("llama, tied", "llama", {"tie_word_embeddings": True}),
    Row("llama, one key head", "llama", {"num_key_value_heads": 1}),
    Row(
        "llama, rope llama3",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    Row("llama, dropout 0.1", "llama", {"attention_dropout": 0.1}),
    Row("qwen2, tied", "qwen2", {"tie_word_embeddings": True}),
    Row(
        "qwen2, yarn",
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    _windowed("qwen2", use_sliding_window=True, max_window_layers=1),
    Row("qwen3", "qwen3", {"head_dim": 32}),
    Row("mistral", "mistral", {"sliding_window": None}),
    _windowed("mistral"),
    Row("phi", "phi", {"resid_pdrop": 0.1}),
    Row("phi3", "phi3", {"sliding_window": None}),
    _windowed("phi3"),
    Row("gemma", "gemma", {"head_dim": 32}),
    _windowed(
        "gemma2",
        head_dim=32,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    _windowed("gemma3_text", head_dim=32, query_pre_attn_scalar=32, num_hidden_layers=7),
    Row("granite", "granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    Row("cohere", "cohere", {"logit_scale": 0.0625}),
    _windowed("cohere2", logit_scale=0.25, num_hidden_layers=4),
    Row("olmo", "olmo"),
    Row("olmo2", "olmo2"),
    _windowed("olmo3", num_hidden_layers=4),
    _windowed("exaone4", num_hidden_layers=4, sliding_window_pattern=4),
    Row("ernie4_5", "ernie4_5", {"head_dim": 32}),
    Row("glm4", "glm4", {"head_dim": 32}),
    Row("smollm3", "smollm3"),
    Row("starcoder2", "starcoder2", {"residual_dropout": 0.1, "embedding_dropout": 0.1}),
    Row("qwen3_moe", "qwen3_moe", {**EXPERTS, "head_dim": 32}),
    Row("qwen2_moe", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    Row("olmoe", "olmoe", EXPERTS),
    Row("mixtral", "mixtral", {"num_local_experts": 4, "router_jitter_noise": 0.1}),
    Row("granitemoe", "granitemoe", {"num_local_experts": 4, "logits_scaling": 4.0}),
    Row(
        "deepseek_v3",
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "topk_method": "noaux_tc",  # vLLM looks for it before it takes the routing bias
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 64,
            "v_head_dim": 32,
        },
    ),
    Row("gpt_oss", "gpt_oss", {"num_local_experts": 4, "head_dim": 32, "sliding_window": 5}),
    Row("gpt2", "gpt2", {**GPT2, "resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1}),
    Row("gpt_neox", "gpt_neox", {"hidden_dropout": 0.1}),
    Row("opt", "opt", {"ffn_dim": 48, "dropout": 0.1, "word_embed_proj_dim": 128}),
    Row("phi3, longrope within its length", "phi3", _longrope(64)),
)
REFUSED = (
    Row("stablelm", "stablelm", {}, "does not reach its attention layers"),
    Row("falcon", "falcon", {"ffn_hidden_size": 192}, "that are packed beside it"),
    Row("bert", "bert", {}, "depends on the tokens after it"),
    Row("lfm2", "lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}, STATE),
    Row("qwen3_next", "qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, STATE),
    Row(
        "granitemoehybrid",
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 64},
        STATE,
    ),
    Row("falcon_h1", "falcon_h1", {}, STATE),
    Row("mamba2", "mamba2", {"num_heads": 4, "head_dim": 64, "expand": 2}, STATE),
    Row("gemma3, multimodal", "gemma3", {}, "of which a language model is only a part"),
    Row("t5", "t5", {}, "wanted a causal language model"),
    Row(
        "llama, classifier",
        "llama",
        {"architectures": ["LlamaForSequenceClassification"]},
        "which has no head that predicts the next token",
    ),
    Row(
        "llama, quantised",
        "llama",
        {"quantization_config": {"quant_method": "fp8"}},
        "with quantised weights",
    ),
    Row(
        "phi3, longrope beyond its length",
        "phi3",
        _longrope(32),
        "has 32 positions before its longrope factors change",
    ),
    Row(
        "llama, dynamic rope beyond its length",
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
        | {"max_position_embeddings": 32},
        "has 32 positions",
    ),
)


def save_config(row: Row, folder: Path) -> Path:
    """config.json and the tokenizer, with a file of weights that nobody may open: all that the
    checks before the start read."""
    folder.mkdir(parents=True)
    row.make_config().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def random_model(config: Any, attention: str) -> Any:
    """Far from uniform, so that a comparison says something. "eager" is transformers' plainest
    code, which runs in float64 too."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    plain: Any = {"experts_implementation": "eager"} if attention == "eager" else {}
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32, **plain
    )
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * scale)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    return model.eval()


def save_model(row: Row, folder: Path) -> Path:
    """A whole start model."""
    random_model(row.make_config(), "eager").save_pretrained(save_config(row, folder))
    return folder


def assert_same_gradients(model: Any, reference: Any) -> None:
    """Of a float32 model and of the same model in float64."""
    of_reference = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        there = of_reference[name].grad
        if there is None:  # a head or an expert that nothing went through
            continue
        scale = float(there.abs().max()) + 1e-3
        gap = float((parameter.grad.double() - there).abs().max())
        assert gap < 1e-4 * scale + 1e-5, (name, gap, scale)
