"""--json: a command's answer as exactly one JSON document on standard output.

While a command runs under --json, standard output is standard error, for Python, native code and
children alike; words, progress and what libraries print go there. The command leaves its answer
with `answer`; the document is written when it has ended, with the error beside it where one ended
it:

    {"error": {"type", "exit_code", "message", "field", "got", "wanted", "remedy"}}

`message` is the line that is said without --json. The four parts are cut out of it and are null
where it does not say them. A number that is not finite is null. docs/command-line.md shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from cero_rl.config import Config

FLAG = "--json"
_FIELD = re.compile(
    r"(?:argument |[^\s:]+\.ya?ml: )?"  # argparse's word; the file of a configuration
    r"(?P<field>--[\w-]+|[A-Za-z_]\w*(?:\.\w+)*)"
    r"(?: (?P<value>[^\s:]+))?: "
)
_GOT = re.compile(r"\b(?:got|found) (.+?)(?=, wanted\b|, but\b|;|$)|\binvalid [\w ]+: '([^']*)'")
_WANTED = re.compile(r"\bwanted ([^;]+)|\(choose from ([^)]*)\)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        FLAG, action="store_true", help="one JSON document on standard output, nothing else there"
    )
    parser.set_defaults(answer=None)


def answer(arguments: argparse.Namespace, **parts: Any) -> None:
    """Leave the answer, or more parts of it; written under --json, left out otherwise."""
    arguments.answer = {**(arguments.answer or {}), **parts}


def is_wanted(words: Sequence[str]) -> bool:
    """Asked of the command line itself, since an error in it is to be JSON too."""
    return FLAG in words[: words.index("--")] if "--" in words else FLAG in words


def finite(value: Any) -> Any:
    """The tree with null for every number that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def error_of(kind: str, message: str, exit_code: int) -> dict[str, Any]:
    """An error for programs, from its line."""
    first, *rest = message.split("; ")
    at = _FIELD.match(message)
    field = at["field"] if at is not None and _is_setting(at["field"]) else None
    got, wanted = _GOT.search(first), _WANTED.search(message)
    value = at["value"] if at is not None and field is not None else None
    return {
        "type": kind,
        "exit_code": exit_code,
        "message": message,
        "field": field,
        "got": got[1] or got[2] if got else value,
        "wanted": wanted[1] or wanted[2] if wanted else None,
        "remedy": "; ".join(part for part in rest if not part.startswith("wanted ")) or None,
    }


def _is_setting(word: str) -> bool:
    """A flag, an argument or variable (in capitals), a key of the configuration."""
    section = word.partition(".")[0]
    return word.startswith("--") or word.isupper() or section in Config.model_fields


@contextlib.contextmanager
def words_to_stderr() -> Iterator[TextIO]:
    """What is written to standard output goes to standard error; yields the true one."""
    out = sys.stdout
    out.flush()
    try:
        number: int | None = out.fileno()
    except (io.UnsupportedOperation, AttributeError):  # a stream in memory
        number = None
    kept = None if number is None else os.dup(number)
    with contextlib.redirect_stdout(sys.stderr):
        if number is not None:
            sys.stderr.flush()
            os.dup2(sys.stderr.fileno(), number)
        try:
            yield out
        finally:
            if number is not None and kept is not None:
                os.dup2(kept, number)
                os.close(kept)


def write(out: TextIO, said: dict[str, Any] | None, error: dict[str, Any] | None) -> None:
    """The document; of several ranks, the first one's."""
    if os.environ.get("RANK", "0") != "0":
        return
    tree = finite({**(said or {}), **({} if error is None else {"error": error})})
    out.write(json.dumps(tree, indent=1, allow_nan=False) + "\n")
    out.flush()
