"""The exponential utility of cumulative exposure, its slope, its concave conjugate and the supporting exposure.

In:  c f64[P] >= 0, the utility gained per unit of exposure at exposure 0 (c = 4 * saturation * worth / fair share);
     z, the exposure in allocation units; theta, a slope in utility per unit; cap, the largest exposure (rounds * Nmax).
Out: arrays of the broadcast shape. Source: arXiv 2606.05606 and 2610.09679 (pair restricted to slopes U can have).

    U(z)      = 1 - exp(-c z)                                = min over theta of      theta z - U*(theta)
    U*(theta) = min over 0 <= s <= cap of  theta s - U(s)

All functions are elementwise and silent at the corners (c = 0, theta = 0, c * cap beyond the range of exp).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def utility_value(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    """1 - exp(-c z), in [0, 1): what exposure z (units) of a prompt of slope c (1/unit) has been worth so far."""
    return -np.expm1(-np.multiply(c, z, dtype=np.float64))


def utility_slope(c: npt.ArrayLike, z: npt.ArrayLike) -> Floats:
    """c * exp(-c z), in 1/unit: what one more infinitesimal unit is worth at exposure z."""
    return np.multiply(c, np.exp(-np.multiply(c, z, dtype=np.float64)))


def supporting_exposure(theta: npt.ArrayLike, c: npt.ArrayLike, cap: float) -> Floats:
    """The exposure in [0, cap] (units) at which a line of slope theta supports the utility.

    log(c/theta)/c clipped to [0, cap]: the clip is exactly the three-case formula, because the exposure reaches cap where
    theta falls to c*exp(-c*cap) and reaches 0 where theta rises to c. A worthless prompt (c = 0) gives 0, also at theta = 0.
    log1p of the relative difference keeps the digits where theta is close to c and c is small.
    """
    theta_, c_ = np.broadcast_arrays(np.asarray(theta, dtype=np.float64), np.asarray(c, dtype=np.float64))
    # A slope above c would only be clipped to exposure 0: clamping first keeps log1p in its domain, and 0/0 (c = 0) is
    # replaced below.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exposure = np.asarray(np.subtract(c_, np.minimum(theta_, c_)))
        np.divide(exposure, theta_, out=exposure)
        np.log1p(exposure, out=exposure)
        overflow = np.isinf(exposure) & (theta_ > 0.0)  # c/theta is beyond float64, its logarithm is not
        if overflow.any():
            np.copyto(exposure, np.log(c_) - np.log(theta_), where=overflow)
        np.divide(exposure, c_, out=exposure)
        np.clip(exposure, 0.0, cap, out=exposure)
    np.copyto(exposure, 0.0, where=c_ <= 0.0)
    return exposure


def conjugate(theta: npt.ArrayLike, c: npt.ArrayLike, cap: float) -> Floats:
    """U*(theta) = min over 0 <= s <= cap of theta*s - U(s); dimensionless, in [-1, 0] for 0 <= theta <= c, and 0 above.

    Evaluated at its minimiser, where an error in the exposure enters only to second order.
    """
    exposure = supporting_exposure(theta, c, cap)
    return np.multiply(theta, exposure) - utility_value(c, exposure)
