"""Tiny models of the three supported families, for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "recipes/assets/tiny_digits"
COMMON: dict[str, Any] = {
    "vocab_size": 21,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}


class Payload:
    """Unpickling this makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.mark,))


def make_model(
    directory: Path, kind: str, *, dtype: torch.dtype = torch.float32, max_shard_size: str = "5GB"
) -> Path:
    """qwen3: tied, head_dim apart from hidden/heads. qwen2: tied, biases. llama: untied."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(7)
    model: Any
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=16, tie_word_embeddings=True))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**COMMON, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=False))
    with torch.no_grad():
        # norms and biases start at 1 and 0, which would hide a mix-up
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, directory / name)
    return directory


def logits(directory: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval()
    with torch.no_grad():
        return model(torch.arange(2, 18)[None]).logits


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model directory, by the library."""
    from safetensors.torch import load_file

    return {
        name: t
        for path in sorted(directory.glob("*.safetensors"))
        for name, t in load_file(path).items()
    }


def assert_same_tensors(a: Path, b: Path) -> None:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name
