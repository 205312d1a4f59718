"""An answer as the data holds it -> what the built-in verifiers compare with.

Data holds text, numbers, truth values, lists and mappings; plug-ins get them as they are. A list
is a choice: any of its entries is right. A list inside it is one answer of several pieces.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"[+-]?(?:\d{1,4000}\.?\d{0,4000}|\.\d{1,4000})(?:[eE][+-]?\d{1,4})?")

_EITHER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def alternatives(answer: Any) -> list[Any]:
    """The answers any of which is right; never empty."""
    if not isinstance(answer, list):
        return [answer]
    entries = [entry for entry in answer if entry is not None and entry != ""]
    return entries or [""]


def answer_text(answer: Any) -> str:
    """One answer as a person would write it: 42.0 is "42", 1e-05 is "0.00001", the pieces of a
    list stand between commas, a mapping is JSON."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return ", ".join(answer_text(piece) for piece in answer)
    if isinstance(answer, float) and abs(answer) != float("inf"):
        text = f"{Decimal(repr(answer)):f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(answer, dict):
        return json.dumps(answer, sort_keys=True, ensure_ascii=False, default=str)
    return str(answer)


def final_part(text: str) -> str:
    """What follows the last "####" (GSM8K's mark for the final answer), or all of it; stripped."""
    return text.rpartition("####")[2].strip()


def answer_part(text: str, *, answer_tags: bool, thinking: str) -> str:
    """The part of a response that a built-in verifier reads: what follows the last </think> where
    `thinking` is not "keep", and of it what stands in the last <answer>...</answer> where
    `answer_tags`. "" where there is no answer: a thought that was not ended, or (thinking:
    required) none at all; no tags."""
    if thinking != "keep":
        _, ended, text = text.rpartition("</think>")
        if "<think>" in text or (thinking == "required" and not ended):
            return ""
    if not answer_tags:
        return text
    opened, part = None, ""
    for tag in _EITHER_TAG.finditer(text):  # one pass: the text may be a wall of tags
        if tag[1]:
            part = part if opened is None else text[opened : tag.start()]
            opened = None
        else:
            opened = tag.end()
    return part


def said_last(text: str) -> str:
    """What a completion gives as its answer, for counting votes: its last \\boxed{...}, else its
    last <answer>...</answer>, else what follows "####", else its last line that is not empty;
    without blanks. "" where it says nothing."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, first = 0, start + len("\\boxed")
        for place in range(first, len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                return "".join(text[first + 1 : place].split())
        return ""
    if tagged := _ANSWER_TAG.findall(text):
        return "".join(tagged[-1].split())
    lines = [line for line in final_part(text).splitlines() if line.strip()]
    return "".join(lines[-1].split()) if lines else ""


def same_text(said: str, answer: Any) -> bool:
    """Is a completion's final part this answer? Numbers are compared as numbers, truth values
    without case, mappings and lists of pieces as JSON, text as text."""
    if isinstance(answer, str):
        return said == final_part(answer)
    if isinstance(answer, bool):
        return said.casefold() == str(answer).casefold()
    if isinstance(answer, (int, float)):
        return bool(_NUMBER.fullmatch(said)) and Decimal(said) == Decimal(repr(answer))
    try:
        return said == answer_text(answer) or json.loads(said) == answer
    except (ValueError, RecursionError):
        return False
