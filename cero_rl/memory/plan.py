"""The memory of one rank by phase, told from the configuration and the model's shape.

A phase is a list of items, each with its size and its reason; the sum is the peak that is to be
expected. What no formula tells (the CUDA context, NCCL, vLLM's graphs) is an item of its own that
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cero_rl.config import Config
from cero_rl.memory.samplers import (
    GIB,
    Sampler,
    longest_sequence,
    rollouts_of_rank,
    sampler_of,
)
from cero_rl.memory.states import (
    WIDTH,
    Elements,
    Item,
    Machine,
    States,
    learner_states,
)
from cero_rl.memory.workspace import MicroShape, Workspace
from cero_rl.models.shapes import Shape
from cero_rl.zero.gather import BUCKET_BYTES

PHASES = ("build", "rollout", "learner", "optimizer", "sync", "evaluate")
_CONTEXT = GIB  # CUDA context and NCCL's buffers: an assumption, not measured
_GRAPHS = 2 * GIB  # vLLM's graphs and workspaces, which a sleep does not give back: the same
_LIBRARIES = 54 * 2**20  # a process on a CPU: code that comes with models and DeepSpeed's engine
_PEFT = 36 * 2**20  # and with LoRA

Workspaces = Callable[[Config, MicroShape], Workspace]


@dataclass(frozen=True)
class Phase:
    name: str
    items: tuple[Item, ...]

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True)
class Plan:
    machine: Machine
    phases: tuple[Phase, ...]
    note: str
    problem: str | None  # of the sampler, whatever the phases need

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def too_large(self) -> Phase | None:
        """The first phase, in the order of a run, that does not fit."""
        return next((p for p in self.phases if p.bytes > self.machine.bytes), None)

    @property
    def fits(self) -> bool:
        return self.problem is None and self.too_large is None


def micro_shape(config: Config, shape: Shape, ranks: int) -> MicroShape:
    """A rank's part of the largest micro-batch: sequences of full length, as many as fit or as a
    rank has. Ranks that cut it between them (zero.sequence_parallel) share more sequences, of each
    a slice; and the fullest meets as much of the responses as a slice can."""
    slices = config.zero.sequence_parallel
    longest = longest_sequence(config, shape)
    most = rollouts_of_rank(config, ranks // slices)
    count = min(max(config.learner.max_micro_batch_tokens // longest, 1), most)
    response = min(config.rollout.max_response_tokens, longest)
    own = -(-longest // slices)
    whole, rest = divmod(count * own, longest)
    return MicroShape(count * own, own, whole * response + min(rest, response))


def make_plan(
    config: Config, shape: Shape, workspaces: Workspaces, machine: Machine, engine: str
) -> Plan:
    """`engine`: transformers, vllm or server."""
    states = learner_states(config, shape, machine)
    sampler = sampler_of(config, shape, machine, engine)
    micro = micro_shape(config, shape, machine.ranks)
    space = workspaces(config, micro)
    fixed = _fixed(config, machine, engine)
    gathered = () if states.gathered is None else (states.gathered,)
    copy = () if sampler.weights is None else (sampler.weights,)
    stays = copy if engine == "transformers" else ()  # and what sleeps on a GPU leaves
    asleep = stays or sampler.asleep
    learns = (*fixed, *states.always, *states.offloaded, *asleep)
    leave = config.zero.offload_states_in_rollout
    samples = (*fixed, *states.always, *(() if leave else states.offloaded), *copy)
    tokens = f"{micro.tokens} tokens in sequences of {micro.longest}"
    if (slices := config.zero.sequence_parallel) > 1:
        tokens = f"{micro.tokens} tokens, one of {slices} slices"
    activations = Item("activations", space.backward, f"{tokens}, run on shapes")
    passes = (*states.reduced, activations)
    if (
        shape.trained <= Elements.of(config).reduced
    ):  # never full: it is sent when the activations are gone
        passes = max((activations,), states.reduced, key=_size)
    by_name = {
        "build": _build(machine, states, sampler, fixed),
        "rollout": (*samples, *sampler.working),
        "learner": (*learns, *states.learning, *gathered, *passes),
        "optimizer": (*learns, *states.step),
        "sync": (*samples, *_sync(config, shape, states, sampler, engine)),
        "evaluate": (*samples, *sampler.working),
    }
    phases = tuple(Phase(name, tuple(i for i in by_name[name] if i.bytes)) for name in PHASES)
    return Plan(machine, phases, sampler.note, sampler.problem)


def _fixed(config: Config, machine: Machine, engine: str) -> tuple[Item, ...]:
    if not machine.gpu:
        code = _LIBRARIES + (_PEFT if config.lora.rank else 0)
        return (Item("libraries", code, "measured, docs/bench/plan.jsonl"),)
    context = Item("CUDA context, NCCL", _CONTEXT, "assumed, not measured")
    graphs = Item("vllm's graphs", _GRAPHS, "assumed, not measured; a sleep keeps them")
    return (context, graphs) if engine == "vllm" else (context,)


def _build(
    machine: Machine, states: States, sampler: Sampler, fixed: tuple[Item, ...]
) -> tuple[Item, ...]:
    """Adam's moments come with the first step, and on a CPU the bucket's pages, which are reserved
    and not written before."""
    late = {"Adam's moments", *(() if machine.gpu else ("reduce bucket",))}
    early = tuple(i for i in (*states.always, *states.offloaded) if i.name not in late)
    copy = () if sampler.weights is None else (sampler.weights,)
    return (*fixed, *early, *copy, *(sampler.working if machine.gpu else ()))


def _sync(
    config: Config, shape: Shape, states: States, sampler: Sampler, engine: str
) -> tuple[Item, ...]:
    """The larger of handing the weights over, and the probe after it."""
    width = WIDTH[config.model.dtype]
    sent = shape.adapters if config.lora.adapter_only else shape.parameters
    bucket = min(width * sent, max(BUCKET_BYTES, width * shape.largest))
    twice = 2 * bucket if config.zero.stage == 3 else 0  # as it comes in, and by parameter
    over = Item("gathered for the sampler", twice, "a bucket of parameters, twice")
    handing = (over,)
    probe: tuple[Item, ...] = ()
    if states.gathered is not None:
        fetched = width * min(shape.parameters, Elements.of(config).fetched)
        probe = (states.gathered, Item("a fetch of them", fetched, "as it comes in"))
    if engine == "vllm":  # awake for the probe
        probe = (*probe, *sampler.working)
    return max(handing, probe, key=_size)


def _size(items: tuple[Item, ...]) -> int:
    return sum(item.bytes for item in items)
