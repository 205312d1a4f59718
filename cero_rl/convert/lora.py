"""A LoRA adapter in peft's format merged into its base model: W + scaling * B A, computed in float32, saved in the base's dtype."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cero_rl.convert.safetensors_io import open_safetensors, read_json
from cero_rl.convert.weights import Weights
from cero_rl.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NEUTRAL: dict[str, Any] = {  # what an adapter may say without changing the sum
    "use_dora": False, "bias": "none", "modules_to_save": None, "lora_bias": False, "trainable_token_indices": None,
    "target_parameters": None,
    "fan_in_fan_out": False, "layer_replication": None, "use_qalora": False, "alora_invocation_tokens": None,
}  # fmt: skip
_NAMES = {"use_dora": "DoRA", "modules_to_save": "whole trained modules", "layer_replication": "layer replication", "use_qalora": "QALoRA"}


@dataclass(frozen=True)
class Pair:
    a: str
    b: str
    rank: int
    scaling: float


def read_adapter(directory: Path) -> tuple[Weights, dict[str, Pair]]:
    """(the adapter's tensors, base parameter name -> its pair). Raises CheckpointError for kinds that are no plain sum."""
    config = read_json(directory / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{directory / ADAPTER_CONFIG}: peft_type {config.get('peft_type')!r}; wanted LORA")
    for key, neutral in _NEUTRAL.items():
        if config.get(key, neutral) not in (neutral, [], {}):
            what = _NAMES.get(key, key)
            raise CheckpointError(f"{directory / ADAPTER_CONFIG}: {key} is {config[key]!r}: {what} is not supported; merge it with peft")
    if not (directory / ADAPTER).is_file():
        raise CheckpointError(f"{directory}: no {ADAPTER} (adapter_model.bin, a pickle, is refused); save the adapter with safetensors")
    tensors = open_safetensors(directory / ADAPTER)
    pairs = {}
    for name, spec in tensors.specs.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        other = module + ".lora_B.weight"
        if other not in tensors.specs or len(spec.shape) != 2 or tensors.specs[other].shape[1] != spec.shape[0]:
            raise CheckpointError(f"{directory / ADAPTER}: {other} is missing or does not fit {name} {list(spec.shape)}")
        target = module.removeprefix(_PREFIX)
        rank = int(_by_pattern(config.get("rank_pattern"), target, config["r"]))
        if rank != spec.shape[0]:
            raise CheckpointError(f"{directory / ADAPTER}: {name} has rank {spec.shape[0]}, {ADAPTER_CONFIG} says {rank}")
        alpha = float(_by_pattern(config.get("alpha_pattern"), target, config["lora_alpha"]))
        pairs[target + ".weight"] = Pair(name, other, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    known = {part for pair in pairs.values() for part in (pair.a, pair.b)}
    if extra := sorted(set(tensors.specs) - known):
        raise CheckpointError(f"{directory / ADAPTER}: {extra[0]} is neither lora_A nor lora_B; merge this adapter with peft")
    return tensors, pairs


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule: the first pattern that matches the end of the module's name, on a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def merge(base: Weights, adapter: Weights, pairs: dict[str, Pair]) -> Weights:
    for name, pair in pairs.items():
        wanted = (adapter.specs[pair.b].shape[0], adapter.specs[pair.a].shape[1])
        if name not in base.specs:
            raise CheckpointError(f"adapter: changes {name}, which the base model does not have; is it the adapter of another model?")
        if base.specs[name].shape != wanted:
            raise CheckpointError(
                f"adapter: {name} is for {list(wanted)}, the base model has {list(base.specs[name].shape)}; wrong base model"
            )

    def delta_rows(pair: Pair) -> tuple[Tensor, Tensor]:
        return adapter.read(pair.b).float() * pair.scaling, adapter.read(pair.a).float()

    def pieces(name: str) -> Iterator[Tensor]:
        if name not in pairs:
            yield from base.pieces(name)
            return
        spec = base.specs[name]
        merged = base.read(name).float()
        b, a = delta_rows(pairs[name])
        merged += b @ a
        yield merged.to(spec.dtype).flatten()

    return Weights(base.specs, pieces)
