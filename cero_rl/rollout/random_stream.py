"""Counter-based uniforms: the u that decides token t of draw d is a hash of (seed, stream, prompt,
d, t).

So a completion does not depend on which rank samples it, on its neighbours in the batch, or on what
was sampled before, and a resumed run draws what the uninterrupted one would have drawn. The mixer
is the splitmix64 finaliser (Steele et al., 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def draw_keys(
    seed: int, stream: int, stream_keys: npt.NDArray[np.uint64], draws: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """One 64-bit key a rollout, [R]."""
    with np.errstate(over="ignore"):
        key = _mix(np.asarray(seed, dtype=np.uint64).reshape(1) + _GOLDEN)
        key = _mix(key ^ (np.uint64(stream) * _GOLDEN + np.uint64(1)))
        key = _mix(key ^ stream_keys.astype(np.uint64))
        return _mix(key + draws.astype(np.uint64) * _GOLDEN)


def uniforms(keys: npt.NDArray[np.uint64], position: int) -> npt.NDArray[np.float64]:
    """Uniforms in [0, 1) for token `position` of every rollout, [R]."""
    with np.errstate(over="ignore"):
        bits = _mix(keys + np.uint64(position + 1) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
