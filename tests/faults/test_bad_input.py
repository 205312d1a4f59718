"""Bad input through the real commands: one line with field, found, wanted and remedy, the
documented exit code, nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cero_rl.checkpoint.manifest import read_manifest
from cero_rl.config import load_config
from cero_rl.errors import CeroError, CheckpointError, ConfigError, EngineError
from cero_rl.models.load import (
    load_model,
    load_model_config,
    load_tokenizer,
    refuse_other_architectures,
)
from cero_rl.train.preflight import check_model

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/digits_cpu.yaml"
MODEL = ROOT / "recipes/assets/tiny_digits"
# Runs one command line, then says whether torch had to be loaded for the answer.
COMMAND = (
    "import sys; from cero_rl.commands.main import main; from cero_rl.commands.training import "
    "train_main; code = {call}; print('torch' in sys.modules); sys.exit(code)"
)


def run(call: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        **variables,
    }
    for name in ("RANK", "WORLD_SIZE"):
        env.pop(name, None)
    code = COMMAND.format(call=call)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr of a command that was refused with `code`."""
    assert done.returncode == code, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def train_call(*arguments: str) -> str:
    return f"train_main({['--config', str(RECIPE), *arguments]!r})"


@pytest.mark.covers("unknown key or flag", "a step to stop at that is none")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (train_call("--stop-at-step", "0"), "--stop-at-step: '0' is no optimizer step"),
        (train_call("--stop-at-step=-3"), "--stop-at-step: '-3' is no optimizer step"),
        (train_call("--overwrit"), "unrecognized arguments: --overwrit; did you mean --overwrite?"),
        (
            "main(['validate', '--config', 'x.yaml', '--shw'])",
            "unrecognized arguments: --shw; did you mean --show?",
        ),
        (
            train_call("--set", "scheduler.roundz=3"),
            "scheduler.roundz: unknown key; did you mean scheduler.rounds?",
        ),
    ],
)
def test_a_mistyped_flag_or_key_is_answered_without_torch(
    tmp_path: Path, call: str, said: str
) -> None:
    done = run(call, tmp_path)
    assert said in one_line(done, 2)
    assert "True" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.covers("reward with the wrong signature", "unknown reward")
def test_a_reward_is_checked_before_torch_and_the_model(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(answer): return 1.0\n", encoding="utf-8")
    done = run(
        train_call("--set", "reward.function=mine.py:score", "--set", "model.path=nowhere"),
        tmp_path,
    )
    assert "takes (answer); wanted f(prompts, completions, **columns)" in one_line(done, 5)
    assert done.stdout.strip() == "False"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_a_traceback_is_shown_under_debug_alone(tmp_path: Path) -> None:
    done = run(train_call("--set", "seed=-1", "--debug"), tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "seed: got -1; input should be greater than or equal to 0" in done.stderr


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(RECIPE, overrides)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.covers("budget below 2 rollouts a prompt of a round")
def test_a_budget_that_leaves_rounds_empty_is_refused_with_the_numbers() -> None:
    said = refused(
        "budget.total_rollouts=96", "scheduler.rounds=50", "scheduler.rollouts_per_unit=2"
    )
    assert "budget B >= rounds K * rollouts_per_unit fails: 96 < 50 * 2 = 100" in said
    assert load_config(
        RECIPE,
        ["budget.total_rollouts=100", "scheduler.rounds=50", "scheduler.rollouts_per_unit=2"],
    )


@pytest.mark.covers("sizes that do not divide")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "budget.total_rollouts=204801",
            "204801 is not a multiple of scheduler.rollouts_per_unit = 8 (204801 = 25600 * 8 + 1)",
        ),
        (
            "scheduler.capacity_rollouts=1025",
            "1025 is not a multiple of scheduler.rollouts_per_unit = 8 (1025 = 128 * 8 + 1)",
        ),
    ],
)
def test_sizes_come_with_the_equation_and_three_that_are_valid(override: str, said: str) -> None:
    message, key = refused(override), override.partition("=")[0]
    assert said in message
    offered = message.rpartition(": ")[2].split(", ")
    assert len(offered) == 3
    for size in offered:  # the first of them may break another rule: a budget above K * C
        changed = [f"{key}={size}"] + ["scheduler.capacity_rollouts=2048"] * (
            key == "budget.total_rollouts"
        )
        assert (
            load_config(RECIPE, changed)
            if key == "budget.total_rollouts" or int(size) >= 1024
            else True
        )


@pytest.mark.covers("file empty")
def test_files_that_never_end_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
    )
    for text, said in [
        (bomb, "more than 10000 values"),
        ("a: &a [*a]\n", "not valid YAML: found unconstructable recursive node"),
        ('name: "a\\0b"\n', "name: holds a null character"),
        ("[" * 3000, "nested too deeply"),
        ("", "is empty"),
    ]:
        (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / "x.yaml")


def odd_values() -> list[Any]:
    numbers, words = [-1, 0, 2**70, 1e308, -0.5], ["", "x", "é" * 1000, "2026-01-01", "\0", ".inf"]
    return [None, True, *numbers, *words, [], [[]], {}, {"a": {}}, {1: 2}, [1, "a"]]


def test_no_value_of_any_key_is_answered_with_a_traceback(tmp_path: Path) -> None:
    """Whatever stands under a key, the answer is a Config or a ConfigError in one line a
    problem."""
    plain = {
        "model": {"path": "m"},
        "data": {"source": "d"},
        "scheduler": {"rounds": 4},
        "budget": {"total_rollouts": 64},
    }
    file = tmp_path / "short.yaml"  # reading YAML is what takes time here
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    shape = load_config(RECIPE).model_dump(mode="json")
    keys = [
        k if not isinstance(v, dict) else f"{k}.{inner}"
        for k, v in shape.items()
        for inner in (v if isinstance(v, dict) else [k])
    ]
    keys += list(plain)
    tried, messages = 0, []
    for key in keys:
        for value in odd_values():
            tried += 1
            try:
                load_config(file, [f"{key}={json.dumps(value)}"])
            except ConfigError as error:
                messages.append((key, value, str(error)))
    assert len(messages) > tried / 2
    for key, value, message in messages:
        assert key.partition(".")[0] in message, (key, value, message)
        assert all(len(line) < 700 for line in message.splitlines()), (key, value, message)


def variant(folder: Path, **changes: Any) -> str:
    """The shipped model with other words in its config.json."""
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return str(folder)


def open_model(path: str) -> None:
    refuse_other_architectures(path, load_model_config(path), load_tokenizer(str(MODEL)))
    load_model(path, "float32", "sdpa")


@pytest.mark.covers("architecture or tokenizer mismatch")
@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"model_type": "t5"},
            ConfigError,
            "is a t5 (Qwen3ForCausalLM), wanted a causal language model",
        ),
        ({"vocab_size": 10}, ConfigError, "has 21 tokens, the model 10 rows of embeddings"),
        ({"model_type": "no_such"}, EngineError, "model type `no_such`"),
        ({"num_hidden_layers": 6}, EngineError, "`num_hidden_layers` (6) must be equal"),
        (
            {"num_hidden_layers": 6, "layer_types": None},
            EngineError,
            "lacks 22 weights that its config.json asks for (model.layers.4.",
        ),
        (
            {"num_hidden_layers": 2, "layer_types": None},
            EngineError,
            "holds 22 weights that its config.json has no place for",
        ),
        ({"model_type": "llama"}, EngineError, "self_attn.k_norm.weight"),
        ({"intermediate_size": 512}, EngineError, "could not be loaded"),
        (
            {"tie_word_embeddings": False},
            EngineError,
            "lacks 1 weights that its config.json asks for (lm_head.weight)",
        ),
    ],
)
def test_weights_config_and_tokenizer_must_be_of_one_model(
    tmp_path: Path, changes: dict[str, Any], error: type[CeroError], said: str
) -> None:
    with pytest.raises(error) as caught:
        open_model(variant(tmp_path / "model", **changes))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "changes", "said"),
    [
        pytest.param(
            "model.attention=auto",
            {"vocab_size": 10},
            "use the tokenizer that the model was trained with",
            marks=pytest.mark.covers("architecture or tokenizer mismatch"),
        ),
        pytest.param(
            "model.attention=flash_attention_2",
            {},
            "model.attention: got flash_attention_2, but",
            marks=pytest.mark.covers("GPU asked where there is none"),
        ),
        pytest.param(
            "rollout.max_response_tokens=100",
            {},
            "= 124, but the model has 64 positions; lower one of them",
            marks=pytest.mark.covers("prompt and response longer than the model"),
        ),
    ],
)
def test_the_models_config_is_checked_as_a_whole(
    tmp_path: Path, override: str, changes: dict[str, Any], said: str
) -> None:
    if torch.cuda.is_available() and "flash" in override:
        pytest.skip("this machine has a GPU")
    path = variant(tmp_path / "model", **changes)
    config = load_config(RECIPE, [override, f"model.path={path}"])
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_model(config, path, load_tokenizer(str(MODEL)))


@pytest.mark.slow
@pytest.mark.covers("GPU asked where there is none")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    call = train_call(
        "--set", "model.attention=flash_attention_2", "--set", f"output_dir={tmp_path / 'runs'}"
    )
    said = (
        "model.attention: got flash_attention_2, but torch sees no GPU; set model.attention: auto"
    )
    assert said in one_line(run(call, ROOT), 2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.covers("checkpoint path that is something else")
def test_a_checkpoint_path_that_is_something_else_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.resolved.yaml").touch()
    (tmp_path / "bare/global_step1").mkdir(parents=True)
    (tmp_path / "bare/global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    (tmp_path / "empty").mkdir()
    for path, said in [
        (
            MODEL,
            "it looks like a model in save_pretrained layout; start from it with --set model.path=",
        ),
        (
            tmp_path / "run",
            (
                "it is a run's directory; give its name with --resume auto, or one of its "
                "checkpoints/step_*"
            ),
        ),
        (tmp_path / "bare", "it looks like a bare DeepSpeed checkpoint"),
        (tmp_path / "empty", "not a valid checkpoint"),
        (RECIPE, "it is no directory; give one of checkpoints/step_* of a run"),
        (tmp_path / "nowhere", "it is no directory"),
    ]:
        with pytest.raises(CheckpointError, match=r"no readable MANIFEST\.json") as caught:
            read_manifest(path)
        assert said in str(caught.value)
        assert caught.value.exit_code == 4
