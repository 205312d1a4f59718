"""The exported model: written whole or not at all, and what was trained."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from step_cases import PlainPolicy, config_of, tokenizer

from cero_rl.checkpoint.export import _replace, export_model
from cero_rl.distributed.group import Group
from cero_rl.errors import EngineError
from cero_rl.models.load import load_model, load_tokenizer

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
    assert str(caught.value) == (
        f"export to {target}: rank 0: OSError: [Errno 28] No space left on device"
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
