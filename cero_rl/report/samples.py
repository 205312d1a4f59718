"""Sampled completions for a person: sorted by worth, by surprise, by reward.

What a model wrote is hostile until shown otherwise: the template escapes markup, `legible` does the
rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cero_rl.legible import legible, one_line
from cero_rl.report.reader import Line, Run, number

_EACH = 12  # of every order
_MOST_TEXT = 8_000  # characters of a text on the page
_FIRST = 90  # of its summary


@dataclass(frozen=True)
class Sample:
    """Texts are made fit for a page when they are asked for."""

    line: Line  # of samples.jsonl
    step: int
    reward: float  # nan: missing
    worth: float  # before it was sampled; nan where it was not written
    expected: float
    group: int  # index into the run's groups; -1: not known

    @property
    def surprise(self) -> float:
        return abs(self.reward - self.expected)

    @property
    def prompt(self) -> str:
        return text_of(self.line.get("prompt"))

    @property
    def completion(self) -> str:
        return text_of(self.line.get("completion"))

    @property
    def answer(self) -> str:
        return text_of(self.line.get("answer"))

    @property
    def finish(self) -> str:
        return legible(str(self.line.get("finish_reason")), 40)

    @property
    def first(self) -> str:
        """The beginning of the completion, in one line."""
        return one_line(plain_text(self.line.get("completion")), _FIRST) or "(empty)"

    @property
    def asked(self) -> str:
        """The beginning of the prompt, in one line."""
        return one_line(plain_text(self.line.get("prompt")), _FIRST)


# name, how to read it, what is largest first; of equals the latest
ORDERS: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    (
        "by surprise",
        "reward furthest from what was expected: wrong keys, luck and news come first",
        lambda s: s.surprise,
    ),
    ("by worth", "what the allocator thought most worth a rollout", lambda s: s.worth),
    ("highest reward", "what is being reinforced; the latest first", lambda s: s.reward),
    ("lowest reward", "what is being discouraged; the latest first", lambda s: -s.reward),
)


def sorted_samples(run: Run) -> list[tuple[str, str, list[Sample]]]:
    """(order, how to read it, the first of it); orders of which nothing is known are left out."""
    samples, found = samples_of(run), []
    for name, aid, key in ORDERS:
        if known := in_order(samples, key):
            found.append((name, aid, known[:_EACH]))
    return found


def in_order(samples: Sequence[Sample], key: Callable[[Sample], float]) -> list[Sample]:
    """Those that have such a number, the largest first."""
    known = [sample for sample in samples if math.isfinite(key(sample))]
    return sorted(known, key=lambda sample: (-key(sample), -sample.step))


def samples_of(run: Run) -> list[Sample]:
    """Each with the worth and success rate of its prompt before its step."""
    at = {key: index for index, key in enumerate(run.keys)}
    groups = run.groups
    place = {
        (step, prompt): index
        for index, (step, prompt) in enumerate(zip(groups.step.tolist(), groups.prompt.tolist()))
    }
    found = []
    for line in run.samples:
        step = line.get("step")
        step = step if isinstance(step, int) else -1
        index = place.get((step, at.get(str(line.get("prompt_key")), -1)), -1)
        worth = expected = math.nan
        if index >= 0:
            worth, expected = float(groups.worth[index]), float(groups.expected[index])
        found.append(Sample(line, step, number(line.get("reward")), worth, expected, index))
    return found


def text_of(value: object) -> str:
    """Of a text or of chat messages, fit for a page."""
    return legible(plain_text(value), _MOST_TEXT)


def plain_text(value: object) -> str:
    """As it came: `legible` makes it fit for a page."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(m, dict) for m in value):
        return "\n".join(f"[{m.get('role')}] {m.get('content')}" for m in value)
    return json.dumps(value)
