"""What a sampler holds on a rank: weights, key-value cache, and what one token of all sequences
makes."""

from __future__ import annotations

from dataclasses import dataclass

from cero_rl.config import Config
from cero_rl.memory.states import WIDTH, Item, Machine
from cero_rl.models.shapes import Shape

GIB = 2**30
_VLLM_ACTIVATIONS = 2 * GIB  # of its profiling run: an assumption, not measured
_CPU_CACHE = 2**29  # vllm's cache on a CPU, where no key says more


@dataclass(frozen=True)
class Sampler:
    """`weights` stays; `working` comes on top while it samples; `asleep` is what the learner finds
    in its phases. `problem`: why it cannot even start."""

    weights: Item | None
    working: tuple[Item, ...]
    asleep: tuple[Item, ...]
    note: str
    problem: str | None = None


def sampler_of(config: Config, shape: Shape, machine: Machine, engine: str) -> Sampler:
    """`engine`: transformers, vllm or server."""
    if engine == "server":
        return Sampler(None, (), (), "the sampler is a server: its memory is not in this table")
    build = _vllm if engine == "vllm" else _transformers
    return build(config, shape, machine)


def longest_sequence(config: Config, shape: Shape) -> int:
    """Tokens of the longest prompt with the longest response."""
    return min(config.data.max_prompt_tokens + config.rollout.max_response_tokens, shape.longest)


def rollouts_of_rank(config: Config, ranks: int) -> int:
    """Of one optimizer step, of the rank that gets most."""
    step = min(
        config.learner.rollouts_per_step or config.capacity_rollouts, config.capacity_rollouts
    )
    group = config.scheduler.rollouts_per_unit
    return -(-step // (ranks * group)) * group


def _transformers(config: Config, shape: Shape, machine: Machine) -> Sampler:
    width, longest = WIDTH[config.model.dtype], longest_sequence(config, shape)
    fits = max(config.rollout.max_batch_tokens // longest, 1)
    rows = min(fits, rollouts_of_rank(config, machine.ranks))
    cache = rows * longest * shape.cache * width
    words = rows * shape.vocabulary * (width + 20)
    return Sampler(
        Item("sampler's weights", width * shape.parameters, "a whole copy a rank"),
        (
            Item("key-value cache", cache, f"{rows} sequences of {longest} tokens"),
            Item("one layer's cache again", cache // shape.layers, "in order for its product"),
            Item("distribution", words, f"{rows} rows of {shape.vocabulary} words, float64 sums"),
        ),
        (),
        f"{rows} sequences at once",
    )


def _vllm(config: Config, shape: Shape, machine: Machine) -> Sampler:
    rollout, width = config.rollout, WIDTH[config.model.dtype]
    weights = width * shape.parameters // rollout.tensor_parallel
    token = max(width * shape.cache // rollout.tensor_parallel, 1)
    given = rollout.kv_cache_memory_bytes
    if given is None and not machine.gpu:
        given = _CPU_CACHE
    if given is not None:
        cache, rest = given, _VLLM_ACTIVATIONS if machine.gpu else 0
        source = "rollout.kv_cache_memory_bytes"
    else:
        share = int(rollout.gpu_memory_fraction * machine.bytes)
        rest = _VLLM_ACTIVATIONS
        cache = share - weights - rest
        source = f"what rollout.gpu_memory_fraction {rollout.gpu_memory_fraction:g} leaves"
    longest = longest_sequence(config, shape)
    tokens = cache // token
    problem = None
    if tokens < longest:
        problem = (
            f"vllm's cache has room for {max(tokens, 0)} tokens, below one sequence of {longest}"
        )
    sequences = tokens / longest
    note = f"cache for {max(tokens, 0):,} tokens: {max(sequences, 0):.0f} sequences of {longest}"
    held = (
        Item("vllm's cache", max(cache, 0), f"{source}; {note}"),
        Item("vllm's activations", rest, "assumed, not measured"),
    )
    copy = Item("vllm's weights", weights, f"{width} B a parameter{_over(rollout.tensor_parallel)}")
    sleeps = machine.gpu and rollout.sleep
    asleep = () if sleeps else (copy, *held)
    return Sampler(copy, tuple(i for i in held if i.bytes), asleep, note, problem)


def _over(ranks: int) -> str:
    return f" over {ranks} ranks" if ranks > 1 else ""
