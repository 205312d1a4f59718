"""The contract of the ragged group advantage, rule by rule, against the float64 reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cero_rl.ops import group_advantage, group_advantage_tokens, reference, token_advantage

NORMS = ["center", "std", "rloo", "maxrl"]
SIZES = [0, 1, 2, 31, 32, 33, 512, 513, 1024, 1025]


def offsets_of(sizes, dtype=torch.int32):
    return torch.tensor(np.cumsum([0, *sizes]), dtype=dtype)


def ulp_distance(got: torch.Tensor, wanted: torch.Tensor) -> int:
    """Largest distance in float32 steps; NaN equals NaN."""
    wanted = wanted.float()
    assert torch.equal(got.isnan(), wanted.isnan())
    fine = ~got.isnan()
    # Map the bits onto a line on which neighbouring floats differ by 1.
    a, b = (x[fine].contiguous().view(torch.int32).long() for x in (got, wanted))
    a, b = (torch.where(x < 0, -(x & 0x7FFFFFFF), x) for x in (a, b))
    return int((a - b).abs().max()) if a.numel() else 0


@st.composite
def ragged(draw):
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=0, max_size=5))
    total = sum(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["binary", "ties", "normal", "offset3", "offset6"]))
    values = {
        "binary": lambda: rng.integers(0, 2, total),
        "ties": lambda: rng.choice([0.1, 0.2, 0.3, 1 / 3, 0.9], total),
        "normal": lambda: rng.normal(size=total),
        "offset3": lambda: 1e3 + rng.normal(0, 0.1, total),
        "offset6": lambda: 1e6 + rng.normal(0, 10.0, total),
    }[kind]()
    rewards = torch.tensor(np.asarray(values), dtype=torch.float32)
    if total and draw(st.booleans()):
        rewards[int(rng.integers(total))] = torch.nan
    return rewards, offsets_of(sizes, draw(st.sampled_from([torch.int32, torch.int64])))


@settings(max_examples=150, deadline=None)
@given(ragged(), st.sampled_from(NORMS), st.sampled_from([0, 1]))
def test_within_one_ulp_of_the_reference(case, norm, ddof):
    rewards, offsets = case
    got = group_advantage(rewards, offsets, norm=norm, ddof=ddof)
    adv, mean, std, wins, live = reference.group_advantage(rewards, offsets, norm=norm, ddof=ddof)
    assert torch.equal(got.wins, wins)
    assert torch.equal(got.live, live)
    assert ulp_distance(got.mean, mean) <= 1
    assert ulp_distance(got.std, std) <= 1
    # r - mean cancels where a reward is within rounding of its mean: there the last bits of the
    # float64 mean are compared.
    counts = offsets[1:].long() - offsets[:-1].long()
    size, center, spread = (
        torch.repeat_interleave(x.double(), counts) for x in (counts, mean, std)
    )
    factor = {
        "center": size * 0 + 1,
        "rloo": size / (size - 1),
        "std": 1 / (spread + 1e-6),
        "maxrl": 1 / center.abs(),
    }[norm]
    cancelled = (got.adv.double() - adv).abs() <= 2**-50 * (
        rewards.double().abs() + center.abs()
    ) * factor.abs()
    assert ulp_distance(got.adv[~cancelled], adv[~cancelled]) <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_empty_and_single_groups_are_dead(norm):
    out = group_advantage(torch.tensor([0.7]), offsets_of([0, 1, 0]), norm=norm)
    assert out.adv.tolist() == [0.0]
    assert out.mean.tolist() == pytest.approx([0.0, 0.7, 0.0])
    assert out.std.tolist() == [0.0, 0.0, 0.0]
    assert out.wins.tolist() == [0, 1, 0]
    assert out.live.tolist() == [False, False, False]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [2, 3, 7, 33, 64])
@pytest.mark.parametrize("reward", [0.1, 0.2, 0.3, 0.7, 0.9, 1 / 3, 1.1])
def test_equal_rewards_give_exactly_zero(norm, size, reward):
    out = group_advantage(torch.full((size,), reward), offsets_of([size]), norm=norm, eps=1e-9)
    assert torch.equal(out.adv, torch.zeros(size))
    assert not out.live.any()


def test_nan_stays_in_its_group():
    out = group_advantage(torch.tensor([0.0, 1.0, torch.nan, 1.0, 1.0, 0.0]), offsets_of([2, 2, 2]))
    assert out.adv.isnan().tolist() == [False, False, True, True, False, False]
    assert out.live.tolist() == [True, False, True]


def test_known_values():
    rewards, offsets = torch.tensor([1.0, 0.0, 0.0, 0.0]), offsets_of([4])
    assert group_advantage(rewards, offsets, norm="center").adv.tolist() == [
        0.75,
        -0.25,
        -0.25,
        -0.25,
    ]
    assert group_advantage(rewards, offsets, norm="rloo").adv.tolist() == pytest.approx(
        [1.0, -1 / 3, -1 / 3, -1 / 3]
    )
    assert group_advantage(rewards, offsets, norm="maxrl").adv.tolist() == [3.0, -1.0, -1.0, -1.0]
    assert group_advantage(rewards, offsets, norm="std", eps=0.0).adv.tolist() == pytest.approx(
        [1.5, -0.5, -0.5, -0.5]
    )
    weighted = group_advantage(rewards, offsets, norm="center", group_weight=torch.tensor([2.0]))
    assert weighted.adv.tolist() == [1.5, -0.5, -0.5, -0.5]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_success_is_strictly_above_the_threshold(threshold):
    # 0.1 as float32 is above 0.1 as float64: the comparison is one of float32, like every
    # comparison of torch with a number.
    out = group_advantage(
        torch.tensor([threshold, threshold + 0.01, 1.0]),
        offsets_of([3]),
        success_threshold=threshold,
    )
    assert out.wins.tolist() == [2]


def test_ragged_std_carries_a_weight_by_size_and_rloo_and_ddof_0_do_not():
    for size in (2, 4, 16):
        rewards, offsets = torch.tensor([1.0, 0.0] * (size // 2)), offsets_of([size])
        root_mean_square = {
            ddof: float(
                group_advantage(rewards, offsets, norm="std", eps=0.0, ddof=ddof)
                .adv.square()
                .mean()
                .sqrt()
            )
            for ddof in (0, 1)
        }
        assert root_mean_square[0] == pytest.approx(1.0)
        assert root_mean_square[1] == pytest.approx(((size - 1) / size) ** 0.5)


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    rewards = torch.tensor([0.3, 1.0, 0.0, 0.45, 0.9])
    wanted = [float(rewards[i] - rewards[torch.arange(5) != i].mean()) for i in range(5)]
    assert group_advantage(rewards, offsets_of([5])).adv.tolist() == pytest.approx(wanted)


def test_zeros_have_one_sign():
    out = group_advantage(torch.full((3,), -0.0), offsets_of([1, 2]))
    for values in (out.adv, out.mean, out.std):
        assert not values.signbit().any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_tokens_equal_the_reference_under_permuted_packing(lengths, seed):
    rng = np.random.default_rng(seed)
    rollouts = len(lengths)
    rewards = torch.tensor(rng.integers(0, 2, rollouts), dtype=torch.float32)
    cut = int(rng.integers(0, rollouts + 1))
    offsets = offsets_of([cut, rollouts - cut])
    order = rng.permutation(rollouts)[: int(rng.integers(0, rollouts + 1))]
    cu = offsets_of([lengths[i] for i in order])
    # 3 tokens belong to no sequence
    mask = torch.tensor(rng.integers(0, 2, int(cu[-1]) + 3), dtype=torch.bool)
    out = group_advantage_tokens(
        rewards, offsets, cu, mask, seq_rollout=torch.tensor(order, dtype=torch.int32)
    )
    wanted = reference.token_advantage(out.adv, cu, mask, torch.tensor(order))
    assert torch.equal(out.token_adv, wanted)
    groups = group_advantage(rewards, offsets)  # the one call is the two calls
    for name in groups._fields:
        assert torch.equal(getattr(out, name), getattr(groups, name)), name
    assert torch.equal(
        out.token_adv,
        token_advantage(groups.adv, cu, mask, seq_rollout=torch.tensor(order, dtype=torch.int32)),
    )


def test_nothing_in_nothing_out():
    empty = torch.zeros(0)
    out = group_advantage_tokens(
        empty, offsets_of([]), offsets_of([]), torch.zeros(3, dtype=torch.bool)
    )
    assert [x.numel() for x in out] == [0, 3, 0, 0, 0, 0]
    assert out.token_adv.tolist() == [0.0, 0.0, 0.0]
    out = group_advantage_tokens(
        empty, offsets_of([0, 0]), offsets_of([]), torch.zeros(0, dtype=torch.bool)
    )
    assert (out.live.tolist(), out.wins.tolist(), out.mean.tolist()) == (
        [False, False],
        [0, 0],
        [0.0, 0.0],
    )


@pytest.mark.parametrize("norm", NORMS)
def test_an_infinite_reward_means_what_the_reference_says(norm):
    rewards, offsets = (
        torch.tensor([torch.inf, 1.0, 0.0, 1.0, -torch.inf, torch.inf, torch.inf, torch.inf]),
        offsets_of([2, 2, 2, 2]),
    )
    got, wanted = (
        group_advantage(rewards, offsets, norm=norm),
        reference.group_advantage(rewards, offsets, norm=norm),
    )
    for name, a, b in zip(got._fields, got, wanted):
        assert torch.equal(a.nan_to_num(nan=7.0), b.to(a.dtype).nan_to_num(nan=7.0)), name


def test_strided_inputs_are_read_right():
    rewards, offsets, weight = (
        torch.tensor([1.0, 0.0, 0.5, 0.25]),
        torch.tensor([0, 2, 4]),
        torch.tensor([1.0, 2.0]),
    )
    cu, rollout = (
        torch.tensor([0, 3, 4, 6, 9], dtype=torch.int32),
        torch.tensor([2, 0, 1, 3], dtype=torch.int32),
    )
    mask = torch.tensor([True, False, True] * 3)

    def strided(x):
        return torch.stack([x, torch.full_like(x, 99)], 1)[:, 0]

    wanted = group_advantage_tokens(
        rewards, offsets, cu, mask, seq_rollout=rollout, group_weight=weight
    )
    got = group_advantage_tokens(
        strided(rewards),
        strided(offsets),
        strided(cu),
        strided(mask),
        seq_rollout=strided(rollout),
        group_weight=strided(weight),
    )
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


@pytest.mark.parametrize("norm", NORMS)
def test_a_nan_weight_or_reward_cannot_wake_a_dead_group(norm):
    """Dead is exactly 0 whatever the weight; a masked token of a NaN rollout is 0, too."""
    out = group_advantage(
        torch.tensor([0.1, 0.1, 0.7]),
        offsets_of([2, 1]),
        norm=norm,
        group_weight=torch.tensor([torch.nan, torch.inf]),
    )
    assert out.adv.tolist() == [0.0, 0.0, 0.0]
    token_adv = token_advantage(
        torch.tensor([torch.nan]), offsets_of([2]), torch.tensor([True, False])
    )
    assert token_adv.isnan().tolist() == [True, False]


def test_every_output_element_is_written():
    # leave something other than zeros for the allocator to hand out
    torch.full((1 << 16,), torch.nan)
    cu = torch.tensor([2, 5], dtype=torch.int32)
    out = group_advantage_tokens(
        torch.tensor([1.0, 0.0]), offsets_of([2]), cu, torch.ones(9, dtype=torch.bool)
    )
    assert out.token_adv.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_permuting_and_splitting_groups_changes_nothing():
    rng = np.random.default_rng(3)
    sizes = rng.integers(0, 70, 200)
    rewards = torch.tensor(rng.normal(size=sizes.sum()), dtype=torch.float32)
    whole = group_advantage(rewards, offsets_of(sizes), norm="std")
    half = 90
    cut = int(sizes[:half].sum())
    parts = [
        group_advantage(rewards[:cut], offsets_of(sizes[:half]), norm="std"),
        group_advantage(rewards[cut:], offsets_of(sizes[half:]), norm="std"),
    ]
    for name in ("adv", "mean", "std", "wins", "live"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts])), name
    order = rng.permutation(200)
    pieces = torch.split(rewards, sizes.tolist())
    shuffled = group_advantage(
        torch.cat([pieces[i] for i in order]), offsets_of(sizes[order]), norm="std"
    )
    assert torch.equal(shuffled.std, whole.std[torch.tensor(order)])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SIZES[1:]), st.sampled_from(NORMS), st.integers(0, 2**32 - 1))
def test_permuting_in_a_group_permutes_its_advantages(size, norm, seed):
    rng = np.random.default_rng(seed)
    rewards, order = (
        torch.tensor(rng.integers(0, 9, size) / 8, dtype=torch.float32),
        torch.tensor(rng.permutation(size)),
    )
    straight = group_advantage(rewards, offsets_of([size]), norm=norm)
    permuted = group_advantage(rewards[order], offsets_of([size]), norm=norm)
    assert torch.equal(permuted.mean, straight.mean)  # sums of eighths are exact in any order
    assert torch.equal(permuted.wins, straight.wins)
    assert ulp_distance(permuted.std, straight.std) <= 1
    assert ulp_distance(permuted.adv, straight.adv[order]) <= 1


def test_permuting_packed_sequences_moves_their_tokens():
    rng = np.random.default_rng(5)
    lengths, rewards = (
        rng.integers(0, 30, 12),
        torch.tensor(rng.normal(size=12), dtype=torch.float32),
    )
    mask = torch.tensor(rng.random(int(lengths.sum())) < 0.5)
    order = rng.permutation(12)
    rows = torch.split(mask, lengths.tolist())
    straight = group_advantage_tokens(rewards, offsets_of([5, 7]), offsets_of(lengths), mask)
    moved = group_advantage_tokens(
        rewards,
        offsets_of([5, 7]),
        offsets_of(lengths[order]),
        torch.cat([rows[i] for i in order]),
        seq_rollout=torch.tensor(order, dtype=torch.int32),
    )
    pieces = torch.split(straight.token_adv, lengths.tolist())
    assert torch.equal(moved.token_adv, torch.cat([pieces[i] for i in order]))


def test_same_bits_for_every_thread_count():
    rng = np.random.default_rng(4)
    sizes = rng.integers(0, 300, 3000)
    sizes[::500] = 700  # the sums over 256 lanes
    rewards = torch.tensor(rng.normal(size=sizes.sum()), dtype=torch.float32)
    cu = torch.arange(rewards.numel() + 1, dtype=torch.int32) * 2
    mask = torch.tensor(rng.random(int(cu[-1])) < 0.5)
    offsets, threads = offsets_of(sizes), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7, 1):  # the last repeats the first
            torch.set_num_threads(count)
            results.append(group_advantage_tokens(rewards, offsets, cu, mask, norm="std"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.zeros(4, dtype=torch.float64)}, "rewards: got float64"),
        ({"rewards": torch.zeros(2, 2)}, "rewards: got shape"),
        ({"rewards": torch.zeros(4, requires_grad=True)}, "rewards: requires grad"),
        ({"group_offsets": torch.tensor([0.0, 4.0])}, "group_offsets: got float32"),
        ({"group_offsets": torch.tensor([0, 3, 2, 4])}, "not sorted"),
        ({"group_offsets": torch.tensor([0, 3])}, "wanted exactly 0 to 4"),
        ({"group_offsets": torch.tensor([], dtype=torch.int64)}, "is empty"),
        ({"norm": "zscore"}, "norm: got 'zscore'"),
        ({"ddof": 2}, "ddof: got 2"),
        ({"eps": float("nan")}, "eps: got nan"),
        ({"eps": -1e-6}, "eps: got -1e-06"),
        ({"rewards": torch.zeros(4, device="meta")}, "group_offsets: is on cpu, rewards on meta"),
        ({"group_weight": torch.ones(1, requires_grad=True)}, "group_weight: requires grad"),
        ({"group_weight": torch.ones(3)}, "group_weight: got 3 entries"),
        ({"max_group": 3}, "a group has 4 rollouts"),
        ({"group_offsets": torch.tensor([-1, 4])}, "runs from -1 to 4"),
        ({"group_weight": torch.ones(1, dtype=torch.float64)}, "group_weight: got float64"),
        (
            {"group_weight": torch.ones(1, device="meta")},
            "group_weight: is on meta, rewards on cpu",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"rewards": torch.zeros(4), "group_offsets": torch.tensor([0, 4]), **change}
    with pytest.raises(ValueError, match=message):
        group_advantage(arguments.pop("rewards"), arguments.pop("group_offsets"), **arguments)


def test_bad_token_arguments_are_named():
    rewards, offsets, cu = torch.zeros(2), offsets_of([2]), offsets_of([3, 3])
    mask = torch.ones(6, dtype=torch.bool)
    with pytest.raises(ValueError, match="loss_mask: got float32"):
        group_advantage_tokens(rewards, offsets, cu, mask.float())
    with pytest.raises(ValueError, match="cu_seqlens: runs from 0 to 6"):
        group_advantage_tokens(rewards, offsets, cu, mask[:5])
    with pytest.raises(ValueError, match="seq_rollout: runs from 0 to 2"):
        group_advantage_tokens(
            rewards, offsets, cu, mask, seq_rollout=torch.tensor([0, 2], dtype=torch.int32)
        )
    with pytest.raises(ValueError, match="3 sequences for 2 rollouts"):
        group_advantage_tokens(rewards, offsets, offsets_of([2, 2, 2]), mask)
    with pytest.raises(ValueError, match="cu_seqlens: is not sorted"):
        token_advantage(rewards, torch.tensor([0, 4, 2], dtype=torch.int32), mask)
    with pytest.raises(ValueError, match="cu_seqlens: got int64, wanted int32"):
        token_advantage(rewards, torch.tensor([0, 3, 6]), mask)
    with pytest.raises(ValueError, match="seq_rollout: got 1 entries, wanted 2"):
        token_advantage(rewards, cu, mask, seq_rollout=torch.tensor([0], dtype=torch.int32))
    with pytest.raises(ValueError, match="adv: requires grad"):
        token_advantage(rewards.clone().requires_grad_(), cu, mask)


def test_opcheck():
    rewards, offsets = torch.tensor([1.0, 0.0, 1.0, 1.0]), offsets_of([2, 2])
    cu, mask = offsets_of([2, 1, 2, 1]), torch.ones(6, dtype=torch.bool)
    weight, rollout = torch.tensor([0.5, 2.0]), torch.tensor([3, 2, 1, 0], dtype=torch.int32)
    for given_weight, given_rollout in ((None, None), (weight, rollout)):
        torch.library.opcheck(
            torch.ops.cero.group_advantage.default,
            (rewards, offsets, given_weight, 1, 1e-6, 1, 0.5),
        )
        torch.library.opcheck(
            torch.ops.cero.token_advantage.default, (rewards, cu, given_rollout, mask)
        )
        whole = (rewards, offsets, given_weight, cu, given_rollout, mask, 1, 1e-6, 1, 0.5)
        torch.library.opcheck(torch.ops.cero.group_advantage_tokens.default, whole)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic, backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        group_advantage_tokens, fullgraph=True, dynamic=dynamic, backend=backend
    )
    for sizes, lengths in (([2, 2], [2, 1, 2, 1]), ([1, 3, 2], [4, 0, 2, 1, 1, 3])):
        rewards = torch.arange(sum(sizes), dtype=torch.float32)
        arguments = (
            rewards,
            offsets_of(sizes),
            offsets_of(lengths),
            torch.ones(sum(lengths), dtype=torch.bool),
        )
        for norm in ("rloo", "std"):
            for got, wanted in zip(
                compiled(*arguments, norm=norm), group_advantage_tokens(*arguments, norm=norm)
            ):
                assert torch.equal(got, wanted)
