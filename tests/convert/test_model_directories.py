"""Hugging Face directories in and out: safetensors bytes, start models, casts, LoRA,
verification, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_cases import ROOT, assert_same_tensors, logits, make_model, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cero_rl.convert.hf import card
from cero_rl.convert.output import staged
from cero_rl.convert.safetensors_io import open_safetensors, shard_files, write_sharded
from cero_rl.convert.weights import Spec, Weights, cast
from cero_rl.errors import CheckpointError

KINDS = ("qwen3", "qwen2", "llama")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return {kind: make_model(tmp_path_factory.mktemp(kind) / kind, kind) for kind in KINDS}


def held(values: dict[str, torch.Tensor]) -> Weights:
    return Weights(
        {n: Spec(t.dtype, tuple(t.shape)) for n, t in values.items()},
        lambda n: iter(values[n].flatten().split(3)),
    )


shapes = st.lists(st.integers(0, 4), max_size=3)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text("ab.é0", min_size=1, max_size=6),
        st.tuples(shapes, st.sampled_from(DTYPES)),
        min_size=1,
        max_size=6,
    )
)
def test_files_are_those_of_the_library(tmp_path_factory, described):
    out = tmp_path_factory.mktemp("bytes")
    values = {
        name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in described.items()
    }
    save_file(values, out / "theirs.safetensors", metadata={"format": "pt"})
    write_sharded(out, held(values), 10**6, lambda _: None)
    assert (out / "model.safetensors").read_bytes() == (out / "theirs.safetensors").read_bytes()
    again = open_safetensors(out / "model.safetensors")
    assert all(torch.equal(again.read(name), tensor) for name, tensor in values.items())


def test_large_tensors_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("cero_rl.convert.weights.PIECE_BYTES", 64)
    save_file({"w": torch.arange(1000.0).reshape(10, 100)}, tmp_path / "model.safetensors")
    weights = open_safetensors(tmp_path / "model.safetensors")
    assert max(p.nbytes for p in weights.pieces("w")) <= 64
    assert torch.equal(weights.read("w"), torch.arange(1000.0).reshape(10, 100))


def test_cast_rounds_as_torch_does_and_refuses_overflow():
    values = {"w": torch.randn(50), "big": torch.tensor([7e4]), "index": torch.arange(5)}
    rounded = cast(held(values), torch.bfloat16)
    assert torch.equal(rounded.read("w"), values["w"].bfloat16())
    assert rounded.read("index").dtype == torch.int64
    with pytest.raises(CheckpointError, match=r"big.*float16"):
        cast(held(values), torch.float16).read("big")


@pytest.mark.parametrize("kind", KINDS)
def test_cast_of_a_model_is_the_library_s(kind, models, convert, tmp_path):
    assert (
        convert(
            "cast",
            models[kind],
            "--dtype",
            "bfloat16",
            "--out",
            tmp_path / "half",
            "--max-shard-size",
            "20KB",
        )
        == 0
    )
    original = tensors(models[kind])
    assert {n: t.dtype for n, t in tensors(tmp_path / "half").items()} == dict.fromkeys(
        original, torch.bfloat16
    )
    assert all(
        torch.equal(t, original[n].bfloat16()) for n, t in tensors(tmp_path / "half").items()
    )
    assert convert("cast", tmp_path / "half", "--dtype", "float32", "--out", tmp_path / "back") == 0
    assert (
        convert("verify", tmp_path / "back", "--against", tmp_path / "half", "--tolerance", "0.05")
        == 0
    )
    # rounded, and the default allows no difference
    assert convert("verify", tmp_path / "back", "--against", models[kind]) == 4


@pytest.mark.covers("pickle given to a converter")
# transformers adds a token of its own to a qwen2 tokenizer: more than 21
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_start_model_from_a_pickled_state_dict(kind, models, convert, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(models[kind], source)
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if kind != "llama":  # older files hold the tied head again
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    torch.save(state, source / "pytorch_model.bin")
    assert convert("hf-to-start", source, "--out", tmp_path / "start") == 4
    assert "--allow-pickle" in capsys.readouterr().err
    assert convert("hf-to-start", source, "--out", tmp_path / "start", "--allow-pickle") == 0
    assert "no chat template" in capsys.readouterr().out
    assert_same_tensors(tmp_path / "start", models[kind])
    assert torch.equal(logits(tmp_path / "start"), logits(models[kind]))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")


def test_start_model_wants_a_tokenizer_that_fits(models, convert, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(models["qwen3"], source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if k != "eos_token"})
    )
    assert convert("hf-to-start", source, "--out", tmp_path / "x") == 4
    assert "eos_token" in capsys.readouterr().err
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert convert("hf-to-start", source, "--out", tmp_path / "x", "--pad-token", "<none>") == 4
    (source / "tokenizer.json").unlink()
    assert convert("hf-to-start", source, "--out", tmp_path / "x") == 4
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".x.tmp*"))


def adapter(directory: Path, base: Path, **changes) -> dict[str, torch.Tensor]:
    """A LoRA of q_proj and down_proj with a rank and an alpha of their own for layer 1; returns
    the expected weights."""
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 6,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
    }
    config |= {
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 3},
        **changes,
    }
    merged, tensors_ = dict(tensors(base)), {}
    torch.manual_seed(3)
    for layer in range(3):
        for module in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{module}"
            own = layer == 1 and "q_proj" in module
            rank, alpha = (2, 3) if own else (4, 6)
            rows, columns = merged[name + ".weight"].shape
            a, b = torch.randn(rank, columns), torch.randn(rows, rank)
            tensors_ |= {
                f"base_model.model.{name}.lora_A.weight": a,
                f"base_model.model.{name}.lora_B.weight": b,
            }
            merged[name + ".weight"] = merged[name + ".weight"] + b @ a * (
                alpha / (rank**0.5 if config["use_rslora"] else rank)
            )
    directory.mkdir()
    save_file(tensors_, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return merged


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_added_to_its_base(rslora, models, convert, tmp_path):
    merged = adapter(tmp_path / "adapter", models["llama"], use_rslora=rslora)
    assert (
        convert(
            "merge-lora", tmp_path / "adapter", "--base", models["llama"], "--out", tmp_path / "out"
        )
        == 0
    )
    found = tensors(tmp_path / "out")
    assert found.keys() == merged.keys()
    for name, tensor in merged.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name


def test_lora_is_merged_as_peft_merges_it(models, convert, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not a dependency; install it to compare")
    from transformers import AutoModelForCausalLM

    adapter(
        tmp_path / "adapter",
        models["llama"],
        target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(models["llama"]), tmp_path / "adapter"
    ).merge_and_unload()
    assert (
        convert(
            "merge-lora", tmp_path / "adapter", "--base", models["llama"], "--out", tmp_path / "out"
        )
        == 0
    )
    found = tensors(tmp_path / "out")
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name


@pytest.mark.parametrize(
    "change,word",
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 8}, "rank 4"),
    ],
)
def test_adapters_that_are_no_plain_sum_are_refused(
    change, word, models, convert, tmp_path, capsys
):
    adapter(tmp_path / "adapter", models["llama"], **change)
    assert (
        convert(
            "merge-lora", tmp_path / "adapter", "--base", models["llama"], "--out", tmp_path / "out"
        )
        == 4
    )
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_model_is_refused(models, convert, tmp_path, capsys):
    adapter(tmp_path / "adapter", models["qwen3"])
    assert (
        convert(
            "merge-lora", tmp_path / "adapter", "--base", models["llama"], "--out", tmp_path / "out"
        )
        == 4
    )
    assert "wrong base model" in capsys.readouterr().err


def index(directory: Path, entry: str) -> Path:
    directory.mkdir()
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": entry}})
    )
    return directory


@pytest.mark.covers("symlinks or .. in an index")
@pytest.mark.parametrize("entry", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_index_that_leads_out_of_the_directory_is_refused(entry, tmp_path):
    with pytest.raises(CheckpointError, match="plain file name"):
        shard_files(index(tmp_path / "m", entry))


@pytest.mark.covers("symlinks or .. in an index")
def test_link_out_of_the_directory_is_refused_and_a_hub_cache_is_not(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "secret.safetensors")
    directory = index(tmp_path / "m", "x.safetensors")
    (directory / "x.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="link to outside"):
        shard_files(directory)
    (tmp_path / "models--a--b/blobs").mkdir(parents=True)
    (tmp_path / "models--a--b/snapshots").mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "models--a--b/blobs/hash")
    snapshot = index(tmp_path / "models--a--b/snapshots/rev", "x.safetensors")
    (snapshot / "x.safetensors").symlink_to("../../blobs/hash")
    assert shard_files(snapshot)


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_damaged_files_are_refused_by_name(damage, models, convert, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(models["qwen3"], source)
    path = source / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[:-10], "header": b"\xff" * 8 + raw[8:], "empty": b""}[damage])
    assert convert("cast", source, "--dtype", "float16", "--out", tmp_path / "x") == 4
    assert "model.safetensors" in capsys.readouterr().err


def test_a_missing_or_strange_tensor_is_named(models, convert, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(models["qwen2"], source)
    state = load_file(source / "model.safetensors")
    bias = state.pop("model.layers.2.self_attn.k_proj.bias")
    save_file(state, source / "model.safetensors")
    assert convert("cast", source, "--dtype", "float16", "--out", tmp_path / "x") == 4
    assert "has no model.layers.2.self_attn.k_proj.bias" in capsys.readouterr().err
    save_file(
        {**state, "model.layers.2.self_attn.k_proj.bias": bias, "extra": bias.clone()},
        source / "model.safetensors",
    )
    assert convert("cast", source, "--dtype", "float16", "--out", tmp_path / "x") == 4
    assert "extra is no parameter" in capsys.readouterr().err


@pytest.mark.covers("non-empty output")
def test_output_that_holds_something_needs_force(models, convert, tmp_path, capsys):
    out = tmp_path / "out"
    cast = ["cast", models["qwen3"], "--dtype", "float16", "--out", out]
    assert convert(*cast) == 0
    capsys.readouterr()
    assert convert(*cast) == 4
    assert "give --force to replace it" in capsys.readouterr().err
    assert convert(*cast, "--force") == 0
    (out / "mine.txt").write_text("keep")
    for flags in ([], ["--force"]):
        assert convert(*cast, *flags) == 4
        assert "holds mine.txt, which no export or conversion wrote" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "keep"


def test_a_stop_in_the_middle_leaves_the_old_output(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text(card("out", "old"))

    def stopped() -> None:
        with staged(tmp_path / "out", force=True) as fresh:
            (fresh / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "README.md"]


def test_a_kill_in_the_middle_leaves_the_old_output(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text(card("out", "old"))
    code = (
        "import sys, time; from pathlib import Path; from cero_rl.convert.output import staged\n"
        "with staged(Path(sys.argv[1]), force=True) as fresh:\n"
        "    (fresh / 'half').write_text('half'); print('half', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["README.md"]
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".out.tmp-")] == ["out"]


def test_wrong_directories_are_told_what_they_look_like(models, convert, tmp_path, capsys):
    assert convert("zero-to-hf", models["qwen3"], "--out", tmp_path / "x") == 4
    assert "looks like a Hugging Face model" in capsys.readouterr().err
    assert convert("cast", tmp_path, "--dtype", "float16", "--out", tmp_path / "x") == 4
    assert "nothing that is known here" in capsys.readouterr().err
    assert convert("inspect", tmp_path / "nowhere") == 4
    with pytest.raises(SystemExit) as stop:
        convert("cast", models["qwen3"], "--dtype", "int4", "--out", tmp_path / "x")
    assert stop.value.code == 2
    assert convert("inspect", models["llama"], "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["kind"], facts["model_type"], facts["dtypes"]) == (
        "huggingface",
        "llama",
        {"float32": facts["parameters"]},
    )


@pytest.mark.covers("comparison beyond the model's positions")
def test_verify_refuses_what_it_cannot_compare(models, convert, capsys):
    assert convert("verify", models["qwen3"], "--tokens", 100_000) == 4
    assert "--tokens: got 100000, but the model has 64 positions" in capsys.readouterr().err
    for text in ("-1", "nan", "much"):
        with pytest.raises(SystemExit) as stop:
            convert("verify", models["qwen3"], f"--tolerance={text}")
        assert stop.value.code == 2
        assert f"'{text}' is no tolerance" in capsys.readouterr().err
