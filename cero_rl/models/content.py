"""Which files hold the weights of a model, and a digest of them: what a start model is, wherever it
lies."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cero_rl.errors import EngineError, first_line
from cero_rl.files.durable import sha256

_INDEX = "model.safetensors.index.json"
_SINGLE = ("model.safetensors", "pytorch_model.bin")


def weight_files(path: str) -> list[Path]:
    """The files of a directory in save_pretrained layout, or of a hub id (fetched into its cache).
    Raises EngineError where there are none."""
    if Path(path).is_dir():
        found = sorted(Path(path).glob("*.safetensors")) or sorted(Path(path).glob("*.bin"))
    else:
        found = _of_the_hub(path)
    if not found:
        raise EngineError(
            f"model.path: {path!r} holds no weights (model*.safetensors or pytorch_model*.bin); "
            "give a directory in save_pretrained layout, or a hub id"
        )
    return found


def _of_the_hub(path: str) -> list[Path]:
    from transformers.utils.hub import cached_file

    def fetch(name: str) -> Path | None:
        found: Any = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    try:
        if (index := fetch(_INDEX)) is not None:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        else:
            names = [name for name in _SINGLE if fetch(name) is not None][:1]
        return [file for name in names if (file := fetch(name)) is not None]
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"model.path: the weights of {path!r} could not be fetched ({first_line(error)})"
        ) from error


def weights_digest(path: str) -> str:
    """sha256 (64 hex) over sizes and contents of the weight files, in the order of their names.
    Raises EngineError for a file that cannot be read."""
    files = weight_files(path)
    total = hashlib.sha256()
    try:
        with ThreadPoolExecutor(min(len(files), 8)) as pool:  # hashing lets go of the interpreter
            for file, digest in zip(files, pool.map(sha256, files)):
                total.update(f"{file.stat().st_size} {digest}\n".encode())
    except OSError as error:
        raise EngineError(f"model.path: {error}; give a directory that can be read") from error
    return total.hexdigest()
