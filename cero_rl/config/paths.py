"""Paths as people write them: the home sign and variables become what they stand for, once, where a
configuration or a command line is read; everything behind it sees plain paths."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


def expand_path(text: str, environ: Mapping[str, str] | None = None) -> str:
    """`text` with a leading ~ or ~name and every $NAME or ${NAME} replaced.

    Raises ValueError for a variable that is not set or empty ($SCRATCH/runs must not become
    /runs), braces around anything but a name, a home that is not known, and an empty path.
    """
    if not text.strip():
        raise ValueError(f"got {text!r}, wanted a path; is a variable empty that stands for it?")
    known = os.environ if environ is None else environ

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not known.get(name):
            state = "is empty" if name in known else "is not set"
            raise ValueError(
                f"got {text!r}, but the variable {name} {state}; export it, or write the path out"
            )
        return known[name]

    expanded = _VARIABLE.sub(value, text)
    if "${" in _VARIABLE.sub("", text):
        raise ValueError(f"got {text!r}; wanted $NAME or ${{NAME}}, no other form of ${{...}}")
    if text.startswith("~"):
        try:
            expanded = str(Path(expanded).expanduser())
        except RuntimeError:
            raise ValueError(
                f"got {text!r}, whose home directory is not known; write the path out"
            ) from None
    return expanded


def text_argument(text: str) -> str:
    """A path or another name, as a command line's argument (argparse's `type`)."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_argument(text: str) -> Path:
    """A path, as a command line's argument."""
    return Path(text_argument(text))


def expand_paths(text: str) -> str:
    """The same for each of several paths behind commas."""
    return ",".join(expand_path(part.strip()) for part in text.split(","))


# A key that holds a path, or a path among other things (a data set's id, a file with a function).
PathText = Annotated[str, AfterValidator(expand_path)]
PathTexts = Annotated[str, AfterValidator(expand_paths)]
