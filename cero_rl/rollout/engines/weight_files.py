"""Weights handed to a rollout server through files: one directory a version, written whole or not
at all, checked before it is read.

Layout: ROOT/LABEL/shard-00000.safetensors ... (or the two files of a LoRA adapter) and
manifest.json with size and sha256 of each. A label is made anew for every push, so that no two sets
of weights share one. The writer holds at most one shard in memory.
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cero_rl.config.lora import LoraConfig
from cero_rl.errors import EngineError
from cero_rl.files.durable import describe_file, fsync, sha256
from cero_rl.files.lora_adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_config,
    stored_name,
    write_adapter,
)
from cero_rl.files.plain import plain_files, refuse_link

ROOT_VARIABLE = "CERO_SERVER_WEIGHTS_DIR"  # tells the server's workers where labels are looked up
SHARD_BYTES = 512 * 2**20
_LABEL = re.compile(r"v\d{1,12}-[0-9a-f]{16}")
_MANIFEST = "manifest.json"
_HASHERS = 4


def new_label(version: int) -> str:
    return f"v{version}-{secrets.token_hex(8)}"


def write_weights(
    weights: Iterable[tuple[str, Tensor]],
    root: Path,
    label: str,
    *,
    lora: LoraConfig | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write all weights as ROOT/LABEL, with `lora` those of an adapter. Consumes the iterator to
    its end, even on failure.

    Raises EngineError.
    """
    source = iter(weights)
    folder = root / f"{label}.tmp"
    try:
        folder.mkdir(parents=True)
        if lora is None:
            names = []
            for tensors in _shards(source, shard_bytes):
                names.append(f"shard-{len(names):05d}.safetensors")
                save_file(tensors, folder / names[-1])
        else:
            adapter = {
                stored_name(name): tensor.detach().to("cpu", copy=True) for name, tensor in source
            }
            write_adapter(folder, adapter, adapter_config(lora, adapter, "policy"))
            names = [WEIGHTS_FILE, CONFIG_FILE]
        files = {name: describe_file(folder / name) for name in names}
        (folder / _MANIFEST).write_text(
            json.dumps({"label": label, "adapter": lora is not None, "files": files}),
            encoding="utf-8",
        )
        fsync(folder / _MANIFEST)
        folder.rename(root / label)
        fsync(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise EngineError(
            f"rollout.server.weights_dir: {root} could not take the weights ({error}); it "
            "needs room for two copies of the model"
        ) from error
    finally:
        for _ in source:  # the other ranks still gather, and this one with them
            pass


def _shards(source: Iterable[tuple[str, Tensor]], limit_bytes: int) -> Iterator[dict[str, Tensor]]:
    """CPU copies of consecutive tensors that add up to at most `limit_bytes`; a larger one goes
    alone."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in source:
        needed = tensor.numel() * tensor.element_size()
        if shard and size + needed > limit_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += needed
    if shard:
        yield shard


@dataclass(frozen=True)
class WeightFiles:
    """A version on the disk: whole weights in shards, or the directory of an adapter."""

    folder: Path
    shards: tuple[Path, ...]
    is_adapter: bool


def check_weights(root: Path, label: str) -> WeightFiles:
    """The files of ROOT/LABEL, once they are the manifest's and no others, none is a link, and
    size and sha256 of each are right. Raises ValueError naming what is not."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{label!r} is no label of weights")
    folder = root / label
    refuse_link(folder, EngineError)
    present = [path for path in plain_files(folder, EngineError) if path != folder / _MANIFEST]
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    if manifest["label"] != label:
        raise ValueError(f"{folder} is a copy of {manifest['label']}")
    paths = [folder / name for name in manifest["files"]]
    # vLLM looks for an adapter's files by name, and would take one that no hash vouches for
    if odd := sorted({str(path) for path in present} ^ {str(path) for path in paths}):
        raise ValueError(f"{odd[0]} is in {_MANIFEST} or in {folder}, and not in both")

    def check(path: Path) -> None:
        wanted = manifest["files"][path.relative_to(folder).as_posix()]
        if (size := path.stat().st_size) != wanted["bytes"]:
            raise ValueError(f"{path} is torn: {size} bytes, wanted {wanted['bytes']}")
        if sha256(path) != wanted["sha256"]:
            raise ValueError(f"{path} is damaged: its sha256 is not the manifest's")

    with ThreadPoolExecutor(_HASHERS) as pool:
        list(pool.map(check, paths))
    is_adapter = bool(manifest["adapter"])
    return WeightFiles(folder, () if is_adapter else tuple(paths), is_adapter)


def read_weights(paths: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt", device="cpu") as shard:
            for name in shard.keys():  # noqa: SIM118 (it is no mapping)
                yield name, shard.get_tensor(name)


class WeightStore:
    """The writer's side of a directory: it is this run's alone, and holds the last version only."""

    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = (root / ".lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineError(
                f"rollout.server.weights_dir: another run hands its weights over in {root}; "
                "give each its own"
            ) from None
        except OSError as error:
            raise EngineError(
                f"rollout.server.weights_dir: {root} cannot be used ({error.strerror}); "
                "name another place"
            ) from None
        self.keep_only(None)  # what a run that was killed has left

    def write(
        self, weights: Iterable[tuple[str, Tensor]], label: str, lora: LoraConfig | None = None
    ) -> None:
        write_weights(weights, self._root, label, lora=lora)

    def close(self) -> None:
        self._lock.close()

    def keep_only(self, label: str | None) -> None:
        for folder in self._root.iterdir():
            if folder.name != label and _LABEL.fullmatch(folder.name.removesuffix(".tmp")):
                shutil.rmtree(folder, ignore_errors=True)
