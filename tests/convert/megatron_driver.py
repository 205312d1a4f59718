"""Run with a Python that has megatron-core: its own GPTModel on a CPU loads what we wrote, answers,
and saves in its own way.

    python megatron_driver.py HF_DIRECTORY MEGATRON_DIRECTORY OUT_DIRECTORY

Prints the largest difference of the logits to those of transformers. Megatron-core expects a GPU
for its random state and its saving thread; on a CPU these few calls are replaced, no part of the
model or of the format is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch


def on_cpu() -> None:
    for name in ("current_device", "synchronize"):
        setattr(torch.cuda, name, lambda *_: "cpu")
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    CudaRNGStatesTracker.fork = lambda self, *_: contextlib.nullcontext()

    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel()


def build(config: dict[str, Any], rows: int) -> Any:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    heads, qk = config["num_attention_heads"], config["model_type"] == "qwen3"
    settings = TransformerConfig(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config.get("head_dim") or config["hidden_size"] // heads,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=config["model_type"] == "qwen2",
        qk_layernorm=qk,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        layernorm_epsilon=config["rms_norm_eps"],
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
    )
    return GPTModel(
        settings,
        get_gpt_layer_local_spec(qk_layernorm=qk, normalization="RMSNorm"),
        vocab_size=rows,
        max_sequence_length=64,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=config["tie_word_embeddings"],
        rotary_base=int(config["rope_parameters"]["rope_theta"]),
    ).eval()


def main() -> None:
    hf, saved, out = (Path(a) for a in sys.argv[1:])
    on_cpu()
    from megatron.core import dist_checkpointing
    from transformers import AutoModelForCausalLM

    config = json.loads((hf / "config.json").read_text())
    found = dist_checkpointing.load_tensors_metadata(str(saved))
    model = build(config, found["embedding.word_embeddings.weight"].global_shape[0])
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))  # whatever is not loaded shows
    state = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(saved))
    model.load_state_dict(state["model"])
    tokens = torch.arange(2, 18)[None]
    with torch.no_grad():
        mask = torch.triu(torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool), 1)
        ours = model(tokens, torch.arange(tokens.shape[1])[None], mask)[..., : config["vocab_size"]]
        theirs = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()(tokens).logits
    gap, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    print(f"iteration {state['iteration']} largest difference {gap:.3g} of {size:.3g}", flush=True)
    out.mkdir(parents=True)
    dist_checkpointing.save(
        {"model": model.sharded_state_dict(), "iteration": 12, "checkpoint_version": 3.0}, str(out)
    )
    print("saved", flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
