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
