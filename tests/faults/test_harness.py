"""The parts that faults are found with: fault points, the watchdog, trackers that fail, and
rollouts kept for later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cero_rl.checkpoint.rollout_store import pack_groups, unpack_groups
from cero_rl.commands.common import guard
from cero_rl.config import load_config
from cero_rl.errors import ConfigError, EngineError
from cero_rl.job import faults
from cero_rl.job.watchdog import Watchdog, explained
from cero_rl.metrics.recorder import Recorder
from cero_rl.rollout.protocol import RolloutRequest
from cero_rl.types import Completion, Episode, RolloutGroup

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch):
    def plant(text: str) -> None:
        monkeypatch.setenv(faults.VARIABLE, text)
        faults.check()

    yield plant
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.check()
    faults.at_step(0)


def test_a_fault_fires_where_and_as_often_as_it_says(
    planted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    planted(
        "sync.before@rank=1,step=3:raise; checkpoint.write:enospc*2; learner.loss:nan; "
        "learner.gradient:nan; checkpoint.written:flip"
    )
    monkeypatch.setenv("RANK", "1")
    faults.point("sync.before")
    faults.at_step(3)
    faults.point("sync.after")
    with pytest.raises(RuntimeError, match=r"sync\.before, step 3"):
        faults.point("sync.before")
    faults.point("sync.before")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device"):
            faults.point("checkpoint.write")
    faults.point("checkpoint.write")
    x = torch.tensor([2.0], requires_grad=True)
    assert torch.isnan(faults.poison("learner.loss", x)).all()
    assert faults.poison("learner.loss", x) is x
    poisoned = faults.poison_gradient("learner.gradient", x.sum())
    poisoned.backward()
    assert poisoned.item() == 2.0
    assert torch.isnan(x.grad).all()
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "large").write_bytes(bytes(100))
    faults.point("checkpoint.written", path=tmp_path)
    assert sum((tmp_path / "large").read_bytes()) == 1


@pytest.mark.covers("unknown fault point")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learner.backwards:raise", "did you mean 'learner.backward'"),
        ("learner.backward", "names no action"),
        ("learner.backward:explode", "unknown action 'explode'"),
        ("learner.backward@world=2:raise", "unknown condition 'world'"),
        ("learner.backward@step=x:raise", "'x' in"),
        ("learner.backward:nan", "nan is the action of learner.loss"),
    ],
)
def test_a_mistyped_fault_is_refused(text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        faults.parse(text)


@pytest.mark.covers("error of a library that nobody foresaw")
@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyError, TypeError, AssertionError])
def test_an_error_of_a_library_names_its_phase_and_keeps_its_traceback(tmp_path: Path, kind):
    watchdog = Watchdog(10, tmp_path)
    said = pytest.raises(EngineError, match=rf"learner failed \({kind.__name__}: .?peer is gone")
    with said, explained(watchdog, tmp_path), watchdog.phase("learner", "all ranks"):
        raise kind("peer is gone\nand more")
    assert "Traceback" in (tmp_path / "error_rank0.txt").read_text()


def test_an_error_of_our_own_passes_as_it_is(tmp_path: Path):
    watchdog = Watchdog(10, tmp_path)
    with pytest.raises(ConfigError, match=r"^seed: -1$"), explained(watchdog, tmp_path):
        raise ConfigError("seed: -1")
    assert not list(tmp_path.iterdir())


def test_what_needs_torch_names_the_extra_where_there_is_none(capsys):
    def no_torch() -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert guard(no_torch, debug=False) == 6
    assert capsys.readouterr().err == (
        "error: torch is not installed here; models and training need "
        "pip install 'cero_rl[train]'\n"
    )


def test_a_command_that_fails_unexpectedly_says_one_line_and_where_to_look(capsys):
    def fails() -> int:
        raise KeyError("no such row")

    assert guard(fails, debug=False) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: unexpected KeyError: 'no such row'; --debug")
    with pytest.raises(KeyError):
        guard(fails, debug=True)


@pytest.mark.covers("tracker down")
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "tensorboard").write_text("a file, where its directory should be")
    config = load_config(
        str(ROOT / "recipes/digits_cpu.yaml"),
        ["logging.tensorboard=true", "logging.wandb=false"],
    )
    recorder = Recorder(tmp_path, config, active=True)
    for step in (1, 2):
        recorder.write(step, {"reward": 0.5})
    recorder.close()
    assert capsys.readouterr().out.count("tensorboard failed and is left out from here on") == 1
    assert [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == [1, 2]


def test_rollouts_kept_for_later_come_back_whole():
    rng = np.random.default_rng(0)

    def completion(n: int, text: str, reason: str) -> Completion:
        return Completion(
            rng.integers(0, 9, n), rng.normal(size=n).astype(np.float32), text, reason, 7
        )  # pyright: ignore[reportArgumentType]

    prompts = [np.arange(3), np.arange(5), np.arange(2)]
    groups = [
        RolloutGroup(
            4, prompts[0], (completion(3, "a\u00e9", "stop"), completion(1, "", "length"))
        ),
        RolloutGroup(2, prompts[1], ()),  # the engine lost all of them
        RolloutGroup(9, prompts[2], (completion(2, "\u4e2d", "stop"),)),
    ]
    requests = [RolloutRequest(g.prompt_id, g.prompt_tokens, 2, stream_key=1) for g in groups]
    back = unpack_groups(pack_groups(groups), requests)
    assert back is not None
    for got, wanted in zip(back, groups, strict=True):
        assert (got.prompt_id, got.prompt_tokens.tolist()) == (
            wanted.prompt_id,
            wanted.prompt_tokens.tolist(),
        )
        for a, b in zip(got.completions, wanted.completions, strict=True):
            assert (a.token_ids.tolist(), a.text, a.finish_reason, a.policy_version) == (
                b.token_ids.tolist(),
                b.text,
                b.finish_reason,
                7,
            )
            assert a.logp_behavior.tobytes() == b.logp_behavior.tobytes()
    mask = np.array([True, False, True])
    told = Episode(float("nan"), 2, "b", "done", "it broke", True)
    done = replace(groups[0].completions[0], sampled=mask, episode=told)
    again = unpack_groups(pack_groups([RolloutGroup(4, prompts[0], (done,))]), requests[:1])
    assert again is not None
    (one,) = again
    assert one.completions[0].trains.tolist() == mask.tolist()
    assert repr(one.completions[0].episode) == repr(told)
    assert unpack_groups(pack_groups(groups), requests[:2]) is None
    assert unpack_groups({}, requests) is None
    assert unpack_groups(pack_groups([]), []) == []
