"""Models whose checkpoints have other names than their modules, and buffers beside the weights:
zero-to-hf writes the export's own files, and the other conversions read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_cases import COMMON, TOKENIZER, assert_same_tensors, tensors
from safetensors.torch import load_file
from test_zero_checkpoints import drive

from cero_rl.convert.layout import layout_of
from cero_rl.convert.zero import open_zero

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "olmoe": EXPERTS,
    "mixtral": LOCAL,
    "granitemoe": LOCAL,
    "deepseek_v3": LATENT,
}
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def make(directory: Path, kind: str) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**COMMON, "num_hidden_layers": 2, **KINDS[kind]})
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.tensor([0.501, -0.303, 0.2, 0.7]))
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, directory / name)
    # as older versions of the library wrote it, and as it must not be saved again
    (directory / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 1}')
    config_json = json.loads((directory / "config.json").read_text())
    config_json["torch_dtype"] = config_json.pop("dtype")
    (directory / "config.json").write_text(json.dumps(config_json))
    return directory


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("start")
    for kind in KINDS:
        make(root / kind, kind)
    return root


@pytest.fixture(scope="module")
def trained(start: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    words = [str(out), "3", "bfloat16", *(str(start / kind) for kind in KINDS)]
    done = drive("architectures_driver.py", words, out, ranks=1)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def same_files(one: Path, other: Path) -> None:
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}
    for path in one.iterdir():
        if path.name != "README.md":
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_zero_to_hf_is_the_export_byte_for_byte(kind, start, trained, convert, tmp_path):
    run = trained / kind
    words = ("--bare", "--model", start / kind, "--out", tmp_path / "hf")
    assert convert("zero-to-hf", run / "zero", *words) == 0
    same_files(tmp_path / "hf", run / "export")
    assert tensors(run / "export").keys() == tensors(start / kind).keys()
    assert json.loads((tmp_path / "hf/generation_config.json").read_text())["do_sample"] is True
    assert convert("verify", tmp_path / "hf", "--against", run / "export", "--tokens", 12) == 0


@pytest.mark.slow
def test_the_bias_of_the_router_is_carried_everywhere(start, trained, convert, tmp_path):
    wanted = tensors(start / "deepseek_v3")[BIAS]
    assert torch.equal(tensors(trained / "deepseek_v3/export")[BIAS], wanted)
    assert wanted.dtype == torch.float32
    zero, two = trained / "deepseek_v3/zero", tmp_path / "two"
    assert convert("reshard", zero, "--bare", "--ranks", 2, "--out", two) == 0
    assert torch.equal(open_zero(two).weights().read(BIAS), wanted)
    cast = ("cast", start / "deepseek_v3", "--dtype", "bfloat16", "--out", tmp_path / "cast")
    assert convert(*cast) == 0
    held = tensors(tmp_path / "cast")
    assert torch.equal(held.pop(BIAS), wanted)
    assert {t.dtype for t in held.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "cast/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", KINDS)
def test_models_under_the_hubs_names_are_converted(kind, start, convert, tmp_path):
    source = start / kind
    assert convert("verify", source, "--tokens", 8) == 0
    assert convert("hf-to-start", source, "--out", tmp_path / "start") == 0
    assert_same_tensors(source, tmp_path / "start")
    layout = layout_of(source)
    assert set(layout.stored) == set(tensors(source))
    assert set(layout.own) != set(layout.stored)


@pytest.mark.slow
def test_masters_of_stage_0_are_kept(start, convert, tmp_path):
    tied = start.parent / "tied"
    if not tied.exists():
        shutil.copytree(TOKENIZER, tied)
    words = [str(tmp_path), "0", "bfloat16", str(tied)]
    done = drive("architectures_driver.py", words, tmp_path, ranks=1)
    assert done.returncode == 0, done.stdout + done.stderr
    run, how = tmp_path / "tied", ("--bare", "--model", tied)
    assert convert("zero-to-hf", run / "zero", *how, "--out", tmp_path / "same") == 0
    same_files(tmp_path / "same", run / "export")
    full = ("--dtype", "float32", "--out", tmp_path / "full")
    assert convert("zero-to-hf", run / "zero", *how, *full) == 0
    masters, written = load_file(run / "masters.safetensors"), tensors(tmp_path / "full")
    assert masters.keys() == written.keys()
    rounded = tensors(run / "export")
    for name, tensor in written.items():
        assert torch.equal(tensor, masters[name]), name
    moved = sum(int((written[n] != rounded[n].float()).sum()) for n in written)
    assert moved > 0.5 * sum(t.numel() for t in written.values())
