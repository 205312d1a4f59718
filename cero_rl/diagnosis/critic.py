"""The critic of a configuration, with what a run has taught it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file

from cero_rl.checkpoint.manifest import ARRAYS, STATE, step_of, verify
from cero_rl.checkpoint.progress import Progress
from cero_rl.config import Config
from cero_rl.errors import CheckpointError
from cero_rl.scheduler.critic import PosteriorCritic
from cero_rl.scheduler.sizes import Ids

_PREFIX = "critic."


def critic_of(
    config: Config, num_prompts: int, checkpoint: Path | None, cells: Ids | None = None
) -> tuple[PosteriorCritic | None, str]:
    """(the critic, or None where rewards are measured by their groups alone; what it knows, in
    words). cells i64[P]: those of the run. Raises CheckpointError for a checkpoint whose critic is
    another pool's."""
    critic = Progress.fresh(config, num_prompts, cells).critic
    if critic is None:
        return None, ""
    if checkpoint is None:
        return critic, "the critic knows the pool and no prompt yet, as at the start of a run"
    verify(checkpoint)
    both = {
        **json.loads((checkpoint / STATE).read_text(encoding="utf-8")),
        **load_file(checkpoint / ARRAYS),
    }
    own = {k.removeprefix(_PREFIX): v for k, v in both.items() if k.startswith(_PREFIX)}
    try:
        critic.load_state_dict(own)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    return critic, f"the critic knows what the run had taught it by step {step_of(checkpoint)}"
