"""Who gets how many rollouts, when: pure numpy, no torch, no communication.

Every rank runs the same scheduler on the same all-reduced counts and so computes the same plan.
Source: arXiv 2606.05606, 2610.09679.
"""

from cero_rl.scheduler.door import CeroScheduler
from cero_rl.scheduler.export import export_posterior, import_posterior
from cero_rl.scheduler.offline import greedy_integer, water_filling
from cero_rl.scheduler.options import CeroOptions, PlanName
from cero_rl.scheduler.plan import proximal_plan, ranked_plan
from cero_rl.scheduler.pool import indices_of
from cero_rl.scheduler.posterior import BetaPosterior, Prior
from cero_rl.scheduler.prior import fit_beta_prior, prior_from_pass_rate
from cero_rl.scheduler.protocol import Scheduler
from cero_rl.scheduler.registry import ALLOCATORS, SCHEDULER_NAMES, make_scheduler
from cero_rl.scheduler.sizes import BudgetSpec, Evidence, Samples, Shared, StateDict
from cero_rl.scheduler.utility import (
    EXPONENTIAL,
    HYPERBOLIC,
    LOGARITHMIC,
    UTILITIES,
    Utility,
    UtilityName,
    conjugate,
    supporting_exposure,
    utility_of,
    utility_slope,
    utility_value,
)
from cero_rl.scheduler.value import (
    ValueFunction,
    ValueName,
    expected_deviation,
    graded_variance,
    hit_utility,
    live_probability,
    maxrl_worth,
    pass_at_k_worth,
)

__all__ = [
    "ALLOCATORS",
    "EXPONENTIAL",
    "HYPERBOLIC",
    "LOGARITHMIC",
    "SCHEDULER_NAMES",
    "UTILITIES",
    "BetaPosterior",
    "BudgetSpec",
    "CeroOptions",
    "CeroScheduler",
    "Evidence",
    "PlanName",
    "Prior",
    "Samples",
    "Scheduler",
    "Shared",
    "StateDict",
    "Utility",
    "UtilityName",
    "ValueFunction",
    "ValueName",
    "conjugate",
    "expected_deviation",
    "export_posterior",
    "fit_beta_prior",
    "graded_variance",
    "greedy_integer",
    "hit_utility",
    "import_posterior",
    "indices_of",
    "live_probability",
    "make_scheduler",
    "maxrl_worth",
    "pass_at_k_worth",
    "prior_from_pass_rate",
    "proximal_plan",
    "ranked_plan",
    "supporting_exposure",
    "utility_of",
    "utility_slope",
    "utility_value",
    "water_filling",
]
