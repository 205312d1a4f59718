"""Which .jsonl and .parquet files a source stands for: one file, several behind commas, a pattern,
or a directory, of which the files of a split are taken where names tell splits apart.

Raises DataError, naming the configuration's key, for what is no such file. Nothing below a
directory is followed through a link.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from cero_rl.errors import DataError

_KINDS = (".jsonl", ".parquet")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "heldout")
_WANTED = "give a .jsonl or .parquet file, or several"


def files_of(source: str, split: str, field: str) -> list[str] | None:
    """The files in order; None where the source is no path of files."""
    if os.path.isfile(source):  # noqa: PTH113  raises for no name
        return [source] if _kind(source) else None
    if os.path.isdir(source):  # noqa: PTH112
        return _of_directory(source, split, field)
    if "," in source:
        found = []
        for part in filter(None, map(str.strip, source.split(","))):
            one = files_of(part, split, field)
            if one is None:
                raise DataError(f"{field}: {part[:200]} is no .jsonl or .parquet file; {_WANTED}")
            found += [file for file in one if file not in found]
        return found or None
    if glob.has_magic(source):
        found = sorted(file for file in glob.glob(source) if _kind(file))  # noqa: PTH207
        if not found:
            raise DataError(
                f"{field}: {source[:200]} matches no .jsonl or .parquet file (looked in "
                f"{Path.cwd()}); {_WANTED}"
            )
        return found
    if _kind(source):
        what = "is no regular file" if os.path.exists(source) else "does not exist"  # noqa: PTH110
        raise DataError(
            f"{field}: {source[:200]} {what} (looked in {Path.cwd()}); give the path of a .jsonl "
            "or .parquet file"
        )
    return None


def _kind(name: str) -> str | None:
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _KINDS else None


def _of_directory(source: str, split: str, field: str) -> list[str]:
    paths = sorted(path for path in Path(source).iterdir() if _kind(path.name))
    if links := [path for path in paths if path.is_symlink()]:
        raise DataError(
            f"{field}: {links[0]} is a link, which is not followed below a directory; give the file"
        )
    if odd := [path for path in paths if not path.is_file()]:
        raise DataError(f"{field}: {odd[0]} is no regular file; {_WANTED}")
    if not paths:
        raise DataError(
            f"{field}: {source} is a directory without .jsonl or .parquet files; {_WANTED}"
        )
    own = [path for path in paths if _is_of(path, split)]
    if not own and (other := next((p for p in paths if any(_is_of(p, s) for s in _SPLITS)), None)):
        raise DataError(
            f"{field}: {source} is a directory with files of splits ({other.name}) and none of "
            f"split {split!r}; {_WANTED}"
        )
    chosen = own or paths
    if len({_kind(path.name) for path in chosen}) > 1:
        raise DataError(
            f"{field}: {source} is a directory with both .jsonl and .parquet files, which may hold "
            f"the same rows; {_WANTED}"
        )
    return [str(path) for path in chosen]


def _is_of(path: Path, split: str) -> bool:
    return re.match(rf"{re.escape(split)}([^A-Za-z]|$)", path.stem, re.IGNORECASE) is not None
