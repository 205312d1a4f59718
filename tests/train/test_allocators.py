"""Allocators with waves, keep rules and CERO's options in the real loop: one budget, whole groups,
the same on any number of ranks."""

from pathlib import Path

import pytest
from launch import launch, lines

pytestmark = pytest.mark.slow
WAVES = [
    "scheduler.name=vigor",
    "scheduler.rollouts_per_unit=2",
    "scheduler.max_units_per_prompt=16",
    "scheduler.rounds=3",
    "budget.total_rollouts=288",
    "scheduler.capacity_rollouts=192",
    "scheduler.keep_rule=pods",
    "learner.algorithm=dapo",
]
STREAM = [
    "scheduler.refit_prior_every=1",
    "scheduler.cap_shares=4",
    "scheduler.token_costs=true",
    "budget.total_tokens=100000",
    "scheduler.value=graded",
    "scheduler.streaming=true",
    "scheduler.rounds=2",
    "budget.total_rollouts=384",
    "learner.rollouts_per_step=64",
    "scheduler.forgetting=0.9",
]
CRITIC = [
    "learner.baseline=posterior",
    "learner.min_advantage=0.02",
    "scheduler.rollouts_per_unit=1",
    "scheduler.max_units_per_prompt=4",
    "scheduler.proximal=0.5",
    "scheduler.refit_prior_every=2",
    "scheduler.cell_columns=[family]",
    "scheduler.cell_length_bins=3",
]
SIGNAL = [
    *CRITIC,
    "scheduler.rounds=2",
    "budget.total_rollouts=384",
    "learner.live_signal_per_step=8",
    "learner.rollouts_per_step=96",
    "scheduler.streaming=true",
    "rollout.overlap=true",
    "learner.entropy_target=5.0",  # more than there is
    "learner.positive_weight=0.3",
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("waves", WAVES),
        ("streaming", STREAM),
        ("signal", SIGNAL),
    ],
)
def test_two_ranks_do_what_one_does_and_a_cut_run_goes_on(
    tmp_path: Path, name: str, settings: list[str]
):
    for run, ranks, flags in (
        ("two", 2, ()),
        ("one", 1, ()),
        ("cut", 2, ("--stop-at-step", "1")),
        ("cut", 2, ("--resume", "auto")),
    ):
        done = launch(tmp_path, run, *flags, ranks=ranks, settings=settings)
        assert done.returncode == 0, done.stdout + done.stderr
    evidence = [lines(tmp_path / run / "evidence.jsonl") for run in ("two", "one", "cut")]
    assert evidence[0] == evidence[1] == evidence[2]
    *steps, last = lines(tmp_path / "two/metrics.jsonl")
    spent = sum(sum(e["generated"]) for e in evidence[0])
    assert spent == last["budget/spent_rollouts"] <= last["budget/total_rollouts"]
    assert (tmp_path / "two/posterior.parquet").exists()
    assert (tmp_path / "two/export/model.safetensors").read_bytes() == (
        tmp_path / "cut/export/model.safetensors"
    ).read_bytes()
    if name == "waves":
        assert max(m["cero/waves"] for m in steps[1:]) > 1
        assert max(m["cero/rollouts_max"] for m in steps[1:]) > 2, (
            "a prompt of a later wave was given more rollouts"
        )
        assert all(n == t for e in evidence[0] for n, t in zip(e["generated"], e["trials"]))
    else:
        assert last["budget/spent_rollouts"] == last["budget/total_rollouts"]
    if name == "signal":
        assert min(n for e in evidence[0] for n in e["generated"]) == 1, "groups of one train too"
        assert all(m["baseline/strength"] > 0 for m in steps[1:])
        sizes = [sum(e["generated"]) for e in evidence[0]]
        assert len(sizes) > 4, "rounds are cut"
        assert len(set(sizes)) > 1, "by signal, not by rollouts"
        assert max(sizes) <= 96
        assert all(m["signal/found"] > 0 for m in steps[1:])
        weights = [m["coverage/positive_weight"] for m in steps[1:]]
        assert weights[0] == 1.0
        assert weights == sorted(weights, reverse=True)
        assert 0.3 <= weights[-1] < 1.0
        one = lines(tmp_path / "one/metrics.jsonl")[1:-1]
        for ours, theirs in zip(steps[1:], one, strict=True):
            assert ours["baseline/strength"] == theirs["baseline/strength"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-5)
    if name == "streaming":
        assert steps[-1]["budget/remaining_tokens"] < 100000
        assert [m["round"] for m in steps[1:]] == [0, 0, 0, 1, 1, 1]
        prices = [m["cero/slope_mean"] for m in steps[1:4]]
        assert len(set(prices)) == 3, "the duals moved inside the round"
