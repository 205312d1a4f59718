"""JSON lines: append one, cut a file back to a step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def truncate_jsonl(path: Path, last_step: int) -> None:
    """Drop lines after `last_step` (written after the checkpoint that a resumed run starts from)
    and any broken last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["step"] > last_step:
            break
        kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))


def append_jsonl(path: Path, entry: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({k: _clean(v) for k, v in entry.items()}) + "\n")
