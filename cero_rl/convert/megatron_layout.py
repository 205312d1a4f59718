"""Names and layouts of Megatron-core's GPTModel for Qwen3, Qwen2.5 and Llama shapes. Pure: no file
is read here.

Where they differ from Hugging Face: query, key and value are one matrix, interleaved by query group
(its queries, its key, its value); gate and up are one matrix; a layer's norm weights belong to the
linear layer that follows (as Transformer Engine fuses them, and as the local layers are saved);
layers are stacked along a first dimension; the vocabulary is padded. Tensor parallelism does not
show: a distributed checkpoint holds global tensors. Checked against megatron-core 0.16.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cero_rl.errors import CheckpointError

LAYERS = "decoder.layers."
_LLAMA3 = {  # Megatron has these built in
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_KNOWN = {"qwen3": "Qwen3", "qwen2": "Qwen2.5", "llama": "Llama"}


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped queries, gated MLP and RMS norms."""

    kind: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_dim: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool

    @property
    def group_rows(self) -> int:
        """Rows of the fused matrix for one query group."""
        return (self.heads // self.groups + 2) * self.head_dim


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor, or one layer of a stacked one: `names` of the Hugging Face tensors that
    make it, stacked by rows or as qkv."""

    key: str
    layer: int | None
    names: tuple[str, ...]
    qkv: bool = False
    vocabulary: bool = False


def shape_of(config: dict[str, Any], where: str) -> Shape:
    kind = config["model_type"]
    if kind not in _KNOWN:
        raise CheckpointError(
            f"{where}: model_type {kind!r} has no Megatron mapping here; wanted one of "
            f"{', '.join(_KNOWN)}"
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise CheckpointError(
                f"{where}: {key} is true, which is not supported for {_KNOWN[kind]}"
            )
    heads = config["num_attention_heads"]
    return Shape(
        kind=kind,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        heads=heads,
        groups=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def entries(shape: Shape) -> list[Entry]:
    """All Megatron tensors of the model, in the order of the network."""
    found = [
        Entry(
            "embedding.word_embeddings.weight",
            None,
            ("model.embed_tokens.weight",),
            vocabulary=True,
        )
    ]
    for layer in range(shape.layers):
        own = f"model.layers.{layer}."
        qkv = tuple(f"{own}self_attn.{part}_proj" for part in "qkv")
        pairs: list[tuple[str, tuple[str, ...]]] = [
            ("self_attention.linear_qkv.layer_norm_weight", (own + "input_layernorm.weight",)),
            ("self_attention.linear_qkv.weight", tuple(n + ".weight" for n in qkv)),
            ("self_attention.linear_proj.weight", (own + "self_attn.o_proj.weight",)),
            ("mlp.linear_fc1.layer_norm_weight", (own + "post_attention_layernorm.weight",)),
            ("mlp.linear_fc1.weight", (own + "mlp.gate_proj.weight", own + "mlp.up_proj.weight")),
            ("mlp.linear_fc2.weight", (own + "mlp.down_proj.weight",)),
        ]
        if shape.qkv_bias:
            pairs.append(("self_attention.linear_qkv.bias", tuple(n + ".bias" for n in qkv)))
        if shape.qk_norm:
            pairs += [
                (f"self_attention.{p}_layernorm.weight", (f"{own}self_attn.{p}_norm.weight",))
                for p in "qk"
            ]
        found += [
            Entry(LAYERS + key, layer, names, qkv="linear_qkv." in key and "layer_norm" not in key)
            for key, names in pairs
        ]
    found.append(Entry("decoder.final_layernorm.weight", None, ("model.norm.weight",)))
    if not shape.tied:
        found.append(Entry("output_layer.weight", None, ("lm_head.weight",), vocabulary=True))
    return found


def fuse_qkv(query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
    """[heads*d, ...], [groups*d, ...] twice -> [groups * (heads/groups + 2) * d, ...]; biases
    alike."""
    parts = [t.reshape(shape.groups, -1, *t.shape[1:]) for t in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *query.shape[1:])


def split_qkv(fused: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of fuse_qkv."""
    grouped = fused.reshape(shape.groups, shape.group_rows, *fused.shape[1:])
    sizes = [shape.group_rows - 2 * shape.head_dim, shape.head_dim, shape.head_dim]
    query, key, value = (part.reshape(-1, *fused.shape[1:]) for part in grouped.split(sizes, dim=1))
    return query, key, value


def padded(vocabulary: int, multiple: int) -> int:
    return -(-vocabulary // multiple) * multiple


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary embedding's settings, as configurations of any age keep them: rope_type and the rest
    of its kind."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta", 10000))
    return rope


def unlaunchable(config: dict[str, Any]) -> str | None:
    """What of the model no argument of Megatron-LM says, so that the line would start another
    model with these weights; None where all is said."""
    rope = rope_of(config)
    kind = rope["rope_type"]
    if (window := config.get("sliding_window")) and config.get("use_sliding_window"):
        return f"sliding_window {window}"
    if kind == "linear" and float(rope["factor"]).is_integer():
        return None
    if kind == "llama3":
        given = {key: rope.get(key, fixed) for key, fixed in _LLAMA3.items()}
        if given == _LLAMA3:
            return None
        return "rope type llama3 with " + ", ".join(f"{k} {v}" for k, v in given.items())
    if kind == "default":
        return None
    return f"rope type {kind}" + (f" with factor {rope['factor']}" if "factor" in rope else "")


def launch_arguments(shape: Shape, config: dict[str, Any], multiple: int) -> list[str]:
    """Megatron-LM's command line for a model of which `unlaunchable` says nothing."""
    rope = rope_of(config)
    lines = [
        "--use-mcore-models",
        "--ckpt-format torch_dist",
        "--transformer-impl transformer_engine",
        f"--num-layers {shape.layers}",
        f"--hidden-size {shape.hidden}",
        f"--ffn-hidden-size {shape.ffn}",
        f"--num-attention-heads {shape.heads}",
        "--group-query-attention",
        f"--num-query-groups {shape.groups}",
        f"--kv-channels {shape.head_dim}",
        "--swiglu",
        "--normalization RMSNorm",
        f"--norm-epsilon {config.get('rms_norm_eps', 1e-6)}",
        "--disable-bias-linear",
        "--position-embedding-type rope",
        f"--rotary-base {int(rope['rope_theta'])}",
        f"--max-position-embeddings {config.get('max_position_embeddings', 0)}",
        f"--make-vocab-size-divisible-by {multiple}",
    ]
    lines += ["--add-qkv-bias"] if shape.qkv_bias else []
    lines += ["--qk-layernorm"] if shape.qk_norm else []
    if rope["rope_type"] == "linear":
        lines += [f"--rotary-seq-len-interpolation-factor {int(rope['factor'])}"]
    if rope["rope_type"] == "llama3":
        lines += ["--use-rope-scaling", f"--rope-scaling-factor {rope['factor']}"]
    return lines + ([] if shape.tied else ["--untie-embeddings-and-output-weights"])
