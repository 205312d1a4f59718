"""zero.offload_states_in_rollout: when it works, and a whole run with it, cut and resumed, that is
bit for bit the run without."""

from __future__ import annotations

import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import warm_ranks
from launch import ROOT, launch, line, lines, repeatable
from step_cases import config_of

from cero_rl.files.durable import sha256
from cero_rl.zero.offload import states_wait


def test_there_is_something_to_gain_on_a_gpu_alone() -> None:
    asked = config_of("zero.offload_states_in_rollout=true")
    assert states_wait(asked, torch.device("cuda", 0))
    assert not states_wait(asked, torch.device("cpu"))
    assert not states_wait(config_of(), torch.device("cuda", 0))


def waiting(out: Path, name: str, *flags: str) -> CompletedProcess[str]:
    _, *words = line(out, name, *flags, settings=["model.dtype=bfloat16"])
    meet = {**warm_ranks.environment(), "MASTER_PORT": str(warm_ranks.free_port())}
    logs = Path(tempfile.mkdtemp(prefix="ranks-", dir=out))
    return warm_ranks.run(["tests/train/waiting_run.py", *words], ROOT, meet, logs, ranks=2)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_with_waiting_states_is_the_run_without(tmp_path: Path) -> None:
    stayed = launch(tmp_path, "stayed", settings=["model.dtype=bfloat16"])
    assert stayed.returncode == 0, stayed.stdout + stayed.stderr
    cut = waiting(tmp_path, "left", "--stop-at-step", "3")
    assert cut.returncode == 0, cut.stdout + cut.stderr
    assert cut.stdout.count("the states leave") == 2 * 4  # the first sync, and one after each step
    done = waiting(tmp_path, "left", "--resume", "auto")
    assert done.returncode == 0, done.stdout + done.stderr
    one, other = tmp_path / "stayed", tmp_path / "left"
    same = [list(map(repeatable, lines(run / "metrics.jsonl"))) for run in (one, other)]
    assert same[0] == same[1]
    weights = "export/model.safetensors"
    assert sha256(one / weights) == sha256(other / weights)
