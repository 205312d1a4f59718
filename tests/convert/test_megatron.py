"""Megatron-core's torch_dist format: round trips with equal logits, torch's own reader and
writer, and Megatron itself where it is."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from convert_cases import COMMON, assert_same_tensors, logits, make_model, tensors

from cero_rl.convert.dcp import DcpReader, DcpWriter
from cero_rl.convert.megatron_layout import (
    Shape,
    fuse_qkv,
    launch_arguments,
    shape_of,
    split_qkv,
    unlaunchable,
)
from cero_rl.errors import CheckpointError

KINDS = ("qwen3", "qwen2", "llama")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, convert) -> dict[str, tuple[Path, Path]]:
    """kind -> (Hugging Face directory, Megatron directory)."""
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        model = make_model(root / "hf", kind)
        assert (
            convert(
                "megatron-export",
                model,
                "--out",
                root / "mg",
                "--vocab-multiple",
                16,
                "--max-shard-size",
                "20KB",
                "--iteration",
                7,
            )
            == 0
        )
        found[kind] = (model, root / "mg")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_same_model(kind, exported, convert, tmp_path):
    model, megatron = exported[kind]
    assert convert("megatron-import", megatron, "--model", model, "--out", tmp_path / "back") == 0
    assert_same_tensors(model, tmp_path / "back")
    assert torch.equal(logits(model), logits(tmp_path / "back"))


def test_torch_reads_what_we_wrote(exported):
    _, megatron = exported["qwen2"]
    inner = megatron / "iter_0000007"
    found = DcpReader(inner).tensors
    state = {key: torch.empty(t.size, dtype=t.properties.dtype) for key, t in found.items()}
    dcp.load(state, checkpoint_id=inner, no_dist=True)
    hf = tensors(exported["qwen2"][0])
    q, k, v = (hf[f"model.layers.1.self_attn.{p}_proj.bias"].reshape(2, -1, 8) for p in "qkv")
    # group by group: its queries, its key, its value
    fused = torch.cat([torch.cat([q[g], k[g], v[g]]) for g in range(2)]).flatten()
    assert torch.equal(state["decoder.layers.self_attention.linear_qkv.bias"][1], fused)
    gate_up = torch.cat(
        [hf["model.layers.2.mlp.gate_proj.weight"], hf["model.layers.2.mlp.up_proj.weight"]]
    )
    assert torch.equal(state["decoder.layers.mlp.linear_fc1.weight"][2], gate_up)
    embedding = state["embedding.word_embeddings.weight"]
    assert embedding.shape == (32, 32)
    assert torch.equal(embedding[:21], hf["model.embed_tokens.weight"])
    assert not embedding[21:].any()
    assert "output_layer.weight" not in state  # tied


def test_layers_that_are_not_stacked_are_read_as_torch_wrote_them(exported, convert, tmp_path):
    model, megatron = exported["llama"]
    reader = DcpReader(megatron / "iter_0000007")
    state = {}
    for key, described in reader.tensors.items():
        full = torch.empty(described.size, dtype=described.properties.dtype)
        dcp.load({key: full}, checkpoint_id=reader.directory, no_dist=True)
        if key.startswith("decoder.layers."):
            state |= {
                key.replace("layers.", f"layers.{layer}."): full[layer]
                for layer in range(len(full))
            }
        else:
            state[key] = full
    dcp.save(state, checkpoint_id=tmp_path / "mg", no_dist=True)
    (tmp_path / "mg/metadata.json").write_bytes((reader.directory / "metadata.json").read_bytes())
    assert (
        convert("megatron-import", tmp_path / "mg", "--model", model, "--out", tmp_path / "back")
        == 0
    )
    assert_same_tensors(model, tmp_path / "back")


def test_chunks_of_tensor_parallel_ranks_are_put_together(tmp_path):
    writer = DcpWriter(tmp_path, 100)
    full = torch.arange(48.0).reshape(2, 6, 4)
    for layer in range(2):
        writer.add("stacked", (layer, 2), full[layer])
    writer.close()
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    assert len(metadata.state_dict_metadata["stacked"].chunks) == 2
    reader = DcpReader(tmp_path)
    assert torch.equal(torch.cat(list(reader.rows("stacked", 1, 2, 3))).reshape(3, 4), full[1, 2:5])

    split = tmp_path / "split"
    split.mkdir()
    writer = DcpWriter(split, 10**6)
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunks, storage = [], {}
    # rows and columns cut, as by two kinds of parallel layers
    with (split / "__0_0.distcp").open("wb") as file:
        for row, column in ((0, 0), (0, 3), (3, 0), (3, 3)):
            part = full[0, row : row + 3, column : column + 3].contiguous()
            offsets, start = torch.Size([row, column]), file.tell()
            torch.save(part, file)
            chunks.append(ChunkStorageMetadata(offsets, part.shape))
            storage[MetadataIndex("w", offsets)] = _StorageInfo(
                "__0_0.distcp", start, file.tell() - start
            )
    described = TensorStorageMetadata(
        TensorProperties(dtype=torch.float32), torch.Size([6, 4]), chunks
    )
    (split / ".metadata").write_bytes(
        pickle.dumps(Metadata({"w": described}, storage_data=storage))
    )
    assert torch.equal(
        torch.cat(list(DcpReader(split).rows("w", None, 1, 4))).reshape(4, 4), full[0, 1:5]
    )
    described.chunks.pop()
    (split / ".metadata").write_bytes(
        pickle.dumps(Metadata({"w": described}, storage_data=storage))
    )
    with pytest.raises(CheckpointError, match="incomplete"):
        list(DcpReader(split).rows("w", None, 1, 4))


def test_fused_matrices_split_again():
    shape = Shape(
        "qwen3",
        1,
        16,
        8,
        heads=6,
        groups=2,
        head_dim=4,
        vocabulary=5,
        tied=True,
        qkv_bias=False,
        qk_norm=True,
    )
    parts = torch.randn(24, 16), torch.randn(8, 16), torch.randn(8, 16)
    for ours, theirs in zip(split_qkv(fuse_qkv(*parts, shape), shape), parts):
        assert torch.equal(ours, theirs)


def test_pickled_code_in_the_metadata_is_not_run(exported, convert, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "mg").mkdir()
    (tmp_path / "mg/metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (tmp_path / "mg/.metadata").write_bytes(pickle.dumps(Evil()))
    assert (
        convert(
            "megatron-import",
            tmp_path / "mg",
            "--model",
            exported["llama"][0],
            "--out",
            tmp_path / "x",
        )
        == 4
    )
    assert "it holds" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_the_wrong_configuration_is_refused(exported, convert, tmp_path, capsys):
    assert (
        convert(
            "megatron-import",
            exported["llama"][1],
            "--model",
            exported["qwen2"][0],
            "--out",
            tmp_path / "x",
        )
        == 4
    )
    assert "linear_qkv.bias" in capsys.readouterr().err
    assert (
        convert(
            "megatron-import",
            exported["qwen3"][1],
            "--model",
            exported["llama"][0],
            "--out",
            tmp_path / "x",
        )
        == 4
    )
    assert (
        convert(
            "megatron-import",
            exported["qwen3"][0],
            "--model",
            exported["llama"][0],
            "--out",
            tmp_path / "x",
        )
        == 4
    )
    assert "looks like a Hugging Face model" in capsys.readouterr().err


ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "--rotary-base 500000"),
    ({"rope_theta": 5e5}, "--rotary-base 500000"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "--rotary-seq-len-interpolation-factor 2",
    ),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
        "--rope-scaling-factor 8.0",
    ),
    ({"sliding_window": 4096, "use_sliding_window": False}, "--rotary-base 10000"),
]
UNSAID: list[tuple[dict[str, Any], str]] = [
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type yarn with factor 4.0"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 1.5}}, "rope type linear"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 2.0}}, "llama3 with"),
    (
        {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 4096}},
        "original_max_position_embeddings 4096",
    ),
    ({"sliding_window": 4096, "use_sliding_window": True}, "sliding_window 4096"),
]
SHAPE: dict[str, Any] = {**COMMON, "model_type": "qwen2"}
del SHAPE["rope_parameters"]


@pytest.mark.parametrize(("config", "argument"), ROPES)
def test_the_launch_line_carries_the_rotary_embedding(config, argument):
    config = {**SHAPE, **config}
    assert unlaunchable(config) is None
    assert argument in launch_arguments(shape_of(config, "x"), config, 128)


@pytest.mark.covers("model that no Megatron argument says")
@pytest.mark.parametrize(("config", "words"), UNSAID)
def test_what_no_argument_says_is_named(config, words):
    assert words in str(unlaunchable({**SHAPE, **config}))


def test_without_arguments_the_weights_are_written_and_it_is_said(
    exported, convert, tmp_path, capsys
):
    model = shutil.copytree(exported["qwen2"][0], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    (model / "config.json").write_text(json.dumps(config))
    assert convert("megatron-export", model, "--out", tmp_path / "out") == 0
    said = "no megatron_args.txt: Megatron-LM has no argument for rope type yarn with factor 4.0"
    assert said in capsys.readouterr().out
    assert not (tmp_path / "out/megatron_args.txt").exists()
    assert (tmp_path / "out/iter_0000001/.metadata").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(
    "CERO_MEGATRON_PYTHON" not in os.environ,
    reason="set CERO_MEGATRON_PYTHON to a Python with megatron-core 0.16",
)
def test_megatron_itself_loads_answers_and_saves(kind, exported, convert, tmp_path):
    model, megatron = exported[kind]
    driver = Path(__file__).with_name("megatron_driver.py")
    line = [
        os.environ["CERO_MEGATRON_PYTHON"],
        driver,
        model,
        megatron / "iter_0000007",
        tmp_path / "theirs",
    ]
    # no pipe: Megatron's saving process may outlive the driver
    with (tmp_path / "log").open("w") as log:
        code = subprocess.run(
            line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120, check=False
        ).returncode
    text = (tmp_path / "log").read_text()
    assert code == 0, text
    assert "iteration 7 largest difference" in text, text
    assert float(text.split("largest difference ")[1].split()[0]) < 1e-5
    assert (
        convert(
            "megatron-import", tmp_path / "theirs", "--model", model, "--out", tmp_path / "back"
        )
        == 0
    )
    assert_same_tensors(model, tmp_path / "back")
