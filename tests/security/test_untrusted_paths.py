"""Every entry point that takes a checkpoint, a model or an adapter, given a directory with a
program in it: behind a link, in a file no manifest names, or in place of a shard. It is refused by
name with the documented exit code, and the program does not run."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from untrusted_cases import MODEL, ROOT, Moved, Payload, action, settings

from cero_rl.checkpoint.identity import Identity
from cero_rl.checkpoint.manifest import MANIFEST
from cero_rl.checkpoint.restore import load
from cero_rl.commands.main import main
from cero_rl.distributed.group import Group
from cero_rl.files.durable import describe_file, write_json
from cero_rl.models.load import load_model, load_model_config, load_tokenizer
from cero_rl.train.run_directory import Start, open_run_dir
from cero_rl.zero.shards import restricted_loading


def convert(*words: object) -> int:
    spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools/convert.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(word) for word in words])


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
    for name in ("arrays", "rank0"):
        save_file({"rng.cpu": torch.zeros(1)}, directory / f"{name}.safetensors")
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
    start, identity, group = Start(how, overwrite=False), Identity({}, {}), Group.alone()
    return action(lambda: open_run_dir(step.parents[1], config, 8, start, identity, group))


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


@pytest.mark.covers("link out of a model, adapter or data directory")
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


@pytest.mark.covers("link out of a model, adapter or data directory")
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


@pytest.mark.covers("link out of a model, adapter or data directory")
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
