"""LoRA for real: the shipped command trains an adapter under ZeRO-3; checkpoints, exports,
resume, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from launch import ROOT, environment, launch, lines, repeatable
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cero_rl.config import load_config
from cero_rl.convert.zero import load_restricted
from cero_rl.errors import ConfigError
from cero_rl.files.lora_adapter import stored_name
from cero_rl.models.load import adapter_without_weights
from cero_rl.models.lora import add_adapter

pytestmark = pytest.mark.slow

START = ROOT / "recipes/assets/tiny_digits"
RECIPE = ROOT / "recipes/digits_cpu.yaml"
LORA = [
    "lora.rank=4",
    "lora.rank_stabilized=true",
    "optimizer.learning_rate=0.003",
    "learner.kl_coefficient=0.01",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(out: Path) -> Path:
    """The start model, in a place of its own."""
    return shutil.copytree(START, out / "base")


@pytest.fixture(scope="module")
def uncut(out: Path, base: Path) -> Path:
    done = launch(out, "uncut", settings=[*LORA, f"model.path={base}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "LoRA            rank 4 in down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
        in done.stdout
    )
    assert (
        f"model in {out / 'uncut/export'}, its LoRA adapter in {out / 'uncut/adapter'}"
        in done.stdout
    )
    return out / "uncut"


def test_cut_and_resumed_equals_uncut_bit_for_bit(out: Path, uncut: Path, base: Path) -> None:
    for flags in (("--stop-at-step", "3"), ("--resume", "auto")):
        done = launch(out, "cut", *flags, settings=[*LORA, f"model.path={base}"])
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("metrics.jsonl", "ledger.jsonl", "evidence.jsonl"):
        a, b = ([repeatable(m) for m in lines(run / name)] for run in (uncut, out / "cut"))
        assert a == b, name
    for name in ("export/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (uncut / name).read_bytes() == (out / "cut" / name).read_bytes(), name


def test_a_checkpoint_holds_the_adapter_alone(uncut: Path) -> None:
    newest = max((uncut / "checkpoints").glob("step_*"))
    held = load_restricted(next((newest / "zero").glob("*rank_0*model_states.pt")))
    assert held["param_shapes"][0].keys() == {f"causal_lm.{name}" for name in _live_names(uncut)}
    assert not held["frozen_param_fragments"]
    weights = sum(path.stat().st_size for path in (newest / "zero").glob("*.pt"))
    assert weights < (START / "model.safetensors").stat().st_size / 2


def _live_names(run: Path) -> list[str]:
    stored = load_file(run / "adapter/adapter_model.safetensors")
    return [
        name.removeprefix("base_model.model.").removesuffix(".weight") + ".default.weight"
        for name in stored
    ]


def test_the_export_is_what_peft_merges(uncut: Path) -> None:
    import peft

    start, export = (
        load_file(START / "model.safetensors"),
        load_file(uncut / "export/model.safetensors"),
    )
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(START, dtype=torch.float32), uncut / "adapter"
    )
    merged = dict(adapted.merge_and_unload().named_parameters())  # pyright: ignore[reportCallIssue]
    assert export.keys() == start.keys()
    for name, value in export.items():
        torch.testing.assert_close(value, merged[name].data, rtol=0, atol=2e-6, msg=name)
        assert torch.equal(value, start[name]) == (not name.endswith("_proj.weight")), name
    # transformers would add the adapter once more
    assert not (uncut / "export/adapter_config.json").exists()


def test_export_reproduces_the_evaluation(uncut: Path) -> None:
    line = [
        "python",
        "-m",
        "cero_rl",
        "evaluate",
        "--config",
        str(RECIPE),
        "--model",
        str(uncut / "export"),
    ]
    for setting in (
        *LORA,
        "data.limit=120",
        "data.heldout_limit=24",
        "evaluation.final_samples_per_prompt=2",
        "evaluation.pass_k=[1,2]",
    ):
        line += ["--set", setting]
    done = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    again, last = json.loads(done.stdout.splitlines()[-1]), lines(uncut / "metrics.jsonl")[-1]
    assert again["eval/avg@2"] == pytest.approx(last["eval/avg@2"], abs=1e-7)


@pytest.mark.parametrize(("size", "least", "most"), [(1.0, 0.0, 0.02), (1e-6, 0.9, 1.1)])
def test_what_merging_into_bfloat16_loses_is_measured(
    size: float, least: float, most: float
) -> None:
    """An adapter far smaller than the steps of the dtype is lost when it is merged, which no
    parity bound notices."""
    config = load_config(RECIPE, ["lora.rank=4", "model.dtype=bfloat16"])
    model = AutoModelForCausalLM.from_pretrained(START, dtype=torch.bfloat16)
    adapter = add_adapter(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=size, generator=torch.Generator().manual_seed(1))
    start = load_file(START / "model.safetensors")
    for source in adapter.merged():
        merged = source.make()
        assert merged.dtype == torch.bfloat16
        if not source.name.endswith("_proj.weight"):
            assert torch.equal(merged, start[source.name].bfloat16()), source.name
    assert least <= adapter.merge_loss() <= most


def test_another_base_is_refused(out: Path, uncut: Path, base: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    shutil.copytree(uncut, out / "moved")
    weights = load_file(base / "model.safetensors")
    next(iter(weights.values()))[0, 0] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    try:
        done = launch(out, "moved", "--resume", "auto", settings=[*LORA, f"model.path={base}"])
    finally:
        (base / "model.safetensors").write_bytes(before)
    assert "model.path: the weights in it changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "lora.targets=[q_prog]",
            (
                "lora.targets: 'q_prog' is no linear layer of recipes/assets/tiny_digits; it "
                "has down_proj, gate_proj, "
            ),
        ),
        ("lora.targets=[lm_head]", "lora.targets: 'lm_head' is no linear layer of"),
        ("lora.targets=[embed_tokens]", "lora.targets: 'embed_tokens' is no linear layer of"),
        ("lora.targets=[]", "lora.targets: got []; wanted names of layers, each once"),
        (
            "lora.targets=[q_proj, q_proj]",
            "lora.targets: got ['q_proj', 'q_proj']; wanted names of layers, each once",
        ),
        ("lora.rank=-1", "lora.rank: got -1; input should be greater than or equal to 0"),
        ("lora.rnak=4", "lora.rnak: unknown key; did you mean lora.rank?"),
    ],
)
def test_a_wrong_key_is_one_line(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        adapter_without_weights(load_config(RECIPE, ["lora.rank=4", setting]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_typo_writes_nothing(out: Path) -> None:
    done = launch(out, "typo", settings=["lora.rank=4", "lora.targets=[q_prog]"])
    assert done.returncode == 2
    assert "error: lora.targets: 'q_prog' is no linear layer of" in done.stderr
    assert not (out / "typo").exists()


def test_scaling_is_that_of_the_papers() -> None:
    for settings, scaling in ((["lora.rank=16"], 2.0), (["lora.rank=16", "lora.alpha=8"], 0.5)):
        assert load_config(RECIPE, settings).lora.scaling == scaling
    assert (
        load_config(
            RECIPE, ["lora.rank=16", "lora.alpha=8", "lora.rank_stabilized=true"]
        ).lora.scaling
        == 2.0
    )


def test_a_name_in_the_model_has_one_in_the_file() -> None:
    live = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert stored_name(live) == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


# --- conversions


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = ["python", "tools/convert.py", *map(str, arguments)]
    return subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )


def test_conversions_are_the_runs_own_exports_bit_for_bit(
    uncut: Path, base: Path, tmp_path: Path
) -> None:
    last = max((uncut / "checkpoints").glob("step_*"))
    for arguments, written, exported in (
        (("zero-to-hf", last), "model.safetensors", "export"),
        (("zero-to-adapter", last), "adapter_model.safetensors", "adapter"),
        (("merge-lora", uncut / "adapter", "--base", base), "model.safetensors", "export"),
    ):
        done = convert(*arguments, "--out", tmp_path / arguments[0])
        assert done.returncode == 0, done.stderr
        ours, runs = (
            load_file(tmp_path / arguments[0] / written),
            load_file(uncut / exported / written),
        )
        assert ours.keys() == runs.keys()
        assert all(torch.equal(ours[name], runs[name]) for name in runs), arguments[0]
    ours, runs = (
        json.loads((d / "adapter_config.json").read_text())
        for d in (tmp_path / "zero-to-adapter", uncut / "adapter")
    )
    assert ours == runs


def test_a_conversion_on_another_base_is_refused(uncut: Path, base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values()))[0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    done = convert(
        "zero-to-hf",
        max((uncut / "checkpoints").glob("step_*")),
        "--model",
        other,
        "--out",
        tmp_path / "hf",
    )
    assert done.returncode == 4
    assert "give the model that the run started from: --model DIR" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    "how", [("reshard", "--ranks", "1"), ("zero-to-universal",)], ids=["reshard", "universal"]
)
def test_another_number_of_ranks_goes_on_with_the_same_evidence(
    out: Path, uncut: Path, base: Path, how: tuple[str, ...]
) -> None:
    name = f"after-{how[0]}"
    shutil.copytree(out / "cut", out / name)
    last = out / name / "checkpoints/step_000004"
    assert (
        done := convert(how[0], last, *how[1:], "--out", out / name / "converted")
    ).returncode == 0, done.stderr
    go_on = launch(
        out,
        name,
        "--resume",
        str(out / name / "converted"),
        settings=[*LORA, f"model.path={base}"],
        ranks=1,
    )
    assert go_on.returncode == 0, go_on.stdout + go_on.stderr
    assert "step 4, " in go_on.stdout
    for log in ("ledger.jsonl", "evidence.jsonl"):
        assert lines(out / name / log) == lines(uncut / log)
    ours, uncuts = (
        load_file(run / "adapter/adapter_model.safetensors") for run in (out / name, uncut)
    )
    # sums over one rank's tokens and over two ranks' are rounded differently
    for key, value in uncuts.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-3, msg=key)
