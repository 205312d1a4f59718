"""Model FLOPs and the peaks they are measured against."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cero_rl.config import load_config
from cero_rl.learner.update import UpdateResult
from cero_rl.metrics.throughput import Arithmetic, learner_flops, peak_flops, rates
from cero_rl.models.shapes import find_config, shape_of

ROOT = Path(__file__).resolve().parents[2]


def test_flops_of_a_published_model_by_hand() -> None:
    config = load_config(ROOT / "recipes/qwen3_8b.yaml", [])
    shape = shape_of(find_config("Qwen/Qwen3-8B")[0], config)
    without_embedding = 8_190_735_360 - 151_936 * 4096
    by_pair = 12 * 36 * 32 * 128  # layers, heads, width of a head
    assert learner_flops(shape, 1000, 1000**2) == 6 * without_embedding * 1000 + by_pair * 1000**2
    adapted = load_config(ROOT / "recipes/qwen3_8b.yaml", ["lora.rank=8"])
    frozen = shape_of(find_config("Qwen/Qwen3-8B")[0], adapted)
    assert learner_flops(frozen, 1, 0) == 4 * without_embedding
    update = UpdateResult(True, 0, 0.0, 0.0, {}, tokens=1e6, squares=0.0)
    share = Arithmetic(shape, peak=989e12).used(update, seconds=10.0, ranks=8)
    assert share == pytest.approx(6 * without_embedding * 1e6 / (10 * 8 * 989e12))


@pytest.mark.parametrize(
    ("device", "dtype", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H20", "bfloat16", 148e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA H100 80GB HBM3", "float32", None),
        ("some other device", "bfloat16", None),
    ],
)
def test_peaks_by_name(device: str, dtype: str, wanted: float | None) -> None:
    assert peak_flops(device, dtype) == wanted


def test_a_cpu_has_none_and_a_phase_without_time_no_rate() -> None:
    config = load_config(ROOT / "recipes/qwen3_8b.yaml", [])
    assert Arithmetic.of(config, torch.device("cpu")) is None
    told = rates(100.0, 50.0, {"rollout": 2.0, "learner": 0.0})
    assert told == {"perf/rollout_tokens_per_second": 50.0}
