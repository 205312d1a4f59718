"""`--set`: free text arrives as typed, everything else is YAML. Paths as people write them, numbers
that are none, merge keys, and what was meant by a key that does not exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cero_rl.config import Config
from cero_rl.config.base import kinds_of
from cero_rl.config.hints import _MEANT, _keys, sections_of
from cero_rl.config.io import dump_config, load_config
from cero_rl.config.paths import expand_path
from cero_rl.errors import ConfigError

MINIMAL = "model: {path: m}\ndata: {source: d.jsonl}\nscheduler: {rounds: 4}\n"
MINIMAL += "budget: {total_rollouts: 64}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path


TEXTS = [
    *("You are: x", "Solve #1 first", " led by a blank", "ends in one ", r"a\nb", r"\boxed{}"),
    *("12", "1e-4", "yes", "no", "true", "2026-01-01", "[a", "{x}", "- item", "&a *b !c %d @e"),
    *("'single'", '"double"', "a: b: c", "key=value", "", "\ttab", "line\nbreak", "|", ">", "é 漢"),
]


@pytest.mark.covers("free text by --set")
@pytest.mark.parametrize("text", TEXTS)
def test_free_text_arrives_as_typed(file: Path, text: str) -> None:
    config = load_config(file, [f"data.system_prompt={text}", f"data.prompt_suffix={text}"])
    assert (config.data.system_prompt, config.data.prompt_suffix) == (text, text)
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


@pytest.mark.parametrize("word", ["null", "None", "~"])
def test_a_text_that_may_be_missing_is_unset_by_name(file: Path, word: str) -> None:
    file.write_text(MINIMAL.replace("d.jsonl", "d.jsonl, system_prompt: old"), encoding="utf-8")
    assert load_config(file).data.system_prompt == "old"
    assert load_config(file, [f"data.system_prompt={word}"]).data.system_prompt is None
    with pytest.raises(ConfigError, match=r"--set data.prompt_suffix: got .* always has a text"):
        load_config(file, [f"data.prompt_suffix={word}"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.limit=null", None),
        ("data.limit=None", None),
        ("scheduler.keep_rule=None", None),
        ("data.limit=12", 12),
        ("data.enable_thinking=no", False),
        ("evaluation.pass_k=[1]", (1,)),
        ("lora.targets=[q_proj, v_proj]", ("q_proj", "v_proj")),
        ("lora.targets=all-linear", "all-linear"),
        ("zero.offload_optimizer=none", "none"),
        ("model.dtype=float32", "float32"),
        ("scheduler.pass_rate_column=12", "12"),
        ("data.split=train[:5%]", "train[:5%]"),
        ("name=1e5", "1e5"),
        ("data.limit=010", 10),  # octal in YAML 1.1
        ("data.limit=0x10", 16),
        ("data.limit=1_000", 1000),
    ],
)
def test_what_is_no_text_is_yaml(file: Path, override: str, value: Any) -> None:
    config: Any = load_config(file, [override])
    for part in override.partition("=")[0].split("."):
        config = getattr(config, part)
    assert config == value


def test_a_time_of_day_is_no_number(file: Path) -> None:
    """YAML 1.1 reads 1:30 as 90."""
    for override in ("data.limit=1:30", "optimizer.learning_rate=1:30.5"):
        with pytest.raises(ConfigError, match=r"got '1:30"):
            load_config(file, [override])


@pytest.mark.covers("text that is no Unicode")
def test_text_that_is_no_unicode_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.system_prompt: holds bytes that are no UTF-8"):
        load_config(file, ["data.system_prompt=a\udcff"])
    file.write_text(MINIMAL + 'name: "a\\ud800"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"name: holds bytes|not valid YAML"):
        load_config(file)


@pytest.mark.covers("YAML that its own library chokes on")
@pytest.mark.parametrize(
    "text",
    ["seed: " + "9" * 5000, "name: 2026-99-99", "seed: !!int x", "name: !!timestamp x", "seed: 0x"],
)
def test_values_that_yaml_cannot_construct_are_one_line(file: Path, text: str) -> None:
    file.write_text(MINIMAL + text + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 700


# Paths.
PATH_KEYS = [
    *("output_dir", "model.path", "data.source", "data.heldout_source", "reward.function"),
    *(
        "rollout.environment",
        "rollout.server.key_file",
        "rollout.server.weights_dir",
        "scheduler.warm_start",
    ),
]


@pytest.mark.covers("~ and variables in paths")
@pytest.mark.parametrize("key", PATH_KEYS)
def test_home_and_variables_are_expanded_in_every_path(
    file: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("HOME", "/home-of/me")
    monkeypatch.setenv("SCRATCH", "/big")
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("EMPTY", "")

    def read(text: str) -> str:
        value: Any = load_config(file, [f"{key}={text}"])
        for part in key.split("."):
            value = getattr(value, part)
        return value

    assert read("~/a b/c.py:f") == "/home-of/me/a b/c.py:f"
    assert read("$SCRATCH/x") == read("${SCRATCH}/x") == "/big/x"
    assert read("a~b/cost$/x") == "a~b/cost$/x"
    for wrong, said in [
        ("$NOT_SET/x", "the variable NOT_SET is not set"),
        ("$EMPTY/x", "the variable EMPTY is empty"),
        ("", "wanted a path"),
        ("${SCRATCH:-/tmp}/x", "no other form of"),
        ("~nobody_of_this_name/x", "home directory is not known"),
    ]:
        with pytest.raises(ConfigError) as caught:
            read(wrong)
        assert said in str(caught.value)
        assert f"{key}: got {wrong!r}" in str(caught.value)


def test_every_text_key_whose_name_is_of_a_path_is_one() -> None:
    def texts(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, field in model.model_fields.items():
            for inner in sections_of(field.annotation):
                yield from texts(inner, f"{prefix}{name}.")
            if str in kinds_of(field.annotation):
                yield prefix + name, field

    free = {"system_prompt", "prompt_suffix", "split", "heldout_split", "name"}
    free |= {"config_name", "heldout_config_name"}
    for key, field in texts(Config):
        last = key.rpartition(".")[2]
        if last not in free and not last.endswith("_column") and "targets" not in last:
            marked = "function expand_path" in f"{field!r} {field.annotation!r}"
            assert marked == (key in PATH_KEYS), key


def test_a_secret_behind_a_variable_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf" + "_" + "a" * 30
    monkeypatch.setenv("WORD", secret)
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["output_dir=runs/$WORD"])
    assert secret not in str(caught.value)


def test_a_home_that_python_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expand_path("~/x", {}) == str(Path("~/x").expanduser())
    assert expand_path("$A$A", {"A": "b"}) == "bb"
    assert expand_path("$A", {"A": "~"}) == "~", "only what the user wrote is a home"


# Numbers.
def numbers(model: Any, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        for inner in sections_of(field.annotation):
            yield from numbers(inner, f"{prefix}{name}.")
        if float in kinds_of(field.annotation):
            yield prefix + name


@pytest.mark.covers("numbers that are none or out of range")
def test_no_key_takes_a_number_that_is_none(file: Path) -> None:
    keys = list(numbers(Config))
    assert len(keys) > 30
    for key in keys:
        below = () if key == "reward.threshold" else ("-1",)  # any finite number
        for value in (".nan", ".inf", "-.inf", *below, "true"):
            with pytest.raises(ConfigError) as caught:
                load_config(file, [f"{key}={value}"])
            assert f"{key}: got" in str(caught.value)
    for key in ("scheduler.prior=[1, .nan]", "scheduler.prior=[.inf, 1]"):
        with pytest.raises(ConfigError):
            load_config(file, [key])


@pytest.mark.covers("numbers that are none or out of range")
@pytest.mark.parametrize(
    "override",
    [
        *("reward.success_threshold=5", "reward.success_threshold=1", "rollout.temperature=1e-30"),
        *("reward.timeout_seconds=1e300", "watchdog.stall_seconds=1e12", "data.limit=1e30"),
    ],
)
def test_numbers_out_of_range_are_refused(file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"input should be|exceeded maximum size"):
        load_config(file, [override])


@pytest.mark.covers("override of the wrong type")
def test_no_count_takes_a_truth(file: Path) -> None:
    for key in ("evaluation.samples_per_prompt", "data.limit", "seed", "scheduler.rounds"):
        with pytest.raises(ConfigError, match=f"{key}: got true; wanted a number"):
            load_config(file, [f"{key}=yes"])
    with pytest.raises(ConfigError):
        load_config(file, ["zero.stage=true"])
    options = ["scheduler.name=thompson", "scheduler.options.first_rollouts=.nan"]
    with pytest.raises(ConfigError, match=r"first_rollouts: got nan; wanted a finite number"):
        load_config(file, options)


# Merge keys.
def test_merge_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "merge.yaml"
    path.write_text(
        "x-model: &model {path: a, dtype: bfloat16}\n"
        ".small: &small {<<: *model, dtype: float32}\n"
        "model: {<<: *small, path: b}\n"
        "data: &data {source: d.jsonl}\n"
        "scheduler: {rounds: 4}\nbudget: {total_rollouts: 64}\n"
        "x-two: [&x {tensorboard: false, wandb: false}, &y {wandb: true}]\n"
        "logging: {<<: [*y, *x]}\n",
        encoding="utf-8",
    )
    config = load_config(path)
    assert (config.model.path, config.model.dtype) == ("b", "float32")
    assert (config.logging.tensorboard, config.logging.wandb) == (False, True)


@pytest.mark.covers("YAML duplicates")
def test_merging_hides_no_key_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "merge.yaml"
    for text, said in [
        ("a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n  x: 3\n", r"key 'x' stands twice \(lines 4 and 5\)"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", r"key '<<' stands twice"),
        ("b: {<<: 3}\n", "not valid YAML: expected a mapping"),
        (
            "a0: &a0 {k: 1}\n"
            + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
            "more than 10000 values merged",
        ),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            load_config(path)


# Hints.
@pytest.mark.covers("unknown key or flag")
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("optimizer.lr", "did you mean optimizer.learning_rate?"),
        ("lr", "did you mean optimizer.learning_rate?"),
        ("rollout.stop", "there is none: a response ends at the model's end-of-sequence tokens"),
        ("rollout.max_new_tokens", "did you mean rollout.max_response_tokens?"),
        ("learner.batch_size", "did you mean learner.rollouts_per_step?"),
        ("scheduler.key_file", "did you mean rollout.server.key_file?"),
        ("data.systemprompt", "did you mean data.system_prompt?"),
        ("data.system_promt", "did you mean data.system_prompt?"),
        ("optimizer.dtype", "did you mean model.dtype?"),
        ("rollout.temp", "did you mean rollout.temperature?"),
        ("zero.qqq", "known keys: stage"),
    ],
)
def test_the_hint_names_what_was_meant(file: Path, key: str, said: str) -> None:
    for value in ("1", "You are: x"):  # whatever its value, the name is what is wrong
        with pytest.raises(ConfigError) as caught:
            load_config(file, [f"{key}={value}"])
        assert f"{key}: unknown key; {said}" in str(caught.value)


def test_hints_name_keys_that_exist() -> None:
    keys = {key for _, key in _keys(Config)}
    assert {meant for meant in _MEANT.values() if " " not in meant} <= keys
