"""The Fenchel pair against brute force on a fine grid, and its corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cero_rl.scheduler import conjugate, supporting_exposure, utility_slope, utility_value

rates = st.floats(1e-6, 20.0)
caps = st.floats(0.5, 50.0)


@settings(max_examples=60, deadline=None)
@given(c=rates, cap=caps, fraction=st.floats(0.0, 1.2))
def test_conjugate_is_the_minimum_over_exposures(c: float, cap: float, fraction: float) -> None:
    theta = fraction * c
    coarse = np.linspace(0.0, cap, 20_001)
    near = coarse[np.argmin(theta * coarse - utility_value(c, coarse))]
    step = cap / 20_000
    fine = np.clip(np.linspace(near - step, near + step, 20_001), 0.0, cap)
    assert float(conjugate(theta, c, cap)) == pytest.approx(
        float((theta * fine - utility_value(c, fine)).min()), abs=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(c=rates, cap=caps, fraction=st.floats(0.0, 1.0))
def test_utility_is_the_minimum_over_slopes(c: float, cap: float, fraction: float) -> None:
    z = fraction * cap
    # A grid of equal ratios, down to the slope at the cap and 0: around a small slope an even grid
    # is too coarse for 1e-9.
    coarse = np.linspace(0.0, min(c * cap, 700.0), 20_001)
    near = coarse[np.argmin(c * np.exp(-coarse) * z - conjugate(c * np.exp(-coarse), c, cap))]
    step = coarse[1]
    fine = np.append(
        c * np.exp(-np.clip(np.linspace(near - step, near + step, 20_001), 0.0, None)), 0.0
    )
    assert float(utility_value(c, z)) == pytest.approx(
        float((fine * z - conjugate(fine, c, cap)).min()), abs=1e-9
    )


@settings(max_examples=100, deadline=None)
@given(c=rates, cap=caps, fraction=st.floats(0.001, 0.999))
def test_slope_and_supporting_exposure_are_inverse(c: float, cap: float, fraction: float) -> None:
    z = fraction * cap
    if c * z < 600.0:  # beyond, the slope underflows
        # the slope itself is rounded to 1e-16 relative, worth 1e-16/c of exposure
        tolerance = 1e-9 * cap + 1e-14 / c
        assert float(supporting_exposure(utility_slope(c, z), c, cap)) == pytest.approx(
            z, rel=1e-9, abs=tolerance
        )
    lowest = c * np.exp(-c * cap)
    theta = lowest + fraction * (c - lowest)
    assert float(utility_slope(c, supporting_exposure(theta, c, cap))) == pytest.approx(
        theta, rel=1e-12
    )


def test_written_formula() -> None:
    c, cap = 0.7, 6.0
    theta = np.array([0.0, 0.5 * c * np.exp(-c * cap), 0.1, 0.4, c, 2.0])
    low = theta * cap - 1.0 + np.exp(-c * cap)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = theta / c * np.log(c / theta) + theta / c - 1.0
    wanted = np.where(theta <= c * np.exp(-c * cap), low, np.where(theta >= c, 0.0, middle))
    np.testing.assert_allclose(conjugate(theta, c, cap), wanted, atol=1e-14)


@pytest.mark.filterwarnings("error")
def test_corners_are_silent_and_finite() -> None:
    np.testing.assert_array_equal(
        supporting_exposure([0.0, 1.0, 0.0, 0.5], [0.0, 0.0, 2.0, 0.5], 8.0), [0.0, 0.0, 8.0, 0.0]
    )
    np.testing.assert_array_equal(conjugate([0.0, 3.0], [0.0, 0.0], 8.0), [0.0, 0.0])
    assert float(conjugate(0.0, 1e6, 1e6)) == -1.0
    assert float(supporting_exposure(5e-324, 1.0, 1e9)) == pytest.approx(744.44, abs=0.01)
    assert float(supporting_exposure(5e-324, 1e300, 7.0)) == pytest.approx(0.0, abs=1e-290)
    assert float(utility_value(1e6, 1e6)) == 1.0
    assert float(utility_slope(1e6, 1e6)) == 0.0
    tiny = 2.0**-36  # c close to theta (both exact here): the digits must survive the division by c
    assert float(supporting_exposure(tiny * (1 - 2.0**-40), tiny, 10.0)) == pytest.approx(
        2.0**-4, rel=1e-11
    )
