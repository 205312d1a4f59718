"""Few evaluations, and the last digit of plain bisection."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cero_rl.scheduler.bisection import last_digit


def plain(function: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if function(middle) > 0.0:
            low = middle
        else:
            high = middle
    return high


def falling(kind: int, root: float) -> Callable[[float], float]:
    """Curved, with kinks, with a flat part, with a jump, almost flat on one side."""
    return (
        lambda x: float(np.exp(-x) - np.exp(-root)),
        lambda x: (root - x) * (1.0 if x > root else 1e6),
        lambda x: min(max(root - x, -1e-3), 0.5),
        lambda x: 1.0 if x < root else -1.0,
        lambda x: (root - x) ** 9,
    )[kind]


@settings(max_examples=300, deadline=None)
@given(
    kind=st.integers(0, 4),
    root=st.floats(-30.0, 3.0),
    below=st.floats(0.0, 700.0),
    above=st.floats(0.0, 5.0),
    guess=st.sampled_from([None, 0.0, 1e-3, 50.0]),
    ends=st.tuples(st.floats(1e-3, 1e9), st.floats(-1e9, -1e-3)),
)
def test_the_last_digit_of_plain_bisection(
    kind: int,
    root: float,
    below: float,
    above: float,
    guess: float | None,
    ends: tuple[float, float],
) -> None:
    function, low, high = falling(kind, root), root - below, root + above
    near = () if guess is None else (root - guess, root + guess)
    assert last_digit(function, low, high, ends, near) == plain(function, low, high)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_without_a_change_of_sign_it_ends_at_an_end(sign: float) -> None:
    function = lambda x: sign * (1.0 + abs(x))
    assert last_digit(function, -3.0, 2.0, (1.0, -1.0)) == plain(function, -3.0, 2.0)


def test_it_asks_seldom() -> None:
    asked = []
    rates = np.random.default_rng(0).random(1000)

    def excess(x: float) -> float:
        asked.append(x)
        return float(np.maximum(np.log(rates) - x, 0.0).sum()) - 300.0

    last_digit(excess, -20.0, 0.0, (2e4, -300.0))
    assert len(asked) <= 20
