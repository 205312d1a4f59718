"""Members of enumerations in pickles of Python 3.11.0 to 3.11.3, which write them as
`getattr(kind, "name")`: for the restricted readers, in the place of getattr.

Debian 12 ships such a Python; a file that it wrote may be read by any.
"""

from __future__ import annotations

import pickle
from enum import Enum
from typing import Any

GETATTR = "builtins.getattr"


def enum_member(kind: Any, name: Any) -> Enum:
    """The member, and no other attribute of any other thing. Raises UnpicklingError."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError(f"Unsupported GLOBAL {GETATTR} of something else than an enum")
