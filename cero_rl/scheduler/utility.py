"""Concave, saturating utilities of cumulative exposure: value, slope, gain of a unit, concave
conjugate, supporting exposure.

In:  c f64[P] >= 0, the utility gained per unit of exposure at exposure 0 (c = 4 * saturation *
worth / fair share);
     z, the exposure in allocation units; theta, a slope in utility per unit; cap, the largest
     exposure (rounds * Nmax).
Out: arrays of the broadcast shape. Source: the exponential is that of arXiv 2606.05606 and
2610.09679 (pair restricted to slopes U can have); the other two are ours, with the same slope c
at exposure 0, so that nothing else of the algorithm changes.

    exponential   U(z) = 1 - exp(-c z)      a prompt is worn out soon, and for good
    hyperbolic    U(z) = c z / (1 + c z)    the same ceiling, a longer tail
    logarithmic   U(z) = log(1 + c z)       no ceiling

    U(z)      = min over 0 <= theta <= c    of  theta z - U*(theta)
    U*(theta) = min over 0 <= s <= cap      of  theta s - U(s)

A prompt that is worn out w times as fast as others has U(w z) / w: the same slope at exposure 0,
and a ceiling w times lower. All three are functions of c z, so with the functions here this is

    U(z; w c) / w        with slope U'(z; w c) / w; it supports theta where U'(.; w c) does w theta

All functions are elementwise and silent at the corners (c = 0, theta = 0, c * cap beyond the
range of exp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
UtilityName: TypeAlias = Literal["exponential", "logarithmic", "hyperbolic"]
"""What `scheduler.utility` takes: how fast further rollouts of a prompt lose their worth."""


def _times(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    return np.asarray(np.multiply(c, z, dtype=np.float64))


# --- exponential: the published one


def utility_value(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    """1 - exp(-c z), in [0, 1): what exposure z (units) of a prompt of slope c (1/unit) has been
    worth so far."""
    return -np.expm1(-_times(c, z))


def utility_slope(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    """c * exp(-c z), in 1/unit: what one more infinitesimal unit is worth at exposure z."""
    return np.multiply(c, np.exp(-_times(c, z)))


def _exponential_gain(c: npt.ArrayLike, unit: npt.ArrayLike) -> Floats:
    return utility_value(c, 1.0) * np.exp(-_times(c, np.subtract(unit, 1.0)))


def _inverse_slope(
    invert: Callable[[Floats], Floats],
    invert_far: Callable[[Floats, Floats], Floats],
    theta,
    c,
    cap,
) -> Floats:
    """Where U'(z) = theta, clipped to [0, cap]. `invert` turns x = (c - theta)/theta into c z,
    in place; `invert_far`(theta, c) does where x is beyond float64."""
    theta_, c_ = np.asarray(theta, dtype=np.float64), np.asarray(c, dtype=np.float64)
    if theta_.shape != c_.shape:
        theta_, c_ = np.broadcast_arrays(theta_, c_)
    # A slope above c would only be clipped to exposure 0: clamping first keeps x >= 0, and 0/0 (c =
    # 0) is replaced below.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exposure = np.asarray(np.subtract(c_, np.minimum(theta_, c_)))
        np.divide(exposure, theta_, out=exposure)
        # a nan (0/0) comes here as well
        overflow = np.isinf(exposure) if exposure.size and not exposure.max() < np.inf else None
        exposure = invert(exposure)
        if overflow is not None and bool((overflow := overflow & (theta_ > 0.0)).any()):
            np.copyto(exposure, invert_far(theta_, c_), where=overflow)
        np.divide(exposure, c_, out=exposure)
        np.clip(exposure, 0.0, cap, out=exposure)  # nothing is below 0: faster than np.minimum
    if c_.size and not c_.min() > 0.0:
        np.copyto(exposure, 0.0, where=c_ <= 0.0)
    return exposure


def supporting_exposure(theta: npt.ArrayLike, c: npt.ArrayLike, cap: float) -> Floats:
    """The exposure in [0, cap] (units) at which a line of slope theta supports the exponential
    utility.

    log(c/theta)/c clipped to [0, cap]: the clip is exactly the three-case formula, because the
    exposure reaches cap where theta falls to c*exp(-c*cap) and reaches 0 where theta rises to c.
    A worthless prompt (c = 0) gives 0, also at theta = 0. log1p of the relative difference keeps
    the digits where theta is close to c and c is small.
    """
    return _inverse_slope(
        lambda x: np.log1p(x, out=x), lambda t, k: np.log(k) - np.log(t), theta, c, cap
    )


def conjugate(theta: npt.ArrayLike, c: npt.ArrayLike, cap: float) -> Floats:
    """The exponential's U*(theta); dimensionless, in [-1, 0] for 0 <= theta <= c, and 0 above."""
    return EXPONENTIAL.conjugate(theta, c, cap)


# --- logarithmic and hyperbolic


def _logarithmic_slope(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    return np.divide(c, 1.0 + _times(c, z))


def _logarithmic_gain(c: npt.ArrayLike, unit: npt.ArrayLike) -> Floats:
    return np.log1p(_logarithmic_slope(c, np.subtract(unit, 1.0)))


def _logarithmic_exposure(theta: npt.ArrayLike, c: npt.ArrayLike, cap: float) -> Floats:
    return _inverse_slope(lambda x: x, lambda t, k: np.full_like(k, np.inf), theta, c, cap)


def _hyperbolic_value(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    x = _times(c, z)
    return x / (1.0 + x)


def _hyperbolic_slope(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    return np.divide(c, (1.0 + _times(c, z)) ** 2)


def _hyperbolic_gain(c: npt.ArrayLike, unit: npt.ArrayLike) -> Floats:
    return np.divide(c, (1.0 + _times(c, unit)) * (1.0 + _times(c, np.subtract(unit, 1.0))))


def _root_less_one(x: Floats) -> Floats:
    """sqrt(1 + x) - 1 without cancellation, in place."""
    return np.divide(x, 1.0 + np.sqrt(1.0 + x), out=x)


def _hyperbolic_exposure(theta: npt.ArrayLike, c: npt.ArrayLike, cap: float) -> Floats:
    def invert(x: Floats) -> Floats:
        infinite = np.isinf(x)
        root = _root_less_one(x)
        np.copyto(root, np.inf, where=infinite)
        return root

    return _inverse_slope(invert, lambda t, k: np.sqrt(k) / np.sqrt(t), theta, c, cap)


@dataclass(frozen=True, slots=True)
class Utility:
    """One family; every function is elementwise. slope(c, 0) = c, value(c, 0) = 0, gain(c, l) =
    value(c, l) - value(c, l - 1)."""

    name: str
    value: Callable[[npt.ArrayLike, npt.ArrayLike], Floats]  # (c, z)
    slope: Callable[[npt.ArrayLike, npt.ArrayLike], Floats]  # (c, z) in 1/unit
    # (c, l) of the l-th unit, l >= 1, without cancellation
    gain: Callable[[npt.ArrayLike, npt.ArrayLike], Floats]
    # (theta, c, cap) in units
    supporting_exposure: Callable[[npt.ArrayLike, npt.ArrayLike, float], Floats]

    def conjugate(self, theta: npt.ArrayLike, c: npt.ArrayLike, cap: float) -> Floats:
        """U*(theta) = min over 0 <= s <= cap of theta*s - U(s); at its minimiser, where an error
        enters only to second order."""
        exposure = self.supporting_exposure(theta, c, cap)
        return np.multiply(theta, exposure) - self.value(c, exposure)


EXPONENTIAL = Utility(
    "exponential", utility_value, utility_slope, _exponential_gain, supporting_exposure
)
"""1 - exp(-c z): the family of arXiv 2606.05606 and the default."""
LOGARITHMIC = Utility(
    "logarithmic",
    lambda c, z: np.log1p(_times(c, z)),
    _logarithmic_slope,
    _logarithmic_gain,
    _logarithmic_exposure,
)
"""log(1 + c z): worth falls slowest and has no upper end."""
HYPERBOLIC = Utility(
    "hyperbolic", _hyperbolic_value, _hyperbolic_slope, _hyperbolic_gain, _hyperbolic_exposure
)
"""c z / (1 + c z): like the exponential, with a heavier tail."""
UTILITIES: dict[str, Utility] = {
    family.name: family for family in (EXPONENTIAL, LOGARITHMIC, HYPERBOLIC)
}
"""The families of utilities by name, as `scheduler.utility` chooses them."""


def utility_of(name: str) -> Utility:
    """The family called `name`; ValueError for any other name."""
    if name not in UTILITIES:
        raise ValueError(f"utility = {name!r}, wanted one of {', '.join(UTILITIES)}")
    return UTILITIES[name]
