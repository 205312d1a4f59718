"""Command line: `recipes/train_cero.py` (training) and `python -m cero_rl` (validate, evaluate, simulate, serve, doctor).

Arguments and the configuration are checked before torch is imported, so a mistyped key is answered in well under two seconds.
Every expected error is one line on stderr and the exit code of its class; --debug shows the traceback.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from cero_rl import __version__, redact
from cero_rl.allocator import build_scheduler, scheduler_for_pool
from cero_rl.checkpoints_cli import add_checkpoints, checkpoints
from cero_rl.config import Config, check_pool, derived_sizes
from cero_rl.config_io import dump_config, load_config
from cero_rl.doctor import add_doctor, doctor
from cero_rl.errors import EXIT_INTERRUPT, CeroError, CheckpointError, ConfigError, DataError, NoProgressError, RewardError
from cero_rl.serve import add_serve, serve
from cero_rl.simulate_cli import add_simulate, simulate
from cero_rl.slurm import add_slurm, slurm
from cero_rl.slurm_env import adopt
from cero_rl.versions import refuse_unfit
from cero_rl.walltime import find_walltime


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (-[^\s=]+)", message)
        near = difflib.get_close_matches(unknown[1], _flags(self), n=1) if unknown else []
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"error: {redact.text(message)}; {hint}see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Every flag of the parser and of its commands."""
    commands = [c for a in parser._actions if isinstance(a, argparse._SubParsersAction) for c in a.choices.values()]
    return [*parser._option_string_actions, *(flag for command in commands for flag in _flags(command))]


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="run configuration, e.g. recipes/quickstart_cpu.yaml")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="override one key, e.g. --set scheduler.name=uniform (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def _train_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train_cero.py",
        description="Train with verifiable rewards under one rollout budget. Start it with the deepspeed launcher: "
        "deepspeed recipes/train_cero.py --config recipes/qwen3_8b.yaml",
        allow_abbrev=False,
    )
    _add_config(parser)
    parser.add_argument(
        "--resume", metavar="auto|DIR",
        help="go on from the newest valid checkpoint of this run (auto; it starts if there was none yet), or from a given one",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="delete the run directory of an earlier run of this name first")
    parser.add_argument("--dry-run", action="store_true", help="check everything that needs no model, print the sizes, and end")
    parser.add_argument("--stop-at-step", type=int, metavar="N", help="save and end after optimizer step N")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the launcher passes it
    return parser


def _guard(action: Callable[[], int], *, debug: bool) -> int:
    """Turn expected errors into one line and an exit code. Errors that every rank meets alike are printed by rank 0 alone."""
    try:
        return action()
    except CeroError as error:
        rank = os.environ.get("RANK", "0")  # known only now where srun started it
        if debug:
            print(redact.text(traceback.format_exc()), end="", file=sys.stderr, flush=True)
        elif rank == "0" or not isinstance(error, (ConfigError, DataError, RewardError, CheckpointError, NoProgressError)):
            line = redact.text(str(error))
            print(f"error: {line}" if rank == "0" else f"error (rank {rank}): {line}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPT


def _print_sizes(config: Config, num_prompts: int | None) -> None:
    for name, equation in derived_sizes(config, num_prompts):
        print(f"  {name:<15} {equation}")


def train_main(argv: Sequence[str] | None = None) -> int:
    arguments = _train_parser().parse_args(argv)

    def action() -> int:
        adopt(os.environ)  # where srun started this rank
        return _train(arguments)

    return _guard(action, debug=arguments.debug)


def _train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    walltime = find_walltime(config.checkpoint.walltime_seconds, config.checkpoint.walltime_margin_seconds, os.environ, time.time())
    from cero_rl import faults
    from cero_rl.rewards.pool import check_reward

    faults.check()
    if os.environ.get("RANK", "0") == "0":
        check_reward(config.reward)
    refuse_unfit()
    if arguments.dry_run:
        return _report_validation(config) if os.environ.get("RANK", "0") == "0" else 0
    from cero_rl.engine import runtime
    from cero_rl.run_start import Start, close_attempt, open_run_dir
    from cero_rl.session import check_model, load_data, load_tokenizer, run_directory
    from cero_rl.train import Options, Trainer
    from cero_rl.watchdog import Watchdog, explained

    group = runtime.start(config.watchdog.stall_seconds)
    tokenizer = load_tokenizer(config.model.path)
    check_model(config, config.model.path, tokenizer)
    data = load_data(config, tokenizer)
    check_pool(config, len(data.train))
    scheduler = scheduler_for_pool(config, data.train.prompts)
    run_dir = run_directory(config)
    resume = open_run_dir(run_dir, config, len(data.train), Start(arguments.resume, arguments.overwrite), group)
    if group.is_main:
        print(f"cero_rl {__version__}: {config.name} on {group.world_size} {group.device.type} rank(s), scheduler {config.scheduler.name}")
        print(f"  {'prompts':<15} {len(data.train)} to train on, {len(data.heldout)} held out")
        _print_sizes(config, len(data.train))
        print(f"  {'run directory':<15} {run_dir}", flush=True)
    with Watchdog(config.watchdog.stall_seconds, run_dir) as watchdog, explained(watchdog, run_dir):
        options = Options(resume, arguments.stop_at_step, walltime)
        trainer = Trainer(config, options, group, data, scheduler, tokenizer, run_dir, watchdog)
        status = trainer.run()
    if group.is_main:
        close_attempt(run_dir, status)
    runtime.stop()  # not on the way out of an error: the other ranks may be stuck
    return status


def _report_validation(config: Config) -> int:
    from cero_rl.data.load import count_prompts

    num_prompts = count_prompts(config.data)
    if num_prompts is not None:
        check_pool(config, num_prompts)
    group = config.scheduler.rollouts_per_unit * config.scheduler.max_units_per_prompt
    build_scheduler(config, num_prompts or -(-config.capacity_rollouts // group))  # its options are checked by building it
    print(f"{config.name}: the configuration is valid")
    print(f"  {'prompts':<15} {num_prompts if num_prompts is not None else 'known once the data is loaded'}")
    _print_sizes(config, num_prompts)
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    status = _report_validation(config)
    if arguments.show:
        print(dump_config(config), end="")
    return status


def _evaluate(arguments: argparse.Namespace) -> int:
    """Held-out accuracy of a model directory, with the prompts, draws and rewards of a configuration."""
    config = load_config(arguments.config, arguments.overrides)
    refuse_unfit()
    from cero_rl.engine import runtime
    from cero_rl.evaluate import evaluate
    from cero_rl.rewards.pool import RewardPool, check_reward
    from cero_rl.session import build_rollout_engine, check_model, load_data, load_tokenizer

    check_reward(config.reward)
    group = runtime.start()
    try:
        path = arguments.model or config.model.path
        tokenizer = load_tokenizer(path)
        check_model(config, path, tokenizer)
        heldout = load_data(config, tokenizer).heldout
        if not len(heldout):
            raise DataError("data: there are no held-out prompts; set data.heldout_source or data.heldout_fraction")
        engine = build_rollout_engine(config, tokenizer, group, path)
        count = min(len(heldout), config.evaluation.limit or len(heldout))
        samples = config.evaluation.final_samples_per_prompt or config.evaluation.samples_per_prompt
        with RewardPool(config.reward) as rewards:
            result = evaluate(
                engine, heldout.prompts[:count], heldout.tokens[:count], rewards, group, samples_per_prompt=samples,
                pass_k=config.evaluation.pass_k, temperature=config.evaluation.temperature,
                success_threshold=config.reward.success_threshold,
            )  # fmt: skip
        if group.is_main:
            print(json.dumps({"model": str(path), "prompts": result.prompts, **result.metrics()}))
        return 0
    finally:
        runtime.stop()


def main(argv: Sequence[str] | None = None) -> int:
    what = "Rollout allocation for RL with verifiable rewards: check, evaluate, inspect."
    parser = _Parser(prog="cero-rl", description=what, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cero_rl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    validate = commands.add_parser("validate", help="check a configuration and print the sizes that follow from it")
    _add_config(validate)
    validate.add_argument("--show", action="store_true", help="print the resolved configuration")
    evaluate = commands.add_parser("evaluate", help="held-out accuracy of a model, e.g. of a run's export/")
    _add_config(evaluate)
    evaluate.add_argument("--model", metavar="DIR", help="model directory or hub id; default: the configuration's start model")
    about = "allocators against each other on simulated prompt pools, or on a recorded run"
    add_simulate(commands.add_parser("simulate", allow_abbrev=False, help=about))
    add_checkpoints(commands.add_parser("checkpoints", allow_abbrev=False, help="list, verify or prune the checkpoints of a run"))
    add_slurm(commands.add_parser("slurm", allow_abbrev=False, help="job scripts for a Slurm cluster"))
    server = commands.add_parser("serve", allow_abbrev=False, help="vLLM's server as the sampler of runs with rollout.mode: server")
    _add_config(server)
    add_serve(server)
    add_doctor(commands.add_parser("doctor", allow_abbrev=False, help="is this machine fit to train? versions, devices, limits, drills"))
    arguments = parser.parse_args(argv)
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "validate": _validate, "evaluate": _evaluate, "simulate": simulate, "checkpoints": checkpoints,
        "slurm": slurm, "serve": serve, "doctor": doctor,
    }  # fmt: skip
    return _guard(lambda: actions[arguments.command](arguments), debug=arguments.debug)

