"""Hugging Face model directories: what a model of this config must hold, and the small files beside
the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cero_rl.convert.safetensors_io import read_json, write_sharded
from cero_rl.convert.weights import Weights
from cero_rl.errors import CheckpointError, first_line
from cero_rl.files.plain import refuse_links_out

BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
Report = Callable[[str], None]


def read_config(directory: Path) -> dict[str, Any]:
    refuse_links_out(directory)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: no config.json; wanted a Hugging Face model directory")
    config = read_json(directory / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(
            f"{directory / 'config.json'}: no model_type; wanted the configuration of a "
            "language model"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{directory / 'config.json'}: a quantised model; wanted float weights, so "
            "dequantise it first"
        )
    return config


def expected_shapes(directory: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(parameter name -> shape in the model's order, tied name -> the name it is stored under),
    from the architecture itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    refuse_links_out(directory)
    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{directory}: not a causal language model that transformers knows ({reason})"
        ) from None
    stored = {id(p): name for name, p in model.named_parameters()}
    tied = {
        n: stored[id(p)]
        for n, p in model.named_parameters(remove_duplicate=False)
        if stored[id(p)] != n
    }
    return {n: tuple(p.shape) for n, p in model.named_parameters()}, tied


def fit(weights: Weights, directory: Path, source: str) -> Weights:
    """The weights in the model's order, without tied copies. Raises CheckpointError where a name or
    shape is not the model's."""
    shapes, tied = expected_shapes(directory)
    found = {n: s for n, s in weights.specs.items() if n not in tied}
    for name, shape in shapes.items():
        if name not in found:
            raise CheckpointError(
                f"{source}: has no {name}, which the model of {directory / 'config.json'} needs"
            )
        if found[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} is {list(found[name].shape)}, "
                f"{directory / 'config.json'} wants {list(shape)}"
            )
    if extra := sorted(set(found) - set(shapes)):
        raise CheckpointError(
            f"{source}: {extra[0]} is no parameter of the model of "
            f"{directory / 'config.json'} ({len(extra)} such names)"
        )
    for name, stored in tied.items():
        if name in weights.specs and not torch.equal(weights.read(name), weights.read(stored)):
            raise CheckpointError(
                f"{source}: {name} differs from {stored}, but the config ties them; set "
                "tie_word_embeddings to false"
            )
    return Weights({n: found[n] for n in shapes}, weights.pieces)


def copy_beside(source: Path, target: Path) -> list[str]:
    """Tokenizer, chat template and generation config, as they are."""
    copied = []
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
            copied.append(name)
    return copied


def write_config(config: dict[str, Any], dtype: torch.dtype, target: Path) -> None:
    fresh = {k: v for k, v in config.items() if k not in ("torch_dtype", "auto_map")}
    fresh["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(fresh, indent=2, sort_keys=True) + "\n")


def write_model(
    target: Path, weights: Weights, model: Path, card: str, max_shard_bytes: int, report: Report
) -> int:
    """A whole model directory: weights, then config, tokenizer and the rest from `model`. The bytes
    of the weights."""
    dtypes = {s.dtype for s in weights.specs.values() if s.dtype.is_floating_point}
    size = write_sharded(target, weights, max_shard_bytes, report)
    write_config(read_config(model), max(dtypes, key=lambda d: d.itemsize), target)
    copy_beside(model, target)
    (target / "README.md").write_text(card)
    return size


def card(title: str, text: str, *, library: str = "transformers") -> str:
    """A model card in a few lines."""
    return f"---\nlibrary_name: {library}\ntags: [cero_rl]\n---\n# {title}\n\n{text}\n"
