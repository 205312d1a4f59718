"""Reading a saved scheduler state, field by field, with an error that names the field."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cero_rl.scheduler.sizes import Scalar, ScalarT, StateDict

STATE_VERSION = 4  # 4: failed and unjudged rollouts by prompt, the pace after set_budget


def read_scalar(state: StateDict, key: str) -> Scalar:
    """A plain scalar out of a state that may have been through npz (0-d arrays). ValueError if the
    key is missing."""
    if key not in state:
        raise ValueError(
            f"scheduler state has no field {key!r}: it was written by another version or "
            "another scheduler"
        )
    return np.asarray(state[key]).item()


def read_array(
    state: StateDict, key: str, dtype: type[ScalarT], length: int | None
) -> npt.NDArray[ScalarT]:
    """A private copy of a 1-d array of `length` entries (None: any). ValueError if it is missing or
    has another shape."""
    if key not in state:
        raise ValueError(
            f"scheduler state has no field {key!r}: it was written by another version or "
            "another scheduler"
        )
    array = np.array(state[key], dtype=dtype)
    if array.ndim != 1 or (length is not None and array.shape[0] != length):
        wanted = "a vector" if length is None else f"({length},)"
        raise ValueError(f"scheduler state field {key!r} has shape {array.shape}, wanted {wanted}")
    return array


def refuse_other_version(state: StateDict) -> None:
    """Raises ValueError for a state of another version, by its number."""
    written = read_scalar(state, "state_version")
    if written != STATE_VERSION:
        raise ValueError(
            f"scheduler state has version {written}, this cero_rl reads version {STATE_VERSION}: "
            "finish that run with the cero_rl that began it, or start the run anew"
        )
