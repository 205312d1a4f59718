"""The configuration: every recipe validates, and every bad input gets one line that names key,
value and remedy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cero_rl.config import Config
from cero_rl.config.io import apply_override, build_config, dump_config, load_config
from cero_rl.config.learner import PRESETS
from cero_rl.config.sizes import check_pool, derived_sizes
from cero_rl.errors import ConfigError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
MINIMAL: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"source": "d.jsonl"},
    "scheduler": {"rounds": 10},
    "budget": {"total_rollouts": 640},
}


def build(**sections: Any) -> Config:
    data = copy.deepcopy(MINIMAL)
    for name, value in sections.items():
        data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
    return build_config(data, "test.yaml")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def minimal_text() -> str:
    return yaml.safe_dump(MINIMAL)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_and_its_uniform_twin_validate(recipe: Path) -> None:
    config = load_config(recipe)
    twin = load_config(recipe, ["scheduler.name=uniform", f"name={config.name}_uniform"])
    assert config.scheduler.name == "cero"
    assert config.name == recipe.stem.removesuffix("_cpu")
    changed = twin.model_copy(update={"scheduler": config.scheduler, "name": config.name})
    assert changed == config, "the twin differs in the allocator only"
    head = recipe.read_text(encoding="utf-8").split("\nname:")[0]
    for wanted in (
        "Hardware:",
        "Command:",
        f"--config recipes/{recipe.name}",
        "--set scheduler.name=uniform",
    ):
        assert wanted in head, f"{recipe.name}: head comment lacks {wanted!r}"


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {
        "quickstart_cpu",
        "digits_cpu",
        "gsm8k_qwen3_0_6b",
        "qwen3_8b",
        "qwen2_5_7b",
        "dsr1_qwen_1_5b",
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_dump_reads_back_equal(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe)
    assert load_config(write(tmp_path, dump_config(config))) == config


@given(
    unit=st.integers(2, 64),
    rounds=st.integers(1, 200),
    units=st.integers(200, 700),
    rate=st.floats(1e-9, 1.0, exclude_min=True),
    algorithm=st.sampled_from(sorted(PRESETS)),
)
def test_any_valid_config_survives_dump_and_load(
    unit: int, rounds: int, units: int, rate: float, algorithm: str
) -> None:
    config = build(
        scheduler={"rounds": rounds, "rollouts_per_unit": unit},
        budget={"total_rollouts": unit * units},
        optimizer={"learning_rate": rate},
        learner={"algorithm": algorithm},
    )
    data: dict[str, Any] = {}
    for line in ("x=1", f"optimizer.learning_rate={rate!r}"):
        apply_override(data, line)
    assert data["optimizer"]["learning_rate"] == rate
    assert build_config(yaml.safe_load(dump_config(config)), "dump") == config


@given(unit=st.integers(2, 64), rounds=st.integers(1, 200), units=st.integers(200, 5000))
def test_default_capacity_is_the_equal_share_in_whole_units(
    unit: int, rounds: int, units: int
) -> None:
    config = build(
        scheduler={"rounds": rounds, "rollouts_per_unit": unit},
        budget={"total_rollouts": unit * units},
    )
    capacity = config.capacity_rollouts
    assert capacity % unit == 0
    assert (capacity - unit) * rounds < unit * units <= capacity * rounds


@pytest.mark.covers("unknown key or flag")
@pytest.mark.parametrize(
    "key, hint",
    [
        ("scheduler.rollout_per_unit", "did you mean scheduler.rollouts_per_unit?"),
        ("learner.learning_rate", "did you mean optimizer.learning_rate?"),
        ("schedular", "did you mean scheduler?"),
        ("zero.qqq", "known keys: stage, offload_optimizer, offload_parameters"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, hint: str) -> None:
    data = copy.deepcopy(MINIMAL)
    apply_override(data, f"{key}=1")
    with pytest.raises(ConfigError) as caught:
        build_config(data, "test.yaml")
    assert f"{key}: unknown key; {hint}" in str(caught.value)


@pytest.mark.parametrize(
    "override, message",
    [
        pytest.param(
            "seed", "wanted key.path=value", marks=pytest.mark.covers("override without '='")
        ),
        ("=3", "wanted key.path=value"),
        ("model.path.deep=1", "path is not a section"),
        ("seed=[1", "not valid YAML"),
        pytest.param(
            "seed=!!python/object:os.system x",
            "not valid YAML",
            marks=pytest.mark.covers("YAML python tags"),
        ),
        pytest.param(
            "scheduler.rounds=ten",
            "scheduler.rounds: got 'ten'",
            marks=pytest.mark.covers("override of the wrong type"),
        ),
        pytest.param(
            "scheduler.rounds=0",
            "scheduler.rounds: got 0",
            marks=pytest.mark.covers("negative or zero rates"),
        ),
        pytest.param(
            "optimizer.learning_rate=-1e-4",
            "optimizer.learning_rate: got -0.0001",
            marks=pytest.mark.covers("negative or zero rates"),
        ),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate: got nan"),
        pytest.param(
            "scheduler.rollouts_per_unit=0",
            "scheduler.rollouts_per_unit: got 0",
            marks=pytest.mark.covers("no rollout a group"),
        ),
        (
            "learner={baseline: posterior, advantage: rloo}",
            "posterior with advantage: rloo, which divides by what a single group shows; set "
            "advantage: batch_std or center",
        ),
        ("learner.min_advantage=0.1", "min_advantage belongs to baseline: posterior"),
        ("learner.baseline_strength=0", "learner.baseline_strength: got 0"),
        (
            "learner.entropy_target=0.3",
            "entropy_target moves a factor between positive_weight and 1, and positive_weight is "
            "1; set positive_weight below 1",
        ),
        ("learner.live_signal_per_step=0", "learner.live_signal_per_step: got 0"),
        ("learner.baseline=value", "'group' or 'posterior'"),
        ("model.dtype=float16", "'float32' or 'bfloat16'"),
        pytest.param(
            "name=../x", "name: got '../x'", marks=pytest.mark.covers("run names with / or ..")
        ),
        pytest.param(
            "name=a/b", "name: got 'a/b'", marks=pytest.mark.covers("run names with / or ..")
        ),
        pytest.param("name=a..b", "no '..'", marks=pytest.mark.covers("run names with / or ..")),
        ("rollout.top_p=0.9", "train with top_p=1.0 and top_k=0"),
        ("evaluation.pass_k=[1,4]", "pass@4 needs at least 4 samples"),
        ("zero={deepspeed: {stage: 2}}", "stage is not handed on; set zero.stage"),
        (
            "zero={deepspeed: {stage3_param_persistence_threshold: 5}}",
            "set zero.param_persistence_threshold",
        ),
        ("zero={stage: 2, hpz_partition_size: 2}", "hpz_partition_size: 2 needs stage 3"),
        pytest.param(
            "zero={stage: 2, offload_parameters: cpu}",
            "offload_parameters: cpu needs stage 3, got stage 2",
            marks=pytest.mark.covers("conflicting ZeRO options"),
        ),
        (
            "zero={stage: 0, offload_optimizer: cpu}",
            "offload_optimizer: cpu needs stage 1, 2 or 3, got stage 0",
        ),
        ("model=3", "model: got 3"),
    ],
)
def test_bad_override_says_key_value_and_remedy(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, minimal_text()), [override])
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "override, value",
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2", -2),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("a b", "a b"),
        ("", None),
    ],
)
def test_override_values_are_yaml(override: str, value: object) -> None:
    data: dict[str, Any] = {}
    apply_override(data, f"a.b={override}")
    assert data["a"]["b"] == value
    assert type(data["a"]["b"]) is type(value)


def test_override_value_may_hold_an_equals_sign() -> None:
    data: dict[str, Any] = {}
    apply_override(data, "data.source=dir/x=1.jsonl")
    assert data == {"data": {"source": "dir/x=1.jsonl"}}


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param("", "is empty", marks=pytest.mark.covers("file empty")),
        ("# nothing\n", "is empty"),
        ("- 1\n", "holds a list, wanted a mapping"),
        pytest.param(
            "a: 1\nb: 2\na: 3\n",
            "key 'a' stands twice (lines 1 and 3)",
            marks=pytest.mark.covers("YAML duplicates"),
        ),
        ("model:\n  path: a\n  path: b\n", "key 'path' stands twice (lines 2 and 3)"),
        pytest.param(
            "model:\n\tpath: a\n", "indent with spaces", marks=pytest.mark.covers("YAML tabs")
        ),
        pytest.param(
            "a: !!python/object/apply:os.system ['true']\n",
            "not valid YAML",
            marks=pytest.mark.covers("YAML python tags"),
        ),
        ("a: [1\n", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value)
    assert "run.yaml" in str(caught.value)


@pytest.mark.covers("file missing", "file is a directory")
def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(tmp_path)
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(binary)


def test_missing_sections_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "name: x\n"))
    for section in ("model", "data", "scheduler", "budget"):
        assert f"{section}: missing" in str(caught.value)


# Joined at run time: a scanner for leaked keys must not stop at this file.
@pytest.mark.covers("secret-looking literals")
@pytest.mark.parametrize(
    "secret",
    ["hf" + "_" + "a" * 30, "sk" + "-" + "b" * 30, "AKIA" + "C" * 16, "ghp" + "_" + "d" * 30],
)
@pytest.mark.parametrize(
    "place", ["model.path={}", "data.system_prompt=use {} here", "evaluation.pass_k=[{}]"]
)
def test_secrets_are_refused_and_not_repeated(secret: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, minimal_text()), [place.format(secret)])
    assert secret not in str(caught.value)
    assert "looks like a secret" in str(caught.value)


@pytest.mark.covers(
    "budget above rounds times capacity",
    "capacity above prompts times largest group",
    "sizes that do not divide",
)
def test_budget_inequalities_are_shown_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"B <= rounds K \* capacity C fails: 640 > 10 \* 8 = 80"):
        build(scheduler={"capacity_rollouts": 8})
    with pytest.raises(
        ConfigError,
        match=r"641 is not a multiple of .*per_unit = 8 \(641 = 80 \* 8 \+ 1\); .*: 640, 648, 656",
    ):
        build(budget={"total_rollouts": 641})
    with pytest.raises(ConfigError, match="capacity_rollouts: 65 is not a multiple"):
        build(scheduler={"capacity_rollouts": 65})
    check_pool(build(), 8)
    with pytest.raises(
        ValueError, match=r"C <= prompts M \* largest group fails: 64 > 7 \* 8 = 56"
    ):
        check_pool(build(), 7)


@pytest.mark.parametrize("algorithm", sorted(PRESETS))
def test_preset_fills_what_is_not_given_and_nothing_else(algorithm: str) -> None:
    learner = build(learner={"algorithm": algorithm}).learner
    assert {key: getattr(learner, key) for key in PRESETS[algorithm]} == PRESETS[algorithm]
    assert build(learner={"algorithm": algorithm, "clip_high": 0.5}).learner.clip_high == 0.5


def test_config_cannot_change_after_validation() -> None:
    with pytest.raises(ValueError, match="frozen"):
        build().budget.total_rollouts = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_fewest_updates_and_derived_sizes_agree() -> None:
    config = build(learner={"rollouts_per_step": 32, "updates_per_batch": 2})
    assert config.fewest_updates == 40
    rows = dict(derived_sizes(config, 100))
    assert rows["updates, at least"] == "640 / 32 x 2 = 40"
    assert rows["fair share"].startswith("640 / 100 prompts = 6.4 rollouts")
    assert "fair share" not in dict(derived_sizes(config, None))


BEST = ["checkpoint.keep_best=1", "evaluation.every_steps=2"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(
            [BEST[0]],
            "checkpoint.keep_best: got 1 with evaluation.every_steps = 0",
            marks=pytest.mark.covers("keep_best without evaluations"),
        ),
        pytest.param(
            [*BEST, "data.heldout_fraction=0"],
            "checkpoint.keep_best: got 1 without held-out prompts",
            marks=pytest.mark.covers("keep_best without evaluations"),
        ),
        pytest.param(
            [*BEST, "evaluation.samples_per_prompt=4", "evaluation.final_samples_per_prompt=2"],
            "final_samples_per_prompt = 2 below samples_per_prompt = 4",
            marks=pytest.mark.covers("keep_best with fewer final samples"),
        ),
        (BEST, None),
        ([*BEST, "evaluation.final_samples_per_prompt=8"], None),
    ],
)
def test_the_best_are_kept_where_they_can_be_told(
    overrides: list[str], message: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path, minimal_text())
    if message is None:
        assert load_config(path, overrides).checkpoint.keep_best == 1
        return
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert message in str(caught.value)


def test_the_parity_bound_grows_with_what_the_temperature_does_to_logits() -> None:
    assert build(rollout={"temperature": 1.0}).parity_bound == 0.2
    assert build(rollout={"temperature": 0.1}).parity_bound == pytest.approx(2.0)
    assert build(rollout={"temperature": 2.0}).parity_bound == 0.2
    assert build(rollout={"temperature": 0.1, "parity_bound": 0.3}).parity_bound == 0.3


@pytest.mark.covers("gradient type that the stage cannot sum in")
def test_gradients_are_summed_in_float32_where_zero_can() -> None:
    for stage, wanted in ((0, "bfloat16"), (1, "bfloat16"), (2, "float32"), (3, "float32")):
        assert build(zero={"stage": stage}).gradient_dtype == wanted
    assert build(zero={"gradient_dtype": "bfloat16"}).gradient_dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"zero.gradient_dtype: got 'float32' .* stage 1"):
        build(zero={"stage": 1, "gradient_dtype": "float32"})
