"""Hugging Face model directories: what a model of this config must hold, and the small files beside
the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from cero_rl.convert.layout import layout_of
from cero_rl.convert.safetensors_io import read_json, write_sharded
from cero_rl.convert.weights import Weights, cast, common_dtype
from cero_rl.errors import CeroError, CheckpointError, first_line
from cero_rl.files.plain import refuse_links_out
from cero_rl.models.generation import exportable_generation_config, read_generation_config
from cero_rl.models.load import load_tokenizer

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


def fit(weights: Weights, directory: Path, source: str) -> Weights:
    """The weights as a checkpoint of this model stores them, in its order and without tied copies;
    they may come under the names of its modules. Raises CheckpointError where a name or shape is
    not the model's."""
    layout = layout_of(directory)
    found = {n: s for n, s in weights.specs.items() if n not in layout.tied}
    own = set(found) != set(layout.stored) and set(found) == set(layout.own)
    wanted = layout.own if own else layout.stored
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(
                f"{source}: has no {name}, which the model of {directory / 'config.json'} needs"
            )
        if found[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} is {list(found[name].shape)}, "
                f"{directory / 'config.json'} wants {list(shape)}"
            )
    if extra := sorted(set(found) - set(wanted)):
        raise CheckpointError(
            f"{source}: {extra[0]} is no parameter of the model of "
            f"{directory / 'config.json'} ({len(extra)} such names)"
        )
    for name, stored in layout.tied.items():
        if name in weights.specs and not torch.equal(weights.read(name), weights.read(stored)):
            raise CheckpointError(
                f"{source}: {name} differs from {stored}, but the config ties them; set "
                "tie_word_embeddings to false"
            )
    held = Weights({n: found[n] for n in wanted}, weights.pieces)
    return layout.as_stored(held) if own else held


def cast_model(weights: Weights, dtype: torch.dtype, directory: Path) -> Weights:
    """The model's parameters in another dtype. Its buffers stay as they are: transformers keeps
    them in float32 where they have to be."""
    layout = layout_of(directory)
    kept = layout.buffers | {part for name in layout.buffers for part in layout.parts[name]}
    return cast(weights, dtype, kept)


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
    size = write_sharded(target, weights, max_shard_bytes, report)
    write_config(read_config(model), common_dtype(weights), target)
    copy_beside(model, target)
    (target / "README.md").write_text(card)
    return size


def save_settings(model: Path, dtype: torch.dtype, target: Path) -> None:
    """Configuration, generation settings and tokenizer of `model` as a run's export has them: read
    and saved by transformers, whatever version wrote them. Raises CheckpointError."""
    try:
        generation = exportable_generation_config(read_generation_config(str(model)), str(model))[0]
        causal_lm = layout_of(model).model
        config = deepcopy(causal_lm.config)
        config.dtype = str(dtype).removeprefix("torch.")
        config.architectures = [type(causal_lm).__name__]
        config.save_pretrained(target)
        generation.save_pretrained(target)
        load_tokenizer(str(model)).save_pretrained(target)
    except (CeroError, OSError, ValueError) as error:
        raise CheckpointError(f"{model}: {first_line(error)}") from None


def card(title: str, text: str, *, library: str = "transformers") -> str:
    """A model card in a few lines."""
    return f"---\nlibrary_name: {library}\ntags: [cero_rl]\n---\n# {title}\n\n{text}\n"
