"""LoRA in the learner: peft puts the trained matrices into the model before DeepSpeed shards it;
the base is frozen.

The base serves as the reference too, with the adapter scaled to 0: no second copy of the model, and
the same modules run in the same order, on which ZeRO-3's prefetching relies.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cero_rl.config import Config
from cero_rl.config.lora import LoraConfig
from cero_rl.distributed.group import Group
from cero_rl.errors import ConfigError, first_line
from cero_rl.files.lora_adapter import (
    ADAPTER_NAME,
    adapter_config,
    base_checksum,
    bit_sum,
    is_adapter_parameter,
    merged_weight,
)
from cero_rl.models.weights import Source


class Adapter:
    """The matrices in a model, and the frozen weights beside them."""

    def __init__(self, causal_lm: Any, layers: dict[str, Any], lora: LoraConfig) -> None:
        self._layers = layers  # name of a frozen weight in the plain model -> peft's layer
        self._lora = lora
        named = [(name.replace(".base_layer.", "."), p) for name, p in causal_lm.named_parameters()]
        self._named = [(name, p) for name, p in named if is_adapter_parameter(name)]
        self._frozen = [(name, p) for name, p in named if not is_adapter_parameter(name)]
        self._lost: Tensor | float = 0.0  # squared norms; tensors, so that merging waits for no GPU
        self._change: Tensor | float = 0.0

    def weights(self) -> list[Source]:
        """The matrices themselves, under their names in the model."""
        return [Source.of(name, parameter) for name, parameter in self._named]

    def describe(self) -> str:
        """One line for the user."""
        trained, frozen = (
            sum(Source.of(*named).numel for named in part) for part in (self._named, self._frozen)
        )
        share, modules = (
            trained / (trained + frozen),
            sorted({name.split(".")[-2] for name in self._layers}),
        )
        return (
            f"LoRA            rank {self._lora.rank} in {', '.join(modules)}: {trained:,} "
            f"parameters are trained ({share:.2%})"
        )

    def file_config(self, base: str) -> dict[str, Any]:
        """peft's adapter_config.json; `base` is the start model's path or id."""
        return adapter_config(self._lora, (name for name, _ in self._named), base)

    def merged(self) -> list[Source]:
        """All weights of the plain model, under its own names; `merge_loss` tells what rounding
        them cost."""
        self._lost = self._change = 0.0
        return [
            self._merged(name, p) if name in self._layers else Source.of(name, p)
            for name, p in self._frozen
        ]

    def _merged(self, name: str, weight: nn.Parameter) -> Source:
        layer = self._layers[name]
        a, b = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight

        def make() -> Tensor:
            full = merged_weight(weight.data, a.data, b.data, self._lora.scaling)
            rounded = full.to(weight.dtype)
            self._lost = self._lost + (rounded.float() - full).square().sum(dtype=torch.float64)
            self._change = self._change + (full - weight.data.float()).square().sum(
                dtype=torch.float64
            )
            return rounded

        return Source(name, (weight, a, b), make)

    def merge_loss(self) -> float:
        """|rounding error| / |what the adapter adds| over all merged weights of the last `merged`
        that was worked through (2-norms).

        0 in float32; near 1 where the adapter is smaller than the steps of the dtype, so that
        merging leaves the base as it was.
        """
        lost, change = float(self._lost), float(self._change)
        return (lost / change) ** 0.5 if change else 0.0

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model is its base."""
        self._scale(0.0)
        try:
            yield
        finally:
            self._scale(1.0)

    def _scale(self, factor: float) -> None:
        for layer in self._layers.values():
            layer.set_scale(ADAPTER_NAME, factor)

    def base_checksum(self, group: Group) -> str:
        """Sum over the bits of all frozen weights: the same for any number of ranks. A checkpoint
        holds no base, so it names it."""
        total = 0
        for _, parameter in self._frozen:
            if hasattr(parameter, "ds_numel"):  # this rank's elements; what follows them is padding
                sharded: Any = parameter
                shard: Tensor = sharded.ds_tensor.data.flatten()
                left = sharded.ds_numel - group.rank * shard.numel()
                shard = shard[: max(min(left, shard.numel()), 0)]
            else:
                shard = parameter.data.flatten() if group.is_main else parameter.data.new_empty(0)
            total += bit_sum(shard)
        total = (total + 2**63) % 2**64 - 2**63
        return base_checksum(int(group.sum_counts(np.array([total], dtype=np.int64))[0]))


def add_adapter(causal_lm: Any, config: Config) -> Adapter:
    """Freeze `causal_lm`, put the matrices of config.lora into it, and return them. A function of
    the model and the seed alone.

    Raises ConfigError for names that the model does not have, or that are no plain linear layers of
    its decoder.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            f"lora.rank: got {config.lora.rank}, but peft is not installed; pip install "
            "'cero_rl[lora]', or set lora.rank: 0"
        )
    import peft
    from peft.tuners.lora import Linear

    lora, wanted = config.lora, config.lora.targets
    linear = {
        name.rsplit(".", 1)[-1] for name, m in causal_lm.named_modules() if isinstance(m, nn.Linear)
    }
    linear -= {
        name.rsplit(".", 1)[-1]
        for name, m in causal_lm.named_modules()
        if m is causal_lm.get_output_embeddings()
    }
    if isinstance(wanted, tuple) and (unknown := [name for name in wanted if name not in linear]):
        raise ConfigError(
            f"lora.targets: {unknown[0]!r} is no linear layer of {config.model.path}; it "
            f"has {', '.join(sorted(linear))}"
        )
    causal_lm.requires_grad_(False)
    alpha: Any = lora.alpha_value  # peft says int and takes any number
    names: Any = wanted if isinstance(wanted, str) else list(wanted)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        target_modules=names,
        use_rslora=lora.rank_stabilized,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed % 2**63)
        try:
            peft.inject_adapter_in_model(settings, causal_lm, ADAPTER_NAME)
        except ValueError as error:
            raise ConfigError(f"lora.targets: {first_line(error)}") from None
    layers = {}
    for name, module in causal_lm.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        if type(module) is not Linear or type(module.get_base_layer()) is not nn.Linear:
            raise ConfigError(
                f"lora.targets: {name} is a {type(module.get_base_layer()).__name__}, "
                "wanted a linear layer; name the layers to adapt"
            )
        layers[f"{name}.weight"] = module
    return Adapter(causal_lm, layers, lora)
