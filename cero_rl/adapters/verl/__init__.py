"""verl 0.9 (V1 trainer) under a CERO budget; needs verl. Importing it registers trainer mode `cero`
and the `cero_*` estimators.

    VERL_USE_EXTERNAL_MODULES=cero_rl.adapters.verl python -m verl.trainer.main_ppo \\
      <your overrides> trainer.v1.trainer_mode=cero algorithm.adv_estimator=cero_std \\
      +cero.rounds=200

See trainer.py, and docs/adapters.md for what the options mean.
"""

from cero_rl.adapters.verl.settings import CeroSettings
from cero_rl.adapters.verl.trainer import CeroPPOTrainer

__all__ = ["CeroPPOTrainer", "CeroSettings"]
