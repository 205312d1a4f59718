"""Text from anywhere made fit for a person's eyes: of a page, a terminal, a line of a log.

What a model wrote is hostile until shown otherwise: control characters move a terminal's cursor or
change its title, lone surrogates cannot be written at all, and marks of direction turn what is
read. They are shown as what they are; texts are cut, and the cut is said.
"""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"


def legible(text: str, most: int) -> str:
    """At most `most` characters and the number of those left out."""
    shown = "".join(map(_character, text[:most]))
    left = len(text) - most
    return f"{shown} … [{left:,} more characters are in samples.jsonl]" if left > 0 else shown


def one_line(text: str, most: int) -> str:
    """The first `most` characters with every run of blanks as one, with an ellipsis where more
    follows."""
    line = " ".join(text[: 4 * most].split())
    shown = legible(line[:most], most)
    return f"{shown}…" if len(line) > most or len(text) > 4 * most else shown


def both_ends(text: str, most: int) -> str:
    """In one line; of a text of more than `most` characters the beginning and the end, where an
    answer stands."""
    if len(text) <= most:
        return one_line(text, most)
    last = most // 3
    head, tail = (" ".join(part.split()) for part in (text[: 4 * most], text[-4 * most :]))
    first = legible(head[: most - last], most)
    return f"{first} … {legible(tail[-last:], most)}"


def _character(c: str) -> str:
    if c in _KEPT or (" " <= c <= "~"):
        return c
    kind = unicodedata.category(c)
    if kind in ("Cs", "Cn", "Co"):
        return "\N{REPLACEMENT CHARACTER}"
    if kind in ("Cc", "Cf", "Zl", "Zp"):
        return f"\\u{ord(c):04x}"
    return c
