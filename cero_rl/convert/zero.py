"""Reading a DeepSpeed checkpoint (ZeRO stages 0 to 3) without DeepSpeed, without running pickled
code and without loading it.

The .pt files are unpickled by torch's restricted loader under fake tensors: it gives shapes and
byte offsets, no data. Three DeepSpeed classes appear in them; inert stand-ins take their places.
The elements are then read by offset, piece by piece. Tested against the files of DeepSpeed 0.19.8.
Raises CheckpointError for what it does not know: tensor or pipeline parallelism, experts, frozen
parameters, several parameter groups, loss scaling. A checkpoint of a LoRA run holds no frozen
parameter and is read as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cero_rl.convert.weights import Spec, Weights, read_elements
from cero_rl.errors import CheckpointError
from cero_rl.files.lora_adapter import is_adapter_parameter
from cero_rl.files.pickled_enum import GETATTR, enum_member

PREFIX = "causal_lm."  # of our PolicyModule
STATES = ("fp32", "exp_avg", "exp_avg_sq")
_OPTIM = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL3 = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")


class _Stage(IntEnum):
    """Stands in for deepspeed.runtime.zero.config.ZeroStageEnum."""

    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3


class _Scaler:
    """Stands in for DeepSpeed's loss scaler; only its attributes are looked at."""

    dynamic: bool
    cur_scale: float


class _Address:
    """Stands in for deepspeed.utils.tensor_fragment.fragment_address: where a parameter's part lies
    in a rank's flat tensor."""

    numel: int
    start: int


_STAND_INS: list[Any] = [
    (_Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Scaler, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Address, "deepspeed.utils.tensor_fragment.fragment_address"),
    (enum_member, GETATTR),
]


@dataclass(frozen=True)
class Fragment:
    """`count` consecutive elements of a parameter, in order, in a file."""

    path: Path
    offset_bytes: int
    dtype: torch.dtype
    count: int

    def pieces(self) -> Iterator[Tensor]:
        return self.stretch(0, self.count)

    def stretch(self, first: int, count: int) -> Iterator[Tensor]:
        return read_elements(
            self.path, self.offset_bytes + first * self.dtype.itemsize, count, self.dtype
        )


@dataclass(frozen=True)
class ZeroCheckpoint:
    """A DeepSpeed directory, read as far as needed to find every element.

    shapes: stored parameters in the optimizer's order. shared: tied name -> stored name, which is
    not there where it is frozen. fragments[state][name]: fp32 masters and Adam's moments; at stage
    0 the masters of a bfloat16 model alone. module: full tensors at stages 0 to 2. buffers: the
    persistent ones, whole. header: rank 0's model states without tensors.
    """

    directory: Path
    stage: int
    world_size: int
    model_dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, str]
    fragments: Mapping[str, Mapping[str, list[Fragment]]]
    module: Mapping[str, Fragment]
    buffers: Mapping[str, tuple[Spec, Fragment]]
    header: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    step: float | None

    @property
    def is_adapter(self) -> bool:
        """Is it of a LoRA run, whose checkpoints hold the adapter alone?"""
        return any(is_adapter_parameter(name) for name in self.shapes)

    def state(self, kind: str) -> Weights:
        """One of STATES as full float32 tensors under DeepSpeed's names."""
        specs = {n: Spec(torch.float32, shape) for n, shape in self.shapes.items()}
        return Weights(specs, lambda name: self.elements(kind, name, 0, specs[name].numel))

    def elements(self, kind: str, name: str, first: int, count: int) -> Iterator[Tensor]:
        """Elements first : first + count of a parameter's state, from the fragments that hold
        them."""
        at = 0
        for part in self.fragments[kind][name]:
            low, high = max(first - at, 0), min(first + count - at, part.count)
            if low < high:
                yield from part.stretch(low, high - low)
            at += part.count

    def weights(self) -> Weights:
        """The model under its own names: the float32 masters where they are sharded, else the
        module as it was saved."""
        if self.stage == 3 or (self.fragments and self.model_dtype != torch.float32):
            held = self.state("fp32")
        else:
            held = Weights(
                {n: Spec(self.module[n].dtype, shape) for n, shape in self.shapes.items()},
                lambda n: self.module[n].pieces(),
            )
        specs = dict(held.specs)
        if not self.is_adapter:
            specs |= {n: spec for n, (spec, _) in self.buffers.items()}
        names = {_plain(n): n for n in specs}

        def pieces(plain: str) -> Iterator[Tensor]:
            n = names[plain]
            return self.buffers[n][1].pieces() if n in self.buffers else held.pieces(n)

        return Weights({plain: specs[n] for plain, n in names.items()}, pieces)


def _plain(name: str) -> str:
    return name.removeprefix("module.").removeprefix(PREFIX)


def load_restricted(path: Path) -> Any:
    """The content of a .pt file with fake tensors. Raises CheckpointError where it holds anything
    but tensors and plain values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with torch.serialization.safe_globals(_STAND_INS), FakeTensorMode():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler has no error class of its own
        reason = re.search(r"GLOBAL ([\w.]+)|Unsupported \w+ ([\w.]+)", str(error))
        what = f"it holds {reason.group(1) or reason.group(2)}" if reason else type(error).__name__
        raise CheckpointError(
            f"{path}: not loaded, {what}; wanted tensors and plain values, no other pickled object"
        ) from None


def fragment_of(path: Path, tensor: Tensor, first: int, count: int) -> Fragment:
    """Elements first : first + count of a fake flat tensor, as a place in its file."""
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None or not tensor.is_contiguous():
        raise CheckpointError(
            f"{path}: written in a layout without byte offsets (torch before 1.6); save it "
            "again with a newer torch"
        )
    assert first + count <= tensor.numel(), (path, first, count, tensor.numel())
    return Fragment(
        path,
        offset + (tensor.storage_offset() + first) * tensor.dtype.itemsize,
        tensor.dtype,
        count,
    )


def _value(path: Path, tensor: Any) -> float:
    return (
        float(torch.cat(list(fragment_of(path, tensor.view(-1), 0, 1).pieces())))
        if isinstance(tensor, Tensor)
        else float(tensor)
    )


def _by_rank(directory: Path, pattern: re.Pattern[str]) -> list[Path]:
    found: dict[int, Path] = {}
    for path in directory.iterdir():
        if match := pattern.fullmatch(path.name):
            if int(match.groups()[-1]):
                raise CheckpointError(
                    f"{path}: saved with tensor parallelism, which is not supported; merge "
                    "it with DeepSpeed first"
                )
            found[int(match.group(1)) if len(match.groups()) > 1 else 0] = path
    if sorted(found) != list(range(len(found))):
        raise CheckpointError(
            f"{directory}: files of rank(s) "
            f"{sorted(set(range(max(found) + 1)) - set(found))} are missing"
        )
    return [found[rank] for rank in range(len(found))]


def open_zero(directory: Path) -> ZeroCheckpoint:
    """Reads headers only. `directory` holds *_model_states.pt."""
    try:
        return _open(directory)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{directory}: not in the layout that DeepSpeed 0.19 writes ({what}); save it "
            "with that version"
        ) from error


def _open(directory: Path) -> ZeroCheckpoint:
    models = _by_rank(directory, _MODEL3)
    stage3 = bool(models)
    models = models or _by_rank(directory, _MODEL)
    if not models:
        raise CheckpointError(f"{directory}: no *_model_states.pt; wanted a DeepSpeed checkpoint")
    if strange := [
        p.name for p in directory.iterdir() if "expert_" in p.name or p.name.startswith("layer_")
    ]:
        raise CheckpointError(
            f"{directory / strange[0]}: experts or pipeline stages are not supported"
        )
    optims = _by_rank(directory, _OPTIM)
    header = load_restricted(models[0])
    shared = dict(header.get("shared_params") or {})
    if header.get("frozen_param_shapes"):
        raise CheckpointError(
            f"{models[0]}: has frozen parameters, which are not supported; use the run's own export"
        )
    buffers = {
        name: (
            Spec(t.dtype, tuple(t.shape)),
            fragment_of(models[0], t.view(-1), 0, t.numel()),
        )
        for name, t in header["module"].items()
        if name in (header.get("buffer_names") or ())
    }
    module = {name: t for name, t in header["module"].items() if name not in buffers}
    if not optims:
        shared = _shared(models[0], module)  # stage 0 lists none
    module_sizes = {name: tuple(t.shape) for name, t in module.items() if name not in shared}
    dtypes = {t.dtype for t in module.values()}
    if len(dtypes) != 1:
        raise CheckpointError(
            f"{models[0]}: parameters of several dtypes {sorted(map(str, dtypes))} are not "
            "supported"
        )
    states = [load_restricted(path)["optimizer_state_dict"] for path in optims]
    for path, state in zip(optims, states):
        scaler = state.get("loss_scaler")
        if scaler is not None and (scaler.dynamic or scaler.cur_scale != 1.0):
            raise CheckpointError(
                f"{path}: trained with a loss scale (fp16), which is not supported; train "
                "in bfloat16 or float32"
            )
    if stage3:
        if len(models) != len(optims):
            raise CheckpointError(
                f"{directory}: {len(models)} *_model_states.pt but {len(optims)} "
                "*_optim_states.pt; a file is missing"
            )
        shapes = {
            name: tuple(shape) for group in header["param_shapes"] for name, shape in group.items()
        }
        fragments = _stage3_fragments(header["param_shapes"], optims, states)
        stage = 3
    else:
        shapes = module_sizes
        if not states and any(is_adapter_parameter(name) for name in shapes):
            # Stage 0 lists no shared parameters: the second name of a frozen tied one is left in
            # the module.
            shapes = {name: shape for name, shape in shapes.items() if is_adapter_parameter(name)}
        fragments = (
            _stage12_fragments(shapes, optims, states)
            if states
            else _stage0_masters(models[0], header.get("optimizer") or {}, shapes)
        )
        stage = int(states[0]["zero_stage"]) if states else 0
    full = {
        n: fragment_of(models[0], module[n].view(-1), 0, math.prod(shapes[n]))
        for n in ({} if stage3 else shapes)
    }
    optimizer = states[0] if states else {}
    base = optimizer.get("optimizer_state_dict") or optimizer.get("base_optimizer_state") or {}
    if len(base.get("param_groups", [])) > 1:
        raise CheckpointError(f"{optims[0]}: several parameter groups are not supported")
    step = _value(optims[0], base["state"][0]["step"]) if states else None
    header = {k: v for k, v in header.items() if k != "module"}
    world = len(optims) or int(header["dp_world_size"])
    return ZeroCheckpoint(
        directory,
        stage,
        world,
        dtypes.pop(),
        shapes,
        shared,
        fragments,
        full,
        buffers,
        header,
        optimizer,
        step,
    )


def partition(numel: int, world_size: int, rank: int) -> tuple[int, int, int]:
    """(elements of a stage-3 partition with padding, first real element, number of real
    elements)."""
    size = -(-numel // world_size)
    first = min(rank * size, numel)
    return size, first, min(size, numel - first)


def _stage3_fragments(
    groups: Any, optims: list[Path], states: list[Any]
) -> dict[str, dict[str, list[Fragment]]]:
    """A rank's flat tensor of a sub-group is its partition of each parameter, padded, one after the
    other."""
    found: dict[str, dict[str, list[Fragment]]] = {state: {} for state in STATES}
    for rank, (path, state) in enumerate(zip(optims, states)):
        if state["partition_count"] != len(optims):
            raise CheckpointError(
                f"{path}: written by {state['partition_count']} ranks, but there are "
                f"{len(optims)} files"
            )
        for index, group in enumerate(groups):
            moments = state["optimizer_state_dict"]["state"][index]
            flat = {
                "fp32": state["fp32_flat_groups"][index],
                "exp_avg": moments["exp_avg"],
                "exp_avg_sq": moments["exp_avg_sq"],
            }
            offset = 0
            for name, shape in group.items():
                size, _, real = partition(math.prod(shape), len(optims), rank)
                for kind, tensor in flat.items():
                    found[kind].setdefault(name, []).append(fragment_of(path, tensor, offset, real))
                offset += size
    return found


def _shared(path: Path, module: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of the same data in a file: further name -> first one."""
    first: dict[int, str] = {}
    for name, tensor in module.items():
        if tensor.numel():
            first.setdefault(fragment_of(path, tensor.view(-1), 0, 1).offset_bytes, name)
    return {
        name: first[at]
        for name, tensor in module.items()
        if tensor.numel()
        and first[at := fragment_of(path, tensor.view(-1), 0, 1).offset_bytes] != name
    }


def _stage0_masters(
    path: Path, optimizer: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, list[Fragment]]]:
    """The float32 masters of a 16-bit model, in the order of its parameters; {} where there are
    none. Of a fused optimizer they are one flat tensor, of another a list."""
    groups = optimizer.get("fp32_groups_flat") or optimizer.get("fp32_groups") or []
    flat = [t.view(-1) for group in groups for t in (group if isinstance(group, list) else [group])]
    found: dict[str, list[Fragment]] = {}
    names = iter(shapes.items())
    for tensor in flat:
        at = 0
        while at < tensor.numel():
            name, shape = next(names, ("", ()))
            count = math.prod(shape)
            if not name or at + count > tensor.numel():
                raise CheckpointError(f"{path}: the float32 masters do not fit the parameters")
            found[name] = [fragment_of(path, tensor, at, count)]
            at += count
    return {"fp32": found} if len(found) == len(shapes) else {}


def _stage12_fragments(
    shapes: Mapping[str, tuple[int, ...]], optims: list[Path], states: list[Any]
) -> dict[str, dict[str, list[Fragment]]]:
    """Every rank holds a stretch of one flat tensor and says which parameters it meets there."""
    found: dict[str, dict[str, list[Fragment]]] = {
        state: {name: [] for name in shapes} for state in STATES
    }
    for path, state in zip(optims, states):
        for index, addresses in enumerate(state["param_slice_mappings"]):
            moments = state["base_optimizer_state"]["state"][index]
            masters = state["single_partition_of_fp32_groups"][index]
            flat = {
                "fp32": masters,
                "exp_avg": moments["exp_avg"],
                "exp_avg_sq": moments["exp_avg_sq"],
            }
            for name, address in addresses.items():
                for kind, tensor in flat.items():
                    found[kind][name].append(
                        fragment_of(path, tensor, address.start, address.numel)
                    )
    for name, shape in shapes.items():
        have = sum(part.count for part in found["fp32"][name])
        if have != math.prod(shape):
            raise CheckpointError(
                f"{optims[0].parent}: {name} has {have} elements in the optimizer's files, "
                f"wanted {math.prod(shape)}"
            )
    return found
