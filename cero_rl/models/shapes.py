"""The architecture of a model, told without its weights: layers, widths, number of parameters.

From a directory's config.json (nothing else need be there), a file, a hub id in the cache, the
table of published architectures shapes.json, or the hub, in this order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cero_rl.config import Config
from cero_rl.errors import ConfigError, EngineError, first_line
from cero_rl.models.load import load_model_config
from cero_rl.models.lora import add_adapter

_PUBLISHED = Path(__file__).with_name("shapes.json")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """Numbers of elements of a model, whole. `active`: parameters that one token meets, the input
    embedding left out where it is no head too."""

    layers: int
    parameters: int
    trained: int  # with LoRA its matrices, else all
    adapters: int  # LoRA's matrices, not among `parameters`
    largest: int  # of one parameter
    active: int
    cache: int  # keys and values of one token
    attention: int  # heads x width of a head, summed over layers
    hidden: int
    vocabulary: int
    longest: int  # tokens of a sequence


def published() -> dict[str, dict[str, Any]]:
    """Name on the hub -> what its config.json says of the architecture."""
    return json.loads(_PUBLISHED.read_text(encoding="utf-8"))


def find_config(path: str, shape_file: Path | None = None) -> tuple[Any, str]:
    """(transformers' configuration, where it is from, in words). Raises ConfigError where there is
    none."""
    if shape_file is not None:
        return _of_file(shape_file), str(shape_file)
    if (Path(path) / "config.json").is_file():
        return _of_file(Path(path) / "config.json"), f"{path}/config.json"
    if (known := published().get(path)) is not None:
        return _of_dict(known, path), "published architecture, kept in this package"
    try:
        return load_model_config(path), f"config.json of {path}"
    except EngineError as error:  # which begins with the same words
        reason = first_line(error).removeprefix("model.path: ")
        raise ConfigError(
            f"model.path: {reason}; give its file with --shape FILE, or a directory that holds it"
        ) from None


def _of_file(file: Path) -> Any:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: no JSON could be read from it ({first_line(error)})") from None
    if not isinstance(entries, dict) or "model_type" not in entries:
        raise ConfigError(f"{file}: has no model_type; wanted a model's config.json")
    return _of_dict(entries, str(file))


def _of_dict(entries: dict[str, Any], name: str) -> Any:
    from transformers import AutoConfig

    rest = {key: value for key, value in entries.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(entries["model_type"], **rest)
    except Exception as error:  # transformers checks by itself, and raises what it likes
        raise ConfigError(f"{name}: is no model's configuration ({first_line(error)})") from None


def on_meta(model_config: Any, attention: str = "sdpa", dtype: str = "bfloat16") -> Any:
    """The model with shapes and no data. Raises ConfigError for what is no causal language
    model."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                model_config,
                attn_implementation=attention,
                dtype=getattr(torch, dtype),
                trust_remote_code=False,
            )
    except Exception as error:
        raise ConfigError(
            f"model.path: no causal language model can be made of a {model_config.model_type} "
            f"({first_line(error)})"
        ) from None


def shape_of(model_config: Any, config: Config) -> Shape:
    """Counted on the model itself, without data. Raises ConfigError, of lora.targets too."""
    model = on_meta(model_config)
    parameters = sum(p.numel() for p in model.parameters())
    largest = max(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    active = parameters - (0 if tied else embedding.numel())
    experts = next((n for k in _EXPERTS if (n := getattr(model_config, k, None))), 0)
    if experts:
        held = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
        active -= held - held * model_config.num_experts_per_tok // experts
    adapters = 0
    if config.lora.rank:
        with torch.device("meta"):
            add_adapter(model, config)
        adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers, heads = model_config.num_hidden_layers, model_config.num_attention_heads
    width = getattr(model_config, "head_dim", None) or model_config.hidden_size // heads
    of_keys = getattr(model_config, "num_key_value_heads", None) or heads
    return Shape(
        layers=layers,
        parameters=parameters,
        trained=adapters or parameters,
        adapters=adapters,
        largest=largest,
        active=active,
        cache=2 * layers * of_keys * width,
        attention=layers * heads * width,
        hidden=model_config.hidden_size,
        vocabulary=model_config.vocab_size,
        longest=getattr(model_config, "max_position_embeddings", None) or 2**31,
    )
