"""Every option of CERO against the published defaults, in simulation, on paired seeds.

Writes the tables of docs/scheduler.md.

    python tools/ablate_scheduler.py [--seeds 12] [--only NAME ...]     minutes on one core;
    writes docs/bench/scheduler_ablation.jsonl

800 prompts, 160 rounds of 192 rollouts (24 groups of 8; 4.8 groups a prompt), spend_down on. A
prompt has a logit; its success rate is the logistic of it. Worlds:
    static       logits N(-1, 2) that never move
    drift        the same at the start, then a stationary walk (pull .01, noise .28 a step: half of
                 what is known is stale after 70 steps)
    alike        logits N(-1, 1.5); every prompt teaches
    unfiltered   60 % solved, 15 % impossible, 10 % luck (rate .15, no skill behind it), 15 %
                 learnable, as in an unfiltered pool
A group of n rollouts with k right carries the signal k (n - k)/(n - 1). In the last two worlds
it raises its prompt's logit by .12 a unit of signal, and all logits of its family (8 of them;
luck and impossible prompts are families of their own) by .12 times the family's signal per
prompt. Numbers: `surrogate`, the sum of U along the path of true rates, over the best static
plan's (static world) or per prompt (drift); `signal`, 4 times the signal per rollout (1 at rates
of 1/2, whatever the group size); `ability`, mean success rate at the end of the prompts that
teach. A row's `difference` is option minus baseline over the same seeds, `half_width` its 95 %
interval by Student's t.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cero_rl.scheduler import (
    CeroScheduler,
    Evidence,
    make_scheduler,
    prior_from_pass_rate,
    utility_value,
    water_filling,
)
from cero_rl.scheduler.budgeted import BudgetedScheduler

ROOT = Path(__file__).resolve().parent.parent
PROMPTS, ROUNDS, GROUP, GROUPS = 800, 160, 8, 24
BUDGET = ROUNDS * GROUPS * GROUP
WORLDS = ("static", "drift", "alike", "unfiltered")
STUDENT_95 = {
    4: 3.182,
    8: 2.365,
    10: 2.262,
    12: 2.201,
    16: 2.131,
    20: 2.093,
    24: 2.069,
    30: 2.045,
    40: 2.023,
}


@dataclass
class World:
    """The pool of one seed. `kind` as above."""

    kind: str
    seed: int
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, WORLDS.index(self.kind)])
        self.logit = self.rng.normal(-1.0, 1.5 if self.kind == "alike" else 2.0, PROMPTS)
        self.labels = self.rng.integers(0, 8, PROMPTS)
        self.teaches = np.full(PROMPTS, self.kind in ("alike", "unfiltered"))
        if self.kind == "unfiltered":
            kind = self.rng.permutation(np.repeat(np.arange(4), [480, 120, 80, 120]))
            self.logit = np.choose(
                kind,
                [
                    self.rng.normal(4.0, 0.5, PROMPTS),
                    np.full(PROMPTS, -9.0),
                    np.full(PROMPTS, np.log(0.15 / 0.85)),
                    self.rng.normal(-1.5, 1.0, PROMPTS),
                ],
            )
            self.teaches = (kind == 0) | (kind == 3)
            self.labels = np.choose(
                kind, [self.labels, np.full(PROMPTS, 8), np.full(PROMPTS, 9), self.labels]
            )
        # harder prompts are longer
        self.tokens = np.exp(self.rng.normal(5.0, 0.4, PROMPTS) - 0.2 * self.logit.clip(-4, 4))

    @property
    def rates(self) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-self.logit))

    def step(self, ids: np.ndarray, sizes: np.ndarray, wins: np.ndarray) -> np.ndarray:
        """What one optimizer step does to the pool; returns the signal of each group."""
        signal = wins * (sizes - wins) / np.maximum(sizes - 1, 1)
        if self.kind == "drift":
            self.logit += 0.01 * (-1.0 - self.logit) + 0.28 * self.rng.normal(size=PROMPTS)
        taught = np.where(self.teaches[ids], signal, 0.0)
        self.logit[ids] += 0.12 * taught
        in_family = np.bincount(self.labels[ids], taught, minlength=10) / np.bincount(
            self.labels, minlength=10
        ).clip(1)
        self.logit += np.where(self.teaches, 0.12 * in_family[self.labels], 0.0)
        return signal


Play = Callable[[World], dict[str, float]]


def play(world: World, scheduler: BudgetedScheduler) -> dict[str, float]:
    """Run to the end, 24 groups to an optimizer step and to an observe(); the numbers of the
    run."""
    rng = np.random.default_rng([world.seed, 77])
    exposure, value, signal, spent = np.zeros(PROMPTS), 0.0, 0.0, 0
    share, start = BUDGET / GROUP / PROMPTS, world.rates
    while (allocation := scheduler.open_round()) is not None:
        ids, sizes = allocation.prompt_ids, allocation.rollouts.astype(np.int64)
        for first in range(0, ids.shape[0], GROUPS):
            part = slice(first, first + GROUPS)
            prompts, rollouts, rates = ids[part], sizes[part], world.rates
            # every option meets the same luck at a prompt in a step
            luck = rng.random((PROMPTS, 16))
            right = (luck[prompts] < rates[prompts, None]) & (np.arange(16) < rollouts[:, None])
            wins = right.sum(axis=1)
            c = 4.0 / share * (rates * (1.0 - rates))[prompts]
            value -= float(utility_value(c, exposure[prompts]).sum())
            exposure[prompts] += rollouts / GROUP
            value += float(utility_value(c, exposure[prompts]).sum())
            tokens = int((world.tokens[prompts] * rollouts).sum())
            scheduler.observe(
                Evidence(prompts, wins.astype(np.float64), rollouts, response_tokens=tokens)
            )
            signal += float(world.step(prompts, rollouts, wins).sum())
        scheduler.close_round()
        spent += int(sizes.sum())
    numbers = {"signal": 4.0 * signal / spent, "surrogate": value / PROMPTS}
    if world.kind == "static":
        c = 4.0 / share * start * (1.0 - start)
        numbers["surrogate"] = value / float(
            utility_value(c, water_filling(c, BUDGET / GROUP, ROUNDS)).sum()
        )
    numbers["ability"] = (
        float(world.rates[world.teaches].mean()) if world.teaches.any() else float("nan")
    )
    return numbers


def cero(unit: int = GROUP, most: int = 1, rounds: int = ROUNDS, **options: Any) -> CeroScheduler:
    scale = options.pop("step_scale", 1.0)
    step = scale / np.sqrt(rounds)
    return CeroScheduler(
        PROMPTS,
        rounds,
        BUDGET,
        unit,
        most,
        BUDGET // rounds,
        step_size=step,
        spend_down=True,
        **options,
    )


def _uniform() -> BudgetedScheduler:
    return make_scheduler(
        "uniform",
        num_prompts=PROMPTS,
        rounds=ROUNDS,
        budget_rollouts=BUDGET,
        rollouts_per_unit=GROUP,
        max_units_per_prompt=1,
        capacity_rollouts=BUDGET // ROUNDS,
    )


def _warm(world: World) -> CeroScheduler:
    """A second run of the same length on the pool as it was at the start of the first, from the
    first one's posterior."""
    first = cero()
    play(World(world.kind, world.seed), first)
    second = cero()
    second.warm_start(*first.evidence())
    return second


def _pass_rate(world: World) -> CeroScheduler:
    measured = np.random.default_rng([world.seed, 5]).binomial(4, world.rates) / 4
    return cero(prior=prior_from_pass_rate(measured, strength=4.0))


def _tokens(world: World, **options: Any) -> CeroScheduler:
    """Half the tokens that the whole budget would take; rollouts are not the limit."""
    scheduler = cero(budget_tokens=int(0.5 * BUDGET * world.tokens.mean()), **options)
    scheduler.set_expected_tokens(world.tokens)
    return scheduler


def _options(**options: Any) -> Play:
    return lambda world: play(world, cero(**options))


GOOD: dict[str, Any] = {"step_scale": 5, "cap_shares": 4, "refit_prior_every": 5}

PLAYS: dict[str, tuple[str | None, Play]] = {  # name: (what it is compared with, how it is played)
    "published": (None, _options()),
    "uniform": ("published", lambda w: play(w, _uniform())),
    **{f"step_scale {s}": ("published", _options(step_scale=s)) for s in (3, 5, 10)},
    "cap_shares 4": ("published", _options(cap_shares=4)),
    **{
        f"step_scale {s}, cap_shares 4": (f"step_scale {s}", _options(step_scale=s, cap_shares=4))
        for s in (3, 5, 10)
    },
    "step_scale 3, refit 5": ("step_scale 3", _options(step_scale=3, refit_prior_every=5)),
    "step_scale 5, cap_shares 4, refit 5": ("published", _options(**GOOD)),
    "good, forgetting 0.98": (
        "step_scale 5, cap_shares 4, refit 5",
        _options(**GOOD, forgetting=0.98),
    ),
    "good, value live": ("step_scale 5, cap_shares 4, refit 5", _options(**GOOD, value="live")),
    "good, value progress": (
        "step_scale 5, cap_shares 4, refit 5",
        lambda w: play(w, cero(**GOOD, value="progress", labels=w.labels)),
    ),
    "good, saturation 0.3": (
        "step_scale 5, cap_shares 4, refit 5",
        _options(**GOOD, saturation=0.3),
    ),
    "good, groups of 2 to 8": (
        "step_scale 5, cap_shares 4, refit 5",
        _options(**GOOD, unit=2, most=4),
    ),
    "good, explore 2 of 4": (
        "step_scale 5, cap_shares 4, refit 5",
        _options(**GOOD, unit=2, most=4, explore_units=2),
    ),
    "good, proximal 0.1 of 4": (
        "step_scale 5, cap_shares 4, refit 5",
        _options(**GOOD, unit=2, most=4, proximal=0.1),
    ),
    **{f"forgetting {r}": ("published", _options(forgetting=r)) for r in (0.99, 0.98, 0.95)},
    **{f"utility {u}": ("published", _options(utility=u)) for u in ("logarithmic", "hyperbolic")},
    **{f"value {v}": ("published", _options(value=v)) for v in ("hit", "live")},
    "value progress": ("published", lambda w: play(w, cero(value="progress", labels=w.labels))),
    "plan resolve": ("published", _options(plan="resolve")),
    "plan thompson": ("published", _options(plan="thompson")),
    "refit_prior_every 5": ("published", _options(refit_prior_every=5)),
    "prior from 4 rollouts": ("published", lambda w: play(w, _pass_rate(w))),
    "warm_start": ("published", lambda w: play(w, _warm(w))),
    "groups of 2 to 16": ("published", _options(unit=2, most=8)),
    **{
        f"proximal {x}": ("groups of 2 to 16", _options(unit=2, most=8, proximal=x))
        for x in (0.01, 0.1, 0.3)
    },
    **{
        f"explore_units {x} of 4": ("published", _options(unit=2, most=4, explore_units=x))
        for x in (1, 2)
    },
    "5 epoch rounds": ("published", _options(rounds=5)),
    "5 epoch rounds, streaming": ("5 epoch rounds", _options(rounds=5, streaming=True)),
    "resolve, refit 5": ("plan resolve", _options(plan="resolve", refit_prior_every=5)),
    "resolve, forgetting 0.99": ("plan resolve", _options(plan="resolve", forgetting=0.99)),
    "resolve, saturation 0.3": ("plan resolve", _options(plan="resolve", saturation=0.3)),
    "resolve, value progress": (
        "plan resolve",
        lambda w: play(w, cero(plan="resolve", value="progress", labels=w.labels)),
    ),
    "resolve, explore 2 of 4": (
        "plan resolve",
        _options(plan="resolve", unit=2, most=4, explore_units=2),
    ),
    "thompson, saturation 0.01": ("plan thompson", _options(plan="thompson", saturation=0.01)),
    "thompson, saturation 0.01, forgetting 0.98": (
        "thompson, saturation 0.01",
        _options(plan="thompson", saturation=0.01, forgetting=0.98),
    ),
    "thompson, saturation 0.01, refit 5": (
        "thompson, saturation 0.01",
        _options(plan="thompson", saturation=0.01, refit_prior_every=5),
    ),
    "budget_tokens": (None, lambda w: play(w, _tokens(w))),
    "budget_tokens, token_costs": (
        "budget_tokens",
        lambda w: play(w, _tokens(w, token_costs=True)),
    ),
}
NUMBERS = {
    "static": ("surrogate", "signal"),
    "drift": ("surrogate", "signal"),
    "alike": ("signal", "ability"),
    "unfiltered": ("signal", "ability"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, choices=list(STUDENT_95), default=12)
    parser.add_argument("--only", nargs="+", choices=list(PLAYS), default=list(PLAYS))
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "bench" / "scheduler_ablation.jsonl"
    )
    arguments = parser.parse_args()
    results: dict[tuple[str, str], list[dict[str, float]]] = {}

    def runs(name: str, world: str) -> list[dict[str, float]]:
        if (name, world) not in results:
            results[name, world] = [
                PLAYS[name][1](World(world, seed)) for seed in range(arguments.seeds)
            ]
        return results[name, world]

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with arguments.out.open("w") as file:
        for name in arguments.only:
            cells = []
            for world in WORLDS:
                for number in NUMBERS[world]:
                    own = np.array([run[number] for run in runs(name, world)])
                    row: dict[str, Any] = {
                        "option": name,
                        "world": world,
                        "number": number,
                        "mean": round(float(own.mean()), 4),
                    }
                    cell = f"{own.mean():.3f}"
                    if (baseline := PLAYS[name][0]) is not None:
                        difference = own - np.array([run[number] for run in runs(baseline, world)])
                        half = (
                            STUDENT_95[arguments.seeds]
                            * difference.std(ddof=1)
                            / np.sqrt(arguments.seeds)
                        )
                        row |= {
                            "baseline": baseline,
                            "difference": round(float(difference.mean()), 4),
                            "half_width": round(float(half), 4),
                        }
                        cell += f" ({difference.mean():+.3f} ± {half:.3f})"
                    file.write(json.dumps({**row, "seeds": arguments.seeds}) + "\n")
                    cells.append(cell)
            print(f"| {name} | {PLAYS[name][0] or ''} | " + " | ".join(cells) + " |", flush=True)
    print(f"{len(results)} x {arguments.seeds} runs in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
