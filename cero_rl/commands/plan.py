"""`cero-rl plan`: will a run fit into memory? A table by phase, told before anything is loaded.

Exit status 0 where it fits, 2 where it does not.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.common import add_config
from cero_rl.config import Config, load_config
from cero_rl.config.paths import path_argument
from cero_rl.errors import ConfigError
from cero_rl.job.versions import refuse_unfit

if TYPE_CHECKING:
    from cero_rl.memory.plan import Plan
    from cero_rl.memory.planner import Planner

HELP = "will a run fit: its memory by phase, from the model's config.json alone"
GIB = 2**30
_NEEDED = ("torch", "transformers", "numpy")
_EPILOG = """examples:
  cero-rl plan --config recipes/qwen3_8b.yaml --gpus 8 --gpu-memory 80
  cero-rl plan --config recipes/qwen3_8b.yaml --gpus 4 --set zero.offload_states_in_rollout=true

Sizes are those of the fullest rank. How each is told, and what is assumed: docs/plan.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add_config(parser)
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="ranks (default: this machine's GPUs, else 8)"
    )
    parser.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="of each, as its name says, e.g. 80 (default: this machine's GPU, else 80)",
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="ranks are processes on CPUs: --gpus says how many, --gpu-memory what each may hold",
    )
    parser.add_argument(
        "--shape",
        type=path_argument,
        metavar="FILE",
        help="a config.json in the place of the model's own",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    ranks, gib = arguments.gpus, arguments.gpu_memory
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--gpus {ranks}: wanted an integer >= 1")
    if gib is not None and not 0 < gib < float("inf"):
        raise ConfigError(f"--gpu-memory {gib:g}: wanted GiB above 0, e.g. 80")
    refuse_unfit(_NEEDED)
    from cero_rl.memory.planner import Planner, gpus_of, processes_of

    planner = Planner(config, arguments.shape)
    plan = planner.plan(config, (processes_of if arguments.cpu else gpus_of)(ranks, gib))
    if arguments.json:
        answer(arguments, **_report(planner, plan))
    else:
        print("\n".join([*_table(planner, plan), "", plan.note, *verdict(planner, plan)]))
    return 0 if plan.fits else ConfigError.exit_code


def one_line(config: Config) -> str:
    """The verdict for this machine's GPUs; where it has none, for a rank on a CPU (float32), or the
    number of GPUs that it takes."""
    from cero_rl.memory.planner import GPU_GIB, Planner, gpus_here, gpus_of, processes_of

    try:
        planner = Planner(config)
        if (here := gpus_here()) is not None:
            return verdict(planner, planner.plan(config, here))[0]
        if config.model.dtype == "float32":
            peak = planner.plan(config, processes_of(1, None)).peak
            return f"a single rank on a CPU holds {_size(peak.bytes)} at most, {peak.name}"
        ranks = planner.fewest_ranks(gpus_of(None, GPU_GIB))
    except ConfigError as error:
        return f"not told: {error}"
    kind = f"GPUs of {GPU_GIB:g} GiB"
    return f"fits on {kind} from {ranks} up" if ranks else f"fits on no number of {kind}"


def verdict(planner: Planner, plan: Plan) -> list[str]:
    """One line where it fits, else what stops it and the key that helps."""
    peak, usable = plan.peak, _size(plan.machine.bytes)
    if plan.fits:
        return [f"fits: peak {_size(peak.bytes)} of {usable}, {peak.name}"]
    why, phase = plan.problem or "", plan.too_large
    if phase is not None:
        why = f"{phase.name} needs {_size(phase.bytes)} of {usable}, the first phase too large"
    said = [f"does not fit: {why}"]
    if (advice := planner.advice(plan)) is not None:
        then = f"peak {_size(advice.plan.peak.bytes)}"
        then = f"it fits, {then}" if advice.fits else f"{then}, still too large"
        said.append(f"the key that helps most: --set {advice.setting}; then {then}")
    if (ranks := planner.fewest_ranks(plan.machine)) is not None:
        said.append(f"as it is, it fits on {ranks} ranks of this size")
    if len(said) == 1:
        said.append("no key of this project makes it small enough; take a smaller model")
    return said


def _table(planner: Planner, plan: Plan) -> list[str]:
    machine, shape = plan.machine, planner.shape
    kind = "GPU" if machine.gpu else "CPU process"
    said = [
        f"{planner.config.name}: {shape.parameters:,} parameters ({planner.source}), "
        f"{shape.trained:,} trained; {machine.ranks} x {kind} of {_size(machine.bytes)} usable"
    ]
    for phase in plan.phases:
        mark = "" if phase.bytes <= machine.bytes else "   does not fit"
        said.append(f"\n{phase.name:<28} {_size(phase.bytes):>10}{mark}")
        said += [f"  {i.name:<26} {_size(i.bytes):>10}  {i.source}" for i in phase.items]
    return said


def _report(planner: Planner, plan: Plan) -> dict[str, Any]:
    """Everything, for programs. Sizes in bytes."""
    advice = None if plan.fits else planner.advice(plan)
    return {
        "fits": plan.fits,
        "machine": asdict(plan.machine),
        "model": {"source": planner.source, **asdict(planner.shape)},
        "peak": plan.peak.name,
        "too_large": plan.too_large.name if plan.too_large else None,
        "problem": plan.problem,
        "advice": advice
        and {
            "setting": advice.setting,
            "fits": advice.fits,
            "peak_bytes": advice.plan.peak.bytes,
        },
        "fits_on_ranks": plan.machine.ranks if plan.fits else planner.fewest_ranks(plan.machine),
        "phases": [
            {"phase": p.name, "bytes": p.bytes, "items": [asdict(i) for i in p.items]}
            for p in plan.phases
        ],
    }


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
