"""vLLM in a process that trains: the classes of transformers stay what they are.

For a model that vLLM has no code of its own for (OLMo 2, SmolLM3, Starcoder2) it builds the module
of transformers, and to compile it vLLM 0.32 rewrites the base classes, the constructor and the call
of that class for the whole process. The learner's module is of the same class: its call would skip
the hooks of ZeRO, and asks for attributes that only vLLM's constructor sets. So the rewritten class
becomes a subclass that vLLM's module alone has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_KEEP = ("__dict__", "__weakref__")


@contextmanager
def classes_untouched(model_of: Any) -> Iterator[list[Any]]:
    """Build vLLM's engine inside, and put it into the list; `model_of` takes its model out of
    it."""
    import vllm.model_executor.models.transformers.base as theirs  # pyright: ignore

    base: Any = theirs
    decorate = base.support_torch_compile
    before: dict[type, tuple[tuple[type, ...], dict[str, Any]]] = {}

    def remember(*arguments: Any, **settings: Any) -> Any:
        decorator = decorate(*arguments, **settings)

        def decorated(cls: type) -> type:
            before.setdefault(cls, (cls.__bases__, dict(vars(cls))))
            return decorator(cls)

        return decorated

    base.support_torch_compile = remember
    built: list[Any] = []
    try:
        yield built
    finally:
        base.support_torch_compile = decorate
        for cls, (bases, names) in before.items():
            own = _undo(cls, bases, names)
            for engine in built:
                for module in model_of(engine).modules():
                    if type(module) is cls:
                        module.__class__ = own


def _undo(cls: type, bases: tuple[type, ...], names: dict[str, Any]) -> type:
    """Give the class back its bases and names; returns a subclass with what was put on it."""
    added = [base for base in cls.__bases__ if base not in bases]
    changed = {
        name: value
        for name, value in vars(cls).items()
        if name not in _KEEP and names.get(name) is not value
    }
    cls.__bases__ = bases
    for name in changed:
        if name in names:
            setattr(cls, name, names[name])
        else:
            delattr(cls, name)
    return type(cls.__name__, (cls, *added), {**changed, "__module__": cls.__module__})
