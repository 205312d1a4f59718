"""A model read one weight at a time, so that whoever shards it holds no more than a weight whole.

transformers puts every weight of a checkpoint into the model under its own name, converted and
cast, and goes on to the next. Here each is handed out as it is put there. Three things make that
true: the files are read, not mapped (a mapped page counts as this process's memory until the file
is closed); nothing is read ahead; and torch says which parameter a module was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import nn

_READ_AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"  # transformers' own switch

Handle = Callable[[nn.Parameter], None]


def _reads(safe_open: Callable[..., Any], filename: Any, framework: str, **options: Any) -> Any:
    return safe_open(filename, framework, **{**options, "backend": "pread"})


@contextmanager
def each_weight(handle: Handle, *, tied_rows: int | None) -> Iterator[None]:
    """Inside, `handle` is called with every weight that transformers has just loaded.

    What has `tied_rows` rows is left whole: embedding and head, of which transformers finds out
    when all is read whether they are one. The caller handles what is left.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from transformers import modeling_utils

    told: set[int] = set()

    def given(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        loaded = getattr(parameter, "_is_hf_initialized", False)
        if not loaded or id(parameter) in told or parameter.shape[:1] == (tied_rows,):
            return
        told.add(id(parameter))
        handle(parameter)

    before, library = os.environ.get(_READ_AHEAD), cast("Any", modeling_utils)
    safe_open = library.safe_open
    hook = register_module_parameter_registration_hook(given)
    os.environ[_READ_AHEAD] = "1"
    library.safe_open = partial(_reads, safe_open)
    try:
        yield
    finally:
        library.safe_open = safe_open
        hook.remove()
        os.environ.pop(_READ_AHEAD)
        if before is not None:
            os.environ[_READ_AHEAD] = before
