"""What a reward's dict holds beside the score -> numbers for metrics. Runs in the worker."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

MOST_EXTRAS = 16  # metrics
_UNCLEAN = re.compile(r"[^A-Za-z0-9_.-]+")


def clean_extras(given: Mapping[Any, Any]) -> tuple[dict[str, float], int]:
    """The numbers of a reward's dict under names that a metric may have, and how many entries were
    dropped: no finite number, or too many of them."""
    kept: dict[str, float] = {}
    dropped = 0
    for key, value in given.items():
        name = _UNCLEAN.sub("_", str(key))[:64].strip("_.-")
        try:
            number = float("no" if isinstance(value, (str, bytes)) else value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not name or not math.isfinite(number) or name in kept or len(kept) == MOST_EXTRAS:
            dropped += 1
        else:
            kept[name] = number
    return kept, dropped
