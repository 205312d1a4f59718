"""A full tensor to come: what it is made of, whether its parameters are whole or sharded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


def _full_numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@dataclass(frozen=True)
class Source:
    """A full tensor to come: `make` it while its `parameters` are gathered."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, parameter: nn.Parameter) -> Source:
        """The parameter as it is."""
        return cls(name, (parameter,), lambda: parameter.data)

    @property
    def numel(self) -> int:
        return sum(map(_full_numel, self.parameters))

    @property
    def full_bytes(self) -> int:
        return sum(_full_numel(p) * p.element_size() for p in self.parameters)


def buffers_of(model: nn.Module) -> list[Source]:
    """What a checkpoint keeps beside the parameters, e.g. the bias that routes tokens to experts:
    whole on every rank."""
    found = []
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                full = f"{prefix}.{name}" if prefix else name
                found.append(Source(full, (), lambda buffer=buffer: buffer))
    return found
