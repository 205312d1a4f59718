"""What must hold on a GPU, as functions that need torch alone: test_gpu.py runs them, and this
file by itself does.

    python tests/ops/gpu_cases.py [--sanitizer]

--sanitizer leaves out what compute-sanitizer cannot run or would take minutes for: graphs, and
the large cases.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from cero_rl.ops import group_advantage, group_advantage_tokens, token_advantage

NORMS = ("center", "std", "rloo", "maxrl")
EDGE_SIZES = [0, 1, 2, 31, 32, 33, 512, 513, 1024, 1025]
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def cumulative(sizes: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)]).to(dtype)


def case(seed: int, *, groups: int = 5000, longest: int = 200, wide: bool = True) -> Arguments:
    """rewards, group_offsets, cu_seqlens, loss_mask on the CPU: ragged, with NaN, -0, empty
    groups and empty sequences."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (torch.randn(groups, generator=generator) * 1.2 + 2).exp().long().clamp(max=1025)
    sizes[: len(EDGE_SIZES)] = torch.tensor(EDGE_SIZES)
    rewards = torch.randn(int(sizes.sum()), generator=generator)
    rewards[int(sizes[:4].sum())] = torch.nan
    rewards[-40:] = -0.0
    cu = cumulative(torch.randint(0, longest, (rewards.numel(),), generator=generator), torch.int32)
    mask = torch.rand(int(cu[-1]) + 5, generator=generator) < 0.7
    return rewards, cumulative(sizes, torch.int64 if wide else torch.int32), cu, mask


def on_gpu(arguments: Arguments) -> Arguments:
    rewards, offsets, cu, mask = (x.cuda() for x in arguments)
    return rewards, offsets, cu, mask


def assert_same_bits(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], what: str) -> None:
    for position, (a, b) in enumerate(zip(got, wanted, strict=True)):
        a, b = a.cpu(), b.cpu()
        if a.is_floating_point():  # the payload of a NaN is nobody's promise
            assert torch.equal(a.isnan(), b.isnan()), f"{what}: output {position}, NaN"
            a, b = a.nan_to_num(nan=0.0).view(torch.int32), b.nan_to_num(nan=0.0).view(torch.int32)
        assert torch.equal(a, b), f"{what}: output {position}"


def equals_cpu(norm: str, *, groups: int = 5000) -> None:
    for seed, wide, ddof in ((1, True, 1), (2, False, 0)):
        arguments = case(seed, groups=groups, wide=wide)
        weight = (
            torch.rand(groups, generator=torch.Generator().manual_seed(seed)) if seed == 2 else None
        )
        wanted = group_advantage_tokens(*arguments, norm=norm, ddof=ddof, group_weight=weight)
        got = group_advantage_tokens(
            *on_gpu(arguments),
            norm=norm,
            ddof=ddof,
            group_weight=None if weight is None else weight.cuda(),
        )
        assert_same_bits(got, wanted, f"{norm}, seed {seed}")


def tokens_equal_cpu() -> None:
    """Sequences from empty to longer than a tile, permuted, and masks that are views at every
    alignment."""
    for seed, longest in ((0, 2), (1, 4), (2, 40), (3, 3000), (4, 20000)):
        generator = torch.Generator().manual_seed(seed)
        adv = torch.randn(400, generator=generator)
        cu = cumulative(torch.randint(0, longest, (400,), generator=generator), torch.int32) + seed
        rollout = torch.randperm(400, generator=generator).int()
        mask = (torch.rand(int(cu[-1]) + 7, generator=generator) < 0.6)[seed % 4 :]
        cu = cu.clamp(max=mask.numel())
        view = torch.empty(mask.numel() + seed % 4, dtype=torch.bool, device="cuda")[seed % 4 :]
        view.copy_(mask)
        wanted = token_advantage(adv, cu, mask, seq_rollout=rollout)
        assert_same_bits(
            (token_advantage(adv.cuda(), cu.cuda(), view, seq_rollout=rollout.cuda()),),
            (wanted,),
            f"tokens, seed {seed}",
        )


def same_bits_in_every_run_and_grid() -> None:
    """Repeated, and with other numbers of blocks: the whole batch against slices of it, each a
    grid of its own."""
    rewards, offsets, cu, mask = case(3)
    device = on_gpu((rewards, offsets, cu, mask))
    whole = group_advantage_tokens(*device, norm="std")
    for _ in range(5):
        assert_same_bits(group_advantage_tokens(*device, norm="std"), whole, "repeated")
    for first, last in ((0, 1), (0, 7), (3, 20), (100, 1500), (1, 5000)):
        begin, end = int(offsets[first]), int(offsets[last])
        part = group_advantage(
            device[0][begin:end], device[1][first : last + 1] - begin, norm="std"
        )
        wanted = (
            whole.adv[begin:end],
            *(x[first:last] for x in (whole.mean, whole.std, whole.wins, whole.live)),
        )
        assert_same_bits(part, wanted, f"groups {first} to {last}")


def waits_for_nothing() -> None:
    """torch raises where a call would make the host wait for the GPU."""
    arguments = on_gpu(case(4, groups=50))
    group_advantage_tokens(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        group_advantage_tokens(*arguments, max_group=1025)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def runs_on_the_current_stream() -> None:
    arguments = case(5)
    wanted = group_advantage_tokens(*arguments)
    rewards, offsets, cu, mask = on_gpu(arguments)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # were the launch on another stream, it would read the rewards before they are there
        torch.cuda._sleep(50_000_000)
        late = torch.empty_like(rewards).copy_(rewards)
        got = group_advantage_tokens(late, offsets, cu, mask)
    stream.synchronize()
    assert_same_bits(got, wanted, "side stream")


def captured_in_a_graph() -> None:
    """A capture fails at any synchronisation; replayed, the graph reads what its inputs hold by
    then."""
    first, second = on_gpu(case(6)), case(6)[0].flip(0)
    static = first[0].clone()
    wanted = group_advantage_tokens(second.cuda(), *first[1:])
    group_advantage_tokens(static, *first[1:])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = group_advantage_tokens(static, *first[1:])
    static.copy_(second)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(got, wanted, "graph")


def on_another_device() -> None:
    arguments = case(7)
    wanted = group_advantage_tokens(*arguments)
    rewards, offsets, cu, mask = (x.to("cuda:1") for x in arguments)
    assert_same_bits(group_advantage_tokens(rewards, offsets, cu, mask), wanted, "cuda:1")


def compiles_in_full() -> None:
    arguments = on_gpu(case(8, groups=60))
    wanted = group_advantage_tokens(*arguments)
    got = torch.compile(group_advantage_tokens, fullgraph=True, backend="aot_eager")(*arguments)
    assert_same_bits(got, wanted, "compiled")


def checks() -> dict[str, Callable[[], None]]:
    """Every check of this file that this machine can run."""
    found: dict[str, Callable[[], None]] = {
        f"equals the CPU, {norm}": lambda norm=norm: equals_cpu(norm) for norm in NORMS
    }
    found |= {
        "tokens equal the CPU": tokens_equal_cpu,
        "same bits in every run and grid": same_bits_in_every_run_and_grid,
        "waits for nothing": waits_for_nothing,
        "runs on the current stream": runs_on_the_current_stream,
        "captured in a graph": captured_in_a_graph,
        "compiles in full": compiles_in_full,
    }
    if torch.cuda.device_count() > 1:
        found["on a device that is not the current one"] = on_another_device
    return found


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu_cases: torch sees no GPU", file=sys.stderr)
        return 1
    chosen = checks()
    if "--sanitizer" in sys.argv[1:]:
        chosen = {
            f"equals the CPU, {norm}": lambda norm=norm: equals_cpu(norm, groups=60)
            for norm in NORMS
        }
        chosen["tokens equal the CPU"] = tokens_equal_cpu
    for name, check in chosen.items():
        check()
        print(f"ok  {name}", flush=True)
    print(f"{len(chosen)} checks passed on {torch.cuda.get_device_name()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
