"""Plans of one model, for settings and machines of choice."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

from cero_rl.config import Config
from cero_rl.errors import ConfigError
from cero_rl.memory.advice import Advice, advise, fewest_ranks
from cero_rl.memory.plan import Plan, make_plan
from cero_rl.memory.states import Machine
from cero_rl.memory.workspace import MicroShape, Workspace, workspace_of
from cero_rl.models.attention import refuse_indivisible_heads
from cero_rl.models.shapes import find_config, shape_of

GIB = 2**30
GPU_GIB = 80.0  # where there is none to ask
_RANKS = 8  # the same
_USABLE = 0.99  # of a GPU's nominal size: the driver keeps some


class Planner:
    """Raises ConfigError where the model is out of reach or cannot be planned."""

    def __init__(self, config: Config, shape_file: Path | None = None) -> None:
        self.config = config
        model, self.source = find_config(config.model.path, shape_file)
        self.shape = shape_of(model, config)
        self._heads = model.num_attention_heads
        refuse_indivisible_heads(config.model.path, model, config.zero.sequence_parallel)

        @cache
        def workspace(micro: MicroShape, dtype: str, checkpointing: bool) -> Workspace:
            return workspace_of(model, micro, dtype, checkpointing=checkpointing)

        self._workspace = workspace

    def plan(self, config: Config, machine: Machine) -> Plan:
        """Raises ConfigError for ranks that the configuration cannot have."""
        if machine.ranks % (slices := config.zero.sequence_parallel):
            raise ConfigError(
                f"zero.sequence_parallel: {slices} does not divide the {machine.ranks} ranks; "
                "choose a divisor"
            )

        def workspaces(config: Config, micro: MicroShape) -> Workspace:
            model = config.model
            return self._workspace(micro, model.dtype, model.gradient_checkpointing)

        engine = engine_of(config, gpu=machine.gpu)
        return make_plan(config, self.shape, workspaces, machine, engine)

    def advice(self, plan: Plan) -> Advice | None:
        """Of the planner's own configuration, whose plan it is."""
        return advise(self.config, plan, lambda c, ranks: self._on(c, ranks, plan.machine))

    def fewest_ranks(self, machine: Machine) -> int | None:
        """Of this kind of machine, on which the configuration fits."""
        return fewest_ranks(self.config, lambda c, ranks: self._on(c, ranks, machine))

    def _on(self, config: Config, ranks: int, machine: Machine) -> Plan | None:
        """None for a number of ranks, or heads, that do not divide."""
        slices = config.zero.sequence_parallel
        if ranks % config.rollout.tensor_parallel or ranks % slices or self._heads % slices:
            return None
        return self.plan(config, Machine(ranks, machine.bytes, machine.gpu))


def engine_of(config: Config, *, gpu: bool) -> str:
    """What samples where the run is planned to be, vllm taken for installed there."""
    if config.rollout.mode == "server":
        return "server"
    engine = config.rollout.engine
    return ("vllm" if gpu else "transformers") if engine == "auto" else engine


def gpus_here() -> Machine | None:
    """This machine's GPUs; None where it has none."""
    if not torch.cuda.is_available():
        return None
    return Machine(torch.cuda.device_count(), torch.cuda.mem_get_info()[1], gpu=True)


def gpus_of(ranks: int | None, gib: float | None) -> Machine:
    """What is given, else this machine's, else eight of 80 GiB."""
    here = gpus_here()
    ranks = ranks or (here.ranks if here else _RANKS)
    if gib is None and here is not None:
        return Machine(ranks, here.bytes, gpu=True)
    return Machine(ranks, int((gib or GPU_GIB) * GIB * _USABLE), gpu=True)


def processes_of(ranks: int | None, gib: float | None) -> Machine:
    """Ranks on this machine's CPUs; without a size they share its memory."""
    ranks = ranks or 1
    every = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(ranks, int(gib * GIB) if gib else every // ranks, gpu=False)
