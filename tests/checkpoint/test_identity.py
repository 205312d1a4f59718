"""What may change on resume, what may not, and what is said of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from step_cases import MODEL, config_of, tokenizer

from cero_rl.checkpoint.identity import (
    MAY_CHANGE,
    NAMES_CONTENT,
    Identity,
    changes_since,
    identity_of,
    refuse_other_ranks,
    settings_of,
)
from cero_rl.checkpoint.manifest import MANIFEST, files_of
from cero_rl.config import Config
from cero_rl.data.pool import load_data
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError, RewardError
from cero_rl.files.durable import describe_file, write_json
from cero_rl.job.restarts import read_attempts
from cero_rl.train.run_directory import Start, open_run_dir

HERE = Path("runs/x/checkpoints/step_000004")
SAME = dict.fromkeys(("data", "heldout", "prompt_tokens", "model", "reward"), "abc")
GROUP = Group.alone()


def identity(*overrides: str, **content: str | None) -> Identity:
    return Identity(settings_of(config_of(*overrides)), {**SAME, **content})


def manifest_of(was: Identity, **more: Any) -> dict[str, Any]:
    return json.loads(json.dumps({"world_size": 2, "identity": was.for_manifest(), **more}))


def changed(now: Identity, was: Identity | None = None, **more: Any) -> list[str]:
    found = changes_since(HERE, manifest_of(was or identity(), **more), now)
    return [str(change) for change in found]


def refused(now: Identity, was: Identity | None = None, **more: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        changes_since(HERE, manifest_of(was or identity(), **more), now)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_same_run_has_no_changes():
    assert changed(identity()) == []


def test_every_named_key_is_one_of_the_configuration():
    known = settings_of(config_of("lora.rank=2"))
    for name in (*MAY_CHANGE, *NAMES_CONTENT):
        assert any(key == name or key.startswith(f"{name}.") for key in known), name


HARMLESS = [
    "optimizer.learning_rate=5e-6",
    "learner.max_micro_batch_tokens=512",
    "learner.max_nonfinite_steps=5",
    "model.gradient_checkpointing=true",
    "model.attention=sdpa",
    "reward.workers=1",
    "reward.timeout_seconds=9",
    "rollout.max_batch_tokens=4096",
    "rollout.max_sequences=64",
    "zero.overlap_comm=true",
    "zero.param_persistence_threshold=100",
    "rollout.parity_bound=0.01",
    "zero.offload_parameters=cpu",
    "zero.offload_optimizer=cpu",
    "budget.total_rollouts=120",
    "checkpoint.every_steps=9",
    "evaluation.every_steps=3",
    "name=other",
]


@pytest.mark.parametrize("setting", HARMLESS)
@pytest.mark.covers("resumed with a stated change")
def test_a_harmless_setting_may_change_and_is_said(setting: str):
    (said,) = changed(identity(setting))
    key = setting.partition("=")[0]
    assert said.startswith(f"{key} was ")
    assert said.endswith(f", is {identity(setting).settings[key]}")


@pytest.mark.covers("resume with other settings")
def test_every_other_difference_is_named_with_both_values_and_the_remedy():
    now = identity("seed=3", "learner.clip_high=0.3", "optimizer.learning_rate=1e-3")
    words = refused(now)
    assert words.startswith(
        f"{HERE}: not this run's: learner.clip_high was 0.2, is 0.3; seed was 0, is 3. Give the "
        f"old value back, or begin another run from its weights: python tools/convert.py "
        f"zero-to-hf {HERE} --out DIR"
    )
    assert "learning_rate" not in words
    assert words.count("Give the old value back") == 1


def test_settings_of_an_adapter_that_is_off_do_not_matter():
    assert changed(identity("lora.alpha=3", "lora.sync=merged")) == []
    assert "lora.rank was 0, is 4" in refused(identity("lora.rank=4"))


def test_a_key_that_the_writer_did_not_know_had_its_default():
    was = identity()
    older = {k: v for k, v in was.settings.items() if k not in ("learner.clip_low", "data.limit")}
    assert changed(identity("data.limit=null"), Identity(older, SAME)) == []
    assert "learner.clip_low was 0.2, is 0.1" in refused(
        identity("learner.clip_low=0.1", "data.limit=null"), Identity(older, SAME)
    )


# --- by content


def test_what_was_moved_is_the_same():
    now = identity("model.path=/elsewhere", "data.source=/there/x.jsonl")
    assert [said.split(" was ")[0] for said in changed(now)] == ["data.source", "model.path"]


@pytest.mark.covers("start model replaced between attempts")
def test_another_start_model_is_refused():
    assert "model.path: the weights in it changed" in refused(identity(model="other"))
    assert "model.path was" in refused(identity("model.path=/elsewhere", model="other"))


@pytest.mark.covers("reward file edited between attempts")
def test_another_reward_is_refused_unless_the_user_says_so():
    now = identity(reward="other")
    words = refused(now)
    assert "reward.function: the file's content changed" in words
    assert "--accept-new-reward to go on with the new one" in words
    accepted = changes_since(HERE, manifest_of(identity()), now, new_reward=True)
    assert [str(change) for change in accepted] == ["reward.function's file was abc, is other"]
    moved = identity("reward.function=new.py:f", reward="other")
    assert len(changes_since(HERE, manifest_of(identity()), moved, new_reward=True)) == 2


def test_other_data_is_told_once():
    words = refused(identity("data.limit=40", data="other", prompt_tokens="other"))
    assert "data.limit was 48, is 40. Give" in words
    assert "data.source: the prompts or answers in it changed" in refused(identity(data="other"))
    assert "tokenizer or chat template changed" in refused(identity(prompt_tokens="other"))


def test_the_identity_is_of_the_files_themselves(tmp_path: Path):
    reward = tmp_path / "reward.py"
    reward.write_text("def f(prompts, completions, **c): return [0.0 for _ in completions]\n")
    config = config_of(f"reward.function={reward}:f")
    data = load_data(config, tokenizer())
    one = identity_of(config, data, GROUP)
    assert one == identity_of(config, data, GROUP)
    assert None not in one.content.values()
    moved = tmp_path / "model"
    moved.mkdir()
    for path in MODEL.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    again = identity_of(config_of(f"model.path={moved}"), data, GROUP)
    assert again.content == {**one.content, "reward": None}
    weights = moved / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    reward.write_text(reward.read_text() + "# edited\n")
    other = identity_of(
        config_of(f"model.path={moved}", f"reward.function={reward}:f"), data, GROUP
    )
    assert {k for k in one.content if one.content[k] != other.content[k]} == {"model", "reward"}
    reward.unlink()
    with pytest.raises(RewardError, match="No such file"):
        identity_of(config, data, GROUP)


# --- ranks and stages


@pytest.mark.covers("another world size")
@pytest.mark.parametrize(
    ("stage", "command"),
    [(1, "zero-to-universal"), (2, "zero-to-universal"), (3, "reshard"), (0, None)],
)
def test_what_another_number_of_ranks_needs(stage: int, command: str | None):
    manifest = manifest_of(identity(f"zero.stage={stage}"))
    refuse_other_ranks(HERE, manifest, 2)
    refuse_other_ranks(HERE, {**manifest, "universal": True}, 5)
    if command is None:
        refuse_other_ranks(HERE, manifest, 5)
        return
    with pytest.raises(CheckpointError) as caught:
        refuse_other_ranks(HERE, manifest, 5)
    out = "runs/x/converted/step_000004"
    ranks = " --ranks 5" if command == "reshard" else ""
    assert str(caught.value) == (
        f"{HERE}: written by 2 ranks, this job has 5; start it with 2, or run python "
        f"tools/convert.py {command} {HERE}{ranks} --out {out} and give --resume {out}"
    )


def test_another_stage_needs_the_universal_layout():
    now = identity("zero.stage=2")
    words = refused(now)
    assert "zero.stage was 3, is 2. For another stage (1 to 3) run python tools/convert.py" in words
    assert changed(now, universal=True) == ["zero.stage was 3, is 2"]
    assert "stage 0 has none" in refused(identity("zero.stage=0"), universal=True)


@pytest.mark.covers("checkpoint of a version that kept a hash alone")
def test_an_older_checkpoint_is_refused_with_the_reason():
    old = {"world_size": 2, "cero_rl": "0.1", "config_sha256": "ab"}
    with pytest.raises(CheckpointError, match="hold a hash of the settings and not the settings"):
        changes_since(HERE, old, identity())


# --- at the start of a job


def checkpoint_of(run: Path, was: Identity, step: int = 2) -> Path:
    directory = run / f"checkpoints/step_{step:06d}"
    (directory / "zero").mkdir(parents=True)
    for name in ("state.json", "arrays.safetensors", "rank0.safetensors", "zero/shard.pt"):
        (directory / name).write_text("{}")
    files = {p.relative_to(directory).as_posix(): describe_file(p) for p in files_of(directory)}
    whole = {**manifest_of(was), "world_size": 1, "step": step, "cero_rl": "0", "files": files}
    write_json(directory / MANIFEST, whole)
    (run / "config.resolved.yaml").write_text("the settings of the beginning\n")
    return directory


def opened(run: Path, config: Config, now: Identity, **start: Any) -> Path | None:
    return open_run_dir(run, config, 48, Start("auto", False, **start), now, GROUP)


def test_changes_are_said_once_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = checkpoint_of(tmp_path, identity())
    setting = "optimizer.learning_rate=5e-6"
    assert opened(tmp_path, config_of(setting), identity(setting)) == found
    was = config_of().optimizer.learning_rate
    said = f"changed since {found}: optimizer.learning_rate was {was}, is 5e-06\n"
    assert capsys.readouterr().out == said
    (attempt,) = read_attempts(tmp_path)
    assert attempt.changes == {"optimizer.learning_rate": [was, 5e-6]}
    resolved = yaml.safe_load((tmp_path / "config.resolved.yaml").read_text())
    assert resolved["optimizer"]["learning_rate"] == 5e-6


def test_a_refused_resume_leaves_the_directory_as_it_was(tmp_path: Path):
    checkpoint_of(tmp_path, identity())
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        opened(tmp_path, config_of("seed=1"), identity("seed=1"))
    assert (tmp_path / "config.resolved.yaml").read_text() == "the settings of the beginning\n"
    assert read_attempts(tmp_path) == []


def test_a_resume_without_changes_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint_of(tmp_path, identity())
    opened(tmp_path, config_of(), replace(identity()))
    assert capsys.readouterr().out == ""
    assert '"changes"' not in (tmp_path / "attempts.jsonl").read_text()
