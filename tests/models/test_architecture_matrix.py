"""`make test-architectures`: every row of architectures.py through a real run of two ranks under
ZeRO-3. Three optimizer steps, after each a weight sync with its parity probe, export, reload, and
zero-to-hf beside the export; or refused with its reason before the run directory exists.

Rows with versions go to the file that --architectures names, in the place of those of before.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
import transformers
import warm_ranks
from architectures import REFUSED, TRAINED, Row, save_config, save_model
from safetensors.torch import load_file

from cero_rl.models.load import load_model

pytestmark = pytest.mark.architectures
ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
SETTINGS = (
    f"scheduler.rounds={STEPS}",
    "budget.total_rollouts=96",
    "data.limit=24",
    "data.heldout_limit=4",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup_steps=0",
    "optimizer.schedule=constant",
    f"reward.function={ROOT}/tests/models/odd_length.py:reward",
    "reward.workers=1",
    "evaluation.every_steps=0",
    "evaluation.final_samples_per_prompt=1",
    "evaluation.pass_k=[1]",
    "checkpoint.every_steps=0",
    "logging.tensorboard=false",
)
Save = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def save(request: pytest.FixtureRequest) -> Save:
    """Writes a row that came out."""
    path = Path(request.config.getoption("--architectures"))

    def write(fields: dict[str, Any]) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        key = lambda row: (row["row"], row["engine"])
        versions = {m.__name__: m.__version__ for m in (torch, transformers, deepspeed)}
        rows = [row for row in rows if key(row) != key(fields)] + [{**fields, **versions}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def train(model: Path, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    words = ["recipes/train_cero.py", "--config", "recipes/digits_cpu.yaml"]
    for setting in (*SETTINGS, f"model.path={model}", f"output_dir={out}", "name=r", *settings):
        words += ["--set", setting]
    environment = {**warm_ranks.environment(), "MASTER_PORT": str(warm_ranks.free_port())}
    out.mkdir()
    return warm_ranks.run(words, ROOT, environment, out, ranks=2)


def reason_in(said: str, words: str, model: Path) -> str:
    """The line that holds the words, without the path of this test."""
    line = next(line.strip() for line in said.splitlines() if words in line)
    return line.replace(str(model), "MODEL")


def to_hf(checkpoint: Path, out: Path) -> int:
    spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools/convert.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    return tool.main(["zero-to-hf", str(checkpoint), "--out", str(out)])


def weights_in(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)
def test_trains_and_comes_back(row: Row, engine: str, tmp_path: Path, save: Save) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    model, run = save_model(row, tmp_path / "start"), tmp_path / "out/r"
    done = train(model, tmp_path / "out", f"rollout.engine={engine}", *row.settings)
    said = (done.stdout + done.stderr).strip()
    fields = {"row": row.name, "model_type": row.model_type, "engine": engine}
    if engine == "vllm" and done.returncode == 2:  # by name, before the run directory
        assert not run.exists()
        save({**fields, "trains": False, "refused": reason_in(said, "rollout.engine: vllm", model)})
        return
    assert done.returncode == 0, said
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [step["parity/gap"] for step in steps if "parity/gap" in step]
    # of a sharp random model all answers of a group may be alike, and then there is no gradient
    learnt = len([step for step in steps if step.get("grad_norm", 0.0) > 0])
    assert learnt
    start, export = weights_in(model), weights_in(run / "export")
    assert not same(start, export), "nothing was learnt"
    again = load_model(str(run / "export"), "float32", "eager")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(2, 20, (1, 12)))
    assert bool(torch.isfinite(again(tokens).logits).all())
    (newest,) = sorted((run / "checkpoints").glob("step_*"))[-1:]
    converted = to_hf(newest, tmp_path / "hf") == 0 and weights_in(tmp_path / "hf")
    fields |= {
        "trains": True,
        "steps": STEPS,
        "steps_with_a_gradient": learnt,
        "parity_gap": max(gaps),
        "export_has_the_starts_names": start.keys() == export.keys(),
        "zero_to_hf_is_the_export": bool(converted) and same(export, converted),
    }
    save(fields)
    assert fields["export_has_the_starts_names"], sorted(start.keys() ^ export.keys())
    assert fields["zero_to_hf_is_the_export"]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_is_refused_before_the_run_directory(row: Row, tmp_path: Path, save: Save) -> None:
    done = train(save_config(row, tmp_path / "start"), tmp_path / "out")
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert row.refused in said
    assert "Traceback" not in said
    assert not (tmp_path / "out/r").exists()
    fields = {"row": row.name, "model_type": row.model_type, "engine": "transformers"}
    save({**fields, "trains": False, "refused": reason_in(said, row.refused, tmp_path / "start")})
