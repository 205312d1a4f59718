"""Which versions of other packages this one runs with: what pyproject.toml asks for, and what
the tests ran with.

In: what is installed, as its metadata says; nothing is imported. Out: a verdict for each
package, or EngineError at the start of a run.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cero_rl.errors import EngineError


@dataclass(frozen=True)
class Range:
    """lowest <= version < below; `below` is None where newer ones are only untested."""

    lowest: str
    below: str | None
    tested: str


RANGES = {
    # older ones run code from files that torch.load(weights_only=True) should refuse
    "torch": Range("2.10", None, "2.13.0"),
    "deepspeed": Range("0.19.8", "0.19.8.1", "0.19.8"),
    "transformers": Range("5.19", "5.20", "5.19.0"),
    "numpy": Range("2.0", None, "2.4.6"),
    "pydantic": Range("2.10", None, "2.14.3"),
    "PyYAML": Range("6.0", None, "6.0.3"),
    "safetensors": Range("0.5", None, "0.8.0"),
    "datasets": Range("4.0", None, "5.2.0"),
    "pyarrow": Range("15.0", None, "26.0.1"),
    "math-verify": Range("0.9.0", "0.9.0.1", "0.9.0"),
}
TRAINING = ("torch", "deepspeed", "transformers", "numpy", "safetensors")


@dataclass(frozen=True)
class Verdict:
    status: str  # ok | note | bad
    text: str


def numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13); zeros at the end say nothing."""
    found = [int(n) for n in re.findall(r"\d+", re.split(r"[+a-z]", version)[0])]
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def judge(name: str) -> Verdict:
    """Is the installed version one that may run, and one that was tested?"""
    wanted = RANGES[name]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Verdict("bad", f"not installed; pip install '{name}=={wanted.tested}'")
    remedy = f"tested with {wanted.tested}; pip install '{name}=={wanted.tested}'"
    if numbers(version) < numbers(wanted.lowest):
        return Verdict("bad", f"{version} is older than {wanted.lowest}; {remedy}")
    if wanted.below is not None and numbers(version) >= numbers(wanted.below):
        return Verdict(
            "bad", f"{version} is newer than what this version of cero_rl knows; {remedy}"
        )
    if numbers(version) == numbers(wanted.tested):
        return Verdict("ok", version)
    return Verdict("note", f"{version}; tested with {wanted.tested}")


def refuse_unfit(names: Sequence[str] = TRAINING) -> None:
    """Raises EngineError for the first package that may not run; called before any of them is
    imported."""
    for name in names:
        if (verdict := judge(name)).status == "bad":
            raise EngineError(f"{name}: {verdict.text}")
