"""Weights under the names and in the layout that checkpoints on the hub have.

transformers renames and fuses what it loads: the experts of a layer are one tensor in its modules
and many in a checkpoint. Other programs, vLLM among them, read checkpoints. transformers' own
table of conversions is applied backwards, to one tensor at a time, so that a model is never whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class HubNames:
    """For the models of one configuration. Most types are stored as they are."""

    def __init__(self, model_config: Any) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.conversion_mapping import get_model_conversion_mapping

        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)
        self._differ = bool(get_model_conversion_mapping(self._model, add_legacy=False))

    def of(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights as a checkpoint holds them. Tensors may be views of those that came."""
        for name, tensor in weights:
            yield from self.parts({name: tensor}).items()

    def parts(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same for any number of them at once."""
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self._model, weights) if self._differ else weights

    def by_one_is_by_all(self) -> bool:
        """Does converting one tensor at a time give what converting all gives? By names and
        shapes, without data."""
        whole = dict(self._model.named_parameters())
        together = {name: tensor.shape for name, tensor in self.parts(whole).items()}
        return {name: tensor.shape for name, tensor in self.of(whole.items())} == together
