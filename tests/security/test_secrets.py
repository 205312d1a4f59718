"""No secret leaves: planted in the environment, in a configuration, on the command line and in what
a reward raises, found nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cero_rl import redact
from cero_rl.config.io import build_config, dump_config, load_config
from cero_rl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/digits_cpu.yaml"
# Joined at run time: a scanner for leaked keys must not stop at this file.
LOOKS = {
    "hf": "hf" + "_" + "Zq7" * 10,
    "openai": "sk" + "-" + "Pz0" * 10,
    "github": "ghp" + "_" + "Rt5" * 10,
    "aws": "AK" + "IA" + "Q7" * 8,
    "slack": "xox" + "b-" + "48151623" * 2,
    "google": "AI" + "za" + "Wx9_-" * 7,
    "private": "-----BEGIN RSA PRIV" + "ATE KEY-----",
}
PLAIN = "korrekt-pferd-batterie"  # nothing about it looks like a key
VARIABLES = {
    "HF_TOKEN": LOOKS["hf"],
    "WANDB_API_KEY": "5d" * 20,
    "OPENAI_API_KEY": LOOKS["openai"],
    "AWS_SECRET_ACCESS_KEY": "aB3+" * 10,
    "MY_DB_PASSWORD": PLAIN,
}
LEAKY = """
import os
def score(solution_str, ground_truth):
    keys = os.environ["OPENAI_API_KEY"] + " and " + os.environ["MY_DB_PASSWORD"]
    raise RuntimeError("judge refused " + keys)
"""


def train(tmp_path: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    small = [
        "scheduler.rounds=2",
        "budget.total_rollouts=64",
        "data.limit=40",
        "data.heldout_limit=4",
        "evaluation.every_steps=0",
        "evaluation.samples_per_prompt=1",
        "evaluation.final_samples_per_prompt=1",
        "evaluation.pass_k=[1]",
        "checkpoint.every_steps=1",
        f"output_dir={tmp_path / 'runs'}",
        "name=secret_run",
    ]
    line = [sys.executable, "recipes/train_cero.py", "--config", str(RECIPE)]
    for setting in [*small, *settings]:
        line += ["--set", setting]
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    env = {
        **kept,
        **VARIABLES,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)


def hits(where: Path, secrets: list[str]) -> list[str]:
    """Files below `where` whose bytes hold one of the secrets."""
    files = [path for path in where.rglob("*") if path.is_file()]
    return [
        f"{path}: {secret}"
        for path in files
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]


@pytest.mark.slow
def test_a_real_run_leaves_no_secret_of_its_environment_anywhere(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY, encoding="utf-8")
    reward = f"reward.function={tmp_path / 'leaky.py'}:score"
    done = train(tmp_path, reward, "reward.max_missing_rate=1")  # it has no other answer
    run = tmp_path / "runs/secret_run"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "judge refused *** and ***" in done.stdout, (
        "what the reward raised is told, without the keys"
    )
    for wanted in (
        "config.resolved.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "export/model.safetensors",
        "tensorboard",
    ):
        assert (run / wanted).exists(), wanted
    assert list((run / "checkpoints").glob("step_*/MANIFEST.json"))
    secrets = list(VARIABLES.values())
    assert hits(run, secrets) == []
    assert [s for s in secrets if s in done.stdout + done.stderr] == []
    (run / "planted").write_text(secrets[0], encoding="utf-8")
    assert len(hits(run, secrets)) == 1, "the search finds what is there"


@pytest.mark.covers("secret-looking literals")
@pytest.mark.parametrize(
    ("setting", "secret", "said"),
    [
        *(
            (
                f"data.system_prompt=use {look} here",
                look,
                "data.system_prompt: looks like a secret key",
            )
            for look in LOOKS.values()
        ),
        (
            "data.source=https://user:tok-en@host/x.jsonl",
            "tok-en",
            "data.source: holds a URL with a user or password",
        ),
        (
            "data.source=https://justatoken@host/x.jsonl",
            "justatoken",
            "data.source: holds a URL with a user or password",
        ),
        ("model.hf_token=abc", "abc", "model.hf_token: looks like a secret key"),
        (
            "scheduler.options={api_key: opensesame}",
            "opensesame",
            "scheduler.options.api_key: looks like a secret key",
        ),
        (
            "logging={wandb_api_key: [opensesame]}",
            "opensesame",
            "logging.wandb_api_key.0: looks like a secret key",
        ),
        (f"data.system_prompt=my {PLAIN}", PLAIN, "data.system_prompt: looks like a secret key"),
    ],
)
def test_secrets_in_a_configuration_are_refused_and_not_repeated(
    setting: str, secret: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_DB_PASSWORD", PLAIN)
    with pytest.raises(ConfigError) as caught:
        load_config(RECIPE, [setting])
    assert said in str(caught.value)
    assert secret not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", LOOKS["openai"]],
        ["--set", f"seed={LOOKS['hf']}"],
        [f"--token={LOOKS['github']}"],
        ["--config", f"https://me:{PLAIN}@host/x.yaml"],
        ["--config", "https://me:" + VARIABLES["HF_TOKEN"][3:] + "@host/x.yaml"],
        ["--set", f"data.source=s3://me:{PLAIN}@host/x.jsonl"],
        ["--set", f"data.source=nowhere/{VARIABLES['WANDB_API_KEY']}.jsonl"],
    ],
)
def test_no_error_of_the_command_repeats_a_secret(
    tmp_path: Path, arguments: list[str], debug: list[str]
) -> None:
    code = (
        "import sys; from cero_rl.commands.main import main; sys.exit(main(['validate', "
        "*sys.argv[1:]]))"
    )
    config = [] if "--config" in arguments else ["--config", str(RECIPE)]
    env = {**os.environ, **VARIABLES, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *config, *arguments, *debug],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (2, 3)
    assert "error" in done.stderr.lower()
    told = done.stdout + done.stderr
    assert [
        s for s in [*VARIABLES.values(), *LOOKS.values(), VARIABLES["HF_TOKEN"][3:]] if s in told
    ] == [], told


def test_what_is_written_down_is_masked_even_if_it_was_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "sesame-open-now")
    data = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    data["data"]["source"] = "https://user:pass-word@host/x?token=qwerty123&page=2"
    data["data"]["system_prompt"] = f"call with {LOOKS['openai']} or sesame-open-now"
    data["data"]["prompt_suffix"] = "Authorization: Bearer abcdef123456789"
    data["scheduler"]["name"], data["scheduler"]["options"] = (
        "greedy",
        {"secret": "opensesame", "tokens": "kept"},
    )
    text = dump_config(build_config(data, "test"))  # not load_config, which refuses
    for secret in (
        "pass-word",
        "qwerty123",
        "abcdef123456789",
        LOOKS["openai"],
        "sesame-open-now",
        "opensesame",
    ):
        assert secret not in text
    assert "https://***@host/x?token=***&page=2" in text
    assert "tokens: kept" in text


def test_innocent_words_are_left_alone() -> None:
    for words in (
        "runs/task-abcdefghijklmnopqrstuvwxyz0123/metrics.jsonl",
        "data.max_prompt_tokens: 24",
        "set eos_token in tokenizer_config.json",
        "https://host/path?page=2",
        "a commit 0123456789abcdef0123456789abcdef01234567",
        "git+ssh host",
        "mail me@host.org",
        "hf_model_name",
        "the basic idea of it",
        "risk-adjusted-policy-optimization-of-everything",
    ):
        assert redact.text(words) == words
    for name in (
        "max_prompt_tokens",
        "total_tokens",
        "TOKENIZERS_PARALLELISM",
        "answer_column",
        "key_file",
        "SECRETARY",
        "pass_k",
    ):
        assert not redact.names_secret(name), name
    for name in (
        "HF_TOKEN",
        "token",
        "wandb_api_key",
        "AWS_SECRET_ACCESS_KEY",
        "db.password",
        "CERO_SERVER_KEY",
        "openai-api-key",
    ):
        assert redact.names_secret(name), name
