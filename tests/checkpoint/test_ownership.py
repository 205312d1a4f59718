"""--overwrite and --force delete what this program wrote, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from step_cases import MODEL, config_of

from cero_rl.checkpoint.identity import Identity, settings_of
from cero_rl.checkpoint.ownership import foreign_in_output, foreign_in_run
from cero_rl.convert import hf
from cero_rl.convert.output import refuse_full, staged
from cero_rl.distributed.group import Group
from cero_rl.errors import CeroError, CheckpointError, ConfigError
from cero_rl.train.run_directory import Start, open_run_dir

OF_A_RUN = [
    ".lock",
    "config.resolved.yaml",
    "attempts.jsonl",
    "metrics.jsonl",
    "evidence.jsonl",
    "ledger.jsonl",
    "samples.jsonl",
    "latest.json",
    "posterior.parquet",
    "stacks_rank0.txt",
    "error_rank1.txt",
    "tensorboard/events.out.tfevents.1.host.2.0",
    "profile/steps_3-4.json.gz",
    "wandb/run-1/files/output.log",
    "export/model.safetensors",
    "export/model-00001-of-00002.safetensors",
    "export/tokenizer_config.json",
    "export/chat_template.jinja",
    "export.tmp/config.json",
    "adapter/adapter_config.json",
    "checkpoints/step_000004/MANIFEST.json",
    "checkpoints/step_000004/state.json",
    "checkpoints/step_000004/rank0.safetensors",
    "checkpoints/step_000004/zero_to_fp32.py",
    "checkpoints/step_000004/zero_to_torch.py",
    "checkpoints/step_000004/zero/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "checkpoints/step_000004/zero/mp_rank_00_model_states.pt",
    "checkpoints/step_000006/MANIFEST.json",
    "checkpoints/tmp.step_000006.117/zero/x.pt",
    "run.json",
    "abandoned/after_step_000002/evidence.jsonl",
    "abandoned/after_step_000002/export/config.json",
    "abandoned/after_step_000002/checkpoints/step_000004/state.json",
    "converted/step_000004/zero/zero/module.x.weight/fp32.pt",
    "converted/step_000004/zero/zero/optimizer_state.pt",
]
STRANGERS = [
    "notes.txt",
    "thesis.tex",
    ".git/HEAD",
    "results.jsonl",
    "export/model.gguf",
    "export/deploy/run.sh",
    "checkpoints/README.md",
    "checkpoints/step_000004/notes.txt",
    "checkpoints/best/config.json",
    "tensorboard/other.png",
    "empty/",
]


def fill(directory: Path, names: list[str]) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("x")
    return directory


def opened(run: Path, *overrides: str, **start: Any) -> Path | None:
    config = config_of(*overrides)
    this = Identity(settings_of(config), {})
    how = Start(start.get("resume"), start.get("overwrite", False))
    return open_run_dir(run, config, 48, how, this, Group.alone())


def refused(run: Path, *overrides: str, **start: Any) -> str:
    before = sorted(run.rglob("*"))
    with pytest.raises(CeroError) as caught:
        opened(run, *overrides, **start)
    assert sorted(run.rglob("*")) == before, "nothing is touched"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_that_a_run_writes_is_its_own(tmp_path: Path):
    assert foreign_in_run(fill(tmp_path, OF_A_RUN)) is None


@pytest.mark.covers("overwrite of a directory with other files")
@pytest.mark.parametrize("stranger", STRANGERS)
def test_overwrite_names_the_first_stranger_and_deletes_nothing(tmp_path: Path, stranger: str):
    fill(tmp_path, [*OF_A_RUN, stranger])
    words = refused(tmp_path, overwrite=True)
    assert words == (
        f"--overwrite: {tmp_path} holds {stranger}, which is not of a run; move it away, or set "
        "another name"
    )
    assert "--overwrite" not in refused(tmp_path), "it is not recommended either"


@pytest.mark.covers("overwrite of a directory with other files")
def test_a_link_is_a_stranger_and_is_not_followed(tmp_path: Path):
    run, elsewhere = fill(tmp_path / "run", OF_A_RUN), fill(tmp_path / "photos", ["a.json"])
    (run / "wandb/photos").mkdir()
    (run / "checkpoints/step_000008").symlink_to(elsewhere)
    assert foreign_in_run(run) == "checkpoints/step_000008"
    assert "holds checkpoints/step_000008" in refused(run, overwrite=True)


@pytest.mark.covers("overwrite of a directory that is no run")
@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": "auto"}, {}])
def test_a_directory_that_is_no_run_is_left_alone(tmp_path: Path, how: dict[str, Any]):
    fill(tmp_path, ["main.tex", ".git/HEAD", "checkpoints/step_000004/state.json"])
    words = refused(tmp_path, **how)
    assert f"{tmp_path} holds main.tex, and no run of this program" in words
    assert "set another name" in words
    assert "or use --overwrite" not in words


def test_a_run_is_replaced(tmp_path: Path):
    fill(tmp_path, OF_A_RUN)
    assert "replace it with --overwrite" in refused(tmp_path)
    assert opened(tmp_path, overwrite=True) is None
    assert {p.name for p in tmp_path.iterdir()} == {
        ".lock",
        "run.json",
        "config.resolved.yaml",
        "attempts.jsonl",
    }


@pytest.mark.covers("overwrite of the run that it reads from")
@pytest.mark.parametrize(
    "setting", ["model.path={0}/export", "scheduler.warm_start={0}/posterior.parquet"]
)
def test_what_the_run_reads_is_not_deleted_first(tmp_path: Path, setting: str):
    fill(tmp_path, OF_A_RUN)
    words = refused(tmp_path, setting.format(tmp_path), overwrite=True)
    assert words.startswith(f"--overwrite: {setting.partition('=')[0]} is {tmp_path}/")
    assert "would be deleted first" in words


def test_damaged_checkpoints_may_be_replaced_as_the_error_says(tmp_path: Path):
    fill(tmp_path, OF_A_RUN)
    with pytest.raises(CheckpointError, match="replace it with --overwrite, or set another name"):
        opened(tmp_path, resume="auto")
    assert foreign_in_run(tmp_path) is None


# --- conversions


def converted(directory: Path) -> Path:
    directory.mkdir()
    (directory / "model.safetensors").write_text("x")
    (directory / "README.md").write_text(hf.card("x", "Converted."))
    return directory


@pytest.mark.covers("force on what no conversion wrote")
def test_force_replaces_a_conversion_and_nothing_else(tmp_path: Path):
    out = converted(tmp_path / "out")
    assert foreign_in_output(out) is None
    with pytest.raises(CheckpointError, match="or give --force"):
        refuse_full(out, force=False)
    with staged(out, force=True) as fresh:
        (fresh / "config.json").write_text("{}")
    assert [p.name for p in out.iterdir()] == ["config.json"]
    for other in (["notes.txt"], ["config.json", "model.safetensors"], OF_A_RUN):
        directory = fill(tmp_path / f"other{len(other)}", other)
        with pytest.raises(CheckpointError, match="no export or conversion wrote"):
            refuse_full(directory, force=True)
        with pytest.raises(CheckpointError, match=r"wrote .*; choose another --out$"):
            refuse_full(directory, force=False)


@pytest.mark.covers("force on its own source")
@pytest.mark.parametrize(
    ("target", "how"),
    [("run/step", "is"), ("run", "holds"), ("run/step/hf", "lies in"), ("x/../run/step", "is")],
)
def test_a_conversion_never_deletes_what_it_reads(tmp_path: Path, target: str, how: str):
    source = fill(tmp_path / "run/step", ["MANIFEST.json", "state.json"])
    (tmp_path / "x").mkdir()
    with pytest.raises(CheckpointError, match=f"{how} {source}, which is read here; choose"):
        refuse_full(tmp_path / target, force=True, sources=[MODEL, source])
    assert (source / "state.json").exists()


def test_config_errors_and_checkpoint_errors_have_their_codes(tmp_path: Path):
    fill(tmp_path, ["main.tex"])
    with pytest.raises(ConfigError):
        opened(tmp_path, overwrite=True)
    with pytest.raises(CheckpointError):
        opened(tmp_path, resume="auto")
