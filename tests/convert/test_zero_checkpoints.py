"""Real ZeRO-3 checkpoints of the shipped training command: exported, resumed on another number of
ranks, made universal."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import warm_ranks
from convert_cases import ROOT, TOKENIZER, Payload, logits, tensors
from safetensors.torch import load_file

from cero_rl.checkpoint import MANIFEST, verify
from cero_rl.convert.run_checkpoint import locate
from cero_rl.convert.zero import STATES, open_zero

pytestmark = pytest.mark.slow


def drive(
    script: str, arguments: list[str], logs: Path, *, ranks: int
) -> subprocess.CompletedProcess[str]:
    """A script of this folder on ranks of its own."""
    meet = {**warm_ranks.environment(), "MASTER_PORT": str(warm_ranks.free_port())}
    return warm_ranks.run([f"tests/convert/{script}", *arguments], ROOT, meet, logs, ranks=ranks)


def same(a: Any, b: Any, where: str = "") -> None:
    """Equal structures with bitwise equal tensors."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{where}/{index}")
    elif type(a).__name__ == "LossScaler":
        assert vars(a) == vars(b), where
    else:
        assert a == b, where


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_equals_that_of_the_run_byte_for_byte(dtype, runs, convert, tmp_path):
    run = runs(dtype)
    assert (
        convert(
            "zero-to-hf",
            run / "checkpoints/step_000006",
            "--out",
            tmp_path / "hf",
            "--model",
            TOKENIZER,
        )
        == 0
    )
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (run / "export" / name).read_bytes(), name
    assert "lm_head.weight" not in tensors(tmp_path / "hf")
    assert convert("verify", tmp_path / "hf", "--against", run / "export") == 0


def test_sharded_export_gives_the_same_logits_and_the_masters(runs, convert, tmp_path):
    step = runs("bfloat16") / "checkpoints/step_000006"
    assert (
        convert(
            "zero-to-hf",
            step,
            "--out",
            tmp_path / "small",
            "--model",
            TOKENIZER,
            "--max-shard-size",
            "300KB",
        )
        == 0
    )
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 3
    assert torch.equal(logits(tmp_path / "small"), logits(runs("bfloat16") / "export"))
    assert (
        convert(
            "zero-to-hf",
            step,
            "--out",
            tmp_path / "full",
            "--model",
            TOKENIZER,
            "--dtype",
            "float32",
        )
        == 0
    )
    full, rounded = logits(tmp_path / "full"), logits(tmp_path / "small")
    assert full.dtype == torch.float32
    assert 0 < (full - rounded.float()).abs().max() < 0.3  # masters hold more than their rounding


@pytest.fixture(scope="module")
def one_rank(runs, convert, tmp_path_factory) -> Path:
    """The float32 run as it was after step 4, for one rank."""
    run = tmp_path_factory.mktemp("one") / "alone"
    shutil.copytree(runs("float32"), run, ignore=shutil.ignore_patterns("step_000006", "export"))
    step, out = run / "checkpoints/step_000004", run / "converted/step_000004"
    assert convert("reshard", step, "--ranks", 1, "--out", out) == 0
    return run


def test_run_of_two_ranks_resumes_on_one_and_allocates_the_same(runs, one_rank, training):
    done = training.launch(
        one_rank.parent,
        "alone",
        "--resume",
        str(one_rank / "converted/step_000004"),
        ranks=1,
        settings=["model.dtype=float32"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from" in done.stdout
    for name in ("evidence.jsonl", "ledger.jsonl"):
        assert (one_rank / name).read_bytes() == (runs("float32") / name).read_bytes(), name
    whole, cut = (training.lines(r / "metrics.jsonl") for r in (runs("float32"), one_rank))
    assert cut[5]["loss"] == pytest.approx(whole[5]["loss"], abs=1e-6)


def test_two_ranks_from_one_from_two_are_the_files_of_the_run(runs, one_rank, convert, tmp_path):
    one = tmp_path / "one"
    assert (
        convert("reshard", runs("float32") / "checkpoints/step_000004", "--ranks", 1, "--out", one)
        == 0
    )
    assert verify(one)["world_size"] == 1
    assert convert("reshard", one, "--ranks", 2, "--out", tmp_path / "two") == 0
    original = runs("float32") / "checkpoints/step_000004/zero"
    for path in original.iterdir():
        a, b = (
            torch.load(p, weights_only=False) for p in (path, tmp_path / "two/zero" / path.name)
        )
        same(a, b, path.name)
    manifest = verify(tmp_path / "two")
    assert (manifest["world_size"], manifest["step"]) == (2, 4)


def test_random_state_of_a_new_rank_is_a_function_of_step_and_rank(runs, convert, tmp_path):
    for name in ("a", "b"):
        assert (
            convert(
                "reshard",
                runs("float32") / "checkpoints/step_000004",
                "--ranks",
                4,
                "--out",
                tmp_path / name,
            )
            == 0
        )
    files = [
        tmp_path / name / f"rank{rank}.safetensors" for name in ("a", "b") for rank in range(4)
    ]
    content = [path.read_bytes() for path in files]
    assert content[:4] == content[4:]
    assert len(set(content)) == 4
    saved = load_file(runs("float32") / "checkpoints/step_000004/rank0.safetensors")
    assert torch.equal(load_file(files[0])["rng.cpu"], saved["rng.cpu"])


@pytest.fixture(scope="module")
def universal(runs, convert, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("universal") / "step_000006"
    assert (
        convert("zero-to-universal", runs("float32") / "checkpoints/step_000006", "--out", out) == 0
    )
    assert verify(out)["universal"] is True
    return out


def test_run_of_two_ranks_resumes_on_one_at_another_stage_from_the_universal_layout(
    runs, convert, training, tmp_path
):
    run = tmp_path / "alone"
    shutil.copytree(runs("float32"), run, ignore=shutil.ignore_patterns("step_000006", "export"))
    step, out = run / "checkpoints/step_000004", run / "converted/step_000004"
    assert convert("zero-to-universal", step, "--out", step, "--force") == 4
    assert convert("zero-to-universal", step, "--out", out) == 0
    flags = ["--resume", str(out)]
    settings = ["model.dtype=float32", "zero.stage=2"]
    done = training.launch(tmp_path, "alone", *flags, ranks=1, settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("evidence.jsonl", "ledger.jsonl"):
        assert (run / name).read_bytes() == (runs("float32") / name).read_bytes(), name
    assert tensors(run / "export").keys() == tensors(runs("float32") / "export").keys()
    for name, tensor in tensors(run / "export").items():
        torch.testing.assert_close(
            tensor, tensors(runs("float32") / "export")[name], atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("ranks,stage", [(2, 2)])
def test_deepspeed_loads_the_universal_layout_on_other_ranks_and_stages(
    ranks, stage, runs, universal, training, tmp_path
):
    zero = open_zero(locate(runs("float32") / "checkpoints/step_000006", bare=False).zero)
    spoiled, mark = tmp_path / "spoiled", tmp_path / "ran"
    shutil.copytree(universal, spoiled)
    for shard in (spoiled / "zero/zero").glob("*/fp32.pt"):
        torch.save({**torch.load(shard, weights_only=True), "note": Payload(mark)}, shard)
    arguments = [str(universal), str(stage), str(tmp_path / "found.json"), str(spoiled)]
    done = drive("universal_driver.py", arguments, tmp_path, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    wanted = {
        name: {
            kind: hashlib.sha256(zero.state(kind).read(name).numpy().tobytes()).hexdigest()
            for kind in STATES
        }
        for name in zero.shapes
    }
    assert found["hashes"] == wanted
    assert found["steps"] == 6
    assert "refused, it is more than tensors and settings" in found["said"]
    assert not mark.exists()


def test_universal_tensors_equal_those_of_deepspeeds_own_converter(
    runs, universal, tmp_path, monkeypatch
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.checkpoint import ds_to_universal

    source = runs("float32") / "checkpoints/step_000006/zero"
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(source),
            output_folder=str(tmp_path / "theirs"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
    )
    theirs = sorted(
        p for p in (tmp_path / "theirs/zero").rglob("*.pt") if p.name != "optimizer_state.pt"
    )
    assert len(theirs) == 3 * 46
    for path in theirs:
        ours = torch.load(
            universal / "zero/zero" / path.relative_to(tmp_path / "theirs/zero"), weights_only=True
        )["param"]
        assert torch.equal(ours.flatten(), torch.load(path, weights_only=True)), path


def test_damage_and_strangers_are_refused_by_name(runs, convert, tmp_path, capsys):
    run = runs("float32")
    step = tmp_path / "step_000006"
    shutil.copytree(run / "checkpoints/step_000006", step)
    shard = next((step / "zero").glob("*rank_1*optim_states.pt"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    assert convert("zero-to-hf", step, "--out", tmp_path / "x", "--model", TOKENIZER) == 4
    assert "sha256" in capsys.readouterr().err
    (step / MANIFEST).unlink()
    assert convert("zero-to-hf", step, "--out", tmp_path / "x", "--model", TOKENIZER) == 4
    assert "--bare" in capsys.readouterr().err
    shard.unlink()
    assert convert("zero-to-hf", step, "--out", tmp_path / "x", "--model", TOKENIZER, "--bare") == 4
    assert "a file is missing" in capsys.readouterr().err
    assert convert("zero-to-hf", run, "--out", tmp_path / "x") == 4
    assert "looks like a run directory" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_pickled_code_in_a_shard_is_not_run(runs, convert, tmp_path, capsys):
    step = tmp_path / "step"
    shutil.copytree(runs("float32") / "checkpoints/step_000006/zero", step)
    path = next(step.glob("*rank_0*optim_states.pt"))
    torch.save({"optimizer_state_dict": Payload(tmp_path / "ran")}, path)
    assert convert("zero-to-hf", step, "--out", tmp_path / "x", "--model", TOKENIZER, "--bare") == 4
    error = capsys.readouterr().err
    assert path.name in error
    assert "not loaded" in error
    assert not (tmp_path / "ran").exists()


def test_inspect_tells_what_a_checkpoint_holds(runs, universal, convert, capsys):
    assert convert("inspect", runs("bfloat16") / "checkpoints/step_000006", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["stage"], facts["world_size"], facts["step"]) == ("zero", 3, 2, 6)
    assert (facts["parameters"], facts["model_dtype"], len(facts["tied"])) == (
        790528,
        "bfloat16",
        1,
    )
    assert convert("inspect", universal, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "universal"
    assert convert("verify", universal) == 0


def test_files_of_another_layout_are_refused_in_one_line(runs, convert, tmp_path, capsys):
    step = tmp_path / "step"
    shutil.copytree(runs("float32") / "checkpoints/step_000006/zero", step)
    path = next(step.glob("*rank_1*optim_states.pt"))
    torch.save({"optimizer_state_dict": {"partition_count": 2, "fp32": torch.zeros(4)}}, path)
    assert convert("zero-to-hf", step, "--out", tmp_path / "x", "--model", TOKENIZER, "--bare") == 4
    assert "not in the layout" in capsys.readouterr().err


def test_several_sub_groups_are_formed_as_deepspeed_forms_them(training, convert, tmp_path):
    done = drive("sub_groups_driver.py", [str(tmp_path)], tmp_path, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        len(
            torch.load(
                tmp_path / "zero/zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=True
            )["param_shapes"]
        )
        > 2
    )
    assert (
        convert("reshard", tmp_path / "zero", "--bare", "--ranks", 3, "--out", tmp_path / "three")
        == 0
    )
    assert (
        convert("reshard", tmp_path / "three", "--bare", "--ranks", 2, "--out", tmp_path / "two")
        == 0
    )
    for path in (tmp_path / "zero").iterdir():
        same(
            *(torch.load(p, weights_only=False) for p in (path, tmp_path / "two" / path.name)),
            path.name,
        )
