"""The critic as a run left it, out of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import make
from safetensors.numpy import save_file
from step_cases import config_of

from cero_rl.checkpoint.manifest import ARRAYS, MANIFEST, STATE, files_of
from cero_rl.checkpoint.progress import Progress
from cero_rl.config import Config
from cero_rl.diagnosis.critic import critic_of
from cero_rl.errors import CheckpointError
from cero_rl.files.durable import describe_file, write_json
from cero_rl.scheduler.critic import GroupSums
from cero_rl.train.scheduler import build_scheduler

PROMPTS = 48
SOME = GroupSums(np.array([3, 7]), np.array([4.0, 0.0]), np.array([4.0, 0.0]), np.array([4, 4]))


@pytest.fixture
def config() -> Config:
    return config_of("learner.baseline=posterior")


def checkpoint_of(run: Path, progress: Progress, config: Config) -> Path:
    """A committed one with the state of `progress`."""
    directory = make(run, 12)
    state = progress.state(build_scheduler(config, PROMPTS), {})
    (directory / STATE).write_text(json.dumps(state.scalars))
    save_file(state.arrays, directory / ARRAYS)
    manifest = json.loads((directory / MANIFEST).read_text())
    files = files_of(directory)
    manifest["files"] = {p.relative_to(directory).as_posix(): describe_file(p) for p in files}
    write_json(directory / MANIFEST, manifest)
    return directory


def test_what_a_run_taught_it_is_read(tmp_path: Path, config: Config) -> None:
    progress = Progress.fresh(config, PROMPTS)
    taught = progress.critic
    assert taught is not None
    taught.observe(SOME, taught.predict(SOME))
    taught.advance(3.0)
    place = checkpoint_of(tmp_path, progress, config)
    found, words = critic_of(config, PROMPTS, place)
    assert found is not None
    assert words == "the critic knows what the run had taught it by step 12"
    np.testing.assert_array_equal(found.predict(SOME).mean, taught.predict(SOME).mean)
    fresh, words = critic_of(config, PROMPTS, None)
    assert fresh is not None
    assert "no prompt yet" in words
    mean = fresh.predict(SOME).mean
    assert abs(mean - taught.predict(SOME).mean).min() > 0.1
    with pytest.raises(CheckpointError, match="step_000012"):
        critic_of(config, PROMPTS + 1, place)


def test_groups_alone_need_none(tmp_path: Path) -> None:
    assert critic_of(config_of(), PROMPTS, tmp_path) == (None, "")
