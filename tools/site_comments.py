"""The comment beside a field of a record as its description in the API reference (an extension of
griffe, named in mkdocs.yml): the records of cero_rl say what a field is on its line.

In: the attributes that griffe finds. Out: the same, with `# [P] rollouts of each prompt` as the
docstring of `spent: Ids  # [P] rollouts of each prompt`.
"""

from __future__ import annotations

import io
import tokenize
from pathlib import Path
from typing import Any

import griffe  # pyright: ignore[reportMissingImports]


class Comments(griffe.Extension):
    def __init__(self) -> None:
        self._read: dict[Path, dict[int, str]] = {}

    def _comments(self, path: Path) -> dict[int, str]:
        """line -> the comment that ends it"""
        if path not in self._read:
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
            self._read[path] = {
                token.start[0]: token.string.lstrip("# ")
                for token in tokens
                if token.type == tokenize.COMMENT and token.line.strip() != token.string
            }
        return self._read[path]

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        if attr.docstring is None and attr.parent.is_class and attr.endlineno:
            said = self._comments(attr.filepath).get(attr.endlineno, "")
            if said and not said.startswith(("pyright:", "noqa")):
                attr.docstring = griffe.Docstring(said[:1].upper() + said[1:] + ".", parent=attr)
