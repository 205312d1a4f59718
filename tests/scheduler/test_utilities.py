"""Every utility family: the Fenchel pair against brute force, the closed forms against each other,
and the corners."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cero_rl.scheduler import (
    EXPONENTIAL,
    HYPERBOLIC,
    LOGARITHMIC,
    Utility,
    conjugate,
    supporting_exposure,
    utility_value,
)
from cero_rl.scheduler.utility import utility_of

families = st.sampled_from([EXPONENTIAL, LOGARITHMIC, HYPERBOLIC])
rates = st.floats(1e-6, 20.0)
caps = st.floats(0.5, 50.0)


def lowest(function, high: float) -> float:
    """Minimum over [0, high], on a grid around the minimum of a grid around the minimum of a
    grid."""
    low, step = 0.0, high / 4000
    for _ in range(3):
        grid = np.clip(low + step * np.arange(4001), 0.0, high)
        values = function(grid)
        low, step = max(float(grid[np.argmin(values)]) - step, 0.0), step / 2000
    return float(values.min())


@settings(max_examples=80, deadline=None)
@given(family=families, c=rates, cap=caps, fraction=st.floats(0.0, 1.2))
def test_conjugate_is_the_minimum_over_exposures(
    family: Utility, c: float, cap: float, fraction: float
) -> None:
    theta = fraction * c
    wanted = lowest(lambda s: theta * s - family.value(c, s), cap)
    assert float(family.conjugate(theta, c, cap)) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(family=families, c=rates, cap=caps, fraction=st.floats(0.0, 1.0))
def test_utility_is_the_minimum_over_slopes(
    family: Utility, c: float, cap: float, fraction: float
) -> None:
    z = fraction * cap
    wanted = lowest(lambda theta: theta * z - family.conjugate(theta, c, cap), c)
    assert float(family.value(c, z)) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(family=families, c=rates, cap=caps, fraction=st.floats(0.001, 0.999))
def test_slope_exposure_and_gain_agree(
    family: Utility, c: float, cap: float, fraction: float
) -> None:
    lowest_slope = float(family.slope(c, cap))
    theta = lowest_slope + fraction * (c - lowest_slope)
    assert float(family.slope(c, family.supporting_exposure(theta, c, cap))) == pytest.approx(
        theta, rel=1e-11
    )
    assert float(family.slope(c, 0.0)) == c
    for unit in (1, 2, 7):
        gain = float(family.gain(c, unit))
        assert gain == pytest.approx(
            float(family.value(c, unit) - family.value(c, unit - 1)), abs=1e-12
        )
        assert family.slope(c, unit) <= gain * (1 + 1e-12)
        assert gain <= float(family.slope(c, unit - 1)) * (1 + 1e-12)
    z = fraction * cap
    derivative = (family.value(c, z * (1 + 1e-5)) - family.value(c, z * (1 - 1e-5))) / (2e-5 * z)
    if c * z < 10.0:
        assert float(derivative) == pytest.approx(float(family.slope(c, z)), rel=1e-4)


def test_written_formulas() -> None:
    """The conjugates written out, in the middle of the three cases."""
    c, theta = 0.7, np.array([0.1, 0.3, 0.6])
    np.testing.assert_allclose(
        LOGARITHMIC.conjugate(theta, c, 1e3), 1.0 - theta / c + np.log(theta / c), atol=1e-14
    )
    np.testing.assert_allclose(
        HYPERBOLIC.conjugate(theta, c, 1e3), -((1.0 - np.sqrt(theta / c)) ** 2), atol=1e-14
    )
    np.testing.assert_allclose(
        EXPONENTIAL.conjugate(theta, c, 1e3),
        theta / c * (np.log(c / theta) + 1.0) - 1.0,
        atol=1e-14,
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", [EXPONENTIAL, LOGARITHMIC, HYPERBOLIC])
def test_corners_are_silent_and_finite(family: Utility) -> None:
    np.testing.assert_array_equal(
        family.supporting_exposure([0.0, 1.0, 0.0, 0.5], [0.0, 0.0, 2.0, 0.5], 8.0),
        [0.0, 0.0, 8.0, 0.0],
    )
    np.testing.assert_array_equal(family.conjugate([0.0, 3.0], [0.0, 0.0], 8.0), [0.0, 0.0])
    assert float(family.conjugate(0.0, 1e6, 1e6)) == -float(family.value(1e6, 1e6))
    assert 0.0 <= float(family.supporting_exposure(5e-324, 1e300, 7.0)) <= 7.0
    assert 0.0 < float(family.supporting_exposure(5e-324, 1.0, 1e9)) <= 1e9
    tiny = 2.0**-36  # c close to theta: the digits must survive the division by c
    wanted = {"exponential": 2.0**-4, "logarithmic": 2.0**-4, "hyperbolic": 2.0**-5}[family.name]
    assert float(family.supporting_exposure(tiny * (1 - 2.0**-40), tiny, 10.0)) == pytest.approx(
        wanted, rel=1e-11
    )


def test_the_exponential_is_the_published_pair() -> None:
    c, theta = np.array([0.3, 2.0]), np.array([0.1, 1.5])
    np.testing.assert_array_equal(EXPONENTIAL.value(c, 3.0), utility_value(c, 3.0))
    np.testing.assert_array_equal(EXPONENTIAL.conjugate(theta, c, 9.0), conjugate(theta, c, 9.0))
    np.testing.assert_array_equal(
        EXPONENTIAL.supporting_exposure(theta, c, 9.0), supporting_exposure(theta, c, 9.0)
    )
    with pytest.raises(
        ValueError, match=r"utility = 'square'.*exponential, logarithmic, hyperbolic"
    ):
        utility_of("square")
