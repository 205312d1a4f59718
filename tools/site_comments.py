"""The comments beside the fields of a record as a list in the API reference (an extension of
griffe, named in mkdocs.yml): the records of cero_rl say what a field is on its line, or above it.

In: the classes that griffe finds. Out: the same, with `spent: [P] rollouts of each prompt` in the
docstring for the line `spent: Ids  # [P] rollouts of each prompt`.
"""

from __future__ import annotations

import io
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe  # pyright: ignore[reportMissingImports]


@cache
def comments(path: Path) -> dict[int, tuple[str, bool]]:
    """line -> (the comment on it, does it stand alone there)"""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), token.line.strip() == token.string)
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def said_of(path: Path, first: int, last: int) -> str:
    """What the comment on a field's last line says, or those that stand alone above its first."""
    said = comments(path)
    beside, alone = said.get(last, ("", True))
    if not alone and not beside.startswith(("pyright:", "noqa")):
        return beside
    above: list[str] = []
    while said.get(first - 1, ("", False))[1]:
        first -= 1
        above.insert(0, said[first][0])
    return " ".join(above)


class Comments(griffe.Extension):
    def on_class_members(self, *, cls: Any, **_: Any) -> None:
        found = []
        for name, member in cls.members.items():
            if member.is_attribute and not name.startswith("_") and member.endlineno:
                said = said_of(member.filepath, member.lineno, member.endlineno)
                if said and member.docstring is None:
                    found.append(f"- `{name}`: {said}")
        if found:
            own = cls.docstring.value if cls.docstring else ""
            cls.docstring = griffe.Docstring("\n".join([own, "", *found]), parent=cls)
