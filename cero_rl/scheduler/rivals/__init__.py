"""Every rival of CERO under the same interface and on the same budget; `RIVALS` names them.

Source of each: its class's docstring, with what departs from the paper.
"""

from cero_rl.scheduler.rivals.batch_rules import (
    GvmOptions,
    GvmScheduler,
    HitUtilityScheduler,
    KnapsackScheduler,
    VipOptions,
    VipScheduler,
)
from cero_rl.scheduler.rivals.common import BatchOptions, NoOptions, RivalScheduler, Shared
from cero_rl.scheduler.rivals.controls import FixedPriceScheduler, RandomMatchedScheduler
from cero_rl.scheduler.rivals.elimination import (
    AeroOptions,
    AeroScheduler,
    ReinforceAdaOptions,
    ReinforceAdaScheduler,
    VigorOptions,
    VigorScheduler,
)
from cero_rl.scheduler.rivals.greso import GresoOptions, GresoScheduler
from cero_rl.scheduler.rivals.keep import KeepName, KeepRule, KeepScheduler
from cero_rl.scheduler.rivals.pilots import (
    HoraOptions,
    HoraScheduler,
    PilotCommitScheduler,
    ScreenOptions,
    SpeedScheduler,
)
from cero_rl.scheduler.rivals.selection import (
    GreedyScheduler,
    OracleScheduler,
    PresetOptions,
    PresetScheduler,
    ThompsonOptions,
    ThompsonScheduler,
)
from cero_rl.scheduler.rivals.waves import DapoOptions, DapoScheduler

# Name -> class and the record of its options. "cero", "uniform" and CERO's two controls take other
# arguments (see base.py).
RIVALS: dict[str, tuple[type[RivalScheduler], type]] = {
    "greedy": (GreedyScheduler, NoOptions),
    "thompson": (ThompsonScheduler, ThompsonOptions),
    "preset": (PresetScheduler, PresetOptions),
    "oracle": (OracleScheduler, NoOptions),
    "knapsack": (KnapsackScheduler, BatchOptions),
    "vip": (VipScheduler, VipOptions),
    "gvm_p": (GvmScheduler, GvmOptions),
    "hit_utility": (HitUtilityScheduler, BatchOptions),
    "greso": (GresoScheduler, GresoOptions),
    "dapo": (DapoScheduler, DapoOptions),
    "hora": (HoraScheduler, HoraOptions),
    "speed_rl": (SpeedScheduler, ScreenOptions),
    "pilot_commit": (PilotCommitScheduler, ScreenOptions),
    "vigor": (VigorScheduler, VigorOptions),
    "reinforce_ada": (ReinforceAdaScheduler, ReinforceAdaOptions),
    "aero": (AeroScheduler, AeroOptions),
}

__all__ = [
    "RIVALS",
    "FixedPriceScheduler",
    "KeepName",
    "KeepRule",
    "KeepScheduler",
    "OracleScheduler",
    "RandomMatchedScheduler",
    "RivalScheduler",
    "Shared",
]
