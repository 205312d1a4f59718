"""profile.steps: which steps are traced, and what is left where the run ends early."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from step_cases import config_of

from cero_rl.config.run import ProfileConfig
from cero_rl.errors import ConfigError
from cero_rl.train.profile import StepProfiler


def traced(run_dir: Path, first: int, last: int, *, active: bool = True) -> list[str]:
    """Names of the steps in the traces of a run that makes steps first..last."""
    said: list[str] = []
    profiler = StepProfiler(ProfileConfig(steps=(3, 4)), run_dir, said.append, active=active)
    for step in range(first, last + 1):
        profiler.before(step)
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(64).sum()
        profiler.after(step)
    profiler.close()
    found = []
    for path in run_dir.glob("profile/*.json.gz"):
        assert [str(path) in line for line in said] == [True]
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        names = {event.get("name", "") for event in events}
        assert "aten::sum" in names
        found += sorted(name for name in names if name.startswith("step "))
    return found


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [
        (1, 6, ["step 3", "step 4"]),
        (1, 3, ["step 3"]),  # the run ends early
        (4, 6, ["step 4"]),  # it was resumed in between
        (5, 6, []),
    ],
)
def test_the_steps_asked_for_are_traced(
    tmp_path: Path, first: int, last: int, wanted: list[str]
) -> None:
    assert traced(tmp_path, first, last) == wanted


def test_other_ranks_trace_nothing(tmp_path: Path) -> None:
    assert traced(tmp_path, 1, 6, active=False) == []


def test_a_trace_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("in the way")
    said: list[str] = []
    profiler = StepProfiler(ProfileConfig(steps=(1, 1)), tmp_path, said.append, active=True)
    profiler.before(1)
    profiler.after(1)
    assert len(said) == 1
    assert said[0].startswith("profile.steps: no trace was written")


def test_steps_in_order() -> None:
    assert config_of("profile.steps=[2, 5]").profile.steps == (2, 5)
    with pytest.raises(ConfigError, match=r"profile\.steps"):
        config_of("profile.steps=[5, 2]")
