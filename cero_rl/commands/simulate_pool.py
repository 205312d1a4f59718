"""Measured pass rates from a file: the user's data with a column of rates, the posterior of a run,
or its evidence.

In: a path and what the command line says of it. Out: Measured. Raises DataError, one line that
names the row, for what cannot be used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.errors import ConfigError, DataError
from cero_rl.files.plain import refuse_link
from cero_rl.scheduler.simulation import read_evidence
from cero_rl.scheduler.simulation.measured import Measured
from cero_rl.scheduler.sizes import Ids

COLUMN = "pass_rate"
MOST_SAMPLES = 256  # that are guessed from the rates
_COUNTS = ("successes", "failures")


def is_pool(path: Path, column: str) -> bool:
    """Does the file hold a pass rate or the counts of a prompt in each row? Decided by its first
    row or its schema; what cannot be read is no pool."""
    if not path.is_file():
        return False
    try:
        if path.suffix == ".parquet":
            from pyarrow import ArrowException, parquet

            try:
                names = set(parquet.read_schema(path).names)
            except ArrowException:
                return False
            return column in names or names >= set(_COUNTS)
        with path.open(encoding="utf-8") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "null"))
        return isinstance(first, dict) and "prompt_ids" not in first
    except (OSError, ValueError, RecursionError):
        return False


def read_pool(
    path: Path, column: str, samples: int | None, cells: tuple[str, ...]
) -> tuple[Measured, str]:
    """The pool, and in words what its rates were measured with."""
    if path.is_dir():
        found = [path / name for name in ("posterior.parquet", "evidence.jsonl")]
        found = [file for file in found if file.is_file()]
        if not found:
            raise DataError(
                f"--replay {path}: found neither posterior.parquet nor evidence.jsonl there; name "
                "a run directory, or a file with pass rates"
            )
        refuse_link(found[0], DataError)
        path = found[0]
    if not path.is_file():
        raise DataError(f"--replay {path}: no such file; name a .jsonl or .parquet file")
    try:
        if path.suffix != ".parquet" and not is_pool(path, column):
            return _of_evidence(path, cells), "counts of a run's evidence, older ones faded"
        rows = list(_rows(path))
        if not rows:
            raise ValueError(f"{path}: holds no rows")
        if column not in rows[0][1] and set(_COUNTS) <= set(rows[0][1]):
            return _of_counts(path, rows, cells), "counts of a run's posterior"
        return _of_rates(path, rows, column, samples, cells)
    except UnicodeDecodeError:
        raise DataError(f"--replay: {path}: not UTF-8 text") from None
    except ConfigError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"--replay: {str(error).splitlines()[0]}") from None


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where a row stands, and the row."""
    if path.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.read_table(path)
        except ArrowException as error:
            raise ValueError(f"{path}: {error}") from None
        for number, row in enumerate(table.to_pylist()):
            yield f"{path}, row {number}", row
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where}: {type(row).__name__}, wanted an object")
            yield where, row


def _number(where: str, row: Mapping[str, Any], name: str, most: float) -> float:
    """nan for null."""
    if name not in row:
        shown = ", ".join(sorted(map(str, row))[:12]) or "nothing"
        raise ValueError(
            f"{where}: no column {name}, it has {shown}; --column NAME says which one holds the "
            "measured pass rates"
        )
    value = row[name]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= most:
        wanted = "a number in [0, 1] or null" if most == 1.0 else "a finite number >= 0"
        raise ValueError(f"{where}: {name} is {str(value)[:40]!r}, wanted {wanted}")
    return float(value)


def _of_rates(
    path: Path,
    rows: list[tuple[str, Mapping[str, Any]]],
    column: str,
    samples: int | None,
    cells: tuple[str, ...],
) -> tuple[Measured, str]:
    rates = np.array([_number(where, row, column, 1.0) for where, row in rows])
    known = ~np.isnan(rates)
    if not known.any():
        raise ValueError(f"{path}: column {column} holds nothing but null")
    guessed = "" if samples else ", as the rates suggest"
    count = samples or _samples_behind(rates[known])
    if count is None:
        raise ConfigError(
            f"--samples is missing: the rates of {path} are no multiples of 1/N for any N up to "
            f"{MOST_SAMPLES}; say how many samples each was measured with"
        )
    unknown = "" if known.all() else f", {int((~known).sum())} of them not measured"
    trials = np.where(known, float(count), 0.0)
    pool = Measured(np.where(known, rates, 0.0) * trials, trials, _cells(rows, cells))
    return pool, f"pass rates from {count} samples{guessed}{unknown}"


def _samples_behind(rates: np.ndarray) -> int | None:
    """The smallest N for which all rates are multiples of 1/N, to 4 digits."""
    distinct = np.unique(rates)
    for count in range(1, MOST_SAMPLES + 1):
        if (np.abs(np.rint(distinct * count) / count - distinct) < 5.1e-5).all():
            return count
    return None


def _of_counts(
    path: Path, rows: list[tuple[str, Mapping[str, Any]]], cells: tuple[str, ...]
) -> Measured:
    wins, losses = (
        np.nan_to_num(np.array([_number(where, row, name, 1e12) for where, row in rows]))
        for name in _COUNTS
    )
    try:
        return Measured(wins, wins + losses, _cells(rows, cells))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _of_evidence(path: Path, cells: tuple[str, ...]) -> Measured:
    """Each prompt's counts, faded by .8 of their weight over the run: a policy moves. Prompts that
    the run never met, but whose numbers lie between, are not measured."""
    if cells:
        raise ConfigError("--cells: evidence has no columns; leave it out, or name your data")
    counts = read_evidence(path)
    if not counts.prompt.size or counts.prompt.min() < 0:
        raise ValueError(f"{path}: wanted prompt ids >= 0 and at least one")
    rounds = max(int(counts.round.max()), 1)
    weight = np.exp(-0.8 * (rounds - counts.round) / rounds)
    size = int(counts.prompt.max()) + 1
    if size > 100 * counts.prompt.size:
        raise ValueError(f"{path}: prompt id {size - 1} is beyond a pool that was sampled")
    wins, tries = np.zeros(size), np.zeros(size)
    np.add.at(wins, counts.prompt, counts.successes * weight)
    np.add.at(tries, counts.prompt, counts.trials * weight)
    if (counts.successes < 0.0).any() or (counts.successes > counts.trials).any():
        raise ValueError(f"{path}: wanted 0 <= successes <= trials")
    return Measured(np.minimum(wins, tries), tries)


def _cells(rows: list[tuple[str, Mapping[str, Any]]], names: tuple[str, ...]) -> Ids | None:
    """i64[P]: prompts alike in all columns of `names` have the same number."""
    if not names:
        return None
    for where, row in rows:
        if missing := [name for name in names if name not in row]:
            shown = ", ".join(sorted(map(str, row))[:12])
            raise ValueError(f"{where}: no column {missing[0]} for --cells, it has {shown}")
    values = [tuple(str(row[name]) for name in names) for _, row in rows]
    number = {value: at for at, value in enumerate(sorted(set(values)))}
    return np.array([number[value] for value in values], dtype=np.int64)
