"""Is there a model at this path? Told from names of files alone, without torch, before anything is
loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from cero_rl.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_WEIGHTS = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
_SHOWN = 6


def find_model(path: str, key: str = "model.path") -> Literal["directory", "hub"]:
    """What the path stands for. Raises ConfigError, with what is there instead, for neither a
    directory in save_pretrained layout nor what could be the id of a Hugging Face model."""
    place = Path(path)
    if os.path.isdir(path):  # noqa: PTH112  raises for no name
        if (problem := _problem(place)) is not None:
            raise ConfigError(f"{key}: {path!r} {problem}")
        return "directory"
    if os.path.exists(path):  # noqa: PTH110
        raise ConfigError(
            f"{key}: {path!r} is a file; give a directory in save_pretrained layout (config.json, "
            "weights, tokenizer)"
        )
    owner, slash, _ = path.partition("/")
    local = not _HUB_ID.fullmatch(path) or (slash and os.path.isdir(owner))  # noqa: PTH112
    if local or not (slash or _is_cached(path)):
        raise ConfigError(
            f"{key}: {path[:200]!r} does not exist (looked in {Path.cwd()}); give a directory in "
            "save_pretrained layout, or a Hugging Face id such as owner/name"
        )
    return "hub"


def _problem(place: Path) -> str | None:
    names = sorted(os.listdir(place))  # noqa: PTH208
    if "config.json" in names:
        if any(name.endswith(_WEIGHTS) for name in names):
            return None
        return "has a config.json and no weights; wanted *.safetensors beside it"
    if "adapter_config.json" in names:
        return (
            "is a LoRA adapter; merge it into its base model (python tools/convert.py merge-lora) "
            "and give the result"
        )
    if "config.resolved.yaml" in names:
        return f"is a run's directory; give {place / 'export'}, or convert one of its checkpoints"
    if "MANIFEST.json" in names:
        return (
            "is a checkpoint of a run; go on with --resume, or make a model of it (python "
            "tools/convert.py zero-to-hf)"
        )
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"holds no config.json ({shown or 'it is empty'}); give a directory in " + (
        "save_pretrained layout"
    )


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)
