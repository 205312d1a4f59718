"""The exported model: written whole or not at all, and what was trained."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from step_cases import PlainPolicy, config_of, tokenizer

from cero_rl.checkpoint.export import _replace, export_model
from cero_rl.distributed.group import Group
from cero_rl.errors import ConfigError, EngineError
from cero_rl.models.load import load_model, load_tokenizer
from cero_rl.models.weights import buffers_of
from cero_rl.train.room import check_room, room_problem, written_bytes

GROUP = Group.alone()


def export(directory: Path, words: str) -> None:
    def write(fresh: Path) -> None:
        fresh.mkdir()
        (fresh / "model").write_text(words)

    _replace(directory, write, GROUP)


def interrupted(fresh: Path, error: BaseException) -> None:
    """A write that ends in the middle."""
    fresh.mkdir()
    (fresh / "model").write_text("ha")
    raise error


def files(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_a_first_export_and_its_successor(tmp_path: Path):
    target = tmp_path / "export"
    export(target, "old")
    (target / "of the old one alone").touch()
    export(target, "new")
    assert files(target) == {"model": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_write_leaves_the_old_export_in_place(tmp_path: Path):
    target = tmp_path / "export"
    export(target, "old")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(EngineError) as caught:
        _replace(target, lambda fresh: interrupted(fresh, full), GROUP)
    assert str(caught.value).startswith(
        f"export to {target}: rank 0: OSError: [Errno 28] No space left on device; the checkpoint "
    )
    assert files(target) == {"model": "old"}
    export(target, "new")
    assert files(target) == {"model": "new"}
    assert list(tmp_path.iterdir()) == [target], "the torn one is gone"


def test_ctrl_c_leaves_the_old_export_in_place(tmp_path: Path):
    target = tmp_path / "export"
    export(target, "old")
    with pytest.raises(KeyboardInterrupt):
        _replace(target, lambda fresh: interrupted(fresh, KeyboardInterrupt()), GROUP)
    assert files(target) == {"model": "old"}


def test_an_interrupted_first_write_leaves_no_export(tmp_path: Path):
    target = tmp_path / "export"
    with pytest.raises(EngineError):
        _replace(target, lambda fresh: interrupted(fresh, RuntimeError("torn")), GROUP)
    assert not target.exists()


def test_another_rank_writes_nothing(tmp_path: Path):
    other = Group(1, 1, torch.device("cpu"))
    asked: list[Path] = []
    _replace(tmp_path / "export", asked.append, other)
    assert asked == []
    assert not list(tmp_path.iterdir())


def test_the_model_is_exported_as_it_was_trained(tmp_path: Path):
    config = config_of("name=digits", "seed=3")
    policy = PlainPolicy(config)
    with torch.no_grad():
        for parameter in policy.causal_lm.parameters():
            parameter.mul_(1.5)
    where = export_model(cast(Any, policy), tokenizer(), tmp_path, config, GROUP)
    assert where == f"model in {tmp_path / 'export'}"
    path = str(tmp_path / "export")
    again = load_model(path, config.model.dtype, "sdpa")
    wanted = dict(policy.causal_lm.named_parameters())
    assert {name for name, _ in again.named_parameters()} == set(wanted)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, wanted[name]), name
    assert load_tokenizer(path)("O8140240=").input_ids == tokenizer()("O8140240=").input_ids
    assert json.loads((tmp_path / "export/config.json").read_text())["dtype"] == "float32"
    card = (tmp_path / "export/README.md").read_text()
    assert "grpo on 128 rollouts" in card
    assert "`cero` (seed 3)" in card
    assert not (tmp_path / "adapter").exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """The disk takes no file above 100 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.covers("disk full in the export")
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing_torn(tmp_path: Path, small_files: None):
    config = config_of()
    with pytest.raises(EngineError) as caught:
        export_model(cast(Any, PlainPolicy(config)), tokenizer(), tmp_path, config, GROUP)
    words = str(caught.value)
    assert words.startswith(f"export to {tmp_path / 'export'}: rank 0: ")
    assert "File too large" in words
    assert "--resume auto exports, or tools/convert.py zero-to-hf" in words
    assert "\n" not in words
    assert not list(tmp_path.iterdir())


def test_generation_settings_are_saved_repaired(tmp_path: Path):
    config = config_of()
    policy = PlainPolicy(config)
    policy.causal_lm.generation_config.do_sample = False
    policy.causal_lm.generation_config.temperature = 0.6
    export_model(cast(Any, policy), tokenizer(), tmp_path, config, GROUP)
    saved = json.loads((tmp_path / "export/generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"]) == (True, 0.6)


def test_persistent_buffers_are_weights_and_others_are_not():
    layer = torch.nn.Linear(2, 2)
    layer.register_buffer("bias_of_experts", torch.tensor([1.0, 2.0]))
    layer.register_buffer("inv_freq", torch.ones(2), persistent=False)
    (source,) = buffers_of(torch.nn.Sequential(layer))
    assert source.name == "0.bias_of_experts"
    assert torch.equal(source.make(), torch.tensor([1.0, 2.0]))


# --- room for it


def test_room_is_told_in_the_numbers_that_decide():
    enough = {"kept": 2, "resumed": False}
    assert room_problem(12_000, 2_000, 38_000, **enough) is None
    certain, words = room_problem(12 * 10**9, 2 * 10**9, 13 * 10**9, **enough) or (None, "")
    assert certain
    assert words == (
        "13.0 GB are free, about 14.0 GB will be written "
        "(a checkpoint is about 12.0 GB, the export 2.0 GB)"
    )
    certain, words = room_problem(12 * 10**9, 2 * 10**9, 20 * 10**9, **enough) or (None, "")
    assert not certain
    assert "about 38.0 GB" in words
    assert room_problem(12_000, 2_000, 14_000, kept=2, resumed=True) is None
    assert room_problem(12_000, 2_000, 1_000, kept=2, resumed=True) == (
        True,
        "0.0 MB are free, about 0.0 MB will be written "
        "(a checkpoint is about 0.0 MB, the export 0.0 MB)",
    )


@pytest.mark.covers("output_dir that cannot be written")
def test_a_place_that_cannot_be_written_is_told_before_anything_else(tmp_path: Path):
    config = config_of()
    assert check_room(config, tmp_path / "a/b", resumed=False, group=GROUP) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file/run", Path("/proc/self/run")):
        with pytest.raises(ConfigError, match="is no directory that can be written"):
            check_room(config, place, resumed=False, group=GROUP)
    assert written_bytes(config) == (790_528 * 12, 790_528 * 4)
    assert written_bytes(config_of("zero.stage=1"))[0] == 790_528 * 16
    assert written_bytes(config_of("lora.rank=2", "checkpoint.export=false")) == (0, 0)
