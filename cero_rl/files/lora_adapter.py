"""LoRA adapters as peft stores them (names, adapter_config.json), the sum that merges one into its
base weight, the base's checksum.

Knows neither peft nor a model, so that learner, sampler, server and converters can share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cero_rl.config.lora import LoraConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
ADAPTER_NAME = "default"  # peft's own, part of a parameter's name in a live model and not in a file
_LIVE, _STORED = f".{ADAPTER_NAME}.weight", ".weight"


def is_adapter_parameter(name: str) -> bool:
    return name.endswith((f".lora_A{_LIVE}", f".lora_B{_LIVE}"))


def stored_name(name: str) -> str:
    """The name in a file of an adapter's parameter in a live model: ...q_proj.lora_A.default.weight
    -> base_model.model...lora_A.weight."""
    return PREFIX + name.removesuffix(_LIVE) + _STORED


def adapted(name: str) -> tuple[str, str] | None:
    """(the weight of the plain model that it changes, the name of its lora_B) for a lora_A's name
    in a file; None for other names."""
    if not name.endswith(f".lora_A{_STORED}"):
        return None
    module = name.removesuffix(f".lora_A{_STORED}")
    return module.removeprefix(PREFIX) + ".weight", module + f".lora_B{_STORED}"


def adapter_config(lora: LoraConfig, names: Iterable[str], base: str) -> dict[str, Any]:
    """peft's adapter_config.json for parameters `names` (of a live model, or stored) and the base
    model's path or id."""
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha_value,
        "use_rslora": lora.rank_stabilized,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """An adapter's directory. `tensors` have their stored names and lie on the CPU."""
    save_file(dict(tensors), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_adapter_config(folder, config)


def write_adapter_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG_FILE).write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + scaling B A in float32, [out, in]; weight [out, in], a [rank, in], b [out, rank] of any
    float dtype."""
    return torch.addmm(weight.float(), b.float() * scaling, a.float())


def bit_sum(tensor: Tensor) -> int:
    """Sum over the bits of the elements, read as whole numbers; the sums of a tensor's parts add up
    to its own."""
    return int(
        tensor.flatten()
        .view(torch.int16 if tensor.element_size() == 2 else torch.int32)
        .sum(dtype=torch.int64)
    )


def base_checksum(total: int) -> str:
    """What names a frozen base: `total` is the sum of `bit_sum` over its parameters, tied ones
    once, in the dtype they were loaded in."""
    return f"{total % 2**64:016x}"
