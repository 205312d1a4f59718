"""What a wave brought, in exact integers: missing and graded rewards, waves added, the evidence."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from step_cases import made_group

from cero_rl.distributed.group import Group
from cero_rl.rollout.counts import FIXED_POINT, GroupCounts
from cero_rl.types import Completion, Episode, RolloutGroup

nan = float("nan")


def rewards_of(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def counted(values: np.ndarray, so_far: np.ndarray | None = None) -> GroupCounts:
    """The counts of one group of one-token completions."""
    counts = GroupCounts.zeros(1)
    so_far = values if so_far is None else so_far
    counts.count(0, made_group(0, [1] * len(values)), values, so_far)
    return counts


def as_lists(counts: GroupCounts) -> dict[str, list[int]]:
    return {field.name: getattr(counts, field.name).tolist() for field in fields(counts)}


def test_a_group_is_counted_and_a_missing_reward_is_no_trial():
    counts = GroupCounts.zeros(3)
    rewards = rewards_of(1, 0, nan, 0.75)
    counts.count(1, made_group(7, [3, 2, 5, 1], cut=[2, 3]), rewards, rewards)
    assert as_lists(counts) == {
        "generated": [0, 4, 0],
        "trials": [0, 3, 0],
        "successes": [0, FIXED_POINT + FIXED_POINT * 3 // 4, 0],
        "squares": [0, FIXED_POINT + FIXED_POINT * 9 // 16, 0],
        "response_tokens": [0, 11, 0],
        "environment_tokens": [0, 0, 0],
        "turns": [0, 4, 0],
        "truncated": [0, 2, 0],
        "censored": [0, 0, 0],
        "live": [0, 1, 0],
    }


def test_turns_and_what_the_environment_said_are_counted():
    mask = np.array([True, True, False, False, True])
    done = Episode(reward=1.0, turns=2, last_reply="", stop="done")
    long = Completion(
        np.arange(5), np.zeros(5, np.float32), "", "stop", 0, sampled=mask, episode=done
    )
    broken = Completion(
        np.arange(0), np.zeros(0, np.float32), "", "stop", 0, episode=replace(done, turns=0)
    )
    counts = GroupCounts.zeros(1)
    rewards = rewards_of(1, nan)
    counts.count(0, RolloutGroup(0, np.arange(3), (long, broken)), rewards, rewards)
    told = as_lists(counts)
    assert (told["generated"], told["trials"], told["turns"]) == ([2], [1], [2])
    assert (told["response_tokens"], told["environment_tokens"]) == ([5], [2])


def test_a_group_without_any_reward_is_generated_and_no_more():
    counts = counted(rewards_of(nan, nan))
    assert counts.generated.tolist() == [2]
    assert counts.trials.tolist() == counts.live.tolist() == [0]
    assert counts.successes.tolist() == counts.squares.tolist() == [0]


def test_a_group_that_came_back_empty_counts_nothing():
    assert as_lists(counted(rewards_of())) == as_lists(GroupCounts.zeros(1))


def test_a_group_of_equal_rewards_is_dead():
    assert counted(rewards_of(0.25, 0.25, nan)).live.tolist() == [0]
    assert counted(rewards_of(1)).live.tolist() == [0]
    assert counted(rewards_of(0.25, nan, 0.75)).live.tolist() == [1]


@given(st.lists(st.integers(0, FIXED_POINT), min_size=1, max_size=20))
def test_graded_rewards_are_summed_exactly(parts: list[int]):
    counts = counted(np.array([part / FIXED_POINT for part in parts], dtype=np.float32))
    assert counts.successes.tolist() == [sum(parts)]
    assert counts.squares.tolist() == [sum(part**2 // FIXED_POINT for part in parts)]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_squares_are_never_above_successes(values: list[float]):
    counts = counted(rewards_of(*values))
    assert 0 <= counts.squares[0] <= counts.successes[0] <= len(values) * FIXED_POINT
    evidence = counts.evidence(np.array([0]), np.array([len(values)]))
    assert evidence.squares is not None
    assert evidence.squares[0] <= evidence.successes[0] <= evidence.trials[0]


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20), st.randoms())
def test_the_order_of_rollouts_changes_nothing(values: list[float], chance):
    shuffled = chance.sample(values, len(values))
    assert as_lists(counted(rewards_of(*values))) == as_lists(counted(rewards_of(*shuffled)))


def test_a_second_wave_is_added_and_its_word_on_life_stands():
    first = GroupCounts.zeros(3)
    seen = [rewards_of(1, 1), rewards_of(0, 1), rewards_of(0, 1)]
    for j, rewards in enumerate(seen):
        first.count(j, made_group(j, [2, 2]), rewards, rewards)
    total = GroupCounts.zeros(3)
    total.add(np.arange(3), first)
    assert total.live.tolist() == [0, 1, 1]
    second = GroupCounts.zeros(2)
    for j, (group, rewards) in enumerate([(1, rewards_of(nan)), (0, rewards_of(0))]):
        so_far = np.concatenate((seen[group], rewards))
        second.count(j, made_group(group, [3]), rewards, so_far)
    assert second.live.tolist() == [1, 1]  # together with the first wave, not on its own
    total.add(np.array([1, 0]), second)
    assert as_lists(total) == {
        "generated": [3, 3, 2],
        "trials": [3, 2, 2],
        "successes": [2 * FIXED_POINT, FIXED_POINT, FIXED_POINT],
        "squares": [2 * FIXED_POINT, FIXED_POINT, FIXED_POINT],
        "response_tokens": [7, 7, 4],
        "environment_tokens": [0, 0, 0],
        "turns": [3, 3, 2],
        "truncated": [0, 0, 0],
        "censored": [0, 0, 0],
        "live": [1, 1, 1],
    }
    assert as_lists(first)["generated"] == [2, 2, 2], "a wave is not changed by being added"


def test_grown_has_room_for_new_groups_and_keeps_the_old():
    one = counted(rewards_of(1, 0))
    more = one.grown(2)
    assert as_lists(more) == {name: [*value, 0, 0] for name, value in as_lists(one).items()}
    more.add(np.array([2]), one)
    assert more.trials.tolist() == [2, 0, 2]
    assert one.trials.tolist() == [2]
    assert as_lists(one.grown(0)) == as_lists(one)


def test_a_sum_over_one_rank_is_a_copy():
    one = counted(rewards_of(1, 0.25))
    total = one.summed(Group.alone())
    assert as_lists(total) == as_lists(one)
    total.trials[0] = 9
    assert one.trials.tolist() == [2]


def test_evidence_names_what_failed_and_what_it_cost():
    counts = GroupCounts.zeros(2)
    whole = rewards_of(1, 0.5, nan)
    counts.count(0, made_group(5, [1, 2, 3]), whole, whole)
    short = rewards_of(0)
    counts.count(1, made_group(2, [4]), short, short)
    evidence = counts.evidence(np.array([5, 2]), np.array([3, 4]))
    assert evidence.prompt_ids.tolist() == [5, 2]
    assert evidence.successes.tolist() == [1.5, 0.0]
    assert evidence.trials.tolist() == [2, 1]
    assert evidence.squares is not None
    assert evidence.squares.tolist() == [1.25, 0.0]
    assert evidence.failed_rollouts == 3, "asked for and never generated; a missing reward is not"
    assert evidence.response_tokens == 10
