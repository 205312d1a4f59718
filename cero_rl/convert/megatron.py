"""Megatron-core distributed checkpoints (`torch_dist`): written from and read into Hugging Face
weights, a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from cero_rl.convert.dcp import DcpReader, DcpWriter
from cero_rl.convert.megatron_layout import (
    LAYERS,
    Entry,
    Shape,
    entries,
    fuse_qkv,
    padded,
    split_qkv,
)
from cero_rl.convert.safetensors_io import read_json
from cero_rl.convert.weights import Spec, Weights
from cero_rl.errors import CheckpointError

CONFIG = "metadata.json"
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_WITH_EXTRA_STATE = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
Report = Callable[[str], None]


def write_megatron(
    weights: Weights,
    shape: Shape,
    out: Path,
    *,
    multiple: int,
    iteration: int,
    max_file_bytes: int,
    report: Report,
) -> None:
    """`out` is the directory of one iteration. Norms, biases and matrices keep the weights'
    dtype."""
    writer = DcpWriter(out, max_file_bytes)
    for entry in entries(shape):
        layer = None if entry.layer is None else (entry.layer, shape.layers)
        writer.add(entry.key, layer, _build(weights, entry, shape, multiple))
        if entry.key.endswith("linear_fc2.weight"):
            # Megatron asks each linear layer for its extra state (FP8 scales under Transformer
            # Engine); there is none here.
            for part in _WITH_EXTRA_STATE:
                writer.add_object(
                    f"{LAYERS}{part}._extra_state/shard_{entry.layer}_{shape.layers}", [None]
                )
            report(f"  layer {(entry.layer or 0) + 1}/{shape.layers}")
    writer.close()
    (out / CONFIG).write_text(json.dumps(_FORMAT))
    torch.save({"checkpoint_version": 3.0, "iteration": iteration}, out / "common.pt")


def _build(weights: Weights, entry: Entry, shape: Shape, multiple: int) -> Tensor:
    if entry.qkv:
        query, key, value = (weights.read(name) for name in entry.names)
        return fuse_qkv(query, key, value, shape)
    specs = [weights.specs[name] for name in entry.names]
    rows = sum(spec.shape[0] for spec in specs)
    if entry.vocabulary:
        rows = padded(rows, multiple)
    tensor = torch.empty([rows, *specs[0].shape[1:]], dtype=specs[0].dtype)
    flat, at = tensor.view(-1), 0
    for name in entry.names:
        for piece in weights.pieces(name):
            flat[at : at + len(piece)] = piece
            at += len(piece)
    flat[at:] = 0  # rows that pad the vocabulary
    return tensor


def iteration_directory(directory: Path) -> Path:
    """`directory` itself, or the iteration that latest_checkpointed_iteration.txt of a Megatron
    output folder names."""
    if (directory / CONFIG).is_file():
        return directory
    latest = directory / "latest_checkpointed_iteration.txt"
    if (
        latest.is_file()
        and (text := latest.read_text().strip()).isdigit()
        and (directory / f"iter_{int(text):07d}" / CONFIG).is_file()
    ):
        return directory / f"iter_{int(text):07d}"
    raise CheckpointError(
        f"{directory}: no {CONFIG}; wanted a Megatron-core distributed checkpoint "
        "(iter_NNNNNNN, format torch_dist)"
    )


def megatron_weights(directory: Path, shape: Shape) -> Weights:
    """The Hugging Face tensors of a torch_dist directory, layers stacked or not, any parallel
    layout. Optimizer states are left out."""
    found = read_json(directory / CONFIG)
    if found.get("sharded_backend") != "torch_dist":
        backend = found.get("sharded_backend")
        raise CheckpointError(
            f"{directory / CONFIG}: format {backend!r}; wanted torch_dist (save with "
            "--ckpt-format torch_dist)"
        )
    reader = DcpReader(directory)
    prefix = next(
        (
            p
            for p in ("", "model.", "module.")
            if f"{p}embedding.word_embeddings.weight" in reader.tensors
        ),
        None,
    )
    if prefix is None:
        raise CheckpointError(
            f"{directory}: no embedding.word_embeddings.weight; wanted a GPTModel of Megatron-core"
        )
    # name -> (entry, key, layer of a stacked key, position among the names)
    places: dict[str, tuple[Entry, str, int | None, int]] = {}
    specs: dict[str, Spec] = {}
    for entry in entries(shape):
        key, layer = prefix + entry.key, entry.layer
        if key not in reader.tensors and layer is not None:
            key, layer = prefix + entry.key.replace(LAYERS, f"{LAYERS}{layer}."), None
        if key not in reader.tensors:
            raise CheckpointError(
                f"{directory}: has no {key}, which a {shape.kind} of {shape.layers} layers needs"
            )
        described = reader.tensors[key]
        size = tuple(described.size)[0 if layer is None else 1 :]
        _check(directory, key, tuple(described.size), shape, entry, layer)
        for position, name in enumerate(entry.names):
            rows = _rows(entry, shape, size[0], position)
            places[name], specs[name] = (
                (entry, key, layer, position),
                Spec(described.properties.dtype, (rows, *size[1:])),
            )
    unknown = sorted(
        k
        for k in reader.tensors
        if k.startswith((prefix + LAYERS, prefix + "embedding.", prefix + "output_layer."))
    )
    known = {key for _, key, _, _ in places.values()}
    if extra := [k for k in unknown if k not in known and not k.endswith("_extra_state")]:
        raise CheckpointError(
            f"{directory}: {extra[0]} is no part of a {shape.kind} model ({len(extra)} "
            "such); another architecture?"
        )
    # the last split matrix: its three parts are asked for one after the other
    fused: dict[str, tuple[Tensor, ...]] = {}

    def pieces(name: str) -> Iterator[Tensor]:
        entry, key, layer, position = places[name]
        if entry.qkv:
            if entry.names[0] not in fused:
                fused.clear()
                rows = shape.groups * shape.group_rows
                flat = torch.cat(list(reader.rows(key, layer, 0, rows)))
                fused[entry.names[0]] = split_qkv(flat.reshape(rows, *specs[name].shape[1:]), shape)
            yield fused[entry.names[0]][position].flatten()
            return
        rows = specs[name].shape[0]
        yield from reader.rows(key, layer, position * rows, rows)

    return Weights(specs, pieces)


def _rows(entry: Entry, shape: Shape, stored: int, position: int) -> int:
    if entry.vocabulary:
        return shape.vocabulary
    if entry.qkv:
        return (shape.heads if position == 0 else shape.groups) * shape.head_dim
    return stored // len(entry.names)


def _check(
    directory: Path, key: str, size: tuple[int, ...], shape: Shape, entry: Entry, layer: int | None
) -> None:
    own = size if layer is None else size[1:]
    wrong = None
    if layer is not None and size[0] != shape.layers:
        wrong = f"{shape.layers} layers"
    elif entry.qkv and own[0] != shape.groups * shape.group_rows:
        wrong = (
            f"{shape.groups * shape.group_rows} rows ({shape.heads} heads in {shape.groups} "
            f"groups of dimension {shape.head_dim})"
        )
    elif entry.vocabulary and own[0] < shape.vocabulary:
        wrong = f"at least {shape.vocabulary} rows"
    if wrong:
        raise CheckpointError(
            f"{directory}: {key} is {list(size)}, the configuration wants {wrong}"
        )
