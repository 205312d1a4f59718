"""The real engine: ragged groups, seeds, stops, truncation, log-probabilities; alone, on two
ranks, and sharded over two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_driver import SIZES
from ranks import drive

pytestmark = pytest.mark.slow


def tokens(groups: list[Any]) -> list[list[list[int]]]:
    return [[completion[0] for completion in completions] for _, completions in groups]


def test_groups_come_back_in_order_and_of_the_sizes_asked(answers: list[dict[str, Any]]) -> None:
    assert [g[0] for g in answers[0]["whole"]] == [10, 11, 12, 13]
    assert tuple(len(g[1]) for g in answers[0]["whole"]) == SIZES
    flat = [str(t) for g in tokens(answers[0]["whole"]) for t in g]
    assert len(set(flat)) > len(flat) // 2  # draws of a group differ


def test_a_completion_depends_on_its_draw_and_not_on_batch_rank_or_history(
    answers: list[dict[str, Any]],
) -> None:
    first, second = answers
    for name in ("again", "alone"):
        assert first[name] == first["whole"], name
    assert second["whole"] == first["whole"]
    assert first["after_sleep"] == first["whole"][:1]
    assert tokens(first["other_stream"]) != tokens(first["whole"])


def test_a_later_wave_goes_on_with_the_draws(answers: list[dict[str, Any]]) -> None:
    five, later = tokens(answers[0]["whole"])[1], tokens(answers[0]["later_wave"])[1]
    assert later == five[3:5]
    assert tokens(answers[0]["later_wave"])[0] != tokens(answers[0]["whole"])[0]


def test_stop_and_truncation_are_recorded(answers: list[dict[str, Any]]) -> None:
    seen = set()
    for name, limit in (("whole", 24), ("cut", 2)):
        for _, completions in answers[0][name]:
            for ids, reason, text, version in completions:
                seen.add(reason)
                assert version == 0
                assert 1 <= len(ids) <= limit
                # 1 is the end token, and part of the response
                assert (ids[-1] == 1) == (reason == "stop")
                assert 1 not in ids[:-1]
                assert reason == "stop" or len(ids) == limit
                assert "<eos>" not in text
    assert seen == {"stop", "length"}
    for short, full in zip(tokens(answers[0]["cut"]), tokens(answers[0]["whole"])):
        assert short == [ids[:2] for ids in full]


def test_log_probs_are_the_learners_at_every_temperature(answers: list[dict[str, Any]]) -> None:
    assert max(answers[0]["gaps"]) < 1e-4
    assert answers[0]["wrong_temperature_gap"] > 0.05  # the test can tell temperatures apart


def test_episodes_go_on_for_several_turns(answers: list[dict[str, Any]]) -> None:
    """Their log-probabilities are among the gaps above."""
    assert len(answers[0]["gaps"]) == 3
    assert {1, 2, 3} <= set(answers[0]["turns"])


def test_a_rank_may_have_nothing_to_sample(answers: list[dict[str, Any]]) -> None:
    assert answers[0]["nothing"] == []
    assert answers[1]["nothing"] == answers[0]["whole"][:1]


def test_an_engine_sharded_over_two_ranks_gives_each_rank_its_own(
    tmp_path: Path, model: Path, answers: list[dict[str, Any]]
) -> None:
    before = set(Path("/dev/shm").iterdir())
    drive("engine_driver.py", str(tmp_path), str(model), "2", world=2)
    # nothing is left behind
    assert not [path for path in set(Path("/dev/shm").iterdir()) - before if "cpushm" in path.name]
    sharded = [json.loads((tmp_path / f"rank{rank}-tp2.json").read_text()) for rank in range(2)]
    for mine, alone in zip(sharded, answers):
        assert mine["whole"] == alone["whole"]
        assert mine["nothing"] == alone["nothing"]
        assert max(mine["gaps"]) < 1e-4


def test_later_draws_have_seeds_of_their_own() -> None:
    from cero_rl.rollout.engines.vllm_draws import draw_seed

    seeds = {
        draw_seed(1, stream, key, 0) + draw
        for stream in range(20)
        for key in range(50)
        for draw in range(8)
    }
    assert len(seeds) == 20 * 50 * 8
    assert draw_seed(1, 2, 3, 4) == draw_seed(1, 2, 3, 0) + 4
    assert draw_seed(1, 2, 2**64 - 1, 0) < 2**62
    assert np.iinfo(np.int64).max > draw_seed(2**31, 2**41, 2**64 - 1, 10**6)
