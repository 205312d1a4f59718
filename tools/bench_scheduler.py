"""Timings of the scheduler: one JSON line a row, to docs/bench/scheduler.jsonl. Ratios compare two
ways within this one run. Milliseconds are processor time of one thread.

    round    open_round, then observe and close_round (observe_ms) or update, at 1e4, 1e5 and 1e6
             prompts, published defaults, options and presets; bytes a prompt
    problem  the round's linear program: ranked_plan against scipy's HiGHS, both to the optimum
    loop     a whole round against straightforward Python, one prompt after the other

    OMP_NUM_THREADS=1 python tools/bench_scheduler.py [--only round problem loop]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.config.presets import fill
from cero_rl.scheduler import CeroScheduler, Evidence, ranked_plan

ROOT = Path(__file__).resolve().parent.parent
SIZES = (10_000, 100_000, 1_000_000)
ROUNDS = 200


def cero_plus() -> dict[str, Any]:
    """The options that `scheduler.preset: cero_plus` sets, for groups of 1 to 8."""
    preset = fill({"scheduler": {"preset": "cero_plus", "rounds": ROUNDS}})["scheduler"]
    options = {key: preset[key] for key in preset.keys() - {"preset", "name", "rounds"}}
    return {**options, "max_units_per_prompt": 8}


OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "forgetting 0.98": {"forgetting": 0.98},
    "utility hyperbolic": {"utility": "hyperbolic"},
    "refit_prior_every 5, cap_shares 4": {"refit_prior_every": 5, "cap_shares": 4.0},
    "proximal 0.1, groups of 2 to 16": {
        "proximal": 0.1,
        "rollouts_per_unit": 2,
        "max_units_per_prompt": 8,
    },
    "plan resolve": {"plan": "resolve"},
    "plan thompson": {"plan": "thompson"},
    "preset cero_plus": cero_plus(),
    "preset cero_plus, 64 cells": {**cero_plus(), "cells": 64},
}


def median(values: list[float]) -> float:
    return round(1e3 * float(np.median(values)), 3)


def seconds(action: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return float(np.median(times))


def make(prompts: int, **options: Any) -> CeroScheduler:
    """A round takes at most 65,536 groups of at most 8 rollouts (16 with proximal), eight times
    fewer than the pool if that is less."""
    unit, most = options.pop("rollouts_per_unit", 8), options.pop("max_units_per_prompt", 1)
    capacity = min(prompts // 8, 65_536) * 8
    if "cells" in options:
        options["cells"] = np.random.default_rng(0).integers(0, options["cells"], prompts)
    return CeroScheduler(
        prompts,
        ROUNDS,
        150 * capacity,
        unit,
        most,
        capacity,
        step_size=5 / math.sqrt(ROUNDS),
        price_init=0.3,
        spend_down=True,
        **options,
    )


def played(
    scheduler: CeroScheduler, rounds: int, sparse: bool, rates: np.ndarray
) -> tuple[list[float], list[float]]:
    """Processor seconds of every next_round, and of every observe and close_round (update unless
    sparse), of a round that allocates something.

    Processor time of the one thread, so that what else the machine does costs cache misses but not
    waiting.
    """
    rng, prompts = np.random.default_rng(1), scheduler.spec.num_prompts
    plan_seconds, learn_seconds = [], []
    for _ in range(rounds):
        started = time.process_time()
        allocation = scheduler.next_round()
        planned = time.process_time() - started
        if allocation is None:
            break
        ids, sizes = allocation.prompt_ids, allocation.rollouts.astype(np.int64)
        wins = rng.binomial(sizes, rates[ids])
        evidence = Evidence(ids, wins.astype(np.float64), sizes)
        successes, trials = np.zeros(prompts), np.zeros(prompts, dtype=np.int64)
        successes[ids], trials[ids] = wins, sizes
        started = time.process_time()
        if sparse:
            scheduler.observe(evidence)
            scheduler.close_round()
        else:
            scheduler.update(successes, trials)
        learnt = time.process_time() - started
        if ids.shape[0]:
            plan_seconds.append(planned)
            learn_seconds.append(learnt)
    return plan_seconds, learn_seconds


def bench_round() -> Iterator[dict[str, Any]]:
    for prompts in SIZES:
        rates = np.random.default_rng(0).random(prompts)
        for name, options in OPTIONS.items():
            rounds = 30 if "plan" not in name and "preset" not in name else 8
            plans, groups = played(make(prompts, **options), rounds, True, rates)
            _, dense = played(make(prompts, **options), rounds, False, rates)
            scheduler = make(prompts, **options)
            played(scheduler, 2, True, rates)
            state = sum(
                v.nbytes for v in scheduler.state_dict().values() if isinstance(v, np.ndarray)
            )
            tracemalloc.start()
            scheduler = make(prompts, **options)
            allocation = scheduler.next_round()
            assert allocation is not None
            ids = allocation.prompt_ids
            scheduler.observe(
                Evidence(ids, np.zeros(ids.size), allocation.rollouts.astype(np.int64))
            )
            scheduler.close_round()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            total = [plan + learn for plan, learn in zip(plans, groups)]
            yield {
                "bench": "scheduler.round",
                "prompts": prompts,
                "options": name,
                "groups": int(allocation.prompt_ids.shape[0]),
                "next_round_ms": median(plans),
                "observe_ms": median(groups),
                "update_ms": median(dense),
                "total_ms": median(total),
                "total_min_ms": round(1e3 * min(total), 3),
                "state_bytes_per_prompt": round(state / prompts, 1),
                "peak_bytes_per_prompt": round(peak / prompts, 1),
                "rounds": len(total),
            }


def bench_problem() -> Iterator[dict[str, Any]]:
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    for prompts, repeats in ((1_000, 5), (10_000, 3), (30_000, 1)):
        rng = np.random.default_rng(0)
        slope, tie_rank, capacity = rng.random(prompts), rng.permutation(prompts), prompts // 8
        rows = csr_array(np.ones((1, prompts)))

        def highs(
            slope: np.ndarray = slope, rows: csr_array = rows, capacity: int = capacity
        ) -> Any:
            return linprog(0.3 - slope, A_ub=rows, b_ub=[capacity], bounds=(0, 1), method="highs")

        ids, units = ranked_plan(slope, 0.3, tie_rank, 1, capacity)
        assert abs(float(((slope - 0.3)[ids] * units).sum()) + highs().fun) < 1e-6
        own = seconds(lambda s=slope, t=tie_rank, c=capacity: ranked_plan(s, 0.3, t, 1, c), 25)
        solver = seconds(highs, repeats)
        yield {
            "bench": "scheduler.problem",
            "prompts": prompts,
            "ranked_plan_ms": round(1e3 * own, 3),
            "scipy_highs_ms": round(1e3 * solver, 1),
            "scipy_ratio": round(solver / own, 1),
        }


class PlainRound:
    """One published round as anyone would write it first: lists, a sort, and a loop over all
    prompts."""

    def __init__(
        self, prompts: int, rounds: int, budget_units: int, capacity: int, step: float
    ) -> None:
        self.a, self.b, self.v, self.nu = [1.0] * prompts, [1.0] * prompts, [4 / 6] * prompts, 0.3
        self.rounds, self.capacity, self.step, self.fair = (
            rounds,
            capacity,
            step,
            budget_units / rounds,
        )
        self.largest = prompts / budget_units

    def play(self, rates: list[float]) -> None:
        ranked = sorted(
            (i for i in range(len(self.v)) if self.v[i] > self.nu), key=lambda i: -self.v[i]
        )[: self.capacity]
        units = [0] * len(self.v)
        for i in ranked:
            units[i] = 1
            self.a[i] += round(8 * rates[i])
            self.b[i] += 8 - round(8 * rates[i])
        for i in range(len(self.v)):
            total = self.a[i] + self.b[i]
            c = 4.0 * self.largest * self.a[i] * self.b[i] / (total * (total + 1.0))
            theta = self.largest * self.v[i]
            exposure = (
                0.0
                if theta >= c
                else self.rounds
                if theta <= c * math.exp(-c * self.rounds)
                else math.log(c / theta) / c
            )
            self.v[i] = min(
                max(self.v[i] - self.step * (units[i] - exposure / self.rounds), 0.0), 1.0
            )
        gradient = (self.fair - len(ranked)) / max(self.fair, self.capacity - self.fair)
        self.nu = min(max(self.nu - self.step * gradient, 0.0), 1.0)


def bench_loop() -> Iterator[dict[str, Any]]:
    for prompts in SIZES:
        rates = np.random.default_rng(0).random(prompts)
        plans, groups = played(make(prompts), 12, True, rates)
        own = float(np.median([plan + learn for plan, learn in zip(plans, groups)]))
        capacity = min(prompts // 8, 65_536)
        plain, listed = (
            PlainRound(prompts, 200, 150 * capacity, capacity, 5 / math.sqrt(200)),
            rates.tolist(),
        )
        loop = seconds(lambda p=plain, r=listed: p.play(r), 3)
        yield {
            "bench": "scheduler.loop",
            "prompts": prompts,
            "round_ms": round(1e3 * own, 3),
            "python_loop_ms": round(1e3 * loop, 1),
            "python_loop_ratio": round(loop / own, 1),
        }


BENCHES = {"round": bench_round, "problem": bench_problem, "loop": bench_loop}


def bench_scheduler() -> Iterator[dict[str, Any]]:
    """All rows, for tools/bench.py."""
    for bench in BENCHES.values():
        yield from bench()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "scheduler.jsonl")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": platform.processor() or platform.machine(), "numpy": np.__version__}
    with arguments.out.open("w") as file:
        for name in arguments.only:
            for row in BENCHES[name]():
                print(json.dumps(row), flush=True)
                file.write(json.dumps({**row, **machine}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
