"""Under which names a model's weights are stored: those of its checkpoints on the hub, which are
not always those of its modules.

transformers fuses and renames what it loads (the experts of a layer are one tensor), and undoes it
when it saves. Here the same table is applied backwards to one tensor at a time, so that a model is
never whole: at most a few fused tensors of one layer are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cero_rl.convert.weights import Spec, Weights
from cero_rl.errors import CheckpointError, first_line
from cero_rl.files.plain import refuse_links_out

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """own: the modules' names -> shapes, parameters and persistent buffers. stored: the same as a
    checkpoint has them, in the order in which it is written. parts: own name -> its stored ones.
    tied: a further own name -> the name it is stored under. buffers: those own names that are never
    trained and keep their dtype. model: the architecture without data."""

    own: Shapes
    stored: Shapes
    parts: Mapping[str, tuple[str, ...]]
    tied: Mapping[str, str]
    buffers: frozenset[str]
    model: Any

    def as_stored(self, weights: Weights) -> Weights:
        """Weights under the modules' names as a checkpoint has them."""
        whole = {part: own for own, parts in self.parts.items() for part in parts}
        specs = {n: Spec(weights.specs[whole[n]].dtype, shape) for n, shape in self.stored.items()}

        @lru_cache(maxsize=3)  # a layer's fused tensors: their parts are written in turn
        def parts_of(own: str) -> dict[str, Tensor]:
            return _stored(self.model, {own: weights.read(own)})

        def pieces(name: str) -> Iterator[Tensor]:
            own = whole[name]
            if self.parts[own] == (name,) and weights.specs[own].shape == specs[name].shape:
                yield from weights.pieces(own)  # renamed at most
            else:
                yield parts_of(own)[name].contiguous().flatten()

        return Weights(specs, pieces)


def _stored(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, tensors)


def layout_of(directory: Path) -> Layout:
    """From the architecture in config.json itself. Raises CheckpointError."""
    refuse_links_out(directory)
    try:
        config = (directory / "config.json").read_bytes()
    except OSError:  # said below, by who needs it
        config = b""
    return _layout(directory, config)


@lru_cache(maxsize=2)  # a conversion asks several times, of its source and of a base
def _layout(directory: Path, _config: bytes) -> Layout:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{directory}: not a causal language model that transformers knows ({reason})"
        ) from None
    first = {id(p): name for name, p in model.named_parameters()}
    named = model.named_parameters(remove_duplicate=False)
    tied = {n: first[id(p)] for n, p in named if first[id(p)] != n}
    everything = {n: t for n, t in model.state_dict().items() if n not in tied}
    parameters = set(first.values())
    own = {n: t for n, t in everything.items() if n in parameters}
    own |= {n: t for n, t in everything.items() if n not in parameters}
    stored = _stored(model, dict(own))
    # What is only renamed is the same tensor still; to ask for the parts of each takes long.
    renamed = {id(tensor): name for name, tensor in stored.items()}
    parts = {
        name: (renamed[id(tensor)],)
        if id(tensor) in renamed
        else tuple(_stored(model, {name: tensor}))
        for name, tensor in own.items()
    }
    if sorted(part for each in parts.values() for part in each) != sorted(stored):
        raise CheckpointError(
            f"{directory}: a {config.model_type} is stored in tensors that are made of several of "
            "its own, which is not supported; use the run's own export"
        )
    return Layout(
        {name: tuple(t.shape) for name, t in own.items()},
        {name: tuple(t.shape) for name, t in stored.items()},
        parts,
        tied,
        frozenset(set(own) - parameters),
        model,
    )
