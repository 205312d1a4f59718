"""Small random models with long positions, and prompts of 200 tokens, for the tests on the real
vLLM engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = ROOT / "recipes/assets/tiny_digits"


def make_model(folder: Path, *, tied: bool, positions: int = 512) -> Path:
    """A Qwen3 (tied head) or a Llama (own head) of two layers in save_pretrained layout, with
    the tokenizer of the digit strings."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 21,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = (transformers.Qwen3Config if tied else transformers.LlamaConfig)(**sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # the default initialisation is almost uniform over the vocabulary, which would hide errors
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    return folder


def make_prompts(path: Path, *, count: int = 40, characters: int = 200) -> Path:
    """Digit strings of one length; the prompts differ from their first character on."""
    generator = torch.Generator().manual_seed(1)
    with path.open("w", encoding="utf-8") as out:
        for _ in range(count):
            digits = torch.randint(0, 10, (characters,), generator=generator).tolist()
            out.write(json.dumps({"prompt": "".join(map(str, digits)), "answer": "0"}) + "\n")
    return path
