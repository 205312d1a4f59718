"""Sampled completions for a person: sorted by worth, by surprise, by reward; and text from
anywhere made fit for a page.

What a model wrote is hostile until shown otherwise: the template escapes markup, `legible` takes
out what no HTML page may hold (lone surrogates, control characters) and shows what would turn the
reading direction; texts are cut, and the cut is said.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from cero_rl.report.reader import Line, Run, number

_EACH = 12  # of every order
_MOST_TEXT = 8_000  # characters of a text on the page
_FIRST = 90  # of its summary
_KEPT = "\n\t"


@dataclass(frozen=True)
class Sample:
    step: int
    prompt: str
    completion: str
    answer: str
    reward: float  # nan: missing
    worth: float  # before it was sampled; nan where it was not written
    expected: float
    finish: str
    first: str  # the beginning of the completion, in one line

    @property
    def surprise(self) -> float:
        return abs(self.reward - self.expected)


def sorted_samples(run: Run) -> list[tuple[str, str, list[Sample]]]:
    """(order, how to read it, the first of it); orders of which nothing is known are left out."""
    samples = [_sample(*known) for known in _believed(run)]
    orders: list[tuple[str, str, Callable[[Sample], float]]] = [
        (
            "by surprise",
            "reward furthest from what was expected: wrong keys, luck and news come first",
            lambda s: s.surprise,
        ),
        ("by worth", "what the allocator thought most worth a rollout", lambda s: s.worth),
        ("highest reward", "what is being reinforced; the latest first", lambda s: s.reward),
        ("lowest reward", "what is being discouraged; the latest first", lambda s: -s.reward),
    ]
    found = []
    for name, aid, key in orders:
        known = [sample for sample in samples if math.isfinite(key(sample))]
        known.sort(key=lambda sample: (-key(sample), -sample.step))
        if known:
            found.append((name, aid, known[:_EACH]))
    return found


def _believed(run: Run) -> list[tuple[Line, float, float]]:
    """Each sample with the worth and success rate of its prompt before its step."""
    at = {key: index for index, key in enumerate(run.keys)}
    groups = run.groups
    place = {
        (step, prompt): index
        for index, (step, prompt) in enumerate(zip(groups.step.tolist(), groups.prompt.tolist()))
    }
    found = []
    for line in run.samples:
        key = (line.get("step"), at.get(str(line.get("prompt_key")), -1))
        index = place.get(key)  # pyright: ignore[reportArgumentType]
        if index is None:
            found.append((line, math.nan, math.nan))
        else:
            found.append((line, float(groups.worth[index]), float(groups.expected[index])))
    return found


def _sample(line: Line, worth: float, expected: float) -> Sample:
    completion = _text(line.get("completion"))
    first = " ".join(completion[: 4 * _FIRST].split())
    step = line.get("step")
    return Sample(
        step=step if isinstance(step, int) else -1,
        prompt=_text(line.get("prompt")),
        completion=completion,
        answer=_text(line.get("answer")),
        reward=number(line.get("reward")),
        worth=worth,
        expected=expected,
        finish=legible(str(line.get("finish_reason")), 40),
        first=first[:_FIRST] or "(empty)",
    )


def _text(value: object) -> str:
    """Of a text or of chat messages."""
    if isinstance(value, list) and all(isinstance(m, dict) for m in value):
        value = "\n".join(f"[{m.get('role')}] {m.get('content')}" for m in value)
    elif not isinstance(value, str):
        value = json.dumps(value)
    return legible(value, _MOST_TEXT)


def legible(text: str, most: int) -> str:
    """At most `most` characters and the number of those left out; see the module's docstring."""
    shown = "".join(map(_character, text[:most]))
    left = len(text) - most
    return f"{shown} … [{left:,} more characters are in samples.jsonl]" if left > 0 else shown


def _character(c: str) -> str:
    if c in _KEPT or (" " <= c <= "~"):
        return c
    kind = unicodedata.category(c)
    if kind in ("Cs", "Cn", "Co"):
        return "\N{REPLACEMENT CHARACTER}"
    if kind in ("Cc", "Cf", "Zl", "Zp"):
        return f"\\u{ord(c):04x}"
    return c
