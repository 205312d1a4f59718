"""The map of where CERO+ pays: a row by its own sums, the picture, and what runs of the study
spent."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import make_map


def test_pools_are_as_dead_as_they_say() -> None:
    rates, known = make_map.simulated_pool(0.5, True, 0)
    far = np.minimum(rates, 1 - rates)
    assert (far[:200] < 0.1).mean() > 0.95  # N(+-6, 1.5): half of the pool, and few of them near
    assert (rates[:200] > 0.5).sum() == 100
    assert (far[200:] > 0.02).mean() > 0.95
    assert known.cells is not None
    assert np.bincount(known.cells).tolist() == [20] * 20
    between = [rates[known.cells == cell].mean() for cell in range(20)]
    assert between[-1] - between[0] > 0.5  # cells tell something
    assert make_map.simulated_pool(0.5, False, 0)[1].cells is None


def test_a_row_and_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_map, "SEEDS", 2)
    monkeypatch.setattr(make_map, "PROMPTS", 100)
    row = make_map.map_row(0.85, 5, 0.0, False)
    rates = [make_map.simulated_pool(0.85, False, seed)[0] for seed in range(2)]
    # 5 rollouts a prompt in whole rounds of the order: uniform's signal is the pool's
    signal = float(np.mean([(p * (1 - p)).mean() for p in rates]))
    assert row["signal_uniform"] == pytest.approx(signal, abs=1e-4)
    assert row["gain"] == pytest.approx(row["signal_cero_plus"] / signal, rel=0.05)
    assert row["gain_95"][0] < row["gain"] < row["gain_95"][1]
    assert row["first_looks"] == pytest.approx(0.2, abs=0.02)  # one of five
    rows = [
        row | {"dead": dead, "rollouts_per_prompt": budget, "drift": drift, "cells": 20 * cells}
        for drift, cells in make_map.PANELS
        for dead in make_map.DEAD
        for budget in make_map.BUDGETS
    ]
    make_map.draw(rows, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


def test_what_runs_spent(tmp_path: Path) -> None:
    def line(arm: str, seed: int, budget: int, end: float) -> str:
        spending = {"learnable": 0.7 + 0.1 * seed, "luck": 0.3 - 0.1 * seed}
        row = {"pool": "frontier_50", "arm": arm, "seed": seed, "budget": budget}
        return json.dumps({**row, "accuracy": [0.3, end], "spending": spending}) + "\n"

    study = tmp_path / "study.jsonl"
    with study.open("w") as out:
        for seed in range(3):
            for arm, ends in (("critic", (0.36, 0.4)), ("cero_plus", (0.4, 0.44))):
                for budget, end in zip((100, 200), ends):
                    out.write(line(arm, seed, budget, end + 0.01 * seed))
    found = make_map.measured(study, 200)
    assert found is not None
    assert found["seeds"] == 3
    assert found["spending"] == {"learnable": 0.8, "luck": 0.2}
    assert found["accuracy"] == [0.3, 0.45]
    assert found["speed_up_over_critic"].startswith("2.00 (")
    assert make_map.measured(study, 400) is None
    simulated = {"budget": 200, "drift": 1.0, "luck_moves": True, "gain": 2.0}
    simulated |= {"spending": {"learnable": 0.9, "luck": 0.1}, "rate_heldout_like": [0.3, 0.4]}
    (row,) = make_map.compare([simulated], study)
    assert row["measured"] == found
    assert row["apart"] == pytest.approx(0.1)
