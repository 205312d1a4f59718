"""safetensors, streamed: reading and writing a piece at a time, and the sharded layout of Hugging
Face with its index.

The library's own `save_file` wants all tensors of a file in memory; the format (length, JSON
header, raw bytes) needs nothing of the kind. Files are byte for byte what `save_file` writes with
metadata format=pt (a test holds this).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from cero_rl.convert.weights import Spec, Weights, read_elements
from cero_rl.errors import CheckpointError
from cero_rl.files.plain import refuse_links_out

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100 * 2**20
# By width, as the library orders a file: widest first, so that every tensor is aligned.
_NAMES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: name for name, dtype in _NAMES.items()}
_RANK = {
    name: position
    for position, name in enumerate(
        ["U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL"]
    )
}
Report = Callable[[str], None]


@dataclass(frozen=True)
class _Place:
    path: Path
    offset_bytes: int


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: no readable JSON ({type(error).__name__}); wanted a checkpoint's own file"
        ) from None


def _read_header(path: Path) -> tuple[dict[str, tuple[Spec, int]], int]:
    """name -> (spec, byte offset in the file); every offset is checked against the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    f"{path}: no safetensors file (header of {length} bytes in a file of {size})"
                )
            header = json.loads(file.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _NAMES:
                raise CheckpointError(
                    f"{path}: {name} has dtype {entry['dtype']}; wanted one of {', '.join(_NAMES)}"
                )
            spec = Spec(_NAMES[entry["dtype"]], tuple(int(n) for n in entry["shape"]))
            first, last = entry["data_offsets"]
            if (
                min(spec.shape, default=0) < 0
                or last - first != spec.nbytes
                or first < 0
                or 8 + length + last > size
            ):
                raise CheckpointError(
                    f"{path}: {name} lies outside the file or has the wrong size; the file "
                    "is cut or damaged"
                )
            found[name] = (spec, 8 + length + first)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: no readable safetensors header ({type(error).__name__})"
        ) from None
    return found, size


def shard_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory. Raises CheckpointError for an index that leads
    out of it."""
    index = directory / INDEX
    if not index.exists():
        files = [directory / SINGLE] if (directory / SINGLE).exists() else []
    else:
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError):
            raise CheckpointError(
                f"{index}: no weight_map; wanted the index of a sharded model"
            ) from None
        for name in names:
            if not isinstance(name, str) or len(PurePosixPath(name).parts) != 1 or name == "..":
                raise CheckpointError(
                    f"{index}: the entry {name!r} is no plain file name in the same "
                    "directory; refused"
                )
        files = [directory / name for name in names]
    refuse_links_out(directory)
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path}: missing, but {index.name} names it")
    return files


def open_safetensors(*files: Path) -> Weights:
    """All tensors of some files as one; the order of the files, then of the header."""
    specs: dict[str, Spec] = {}
    places: dict[str, _Place] = {}
    for path in files:
        for name, (spec, offset) in _read_header(path)[0].items():
            if name in specs:
                raise CheckpointError(
                    f"{path}: {name} is also in {places[name].path.name}; wanted each tensor once"
                )
            specs[name], places[name] = spec, _Place(path, offset)
    return Weights(
        specs,
        lambda name: read_elements(
            places[name].path, places[name].offset_bytes, specs[name].numel, specs[name].dtype
        ),
    )


def plan_shards(specs: dict[str, Spec], max_shard_bytes: int) -> list[list[str]]:
    """Names in order, cut into files of at most `max_shard_bytes` (a larger tensor goes alone)."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    return shards


def raw_bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def write_file(path: Path, weights: Weights, names: list[str]) -> int:
    """One safetensors file, durable when this returns; its size in bytes."""
    codes = {name: _CODES[weights.specs[name].dtype] for name in names}
    ordered = sorted(names, key=lambda name: (_RANK.get(codes[name], len(_RANK)), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        spec = weights.specs[name]
        header[name] = {
            "dtype": codes[name],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            written = sum(_write_pieces(file, weights.pieces(name)))
            assert written == weights.specs[name].nbytes, (name, written)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + end


def _write_pieces(file: Any, pieces: Iterator[Tensor]) -> Iterator[int]:
    for piece in pieces:
        yield file.write(raw_bytes(piece))


def write_sharded(directory: Path, weights: Weights, max_shard_bytes: int, report: Report) -> int:
    """model.safetensors, or model-00001-of-0000N.safetensors with an index; the bytes written."""
    shards = plan_shards(dict(weights.specs), max_shard_bytes)
    total, where = 0, {}
    for number, names in enumerate(shards, 1):
        file = (
            SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        size = write_file(directory / file, weights, names)
        total += size
        where |= dict.fromkeys(names, file)
        report(f"  {file}  {len(names)} tensors, {size / 1e6:,.1f} MB ({number}/{len(shards)})")
    if len(shards) > 1:
        specs = weights.specs.values()
        metadata = {
            "total_parameters": sum(s.numel for s in specs),
            "total_size": sum(s.nbytes for s in specs),
        }
        (directory / INDEX).write_text(
            json.dumps({"metadata": metadata, "weight_map": dict(sorted(where.items()))}, indent=2)
            + "\n"
        )
    return total
