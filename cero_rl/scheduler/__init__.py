"""Who gets how many rollouts, when: pure numpy, no torch, no communication.

Every rank runs the same scheduler on the same all-reduced counts and so computes the same plan. Source: arXiv 2606.05606,
2610.09679.
"""

from cero_rl.scheduler.base import Scheduler, SchedulerName, make_scheduler
from cero_rl.scheduler.baselines import UniformScheduler
from cero_rl.scheduler.cero import CeroScheduler, ranked_plan
from cero_rl.scheduler.core import BudgetSpec, Observed, Samples, StateDict
from cero_rl.scheduler.offline import greedy_integer, water_filling
from cero_rl.scheduler.posterior import BetaPosterior
from cero_rl.scheduler.utility import conjugate, supporting_exposure, utility_slope, utility_value

__all__ = [
    "BetaPosterior",
    "BudgetSpec",
    "CeroScheduler",
    "Observed",
    "Samples",
    "Scheduler",
    "SchedulerName",
    "StateDict",
    "UniformScheduler",
    "conjugate",
    "greedy_integer",
    "make_scheduler",
    "ranked_plan",
    "supporting_exposure",
    "utility_slope",
    "utility_value",
    "water_filling",
]
