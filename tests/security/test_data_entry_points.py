"""The same for every entry point that takes a file of data, evidence or state, or weights on their
way to a server."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from untrusted_cases import Moved, Payload, action, settings

from cero_rl.adapters.rounds import load_state
from cero_rl.commands.main import main
from cero_rl.data.load import load_prompts
from cero_rl.data.prompts import make_prompt
from cero_rl.files.durable import describe_file
from cero_rl.rollout.engines.weight_files import check_weights, new_label
from cero_rl.train.scheduler import scheduler_for_pool


def warm_start(path: Path) -> int:
    prompts = [make_prompt(f"q{i}", "1", "test", {}) for i in range(200)]
    config = settings(f"scheduler.warm_start={path}")
    return action(lambda: scheduler_for_pool(config, prompts))


def data(path: Path) -> int:
    return action(lambda: load_prompts(settings(f"data.source={path}").data, 0))


def adapter_state(path: Path) -> int:
    unused: Any = None
    return action(lambda: load_state(path, unused, unused, ""))


FILE_ENTRIES: dict[str, tuple[str, Callable[[Path], int], int]] = {
    "scheduler.warm_start": ("posterior.parquet", warm_start, 4),
    "simulate --replay FILE": (
        "rollouts.parquet",
        lambda p: main(["simulate", "--replay", str(p)]),
        3,
    ),
    "simulate --replay DIR": (
        "evidence.jsonl",
        lambda p: main(["simulate", "--replay", str(p.parent)]),
        3,
    ),
    "data.source .parquet": ("train.parquet", data, 3),
    "data.source .jsonl": ("train.jsonl", data, 3),
    "data.source .pkl": ("train.pkl", data, 3),
    "data.source .pt": ("train.pt", data, 3),
    "state of the TRL and verl adapters": ("cero_scheduler.npz", adapter_state, 4),
}


@pytest.mark.covers("pickle in place of a data, evidence or state file")
@pytest.mark.parametrize("entry", FILE_ENTRIES)
def test_a_pickle_is_no_data(
    entry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, run, code = FILE_ENTRIES[entry]
    (tmp_path / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert run(tmp_path / name) == code
    assert name in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.covers("link in a run's directory")
@pytest.mark.parametrize("entry", [e for e in FILE_ENTRIES if not e.startswith("data.")])
def test_what_this_program_wrote_is_no_link(
    entry: str, tmp_path: Path, elsewhere: Moved, capsys: pytest.CaptureFixture[str]
) -> None:
    name, run, code = FILE_ENTRIES[entry]
    (tmp_path / name).write_text("{}")
    elsewhere(tmp_path / name)
    assert run(tmp_path / name) == code
    assert f"{name}: is a symbolic link" in capsys.readouterr().err


@pytest.mark.covers("link out of a model, adapter or data directory")
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_data_directory_is_taken_as_it_lies(
    kind: str, tmp_path: Path, elsewhere: Moved, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "train.jsonl")
    else:
        (folder / "train.jsonl").write_text('{"prompt": "q", "answer": "1"}')
        elsewhere(folder / "train.jsonl")
    assert data(folder) == 3
    said = {"link": "train.jsonl is a link", "pipe": "train.jsonl is no regular file"}[kind]
    assert said in capsys.readouterr().err


@pytest.mark.covers("stranger among the weights for a server")
@pytest.mark.parametrize("kind", ["link", "pickle", "name outside", "linked directory"])
def test_weights_for_a_server_are_the_manifest_s(
    kind: str, tmp_path: Path, elsewhere: Moved
) -> None:
    """vLLM takes adapter_model.bin where no safetensors file is there."""
    label = new_label(3)
    folder = tmp_path / label
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / "shard-00000.safetensors")
    files = {"shard-00000.safetensors": describe_file(folder / "shard-00000.safetensors")}
    if kind == "name outside":
        (tmp_path / "outside").touch()
        files["../outside"] = describe_file(tmp_path / "outside")
    manifest = {"label": label, "adapter": False, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said = {"link": "symbolic link", "linked directory": "symbolic link", "pickle": "and not in"}
    if kind == "link":
        elsewhere(folder / "shard-00000.safetensors")
    elif kind == "pickle":
        torch.save(Payload(tmp_path / "ran"), folder / "adapter_model.bin")
    elif kind == "linked directory":
        elsewhere(folder)
    with pytest.raises(ValueError, match=said.get(kind, r"\.\./outside is in manifest\.json or")):
        check_weights(tmp_path, label)
    assert not (tmp_path / "ran").exists()
