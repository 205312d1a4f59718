"""torch.distributed.checkpoint directories, a tensor at a time and without running pickled code.

    .metadata         pickle of plain dataclasses: which chunk of which tensor lies where; read
                      through an allow-list
    __0_N.distcp      torch.save'd chunks, one after the other

Megatron-core's `torch_dist` format is this, plus metadata.json and common.pt. DCP's own reader
would unpickle .metadata freely and wants all tensors in memory.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from cero_rl.convert.weights import read_elements
from cero_rl.errors import CheckpointError
from cero_rl.files.pickled_enum import GETATTR, enum_member

METADATA = ".metadata"
_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.storage", "StorageMeta"),
    # Megatron keeps the plan of its saving ranks in there.
    *(
        ("torch.distributed.checkpoint.planner", name)
        for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")
    ),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" == GETATTR:
            return enum_member
        if (module, name) in _ALLOWED or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


class _Slice(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, file: io.BufferedReader, first: int, length: int) -> None:
        self._file, self._first, self._length, self._at = file, first, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(min(len(buffer), self._length - self._at), 0)
        self._file.seek(self._first + self._at)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class DcpReader:
    """The tensors of a DCP directory: `tensors` says what there is, `rows` reads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            with (directory / METADATA).open("rb") as file:
                metadata = _Unpickler(file).load()
            described = metadata.state_dict_metadata.items()
            names = {str(info.relative_path) for info in metadata.storage_data.values()}
        except OSError as error:
            raise CheckpointError(
                f"{directory}: no readable {METADATA} ({error.strerror}); wanted a "
                "torch_dist checkpoint"
            ) from None
        except Exception as error:
            raise CheckpointError(
                f"{directory / METADATA}: not loaded, it holds {error}; wanted DCP's own "
                "dataclasses only"
            ) from None
        self.tensors: dict[str, TensorStorageMetadata] = {
            k: v for k, v in described if isinstance(v, TensorStorageMetadata)
        }
        self._storage: dict[MetadataIndex, _StorageInfo] = metadata.storage_data
        for name in sorted(names):
            if (
                len(PurePosixPath(name).parts) != 1
                or name == ".."
                or (directory / name).is_symlink()
            ):
                raise CheckpointError(
                    f"{directory / METADATA}: names {name!r}, which is no plain file in it; refused"
                )

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> tuple[Path, int, torch.dtype]:
        """(file, byte offset of the first element, dtype) of a chunk's data."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        info = self._storage.get(MetadataIndex(key, chunk.offsets))
        if info is None:
            raise CheckpointError(
                f"{self.directory / METADATA}: no place for {key} at {list(chunk.offsets)}; "
                "the checkpoint is incomplete"
            )
        path = self.directory / info.relative_path
        try:
            with path.open("rb") as file, FakeTensorMode():
                view: Any = _Slice(file, info.offset, info.length)
                tensor = torch.load(view, map_location="cpu", weights_only=True)
            assert isinstance(tensor, Tensor)
            storage: Any = tensor.untyped_storage()
            offset = (
                int(storage._checkpoint_offset)
                + int(tensor.storage_offset()) * tensor.dtype.itemsize
            )
        except Exception as error:
            raise CheckpointError(
                f"{path}: no tensor for {key} at byte {info.offset} "
                f"({type(error).__name__}); the file is damaged"
            ) from None
        if tuple(tensor.shape) != tuple(chunk.sizes) or not tensor.is_contiguous():
            raise CheckpointError(
                f"{path}: {key} is {list(tensor.shape)} at byte {info.offset}, {METADATA} "
                f"says {list(chunk.sizes)}"
            )
        return path, info.offset + offset, tensor.dtype

    def rows(self, key: str, layer: int | None, first: int, count: int) -> Iterator[Tensor]:
        """Rows first : first + count of a tensor (of one layer, where layers are stacked along
        dimension 0), flat, in pieces."""
        described = self.tensors[key]
        lead = () if layer is None else (layer,)
        size = tuple(described.size)[len(lead) :]
        low, high = (
            (*lead, first, *[0] * (len(size) - 1)),
            (*[n + 1 for n in lead], first + count, *size[1:]),
        )
        hits = [
            c
            for c in described.chunks
            if all(o < h and o + s > b for o, s, b, h in zip(c.offsets, c.sizes, low, high))
        ]
        if len(hits) == 1 and all(
            o <= b and o + s >= h for o, s, b, h in zip(hits[0].offsets, hits[0].sizes, low, high)
        ):
            path, offset, dtype = self._chunk(key, hits[0])
            row, chunk = math.prod(size[1:]), hits[0]
            skip = (first - chunk.offsets[len(lead)]) * row
            if layer is not None:
                skip += (layer - chunk.offsets[0]) * math.prod(chunk.sizes[1:])
            yield from read_elements(path, offset + skip * dtype.itemsize, count * row, dtype)
            return
        box = torch.empty([h - b for b, h in zip(low, high)], dtype=described.properties.dtype)
        filled = 0
        for chunk in hits:
            path, offset, dtype = self._chunk(key, chunk)
            data = torch.cat(
                list(read_elements(path, offset, math.prod(chunk.sizes), dtype))
            ).reshape(chunk.sizes)
            theirs = [
                slice(max(b - o, 0), min(h - o, s))
                for o, s, b, h in zip(chunk.offsets, chunk.sizes, low, high)
            ]
            ours = [
                slice(max(o - b, 0), min(o + s, h) - b)
                for o, s, b, h in zip(chunk.offsets, chunk.sizes, low, high)
            ]
            box[tuple(ours)] = data[tuple(theirs)]
            filled += data[tuple(theirs)].numel()
        if filled != box.numel():
            raise CheckpointError(
                f"{self.directory}: the chunks of {key} cover {filled} of {box.numel()} "
                "elements; the checkpoint is incomplete"
            )
        yield box.flatten()


class DcpWriter:
    """Chunks into __0_N.distcp files of about `max_file_bytes`; `close` writes .metadata."""

    def __init__(self, directory: Path, max_file_bytes: int) -> None:
        self._directory, self._limit = directory, max_file_bytes
        self._tensors: dict[str, TensorStorageMetadata] = {}
        self._objects: dict[str, BytesStorageMetadata] = {}
        self._storage: dict[MetadataIndex, _StorageInfo] = {}
        self._file: Any = None
        self.files = 0

    def add(self, key: str, layer: tuple[int, int] | None, tensor: Tensor) -> None:
        """A whole tensor, or with `layer` = (index, layers) one slice of a stacked one."""
        lead = (1,) if layer else ()
        size = torch.Size([layer[1], *tensor.shape] if layer else tensor.shape)
        data = tensor.reshape([*lead, *tensor.shape])
        offsets = torch.Size([layer[0] if layer else 0, *[0] * (len(size) - 1)])
        entry = self._tensors.setdefault(
            key, TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), size, [])
        )
        assert (entry.size, entry.properties.dtype) == (size, tensor.dtype), (key, size)
        if self._file is None or (
            self._file.tell() and self._file.tell() + tensor.nbytes > self._limit
        ):
            self._end_file()
            self._file = (self._directory / f"__0_{self.files}.distcp").open("wb")
            self.files += 1
        self._save(MetadataIndex(key, offsets, len(entry.chunks)), data)
        entry.chunks.append(ChunkStorageMetadata(offsets, data.shape))

    def add_object(self, key: str, value: Any) -> None:
        """A plain value, after the first tensor."""
        self._save(MetadataIndex(key), value)
        self._objects[key] = BytesStorageMetadata()

    def _save(self, index: MetadataIndex, value: Any) -> None:
        start = self._file.tell()
        torch.save(value, self._file)
        self._storage[index] = _StorageInfo(
            Path(self._file.name).name, start, self._file.tell() - start
        )

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def close(self) -> None:
        self._end_file()
        described = {**self._tensors, **self._objects}
        metadata = Metadata(
            described, planner_data={key: (key,) for key in described}, storage_data=self._storage
        )
        with (self._directory / METADATA).open("wb") as file:
            pickle.dump(metadata, file)
