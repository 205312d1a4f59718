"""What a reward function is asked and what comes back.

A reward is a number in [0, 1], or missing (NaN): a verifier that timed out or failed says nothing
about the completion, so it must not count as 0. Missing rewards leave the group's baseline and the
posterior, and are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RewardItem:
    """One completion to score."""

    prompt: str | list[dict[str, Any]]  # text, or chat messages
    completion: str
    answer: Any  # as the data holds it: text, number, truth value, list, mapping
    source: str
    columns: Mapping[str, Any]  # the prompt's further columns
    finish_reason: str = "stop"  # or "length": cut at the limit
    group: int = -1  # items of one call with the same are one prompt's; -1: of none


@dataclass(frozen=True, slots=True)
class RewardCounts:
    """How the items of one call ended; the three add up to the number of items."""

    scored: int = 0
    timeouts: int = 0  # stopped at the deadline
    errors: int = 0  # raised, crashed, out of memory, or returned None, NaN or infinity

    @property
    def total(self) -> int:
        return self.scored + self.timeouts + self.errors

    def __add__(self, other: RewardCounts) -> RewardCounts:
        return RewardCounts(
            self.scored + other.scored, self.timeouts + other.timeouts, self.errors + other.errors
        )


@dataclass(frozen=True, slots=True)
class RewardResult:
    values: npt.NDArray[np.float32]  # [n] in the order of the items; NaN where missing
    counts: RewardCounts
    first_error: str | None = None  # one line for the log, when counts.errors > 0
    failed: frozenset[int] = frozenset()  # items that are errors; the other missing ones were late
    extras: tuple[Mapping[str, float], ...] = ()  # of the items that brought some
    extras_dropped: int = 0  # entries that could be no metric


@dataclass(frozen=True, slots=True)
class GoldProblem:
    """What is wrong with an answer of the data, for the verifier that is to judge by it."""

    reason: str  # one line
    never_right: bool  # no completion could be judged by it; else only the same text counts

    def __str__(self) -> str:
        return self.reason
