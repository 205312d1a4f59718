"""Bisection to the last digit, with few evaluations: for a function whose every value is a pass
over a large pool.

In: a falling function, and an interval in which it ceases to be positive. Out: bit for bit where
plain bisection of that interval ends, after 5 to 12 evaluations in place of 52. False position
finds a bracket of a few last digits first; what bisection asks outside of it is known.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BISECTIONS = 200
_SMALL = 4.0  # last digits that are left to bisection


class _Bracket:
    """[low, high] around the sign change, with the values there."""

    def __init__(
        self, function: Callable[[float], float], low: float, high: float, ends: tuple[float, float]
    ) -> None:
        self.function, self.low, self.high = function, low, high
        self.above, self.below = ends
        self.digit = float(np.spacing(max(abs(low), abs(high))))

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def share(self) -> float:
        """Of the way from low to high at which a straight line is 0."""
        return self.above / (self.above - self.below)

    def ask(self, level: float) -> None:
        """At least a digit inside."""
        if self.width <= _SMALL * self.digit:
            return
        level = min(max(level, self.low + self.digit), self.high - self.digit)
        value = self.function(level)
        if value > 0.0:
            self.low, self.above = level, value
        else:
            self.high, self.below = level, value

    def narrow(self) -> None:
        """False position, in turn with a step twice as long from the better end, so that both ends
        close in; bisection where the two together are no better."""
        while (before := self.width) > _SMALL * self.digit:
            self.ask(self.low + self.share * self.width)
            if self.share < 0.5:
                self.ask(self.low + 2.0 * self.share * self.width)
            else:
                self.ask(self.high - 2.0 * (1.0 - self.share) * self.width)
            if self.width > 0.5 * before:
                self.ask(self.low + 0.5 * self.width)


def last_digit(
    function: Callable[[float], float],
    low: float,
    high: float,
    ends: tuple[float, float],
    near: tuple[float, ...] = (),
) -> float:
    """The least level found at which the function is not positive.

    `ends` are its values at low and high, roughly (only the speed depends on them); `near` are
    levels close to the result, to begin with.
    """
    bracket = _Bracket(function, low, high, ends)
    for level in near:
        if bracket.low < level < bracket.high:
            bracket.ask(level)
    bracket.narrow()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if middle <= bracket.low or (middle < bracket.high and function(middle) > 0.0):
            low = middle
        else:
            high = middle
    return high
