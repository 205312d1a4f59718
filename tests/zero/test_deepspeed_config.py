"""What DeepSpeed is told, on a CPU and on a GPU, and what is refused before it hears of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cero_rl.config import Config, load_config
from cero_rl.errors import ConfigError
from cero_rl.zero.deepspeed_config import policy_config, reference_config, refuse_unfit_zero

RECIPE = Path(__file__).resolve().parents[2] / "recipes/digits_cpu.yaml"


def config_of(*settings: str) -> Config:
    return load_config(RECIPE, list(settings))


def zero_of(*settings: str, on_gpu: bool) -> dict[str, Any]:
    config = config_of(*settings)
    policy = policy_config(config, 4, on_gpu=on_gpu)["zero_optimization"]
    reference = reference_config(config, 4, on_gpu=on_gpu)["zero_optimization"]
    assert {k: v for k, v in policy.items() if k != "offload_optimizer"} == reference
    return policy


def test_communication_is_hidden_on_a_gpu_and_plain_on_a_cpu():
    small = "stage3_param_persistence_threshold"
    assert zero_of(on_gpu=False) == {"stage": 3, "overlap_comm": False, small: 0}
    assert zero_of(on_gpu=True) == {"stage": 3, "overlap_comm": True, small: 100_000}
    given = ["zero.overlap_comm=false", "zero.param_persistence_threshold=7"]
    given.append("zero.hpz_partition_size=2")
    assert zero_of(*given, on_gpu=True) == {
        "stage": 3,
        "overlap_comm": False,
        small: 7,
        "zero_hpz_partition_size": 2,
    }
    assert zero_of("zero.stage=2", on_gpu=True) == {"stage": 2, "overlap_comm": True}


def test_the_reference_may_live_elsewhere_than_the_policy():
    on_host = {"device": "cpu"}
    for parameters, reference, wanted in (
        ("none", "auto", (None, None)),
        ("cpu", "auto", (on_host, on_host)),
        ("none", "cpu", (None, on_host)),
        ("cpu", "none", (on_host, None)),
    ):
        given = (f"zero.offload_parameters={parameters}", f"zero.offload_reference={reference}")
        sections = (
            make(config_of(*given), 4, on_gpu=True)["zero_optimization"]
            for make in (policy_config, reference_config)
        )
        assert tuple(section.get("offload_param") for section in sections) == wanted


def test_further_keys_are_handed_on():
    section = zero_of("zero.deepspeed={reduce_bucket_size: 1000}", on_gpu=False)
    assert section["reduce_bucket_size"] == 1000


@pytest.mark.parametrize(
    ("on_gpu", "settings", "fused"),
    [(True, [], True), (False, [], None), (True, ["zero.offload_optimizer=cpu"], None)],
)
def test_the_optimizer_is_fused_where_it_steps_on_a_gpu(on_gpu, settings, fused):
    optimizer = policy_config(config_of(*settings), 4, on_gpu=on_gpu)["optimizer"]["params"]
    assert optimizer.get("fused") is fused


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("zero.deepspeed={reduce_bucket: 5}", "zero.deepspeed: reduce_bucket: got 5; "),
        ("zero.deepspeed={reduce_bucket_size: many}", "reduce_bucket_size: got 'many'; "),
        ("zero.hpz_partition_size=3", "zero.hpz_partition_size: 3 does not divide the 4 ranks"),
        ("zero.sequence_parallel=3", "zero.sequence_parallel: 3 does not divide the 4 ranks"),
    ],
)
def test_what_deepspeed_would_refuse_later_is_one_line_before(setting, words):
    with pytest.raises(ConfigError) as caught:
        refuse_unfit_zero(config_of(setting), 4)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_fits_passes():
    refuse_unfit_zero(config_of("zero.deepspeed={reduce_bucket_size: 1e6}"), 4)
    refuse_unfit_zero(config_of("zero.hpz_partition_size=2", "zero.sequence_parallel=4"), 4)
