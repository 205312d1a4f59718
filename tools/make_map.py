"""When does CERO+ pay? The map of docs/when.md: dead prompts x rollouts a prompt x drift of
the policy -> signal of CERO+'s rollouts over uniform's. And how far the simulator is off: what it
says of the frontier pool beside what training runs spent there.

    python tools/make_map.py                 docs/bench/map.jsonl, docs/map.png
    python tools/make_map.py calibrate       docs/bench/map_calibration.jsonl
    python tools/make_map.py compare         the same rows beside the study's runs of today

A simulated pool: live prompts have logits N(-.5, 1.3), dead ones N(6, 1.5) or N(-6, 1.5), half of
each, as far from being live as prompts of a real pool may be. Cells, where there are any, sort the
prompts into 20 by their logit under noise of the same size. One thread, about a minute of CPU.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.commands.simulate_payoff import MAKERS, PLUS, UNIFORM
from cero_rl.scheduler.simulation import payoff
from cero_rl.scheduler.simulation.measured import Measured
from cero_rl.scheduler.simulation.payoff import DriftWorld, interval, sizes_of, spend
from cero_rl.study.tables import by_arm, speed_up

ROOT = Path(__file__).resolve().parent.parent
ROWS, PICTURE = ROOT / "docs/bench/map.jsonl", ROOT / "docs/map.png"
CALIBRATION = ROOT / "docs/bench/map_calibration.jsonl"
MAKE = dict(MAKERS)
PROMPTS, SEEDS, CELLS = 400, 3, 20
ROUND = 40  # rollouts, a tenth of the pool; from 200 rounds on, more of them
DEAD = (0.15, 0.3, 0.5, 0.7, 0.85)
BUDGETS = (2, 5, 13, 50)  # rollouts a prompt
PANELS = ((0.0, False), (1.5, False), (3.0, False), (1.5, True))  # drift, cells
FRONTIER = ROOT / "recipes/assets/frontier/train_50.jsonl"
STUDY = ROOT / "docs/bench/study_frontier.jsonl"
DRIFTS = (0.0, 1.0, 1.5, 2.0)


def simulated_pool(dead: float, cells: bool, seed: int) -> tuple[np.ndarray, Measured]:
    """True success rates f64[P], and what is known of the prompts beforehand: cells or nothing."""
    rng = np.random.default_rng([seed, 11])
    logit = -0.5 + 1.3 * rng.standard_normal(PROMPTS)
    gone = round(dead * PROMPTS)
    logit[:gone] = 6.0 * np.where(np.arange(gone) % 2, 1.0, -1.0) + 1.5 * rng.standard_normal(gone)
    seen = logit + logit.std() * rng.standard_normal(PROMPTS)
    rank = np.argsort(np.argsort(seen))
    known = Measured(
        np.zeros(PROMPTS), np.ones(PROMPTS), rank * CELLS // PROMPTS if cells else None
    )
    return 1.0 / (1.0 + np.exp(-logit)), known


def map_row(dead: float, budget: int, drift: float, cells: bool) -> dict[str, Any]:
    sizes = sizes_of(PROMPTS, budget * PROMPTS // ROUND, budget * PROMPTS)
    signals: dict[str, list[float]] = {UNIFORM: [], PLUS: []}
    first = []
    for seed in range(SEEDS):
        rates, known = simulated_pool(dead, cells, seed)
        for label, found in signals.items():
            world = DriftWorld(rates, seed, drift, sizes.rounds)
            run = spend(MAKE[label](sizes, known, seed), world)
            found.append(run.signal)
        first.append(run.first_looks)
    gain = interval(np.array(signals[PLUS]) / np.array(signals[UNIFORM]))
    mean = lambda values: round(float(np.mean(values)), 4)
    return {
        "bench": "map",
        "dead": dead,
        "rollouts_per_prompt": budget,
        "drift": drift,
        "cells": CELLS if cells else 0,
        "prompts": PROMPTS,
        "rounds": sizes.rounds,
        "seeds": SEEDS,
        "signal_uniform": mean(signals[UNIFORM]),
        "signal_cero_plus": mean(signals[PLUS]),
        "first_looks": mean(first),
        "gain": round(gain.mean, 3),
        "gain_95": [round(gain.low, 3), round(gain.high, 3)],
        "speed_up_step_follows_signal": round(gain.mean, 2),
        "speed_up_noise_limited": round(math.sqrt(gain.mean), 2),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 9.6), constrained_layout=True)
    norm = LogNorm(0.8, max(row["gain"] for row in rows))
    for axis, (drift, cells) in zip(axes.flat, PANELS):
        mine = [r for r in rows if r["drift"] == drift and bool(r["cells"]) == cells]
        gain = {(r["dead"], r["rollouts_per_prompt"]): r["gain"] for r in mine}
        grid = np.array([[gain[dead, budget] for budget in BUDGETS] for dead in DEAD])
        axis.imshow(grid, origin="lower", norm=norm, cmap="viridis", aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            color = "black" if norm(value) > 0.55 else "white"
            text = f"{value:.2f}" + (f"\n\u221a {math.sqrt(value):.2f}" if value >= 1 else "")
            axis.text(x, y, text, ha="center", va="center", color=color, fontsize=10)
        axis.set_xticks(range(len(BUDGETS)), [str(budget) for budget in BUDGETS])
        axis.set_yticks(range(len(DEAD)), [f"{dead:.0%}" for dead in DEAD])
        axis.set(xlabel="rollouts a prompt in the whole run", ylabel="dead prompts at the start")
        known = f"{CELLS} cells that tell half" if cells else "nothing known beforehand"
        axis.set_title(f"drift {drift:g} logits, {known}", fontsize=11)
    figure.suptitle(
        "Signal of a rollout, CERO+ over uniform: speed-up where the step follows the signal\n"
        "(below it the root: speed-up of noise-limited steps as they are)",
        fontsize=12,
    )
    scale = ScalarMappable(norm, "viridis")
    bar = figure.colorbar(scale, ax=axes, shrink=0.6, label="CERO+ / uniform", format="%g")
    bar.minorticks_off()
    bar.set_ticks([1, 1.5, 2, 3, 4, 5])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def write(path: Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line as soon as it is known."""
    kept = []
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            kept.append(row)
    return kept


class StillLuck(DriftWorld):
    """Prompts `still` do not move: no policy learns luck or a wrong key."""

    still: np.ndarray  # bool[P]

    def finish_round(self, ids: Any, signal: Any) -> None:
        kept = self.rates[self.still]
        super().finish_round(ids, signal)
        self.rates[self.still] = kept


def measured(study: Path, budget: int) -> dict[str, Any] | None:
    """What CERO+'s training runs at this budget spent and reached, means over seeds; and how many
    times fewer rollouts than the critic alone they took to its end (same learner, so the
    allocation's part)."""
    lines = [json.loads(line) for line in study.read_text(encoding="utf-8").splitlines()]
    runs = by_arm(lines, "frontier_50")
    mine = list(runs.get(("cero_plus", budget), {}).values())
    if not mine:
        return None
    ends = np.array([[row["accuracy"][0], row["accuracy"][-1]] for row in mine])
    shares = {
        kind: round(float(np.mean([row["spending"][kind] for row in mine])), 4)
        for kind in mine[0]["spending"]
    }
    largest = budget == max(b for _, b in runs)
    return {
        "seeds": len(mine),
        "spending": shares,
        "accuracy": [round(float(x), 4) for x in ends.mean(axis=0)],
        "speed_up_over_critic": str(speed_up(runs, "cero_plus", "critic") or "") if largest else "",
    }


def calibrate() -> Iterable[dict[str, Any]]:
    """CERO+ on the frontier pool at the study's own sizes, for several drifts: shares of the
    rollouts by kind, and the mean success rate that drift alone gives held-out prompts; last with
    luck and wrong keys standing still."""
    payoff.MOST_PROMPTS, payoff.MOST_ROUNDS = 4000, 400
    rows = [json.loads(line) for line in FRONTIER.read_text(encoding="utf-8").splitlines()]
    kind = np.array([row["kind"] for row in rows])
    names = sorted({(row["family"], row["length"]) for row in rows})
    cells = np.array([names.index((row["family"], row["length"])) for row in rows])
    wins = np.array([16.0 * row["start_pass_rate"] for row in rows])
    pool = Measured(wins, np.full(len(rows), 16.0), cells)
    taught = np.isin(kind, ("learnable", "solved", "out_of_reach"))  # of which held-out sets are
    for budget, rounds in ((51_200, 400), (25_600, 200)):
        sizes = replace(sizes_of(len(rows), rounds, budget), most_rollouts=1)
        for drift, luck_moves in [(d, True) for d in DRIFTS] + [(d, False) for d in DRIFTS[2:]]:
            rates = pool.draw(np.random.default_rng([0, 7]))
            world, other = (StillLuck(rates, 0, drift, rounds) for _ in range(2))
            world.still = other.still = ~taught & (not luck_moves)
            run = spend(MAKE[PLUS](sizes, pool, 0), world)
            gain = run.signal / spend(MAKE[UNIFORM](sizes, pool, 0), other).signal
            shares = {
                name: round(float(run.rollouts[kind == name].sum() / budget), 4)
                for name in sorted(set(kind))
            }
            yield {
                "bench": "map_calibration",
                "pool": "frontier_50",
                "arm": "cero_plus",
                "budget": budget,
                "rounds": rounds,
                "drift": drift,
                "luck_moves": luck_moves,
                "spending": shares,
                "gain": round(gain, 3),
                "speed_up_noise_limited": round(math.sqrt(gain), 3),
                "rate_heldout_like": [
                    round(float(p[taught].mean()), 4) for p in (rates, world.rates)
                ],
            }


def compare(rows: list[dict[str, Any]], study: Path) -> Iterable[dict[str, Any]]:
    """The simulated rows with what was measured by now; a table on the way. apart: the share of
    the rollouts that would have to move from one kind to another for the two to agree."""
    for row in rows:
        seen = measured(study, row["budget"])
        if seen is not None:
            kinds = row["spending"]
            apart = sum(abs(kinds[kind] - seen["spending"][kind]) for kind in kinds) / 2
            row |= {"measured": seen, "apart": round(apart, 3)}
            print(
                f"{row['budget']} drift {row['drift']:g}, luck moves: {row['luck_moves']}, "
                f"{row['spending']}, gain {row['gain']}, end {row['rate_heldout_like'][1]}; "
                f"{seen}; apart {apart:.3f}"
            )
        yield row


def make_map() -> Iterable[dict[str, Any]]:
    for drift, cells in PANELS:
        for dead in DEAD:
            for budget in BUDGETS:
                yield map_row(dead, budget, drift, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="where CERO+ pays, in simulation")
    parser.add_argument(
        "what", nargs="?", choices=("map", "calibrate", "compare", "draw"), default="map"
    )
    parser.add_argument("--study", type=Path, default=STUDY, help="rows of cero-rl study")
    given = parser.parse_args()
    what = given.what
    if what == "calibrate":
        write(CALIBRATION, calibrate())
    if what in ("calibrate", "compare"):
        rows = [json.loads(line) for line in CALIBRATION.read_text(encoding="utf-8").splitlines()]
        write(CALIBRATION, list(compare(rows, given.study)))
        return
    if what == "map":
        write(ROWS, make_map())
    draw([json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()], PICTURE)


if __name__ == "__main__":
    main()
