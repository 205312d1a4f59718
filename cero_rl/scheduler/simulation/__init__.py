"""Allocators against simulated or replayed prompt pools: `simulate` one, `run_suite` many on paired
seeds.

A simulation compares what allocators do with a budget; it is no substitute for training (see
worlds.py for what it assumes).
"""

from cero_rl.scheduler.simulation.replay import Recorded, read_evidence, smooth
from cero_rl.scheduler.simulation.run import GRID, Outcome, optimum_curve, simulate
from cero_rl.scheduler.simulation.study import CaseResult, run_suite
from cero_rl.scheduler.simulation.suites import Case, Entry, Suite, make_suites, replay_suite
from cero_rl.scheduler.simulation.summary import Estimate, Row, summarise
from cero_rl.scheduler.simulation.worlds import KINDS, PoolSpec, World, build_world

__all__ = [
    "GRID",
    "KINDS",
    "Case",
    "CaseResult",
    "Entry",
    "Estimate",
    "Outcome",
    "PoolSpec",
    "Recorded",
    "Row",
    "Suite",
    "World",
    "build_world",
    "make_suites",
    "optimum_curve",
    "read_evidence",
    "replay_suite",
    "run_suite",
    "simulate",
    "smooth",
    "summarise",
]
