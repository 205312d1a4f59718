"""Ragged group advantage against every peer of advantage_peers.py: a table, rows in docs/bench/.

    make bench-advantage                       CPU, one thread
    python tools/bench_advantage.py --device cuda

A peer is checked to give our outputs before it is timed; a cell is its time divided by ours in
the same run, so more than 1 means that it is slower. On a GPU also: minimum bytes a second as a
share of a copy's bandwidth on that GPU, launches, synchronisations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from advantage_peers import Case, Outputs, cero, disagreement, peers, worst_on_equal_rewards
from bench_timing import ROOT, copy_bandwidth, count_launches, count_syncs, machine, timer
from rich.console import Console
from rich.table import Table

# Rollouts and tokens; 0 tokens: groups alone.
GRID = {
    "cpu": [(512, 0), (8192, 0), (65536, 0), (8192, 1 << 20), (8192, 1 << 22), (65536, 1 << 24)],
    "cuda": [(512, 0), (8192, 0), (65536, 0), (8192, 1 << 20), (65536, 1 << 24), (65536, 1 << 27)],
}
SMALL_GRID = [(512, 0), (512, 1 << 14)]
# above it the loop over groups takes many seconds a call
LOOP_GROUPS = {"cpu": 1 << 16, "cuda": 1 << 12}


def group_sizes(kind: str, rollouts: int, rng: np.random.Generator) -> np.ndarray:
    """Sizes of groups that sum to `rollouts`."""
    if kind == "constant 8":
        return np.full(rollouts // 8, 8)
    if kind == "constant 16":
        return np.full(rollouts // 16, 16)
    if kind == "all 1":
        return np.ones(rollouts, dtype=int)
    if kind == "one 1024, rest 2":
        large = min(1024, rollouts // 2)
        return np.concatenate([[large], np.full((rollouts - large) // 2, 2)])
    assert kind == "log-normal", kind
    sizes = np.clip(rng.lognormal(2.0, 1.2, rollouts).astype(int), 1, 1024)
    cut = int(np.searchsorted(np.cumsum(sizes), rollouts))
    return np.append(sizes[:cut], rollouts - sizes[:cut].sum())


KINDS = ["constant 8", "constant 16", "log-normal", "one 1024, rest 2", "all 1"]


def make_case(kind: str, rollouts: int, tokens: int, device: str) -> Case:
    """Binary rewards; sequences of log-normal length in permuted order; 70 % of the tokens
    trained."""
    rng = np.random.default_rng(0)
    offsets = torch.tensor(np.cumsum([0, *group_sizes(kind, rollouts, rng)]), device=device)
    rewards = torch.tensor(rng.integers(0, 2, rollouts), dtype=torch.float32, device=device)
    if tokens == 0:
        return Case(kind, rewards, offsets)
    shares = np.cumsum(rng.lognormal(0.0, 0.7, rollouts))
    edges = np.concatenate([[0], np.round(shares / shares[-1] * tokens)])
    return Case(
        kind,
        rewards,
        offsets,
        cu_seqlens=torch.tensor(edges, dtype=torch.int32, device=device),
        seq_rollout=torch.tensor(rng.permutation(rollouts), dtype=torch.int32, device=device),
        loss_mask=torch.rand(tokens, device=device) < 0.7,
    )


def minimum_bytes(case: Case) -> int:
    """What any implementation must move: every input read once, every output written once."""
    rollouts, groups = case.rewards.numel(), case.group_offsets.numel() - 1
    sequences = 0 if case.cu_seqlens is None else case.cu_seqlens.numel() - 1
    return (
        8 * rollouts
        + 8 * (groups + 1)
        + 13 * groups
        + (8 * sequences + 4 if sequences else 0)
        + 5 * case.tokens
    )


def measure(
    name: str,
    peer: Callable[[Case], Outputs],
    case: Case,
    wanted: Outputs,
    device: str,
    bandwidth: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "bench": "advantage",
        "device": device,
        "peer": name,
        "sizes": case.sizes,
        "rollouts": case.rewards.numel(),
        "groups": case.group_offsets.numel() - 1,
        "tokens": case.tokens,
    }
    wrong = disagreement(peer(case), wanted)
    if wrong:
        return {**row, "status": f"other {wrong}"}
    slow, budget = name == "python loop", 0.1 if device == "cuda" else 0.3
    took = timer(device)(
        lambda: peer(case), budget_seconds=budget, least=3 if slow else 9, most=5 if slow else 200
    )
    row |= {
        "status": "ok",
        "median_us": round(took.median_seconds * 1e6, 1),
        "p20_us": round(took.p20_seconds * 1e6, 1),
        "p80_us": round(took.p80_seconds * 1e6, 1),
        "repeats": took.repeats,
        "minimum_bytes": minimum_bytes(case),
        "minimum_gb_per_second": round(minimum_bytes(case) / took.median_seconds / 1e9, 2),
    }
    if bandwidth is not None:
        row["share_of_copy_bandwidth"] = round(
            minimum_bytes(case) / took.median_seconds / bandwidth, 4
        )
        if not slow:
            row |= {
                "launches": count_launches(lambda: peer(case)),
                "syncs": count_syncs(lambda: peer(case)),
            }
    return row


def rows_of(case: Case, device: str, bandwidth: float | None) -> Iterator[dict[str, Any]]:
    wanted = cero(case)
    own = measure("cero", cero, case, wanted, device, bandwidth)
    yield own
    for name, peer in peers().items():
        if name == "python loop" and own["groups"] > LOOP_GROUPS[device]:
            continue
        try:
            row = measure(name, peer, case, wanted, device, bandwidth)
        # a peer that cannot run here is a result of the table, not the end of the benchmark
        except Exception as error:
            row = {
                **{k: own[k] for k in ("bench", "device", "sizes", "rollouts", "groups", "tokens")},
                "peer": name,
            }
            row["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        if row["status"] == "ok":
            row["slower_than_cero"] = round(row["median_us"] / own["median_us"], 2)
        yield row


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return (
        f"{row['slower_than_cero']:.3g}x" if row["status"] == "ok" else row["status"].split(":")[0]
    )


def table(rows: list[dict[str, Any]], device: str) -> Table:
    names = list(peers())
    found = Table(
        title=f"Group advantage on {device}: time of a peer / time of cero, same inputs and outputs"
    )
    for heading in ("sizes", "rollouts", "groups", "tokens", "cero us", "p20-p80"):
        found.add_column(heading, justify="left" if heading == "sizes" else "right")
    for name in names:
        found.add_column(name, justify="right")
    if device == "cuda":
        for heading in ("copy share", "launches", "syncs"):
            found.add_column(heading, justify="right")
    for own in (row for row in rows if row["peer"] == "cero"):
        place = ("sizes", "rollouts", "tokens")
        others = {row["peer"]: row for row in rows if all(row[k] == own[k] for k in place)}
        cells = [
            own["sizes"],
            f"{own['rollouts']}",
            f"{own['groups']}",
            f"{own['tokens'] / 2**20:g}M" if own["tokens"] else "-",
        ]
        cells += [
            f"{own['median_us']:.0f}",
            f"{own['p20_us']:.0f}-{own['p80_us']:.0f}",
            *(cell(others.get(name)) for name in names),
        ]
        if device == "cuda":
            cells += [
                f"{own['share_of_copy_bandwidth']:.0%}",
                f"{own['launches']}",
                f"{own['syncs']}",
            ]
        found.add_row(*cells)
    return found


def numerics(device: str) -> Iterator[dict[str, Any]]:
    for name, peer in {"cero": cero, **peers()}.items():
        worst = worst_on_equal_rewards(peer, device)
        yield {
            "bench": "advantage numerics",
            "device": device,
            "peer": name,
            "worst_adv_on_equal_rewards": worst,
        }


def goals(rows: list[dict[str, Any]], device: str) -> Iterator[str]:
    """The goals that were set for this operator, each with what was measured."""
    ok = [row for row in rows if row["status"] == "ok"]

    def against(peer: str, *, tokens: bool) -> list[float]:
        return [
            row["slower_than_cero"]
            for row in ok
            if row["peer"] == peer and (row["tokens"] > 0) == tokens
        ]

    own = [row for row in ok if row["peer"] == "cero"]
    for text, wanted, values in (
        ("index_add, groups alone", 1, against("index_add", tokens=False)),
        ("index_add, with tokens", 3, against("index_add", tokens=True)),
        ("python loop, groups alone", 100, against("python loop", tokens=False)),
    ):
        if values:
            met = sum(value >= wanted for value in values)
            yield (
                f"{text}: {min(values):.3g}x to {max(values):.3g}x slower than cero; goal "
                f"{wanted}x: {met} of {len(values)} rows"
            )
    if device == "cuda":
        large = [row for row in own if row["tokens"] >= 1 << 24]
        if large:
            met = sum(row["share_of_copy_bandwidth"] >= 0.85 for row in large)
            lowest = min(row["share_of_copy_bandwidth"] for row in large)
            yield (
                f"16M tokens or more: at least {lowest:.0%} of the copy bandwidth; goal 85 %: "
                f"{met} of {len(large)} rows"
            )
        launches, syncs = (max(row[key] for row in own) for key in ("launches", "syncs"))
        yield f"at most {launches} launches (goal 2), {syncs} synchronisations (goal 0)"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="two small sizes, to see that it runs")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON lines; default docs/bench/advantage_<device>.jsonl, written anew",
    )
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but torch sees no GPU")
    out = arguments.out or ROOT / "docs" / "bench" / f"advantage_{device}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    bandwidth = copy_bandwidth(device) if device == "cuda" else None
    where = machine() | ({"copy_gb_per_second": round(bandwidth / 1e9, 1)} if bandwidth else {})
    console = Console(width=170)
    rows: list[dict[str, Any]] = []
    with out.open("w", encoding="utf-8") as file:

        def keep(row: dict[str, Any]) -> None:
            file.write(json.dumps(row | where) + "\n")
            file.flush()

        for rollouts, tokens in SMALL_GRID if arguments.small else GRID[device]:
            for kind in KINDS:
                console.print(f"[dim]{kind}, {rollouts} rollouts, {tokens} tokens", highlight=False)
                for row in rows_of(make_case(kind, rollouts, tokens, device), device, bandwidth):
                    rows.append(row)
                    keep(row)
        exact = list(numerics(device))
        for row in exact:
            keep(row)
    console.print(table(rows, device))
    console.print(
        "worst |advantage| on 441 groups of equal rewards (right: 0): ", highlight=False, end=""
    )
    console.print(
        ", ".join(f"{row['peer']} {row['worst_adv_on_equal_rewards']:.2g}" for row in exact),
        highlight=False,
    )
    for line in goals(rows, device):
        console.print(line, highlight=False)
    for row in rows:
        if row["status"] != "ok":
            console.print(
                f"{row['peer']} at {row['sizes']}, {row['rollouts']}: {row['status']}",
                highlight=False,
            )
    console.print(", ".join(f"{key} {value}" for key, value in where.items()), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
