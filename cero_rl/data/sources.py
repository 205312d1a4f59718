"""Rows from a file, a Hugging Face id or a procedural set: (where, row) pairs, `where` naming
the line or row in errors.

Raises DataError (exit 3), one line each, with the remedy. Parquet is read with pyarrow directly:
no cache directory is written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cero_rl.data.files import files_of
from cero_rl.errors import DataError, first_line

Row = tuple[str, dict[str, Any]]
Kind = Literal["files", "reasoning_gym", "hub"]
PROCEDURAL = "reasoning_gym:"
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz")
_OTHER_FILES = (".json", ".csv", ".tsv", ".txt", ".arrow", *_COMPRESSED)
_DEPTH = 100  # levels of a row
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def kind_of(source: str, field: str, split: str = "train") -> Kind:
    """Which reader serves `source`; `field` is the configuration key for messages, `split` what is
    wanted of a directory. Raises DataError for what none serves."""
    if source.startswith(PROCEDURAL):
        return "reasoning_gym"
    if files_of(source, split, field) is not None:
        return "files"
    there, suffix = os.path.exists(source), Path(source).suffix.lower()  # noqa: PTH110
    if there or not _HUB_ID.fullmatch(source) or suffix in _OTHER_FILES:
        found = "is not a kind of file this reads" if there else "does not exist"
        remedy = "unpack it and " if suffix in _COMPRESSED else ""
        raise DataError(
            f"{field}: {source[:200]} {found}; {remedy}give a .jsonl or .parquet file, a Hugging "
            f"Face id, or {PROCEDURAL}NAME"
        )
    return "hub"


def read_files(files: list[str], limit: int | None) -> Iterator[Row]:
    """Rows of .jsonl and .parquet files, one after the other, at most `limit` in all."""
    rows = (
        row
        for file in files
        for row in (read_parquet if file.lower().endswith(".parquet") else read_jsonl)(file, None)
    )
    return islice(rows, limit)


class _Twice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def _parse_line(raw: bytes, first: bool) -> Any:
    """One line of JSON; raises ValueError with the reason in words."""
    try:
        text = raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError:
        kinds = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\x28\xb5": "zstandard", b"PA": "parquet"}
        if first and (kind := kinds.get(raw[:2])) is not None:
            raise ValueError(f"not text but {kind} data; unpack or rename the file") from None
        raise ValueError("not UTF-8 text; convert the file to UTF-8") from None
    try:
        row = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"broken JSON ({error.msg} at column {error.colno}); repair or remove the line"
        ) from None
    except RecursionError:
        raise ValueError("JSON nested too deeply; repair or remove the line") from None
    except ValueError as error:  # a key twice, an integer of more than 4,300 digits
        raise ValueError(
            f"cannot be read as JSON ({first_line(error)}); repair or remove the line"
        ) from None
    # what is read here is written again, for rewards and logs, from deeper frames
    if raw.count(b"[") + raw.count(b"{") > _DEPTH and _deeper(row, _DEPTH):
        raise ValueError("JSON nested too deeply; repair or remove the line")
    return row


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(v, levels - 1) for v in inner)


def read_jsonl(path: str, limit: int | None) -> Iterator[Row]:
    """One JSON object a line; blank lines are skipped. Raises DataError with file:line at the
    first broken line."""
    seen = 0
    try:
        with Path(path).open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if limit is not None and seen >= limit:
                    return
                if not raw.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    row = _parse_line(raw, first=number == 1)
                except ValueError as error:
                    raise DataError(f"{where}: {error}") from None
                if not isinstance(row, dict):
                    raise DataError(
                        f"{where}: holds a JSON {type(row).__name__}, wanted an object such "
                        f'as {{"prompt": ..., "answer": ...}}'
                    )
                seen += 1
                yield where, row
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None


def read_parquet(path: str, limit: int | None) -> Iterator[Row]:
    """Rows of a parquet file as plain Python values, counted from 1. Raises DataError where it
    is not parquet, or where a row cannot be read."""
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}: the column {twice[0]!r} stands twice; keep one")
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    if limit is not None and number >= limit:
                        return
                    number += 1
                    yield f"{path} row {number}", row
    except DataError:
        raise
    # pyarrow's own errors, and those of Python's types: text that is no UTF-8, dates out of range
    except Exception as error:
        after = f" after row {number}" if number else ""
        raise DataError(
            f"{path}: cannot be read as parquet{after} ({first_line(error)[:200]}); write the "
            "file again"
        ) from None


def read_hub(source: str, config_name: str | None, split: str, limit: int | None) -> Iterator[Row]:
    """Rows of a Hugging Face data set, counted from 1. Offline, missing or gated sets become one
    DataError line."""
    import datasets

    try:
        table = iter(datasets.load_dataset(source, config_name, split=split))
    # the library raises a dozen unrelated types here; all of them mean "not available"
    except Exception as error:
        reason = first_line(error)[:200]
        raise DataError(
            f"data.source: cannot load {source!r} split {split!r} from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); check id, data.config_name and split, log "
            "in if it is gated, or without a network give a local .jsonl or .parquet file"
        ) from None
    number = 0
    try:
        for number, row in enumerate(islice(table, limit), start=1):
            yield f"{source} row {number}", dict(row)
    except Exception as error:
        raise DataError(
            f"data.source: {source} cannot be read after row {number} "
            f"({type(error).__name__}: {first_line(error)[:200]}); give a local file"
        ) from None


def read_procedural(source: str, size: int, seed: int) -> Iterator[Row]:
    """Items of a reasoning_gym set, deterministic by (name, seed, index).

    The row keeps only these coordinates: the scorer regenerates the item in its worker, so
    metadata is never held or sent.
    """
    name = source.removeprefix(PROCEDURAL)
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise DataError(
            f"data.source: {source} needs reasoning_gym; pip install 'cero_rl[procedural]'"
        ) from None
    if name not in DATASETS:
        import difflib

        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = (
            f"did you mean {PROCEDURAL}{near[0]}?"
            if near
            else f"known are {', '.join(sorted(DATASETS)[:8])}, ..."
        )
        raise DataError(f"data.source: reasoning_gym has no set {name!r}; {hint}")
    try:
        items = reasoning_gym.create_dataset(name, size=size, seed=seed)
        for index in range(size):
            item = items[index]
            columns = {"reasoning_gym": name, "seed": seed, "size": size, "index": index}
            yield (
                f"{source} item {index}",
                {"prompt": item["question"], "answer": item["answer"], **columns},
            )
    except DataError:
        raise
    except Exception as error:
        reason = first_line(error)[:200]
        raise DataError(
            f"data.source: {source} failed to generate {size} items ({reason}); lower "
            "data.procedural_size or pick another"
        ) from None
