"""What a run has learnt of its prompts, kept for the next run: the posterior's evidence by prompt
key, in one parquet file.

A key is a string that survives runs (`Prompt.key`, the content hash), not the index in the pool.
The evidence is without the prior, after forgetting: a new run adds it to a prior of its own.
pyarrow is imported when a file is written or read, and only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.posterior import Floats


def _distinct(keys: Sequence[str], wanted: int | None) -> list[str]:
    if wanted is not None and len(keys) != wanted:
        raise ValueError(f"{len(keys)} keys for {wanted} prompts")
    if len(set(keys)) != len(keys):
        raise ValueError("keys: every prompt needs a key of its own")
    return list(keys)


class HoldsEvidence(Protocol):
    """A scheduler or a posterior."""

    def evidence(self) -> tuple[Floats, Floats]: ...


def export_posterior(path: str | Path, keys: Sequence[str], posterior: HoldsEvidence) -> None:
    """Write columns key (string), successes, failures (f64) of the P prompts. ValueError unless
    keys are P distinct strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    successes, failures = posterior.evidence()
    columns = {
        "key": pa.array(_distinct(keys, successes.shape[0]), pa.string()),
        "successes": successes,
        "failures": failures,
    }
    pq.write_table(pa.table(columns), path)


def import_posterior(
    path: str | Path, keys: Sequence[str]
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Successes f64[P], failures f64[P] and whether the file knows the prompt bool[P], for the pool
    that `keys` names.

    For `warm_start`. Prompts that the file does not know get 0; keys of prompts that
    are gone are left out. Raises ValueError for repeated keys, or a file without these columns or
    with counts that are negative or not finite.
    """
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    if not {"key", "successes", "failures"} <= set(names):
        raise ValueError(
            f"{path}: wanted columns key, successes, failures; it has {', '.join(names)}"
        )
    table = pq.read_table(path, columns=["key", "successes", "failures"])
    stored = _distinct(table["key"].to_pylist(), None)
    row_of = {key: row for row, key in enumerate(stored)}
    rows = np.array([row_of.get(key, -1) for key in _distinct(keys, None)], dtype=np.int64)
    known = rows >= 0
    counts = []
    for name in ("successes", "failures"):
        column = table[name].to_numpy().astype(np.float64)
        if not bool((np.isfinite(column) & (column >= 0.0)).all()):
            raise ValueError(f"{path}: column {name} must hold finite numbers >= 0")
        counts.append(np.where(known, column[np.maximum(rows, 0)] if column.size else 0.0, 0.0))
    return counts[0], counts[1], known
