"""Every entry point that takes a path, given a directory with a program in it: behind a link, in a
file no manifest names, or in place of a shard. It is refused by name with the documented exit code,
and the program does not run."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cero_rl.adapters.rounds import load_state
from cero_rl.checkpoint.manifest import MANIFEST
from cero_rl.checkpoint.restore import load
from cero_rl.commands.common import guard
from cero_rl.commands.main import main
from cero_rl.config import load_config
from cero_rl.data.load import load_prompts
from cero_rl.data.prompts import make_prompt
from cero_rl.distributed.group import Group
from cero_rl.files.durable import describe_file, write_json
from cero_rl.models.load import load_model, load_model_config, load_tokenizer
from cero_rl.rollout.engines.weight_files import check_weights, new_label
from cero_rl.train.run_directory import Start, open_run_dir
from cero_rl.train.scheduler import scheduler_for_pool
from cero_rl.zero.shards import restricted_loading

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/quickstart_cpu.yaml"
MODEL = ROOT / "recipes/assets/tiny_digits"


class Payload:
    """Unpickling this makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def convert(*words: object) -> int:
    spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools/convert.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(word) for word in words])


def action(run: Callable[[], Any]) -> int:
    """What a command makes of an action: its exit code, and the error's line on stderr."""

    def returning() -> int:
        run()
        return 0

    return guard(returning, debug=False)


def settings(*overrides: str) -> Any:
    return load_config(RECIPE, list(overrides))


# --- checkpoints: a universal one, whose files DeepSpeed opens by itself

FP32 = "zero/zero/layer.weight/fp32.pt"


def checkpoint(run: Path, mark: Path) -> Path:
    """A committed checkpoint with a program in one of its shards."""
    directory = run / "checkpoints/step_000004"
    (directory / FP32).parent.mkdir(parents=True)
    torch.save({"param": torch.ones(2), "note": Payload(mark)}, directory / FP32)
    torch.save(Payload(mark), directory / "zero/zero_pp_rank_0_mp_rank_00_model_states.pt")
    (directory / "zero/zero/optimizer_state.pt").touch()
    (directory / "state.json").write_text("{}")
    save_file({"rng.cpu": torch.zeros(1)}, directory / "rank0.safetensors")
    (run / "config.resolved.yaml").write_text("{}")
    sign(directory)
    return directory


def sign(directory: Path) -> None:
    """The manifest that someone writes who can write the directory: as if links were files."""
    files = {
        p.relative_to(directory).as_posix(): describe_file(p)
        for p in sorted(directory.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    fields = {"step": 4, "world_size": 1, "universal": True, "cero_rl": "0", "torch": "0"}
    write_json(directory / MANIFEST, {**fields, "files": files})


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[[Path], None]:
    """Moves what is at a path out of its directory, and leaves a link to it."""

    def move(path: Path) -> None:
        away = tmp_path / "elsewhere"
        away.mkdir(exist_ok=True)
        shutil.move(path, away / path.name)
        path.symlink_to(away / path.name)

    return move


Moved = Callable[[Path], None]


def a_linked_directory(step: Path, move: Moved) -> str:
    move(step / FP32.rpartition("/")[0])
    return "layer.weight: is a symbolic link"


def a_linked_file(step: Path, move: Moved) -> str:
    move(step / FP32)
    return "fp32.pt: is a symbolic link"


def a_linked_step(step: Path, move: Moved) -> str:
    move(step)
    return "step_000004: is a symbolic link"


def a_linked_manifest(step: Path, move: Moved) -> str:
    move(step / MANIFEST)
    return "MANIFEST.json: is a symbolic link"


def a_pipe(step: Path, move: Moved) -> str:
    os.mkfifo(step / "zero/more.pt")
    return "more.pt: is a named pipe"


def an_unlisted_manifest_below(step: Path, move: Moved) -> str:
    (step / "zero" / MANIFEST).write_bytes(b"x")
    return "zero/MANIFEST.json: not in the manifest"


def an_entry_outside(step: Path, move: Moved) -> str:
    (step.parent / "outside.pt").write_bytes(b"x")
    manifest = json.loads((step / MANIFEST).read_text())
    manifest["files"]["../outside.pt"] = describe_file(step.parent / "outside.pt")
    write_json(step / MANIFEST, manifest)
    return "../outside.pt: missing, but the manifest lists it"


def entries_of_another_kind(step: Path, move: Moved) -> str:
    manifest = json.loads((step / MANIFEST).read_text())
    write_json(step / MANIFEST, {**manifest, "files": {"state.json": "x"}})
    return "no readable MANIFEST.json"


LINKS = (a_linked_directory, a_linked_file, a_pipe)
TAMPERED = (
    *LINKS,
    a_linked_manifest,
    a_linked_step,
    an_unlisted_manifest_below,
    an_entry_outside,
    entries_of_another_kind,
)


def resume(step: Path, how: str) -> int:
    config = settings(f"output_dir={step.parents[2]}", f"name={step.parents[1].name}")
    start, group = Start(how, overwrite=False), Group.alone()
    return action(lambda: open_run_dir(step.parents[1], config, 8, start, group))


CHECKPOINT_ENTRIES: dict[str, Callable[[Path], int]] = {
    "--resume DIR": lambda step: resume(step, str(step)),
    "--resume auto": lambda step: resume(step, "auto"),
    "cero-rl checkpoints verify": lambda step: main(
        ["checkpoints", "verify", str(step.parents[1])]
    ),
    "convert verify": lambda step: convert("verify", step),
}
CONVERSIONS: dict[str, tuple[object, ...]] = {
    "inspect": (),
    "zero-to-hf": ("--model", MODEL, "--bare", "--out"),
    "zero-to-adapter": ("--out",),
    "zero-to-universal": ("--bare", "--out"),
    "reshard": ("--ranks", 2, "--bare", "--out"),
}


@pytest.mark.covers("link, pipe or stranger below a checkpoint")
@pytest.mark.parametrize("entry", CHECKPOINT_ENTRIES)
@pytest.mark.parametrize("tampered", TAMPERED)
def test_a_checkpoint_is_taken_as_it_lies(
    tampered: Callable[[Path, Moved], str],
    entry: str,
    tmp_path: Path,
    elsewhere: Moved,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = checkpoint(tmp_path / "run", tmp_path / "ran")
    said = tampered(step, elsewhere)
    if tampered in LINKS[:2]:
        sign(step)  # sizes and hashes of what the links lead to
    if (entry, tampered) == ("convert verify", a_linked_step):
        return  # a person's own path may be a link there: what it leads to is looked through
    assert CHECKPOINT_ENTRIES[entry](step) == 4
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.covers("link, pipe or stranger below a checkpoint")
@pytest.mark.parametrize("command", CONVERSIONS)
@pytest.mark.parametrize("tampered", [*LINKS, None])
def test_a_conversion_runs_nothing(
    tampered: Callable[[Path, Moved], str] | None,
    command: str,
    tmp_path: Path,
    elsewhere: Moved,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With links, and (None) a pickle in place of the shard that every conversion opens."""
    step, out = checkpoint(tmp_path / "run", tmp_path / "ran"), tmp_path / "out"
    (step / "zero/zero/optimizer_state.pt").unlink()
    (step / MANIFEST).unlink()
    said = "not loaded, it holds posix.mkdir"
    if tampered is not None:
        said = tampered(step, elsewhere)
    words = CONVERSIONS[command]
    assert convert(command, step, *words, *([out] if words else [])) == 4
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not out.exists()


def test_a_pickle_in_a_universal_checkpoint_is_refused(tmp_path: Path) -> None:
    """Its manifest holds; the scan before DeepSpeed is called names the file."""
    step = checkpoint(tmp_path / "run", tmp_path / "ran")
    code = action(lambda: load(step, Group.alone(), None, identity={}))
    assert code == 4
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("force", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_a_loader_that_asks_for_everything_is_restricted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: str | None
) -> None:
    """What DeepSpeed's universal loader calls, at the moment it calls it."""
    torch.save(Payload(tmp_path / "ran"), tmp_path / "fp32.pt")
    if force is not None:
        monkeypatch.setenv(force, "1")
    with restricted_loading(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "fp32.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") is None
    assert force is None or os.environ[force] == "1"


@pytest.mark.covers("link in a run's directory")
@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "checkpoints", "export.tmp"])
def test_a_run_writes_into_its_own_directory_only(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = checkpoint(tmp_path / "run", tmp_path / "ran")
    target = tmp_path / "mine"
    if name == "checkpoints":
        shutil.move(step.parent, target)
    else:
        target.write_text("mine")
    (tmp_path / "run" / name).symlink_to(target)
    assert resume(step, "auto") == 4
    assert f"{name}: is a symbolic link" in capsys.readouterr().err
    assert target.is_dir() or target.read_text() == "mine"


# --- models and adapters


def model(place: Path, mark: Path) -> Path:
    shutil.copytree(MODEL, place)
    return place


def out_of_it(folder: Path, move: Moved) -> str:
    move(folder / "model.safetensors")
    return "model.safetensors: is a symbolic link to outside of the model's directory"


def an_odd_file(folder: Path, move: Moved) -> str:
    (folder / "generation_config.json").unlink(missing_ok=True)
    os.mkfifo(folder / "generation_config.json")
    return "generation_config.json: is a named pipe"


MODEL_ENTRIES: dict[str, tuple[Callable[[Path], int], int]] = {
    "model.path, tokenizer": (lambda d: action(lambda: load_tokenizer(str(d))), 6),
    "model.path, config": (lambda d: action(lambda: load_model_config(str(d))), 6),
    "model.path, weights": (lambda d: action(lambda: load_model(str(d), "float32", "sdpa")), 6),
    "convert cast": (lambda d: convert("cast", d, "--dtype", "float32", "--out", d / "../o"), 4),
    "convert hf-to-start": (lambda d: convert("hf-to-start", d, "--out", d / "../o"), 4),
    "convert verify": (lambda d: convert("verify", d), 4),
    "convert verify --against": (lambda d: convert("verify", MODEL, "--against", d), 4),
    "convert inspect": (lambda d: convert("inspect", d), 4),
    "convert megatron-export": (lambda d: convert("megatron-export", d, "--out", d / "../o"), 4),
}


@pytest.mark.covers("link out of a model or adapter directory")
@pytest.mark.parametrize("entry", MODEL_ENTRIES)
@pytest.mark.parametrize("tampered", [out_of_it, an_odd_file])
def test_a_model_directory_keeps_to_itself(
    tampered: Callable[[Path, Moved], str],
    entry: str,
    tmp_path: Path,
    elsewhere: Moved,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = model(tmp_path / "model", tmp_path / "ran")
    said = tampered(folder, elsewhere)
    run, code = MODEL_ENTRIES[entry]
    assert run(folder) == code
    assert said in capsys.readouterr().err


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny/snapshots/abc"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--org--tiny/blobs"
    blobs.mkdir()
    for path in MODEL.iterdir():
        if path.is_file():
            shutil.copyfile(path, blobs / f"0{path.name}")
            (snapshot / path.name).symlink_to(f"../../blobs/0{path.name}")
    assert load_tokenizer(str(snapshot)).eos_token_id is not None
    assert load_model(str(snapshot), "float32", "sdpa") is not None
    assert convert("inspect", snapshot) == 0


def test_a_model_directory_does_not_name_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers would load what the adapter calls its base."""
    folder = model(tmp_path / "model", tmp_path / "ran")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    assert action(lambda: load_model(str(folder), "float32", "sdpa")) == 6
    assert "holds a LoRA adapter" in capsys.readouterr().err


@pytest.mark.covers("link out of a model or adapter directory")
@pytest.mark.parametrize("kind", ["link", "pickle"])
def test_an_adapter_is_taken_as_it_lies(
    kind: str, tmp_path: Path, elsewhere: Moved, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    if kind == "link":
        save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
        elsewhere(folder / "adapter_model.safetensors")
        said = "adapter_model.safetensors: is a symbolic link"
    else:
        torch.save(Payload(tmp_path / "ran"), folder / "adapter_model.bin")
        said = "adapter_model.bin, a pickle, is refused"
    assert convert("merge-lora", folder, "--base", MODEL, "--out", tmp_path / "o") == 4
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.covers("link out of a model or adapter directory")
@pytest.mark.parametrize("kind", ["link", "pickle"])
def test_a_megatron_checkpoint_is_taken_as_it_lies(
    kind: str, tmp_path: Path, elsewhere: Moved, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "megatron/iter_0000001"
    inner.mkdir(parents=True)
    (inner / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (inner.parent / "latest_checkpointed_iteration.txt").write_text("1")
    (inner / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    said = ".metadata: not loaded, it holds posix.mkdir"
    if kind == "link":
        elsewhere(inner / ".metadata")
        said = ".metadata: is a symbolic link"
    words = ("--model", MODEL, "--out", tmp_path / "o")
    assert convert("megatron-import", inner.parent, *words) == 4
    assert said in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


# --- evidence, data, and weights on their way to a server


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
