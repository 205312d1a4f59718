"""What the learner holds on a rank: DeepSpeed 0.19.8's copies of parameters, gradients and Adam's
moments, by ZeRO stage; and its buffers.

Sizes in bytes. T parameters are trained, P are there in all, on N ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cero_rl.config import Config
from cero_rl.models.shapes import Shape

WIDTH = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Elements:
    """How many DeepSpeed handles at once: its defaults, or what zero.deepspeed hands on."""

    reduced: int  # gradients of one message
    stepped: int  # of a sub-group, stage 3
    live: int  # parameters gathered, stage 3
    fetched: int  # parameters of one message, stage 3

    @classmethod
    def of(cls, config: Config) -> Elements:
        def given(key: str, default: int) -> int:
            value = config.zero.deepspeed.get(key, default)
            return int(value) if isinstance(value, (int, float)) else default

        return cls(
            given("reduce_bucket_size", 500_000_000),
            given("sub_group_size", 1_000_000_000),
            given("stage3_max_live_parameters", 1_000_000_000),
            given("stage3_prefetch_bucket_size", 50_000_000),
        )


@dataclass(frozen=True)
class Machine:
    """Where a run is planned to be: equal ranks, with as much memory each."""

    ranks: int
    bytes: int  # usable by a rank
    gpu: bool


@dataclass(frozen=True)
class Item:
    name: str
    bytes: int
    source: str  # why it is there, and as large


@dataclass(frozen=True)
class States:
    """`always` and `offloaded` are there between steps; the latter leave while the sampler works
    where zero.offload_states_in_rollout says so. On top come `learning` in forward and backward,
    `reduced` where gradients are summed over ranks, `step` in the optimizer's step."""

    always: tuple[Item, ...]
    offloaded: tuple[Item, ...]
    learning: tuple[Item, ...]
    reduced: tuple[Item, ...]
    step: tuple[Item, ...]
    gathered: Item | None


def learner_states(config: Config, shape: Shape, machine: Machine) -> States:
    zero, width, elements = config.zero, WIDTH[config.model.dtype], Elements.of(config)
    ranks, trained = machine.ranks, shape.trained
    every = shape.parameters + shape.adapters
    own = -(-trained // ranks)  # trained parameters of a rank
    cut = ranks if zero.stage == 3 else 1
    stepped = own if zero.stage else trained
    on_host = machine.gpu and zero.offload_optimizer == "cpu"
    shards_leave = machine.gpu and zero.offload_parameters == "cpu"
    shards = 0 if shards_leave else -(-width * every // cut)
    always = [Item("weights", shards, f"{width} B of every parameter{_over(cut)}")]
    if config.learner.kl_coefficient > 0 and not config.lora.rank:
        away = machine.gpu and zero.reference_on_host
        held = 0 if away else -(-width * every // cut)
        always.append(Item("reference", held, "the start model, as the weights"))

    if (near := zero.hpz_partition_size) > 1:
        second = -(-width * every // near)
        always.append(Item("weights again", second, f"zero.hpz_partition_size{_over(near)}"))

    masters = 0 if _plain(config) or on_host else 4 * stepped
    moments = 0 if on_host else 8 * stepped
    over = _over(ranks if zero.stage else 1)
    gradient = WIDTH[config.gradient_dtype]
    kept = own if zero.stage >= 2 else trained
    apart = _over(ranks if zero.stage >= 2 else 1)
    sums = Item(
        "gradient sums",
        0 if on_host else gradient * kept,
        f"{gradient} B a trained parameter{apart}",
    )
    sent = max(gradient, width)
    filled = min(elements.reduced, trained)
    overlaps = machine.gpu if zero.overlap_comm is None else zero.overlap_comm
    buckets = 2 if overlaps and zero.stage in (1, 2) else 1
    bucket = Item(
        "reduce bucket" if buckets == 1 else "two reduce buckets",
        buckets * sent * (elements.reduced if machine.gpu else filled),
        f"{sent} B of {elements.reduced:.0e} elements",
    )
    states = [
        Item("float32 masters", masters, f"4 B a trained parameter{over}"),
        Item("Adam's moments", moments, f"8 B a trained parameter{over}, from step 1"),
    ]
    if zero.stage == 3:  # which keeps both from the start; the others make them anew
        states += [sums, bucket]
        reduced = [Item("reduce-scatter", sent * filled, "a copy of the bucket, by ranks")]
    elif zero.stage:
        reduced = [bucket]
    else:
        reduced = [Item("all-reduce", width * filled, "gradients, flattened")] if ranks > 1 else []
    gathered = None
    if zero.stage == 3:
        live = width * min(every, elements.live + shape.largest)
        gathered = Item("gathered parameters", live, f"of at most {elements.live:.0e} and one more")
    return States(
        _there(always),
        _there(states),
        _there([] if zero.stage == 3 else [sums]),
        _there(reduced),
        () if on_host else _step(config, shape, machine, stepped, sums),
        gathered,
    )


def _there(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(item for item in items if item.bytes)


def _step(
    config: Config, shape: Shape, machine: Machine, stepped: int, sums: Item
) -> tuple[Item, ...]:
    """What is there in the optimizer's step alone."""
    at_once = min(stepped, Elements.of(config).stepped) if config.zero.stage == 3 else stepped
    plain = _plain(config)
    if plain:
        gradient = sums
    else:
        gradient = Item("float32 gradient", 4 * at_once, "of what is stepped at once")
    # torch's loop over parameters makes two temporaries of one; fused, on a GPU, it makes none
    temporary = 0 if machine.gpu else 8 * (shape.largest if plain else at_once)
    return _there([gradient, Item("AdamW's temporaries", temporary, "of what is stepped at once")])


def _plain(config: Config) -> bool:
    """Does the optimizer step the model's own parameters?"""
    return config.zero.stage == 0 and config.model.dtype == "float32"


def _over(ranks: int) -> str:
    return f" over {ranks} ranks" if ranks > 1 else ""
