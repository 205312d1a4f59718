"""A start model cut into shards while it is read is, bit for bit, the one that was read whole and
cut afterwards; on 2 gloo ranks under real ZeRO-3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import warm_ranks
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
ASSET = ROOT / "recipes/assets/tiny_digits"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}


def saved(path: Path, kind: str, **settings: Any) -> Path:
    """A random model in files of a few kB each."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **settings))
    model.save_pretrained(path, max_shard_size="12kB")
    return path


def with_two_embeddings(path: Path) -> Path:
    """Tied by config.json, but the file holds a head of its own: transformers then ties nothing."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", **SIZES, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def with_a_bad_number(path: Path) -> Path:
    saved(path, "qwen3", tie_word_embeddings=False)
    file = next(
        f for f in sorted(path.glob("*.safetensors")) if "model.norm.weight" in load_file(f)
    )
    weights = load_file(file)
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    return path


def without_a_weight(path: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **SIZES)).save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.self_attn.q_norm.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank saw, by case; one start for all of them."""
    out = tmp_path_factory.mktemp("sharding")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    untied = saved(out / "untied", "qwen3", tie_word_embeddings=False)
    cases = {
        "tied": f"{ASSET}",
        "untied": f"{untied}",
        "bfloat16": f"{untied},model.dtype=bfloat16",
        "two_embeddings": f"{with_two_embeddings(out / 'two')}",
        "experts": f"{saved(out / 'experts', 'qwen3_moe', **experts)}",
        "lora": f"{ASSET},lora.rank=4",
        "lora_bfloat16": f"{ASSET},lora.rank=4,model.dtype=bfloat16",
        "bad_number": f"{with_a_bad_number(out / 'bad')}",
        "missing": f"{without_a_weight(out / 'missing')}",
    }
    line = ["tests/zero/sharding_driver.py", str(out / "found.json")]
    line += [f"{name}={rest}" for name, rest in cases.items()]
    meet = {**warm_ranks.environment(), "MASTER_PORT": str(warm_ranks.free_port())}
    done = warm_ranks.run(line, ROOT, meet, out, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    "case", ["tied", "untied", "bfloat16", "two_embeddings", "experts", "lora", "lora_bfloat16"]
)
def test_shards_are_those_of_the_whole_model(found, case):
    for rank in found:
        got = rank[case]
        assert got["names"]
        assert got["different"] == []
        assert got["buffers"]
        assert got["ties"][0] == got["ties"][1]
        assert got["left_whole"] == []
        assert got["own"] < 0.6 * got["elements"] + 5_000
        assert got["requires_grad"] == ([False, True] if "lora" in case else [True])
        assert got["dtypes"] == ["torch.bfloat16" if "bfloat16" in case else "torch.float32"]
    assert bool(found[0][case]["ties"][1]) == (case == "tied" or "lora" in case)


def test_what_is_damaged_is_refused_with_its_name(found):
    for rank in found:
        assert "holds 1 weights that are not finite (model.norm.weight)" in rank["bad_number"]
        assert "lacks 1 weights" in rank["missing"]
        assert "layers.1.self_attn.q_norm.weight" in rank["missing"]
