"""Marks on the methods of an environment, under the names that the package verifiers (0.4) gives
them, so that its marks and these are read alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

Method = Callable[..., Any]


def _marked(kind: str, function: Method | None, **extra: Any) -> Any:
    def mark(method: Method) -> Method:
        for name, value in {kind: True, **extra}.items():
            setattr(method, name, value)
        return method

    return mark if function is None else mark(function)


def tool(func: Method | None = None, name: str | None = None) -> Any:
    """A method that the model may call; its docstring and annotations are what the model is
    told."""
    return _marked("tool", func, tool_name=name)


def reward(func: Method | None = None, weight: float = 1.0, priority: int = 0) -> Any:
    """A method of (task, trace), by name, that returns a number or a dict of numbers; the
    episode's reward is the sum of all, times their weights."""
    return _marked("reward", func, _vf_weight=weight, reward_priority=priority)


def metric(func: Method | None = None, priority: int = 0) -> Any:
    """A method as of `reward`, that is recorded and rewards nothing."""
    return _marked("metric", func, metric_priority=priority)


def stop(func: Method | None = None, priority: int = 0) -> Any:
    """A method as of `reward`; where it returns true the episode ends."""
    return _marked("stop", func, stop_priority=priority)


def marked(instance: object, kind: str) -> list[Method]:
    """The bound methods of a kind, by priority, then by name."""
    names = {name for base in type(instance).__mro__ for name in vars(base)}
    found = [
        method
        for name in sorted(names)
        if hasattr(getattr(type(instance), name), kind)
        for method in [getattr(instance, name)]
        if callable(method)
    ]
    return sorted(found, key=lambda m: (-getattr(m, f"{kind}_priority", 0), m.__name__))


async def called(method: Method, offered: Mapping[str, Any]) -> Any:
    """The method with those of the offered arguments that it names, awaited where it has to be."""
    wanted = inspect.signature(method).parameters
    result = method(**{name: value for name, value in offered.items() if name in wanted})
    return await result if inspect.isawaitable(result) else result
