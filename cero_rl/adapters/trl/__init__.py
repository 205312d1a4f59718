"""TRL 1.16 under a CERO budget; needs trl. See trainer.py, and docs/adapters.md for the lines to
add to a GRPO script."""

from cero_rl.adapters.trl.parity import ParityCallback
from cero_rl.adapters.trl.trainer import CeroGRPOTrainer, scheduler_for

__all__ = ["CeroGRPOTrainer", "ParityCallback", "scheduler_for"]
