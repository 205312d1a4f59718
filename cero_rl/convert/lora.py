"""LoRA adapters from peft's files or out of a LoRA run's checkpoint, and merged into their base: W
+ scaling * B A in float32."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cero_rl.convert.layout import layout_of
from cero_rl.convert.run_checkpoint import Located
from cero_rl.convert.safetensors_io import open_safetensors, read_json, write_file
from cero_rl.convert.weights import Spec, Weights, cast
from cero_rl.convert.zero import ZeroCheckpoint
from cero_rl.errors import CheckpointError
from cero_rl.files.lora_adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapted,
    base_checksum,
    bit_sum,
    is_adapter_parameter,
    merged_weight,
    stored_name,
    write_adapter_config,
)

_NEUTRAL: dict[str, Any] = {  # what an adapter may say without changing the sum
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "lora_bias": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "fan_in_fan_out": False,
    "layer_replication": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
}
_NAMES = {
    "use_dora": "DoRA",
    "modules_to_save": "whole trained modules",
    "layer_replication": "layer replication",
    "use_qalora": "QALoRA",
}


@dataclass(frozen=True)
class Pair:
    a: str
    b: str
    rank: int
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """tensors: under their names in a file. pairs: weight of the base -> what changes it. config:
    adapter_config.json."""

    tensors: Weights
    pairs: Mapping[str, Pair]
    config: Mapping[str, Any]

    def cast(self, dtype: torch.dtype) -> Adapter:
        return Adapter(cast(self.tensors, dtype), self.pairs, self.config)


def read_adapter(directory: Path) -> Adapter:
    """A peft directory. Raises CheckpointError for kinds that are no plain sum."""
    config = read_json(directory / CONFIG_FILE)
    _require_plain_sum(config, str(directory / CONFIG_FILE))
    if not (directory / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{directory}: no {WEIGHTS_FILE} (adapter_model.bin, a pickle, is refused); "
            "save the adapter with safetensors"
        )
    tensors = open_safetensors(directory / WEIGHTS_FILE)
    return Adapter(tensors, _pairs(tensors.specs, config, str(directory / WEIGHTS_FILE)), config)


def adapter_of(zero: ZeroCheckpoint, located: Located) -> Adapter:
    """The adapter that a LoRA run's checkpoint holds, scaled as its manifest says. Raises
    CheckpointError where none says it.

    The tensors are those of `ZeroCheckpoint.weights`: float32 masters where they are sharded.
    """
    config = (located.manifest or {}).get("adapter")
    if config is None:
        raise CheckpointError(
            f"{zero.directory}: holds a LoRA adapter, but no manifest that tells how it is scaled "
            "and on which base it lies; give runs/NAME/checkpoints/step_N as the run wrote it"
        )
    _require_plain_sum(config, f"the manifest of {located.root}")
    weights = zero.weights()
    if strange := [name for name in weights.specs if not is_adapter_parameter(name)]:
        raise CheckpointError(
            f"{zero.directory}: {strange[0]} was trained beside a LoRA adapter, which is "
            "not supported; merge it with peft"
        )
    names = {stored_name(name): name for name in weights.specs}
    tensors = Weights(
        {stored: weights.specs[name] for stored, name in names.items()},
        lambda stored: weights.pieces(names[stored]),
    )
    return Adapter(tensors, _pairs(tensors.specs, config, str(zero.directory)), config)


def _require_plain_sum(config: Any, where: str) -> None:
    kind = config.get("peft_type") if isinstance(config, Mapping) else config
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type {kind!r}; wanted LORA")
    for key, neutral in _NEUTRAL.items():
        if config.get(key, neutral) not in (neutral, [], {}):
            what = _NAMES.get(key, key)
            raise CheckpointError(
                f"{where}: {key} is {config[key]!r}: {what} is not supported; merge it with peft"
            )
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)):
            raise CheckpointError(
                f"{where}: {key} is {config.get(key)!r}; wanted a number, as peft writes it"
            )


def _pairs(specs: Mapping[str, Spec], config: Mapping[str, Any], where: str) -> dict[str, Pair]:
    """`where` the tensors lie. Raises CheckpointError for a tensor without its partner, or of
    another rank than the settings'."""
    pairs = {}
    for name, spec in specs.items():
        if (found := adapted(name)) is None:
            continue
        weight, other = found
        if other not in specs or len(spec.shape) != 2 or specs[other].shape[1] != spec.shape[0]:
            raise CheckpointError(
                f"{where}: {other} is missing or does not fit {name} {list(spec.shape)}"
            )
        module = weight.removesuffix(".weight")
        rank = int(_by_pattern(config.get("rank_pattern"), module, config["r"]))
        if rank != spec.shape[0]:
            raise CheckpointError(
                f"{where}: {name} has rank {spec.shape[0]}, its settings "
                f"(adapter_config.json) say {rank}"
            )
        alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
        pairs[weight] = Pair(
            name, other, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        )
    known = {part for pair in pairs.values() for part in (pair.a, pair.b)}
    if extra := sorted(set(specs) - known):
        raise CheckpointError(
            f"{where}: {extra[0]} is neither lora_A nor lora_B; merge this adapter with peft"
        )
    return pairs


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: the first pattern that matches the end of the module's name, on a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def require_base(base: Weights, directory: Path, located: Located) -> None:
    """Are these the frozen weights that a LoRA checkpoint names? `base`: in the dtype of the run.
    Raises CheckpointError if not."""
    assert located.manifest is not None
    wanted = located.manifest.get("base_weights")
    buffers = layout_of(directory).buffers
    names = [name for name in base.specs if name not in buffers]
    found = base_checksum(sum(bit_sum(piece) for name in names for piece in base.pieces(name)))
    if found != wanted:
        raise CheckpointError(
            f"{directory}: its weights have the checksum {found}, the adapter in "
            f"{located.root} was trained on a base with {wanted}; "
            "give the model that the run started from: --model DIR"
        )


def merge(base: Weights, adapter: Adapter, *, exact: bool = False) -> Weights:
    """The base with the adapter added: each sum rounded to the base's dtype, or with `exact` left
    in float32, for a cast to follow."""
    for name, pair in adapter.pairs.items():
        wanted = (adapter.tensors.specs[pair.b].shape[0], adapter.tensors.specs[pair.a].shape[1])
        if name not in base.specs:
            raise CheckpointError(
                f"adapter: changes {name}, which the base model does not have; is it the "
                "adapter of another model?"
            )
        if base.specs[name].shape != wanted:
            raise CheckpointError(
                f"adapter: {name} is for {list(wanted)}, the base model has "
                f"{list(base.specs[name].shape)}; wrong base model"
            )
    specs = {
        n: Spec(torch.float32, spec.shape) if exact and n in adapter.pairs else spec
        for n, spec in base.specs.items()
    }

    def pieces(name: str) -> Iterator[Tensor]:
        if name not in adapter.pairs:
            yield from base.pieces(name)
            return
        pair = adapter.pairs[name]
        a, b = adapter.tensors.read(pair.a), adapter.tensors.read(pair.b)
        yield merged_weight(base.read(name), a, b, pair.scaling).to(specs[name].dtype).flatten()

    return Weights(specs, pieces)


def write_peft(out: Path, adapter: Adapter, card: str) -> None:
    """A peft directory, a piece at a time: adapter_config.json, adapter_model.safetensors,
    README.md."""
    write_file(out / WEIGHTS_FILE, adapter.tensors, list(adapter.tensors.specs))
    write_adapter_config(out, adapter.config)
    (out / "README.md").write_text(card, encoding="utf-8")
