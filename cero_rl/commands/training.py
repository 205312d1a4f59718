"""What a rank of a training run does: the order of a start, cheap checks first, models last."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

from cero_rl import __version__
from cero_rl.commands.common import Parser, add_config, guard
from cero_rl.commands.validate import print_rows, print_sizes, report_validation, text_notes
from cero_rl.config import load_config
from cero_rl.config.paths import text_argument
from cero_rl.config.sizes import check_pool
from cero_rl.job.slurm_env import adopt
from cero_rl.job.stopping import find_walltime, leave_at_once
from cero_rl.job.versions import refuse_unfit
from cero_rl.train.scheduler import scheduler_for_pool, scheduler_of_checkpoint


def _step(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no optimizer step; wanted 1 or more")
    return int(text)


def add_training(parser: argparse.ArgumentParser) -> None:
    """The flags of a training run, whoever starts its ranks, but for its configuration."""
    parser.add_argument(
        "--resume",
        type=text_argument,
        metavar="auto|DIR",
        help="go on from the newest valid checkpoint of this run (auto; it starts if there was "
        "none yet), or from a given one",
    )
    parser.add_argument(
        "--accept-new-reward",
        action="store_true",
        help="with --resume: go on although the reward or its file is another one than before",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run directory of an earlier run of this name first",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything that needs no model, print the sizes, and end",
    )
    parser.add_argument(
        "--stop-at-step", type=_step, metavar="N", help="save and end after optimizer step N"
    )


def words_of(arguments: argparse.Namespace) -> list[str]:
    """The same flags again, for the command line of a rank."""
    words = [f"--config={arguments.config}", *(f"--set={text}" for text in arguments.overrides)]
    if arguments.resume is not None:
        words.append(f"--resume={arguments.resume}")
    if arguments.stop_at_step is not None:
        words.append(f"--stop-at-step={arguments.stop_at_step}")
    for flag in ("accept_new_reward", "overwrite", "dry_run", "debug"):
        if getattr(arguments, flag):
            words.append(f"--{flag.replace('_', '-')}")
    return words


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="train_cero.py",
        description="Train with verifiable rewards under one rollout budget. Start it with "
        "cero-rl launch --config recipes/qwen3_8b.yaml, or with the deepspeed launcher: "
        "deepspeed recipes/train_cero.py --config recipes/qwen3_8b.yaml",
        allow_abbrev=False,
    )
    add_config(parser)
    add_training(parser)
    # deepspeed's launcher passes it
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser


def train_main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)

    def action() -> int:
        adopt(os.environ)  # where srun started this rank
        return _train(arguments)

    return guard(action, debug=arguments.debug)


def _train(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    walltime = find_walltime(
        config.checkpoint.walltime_seconds,
        config.checkpoint.walltime_margin_seconds,
        os.environ,
        time.time(),
    )
    from cero_rl.job import faults
    from cero_rl.metrics.trackers import refuse_missing
    from cero_rl.models.directory import find_model
    from cero_rl.rewards.several import check_reward

    faults.check()
    refuse_unfit()
    refuse_missing(config)
    if arguments.dry_run and os.environ.get("RANK", "0") != "0":
        return 0
    # several ranks first meet: one that leaves alone would leave the others waiting
    if arguments.dry_run or os.environ.get("WORLD_SIZE", "1") == "1":
        check_reward(config.reward)
        find_model(config.model.path)
    if arguments.dry_run:
        report_validation(config, look_up=True)
        return 0
    from cero_rl.zero import launch

    launch.prepare_environment()  # before the first import of deepspeed, which looks at it
    from cero_rl.checkpoint.identity import identity_of
    from cero_rl.data.pool import Data, load_data
    from cero_rl.environments.pool import tools_of_environment
    from cero_rl.job.heartbeat import Heartbeat
    from cero_rl.job.watchdog import Limit, Watchdog, explained, leave
    from cero_rl.models.load import load_tokenizer
    from cero_rl.rollout.engines.choose import choose_engine
    from cero_rl.train.loop import Options, Trainer
    from cero_rl.train.preflight import check_model, export_repairs, try_rewards
    from cero_rl.train.room import check_room
    from cero_rl.train.run_directory import Start, close_attempt, open_run_dir, run_directory
    from cero_rl.zero.build_locks import build_locks
    from cero_rl.zero.deepspeed_config import refuse_unfit_zero

    group = launch.start(config.collective_timeout_seconds)
    launch.seed_rank(config.seed, group.rank)

    def look() -> tuple[Any, Data]:
        """What a rank sees of its own machine: tokenizer and data."""
        if group.is_main and group.world_size > 1:
            check_reward(config.reward)
        refuse_unfit_zero(config, group.world_size)
        find_model(config.model.path)
        tokenizer = load_tokenizer(config.model.path)
        check_model(config, config.model.path, tokenizer)
        tools = tools_of_environment(config.rollout, config.reward)
        data = load_data(config, tokenizer, tools)
        check_pool(config, len(data.train))
        return tokenizer, data

    tokenizer, data = group.alike(look)
    config = choose_engine(config, on_gpu=group.device.type == "cuda")
    repairs = export_repairs(config) if config.checkpoint.export else ()
    rewards = try_rewards(config, data, group)
    prompts, lengths = data.train.prompts, data.train.lengths
    scheduler = scheduler_for_pool(config, prompts, lengths, warm=arguments.resume is None)
    run_dir = run_directory(config)
    start = Start(arguments.resume, arguments.overwrite, arguments.accept_new_reward)
    room = check_room(config, run_dir, resumed=arguments.resume is not None, group=group)
    identity = identity_of(config, data, group)
    resume = open_run_dir(run_dir, config, len(data.train), start, identity, group)
    if resume is not None:
        scheduler = scheduler_of_checkpoint(config, prompts, lengths, resume)
    elif arguments.resume is not None:
        scheduler = scheduler_for_pool(config, prompts, lengths)
    if group.is_main:
        print(
            f"cero_rl {__version__}: {config.name} on {group.world_size} "
            f"{group.device.type} rank(s), scheduler {config.scheduler.name}"
        )
        print(f"  {'prompts':<15} {len(data.train)} to train on, {len(data.heldout)} held out")
        print_rows("data", data.report)
        print_rows("reward", rewards)
        print_rows("note", text_notes(config))
        print_sizes(config, len(data.train))
        print_rows("export", [f"generation_config.json: {repair}" for repair in repairs])
        print_rows("room", [room] if room is not None else [])
        print(f"  {'run directory':<15} {run_dir}", flush=True)
    heartbeat = Heartbeat(
        launch.meeting_store(),
        group.rank,
        group.world_size,
        config.watchdog.heartbeat_seconds,
        leave=lambda message, code: leave(message, code, run_dir),
    )
    watched = Watchdog(config.watchdog.stall_seconds, run_dir)
    with heartbeat, watched as watchdog, explained(watchdog, run_dir):
        options = Options(resume, arguments.stop_at_step, walltime)
        limit = Limit(config.watchdog.startup_seconds, "watchdog.startup_seconds")
        awaited = "the model, its optimizer and the sampler"
        if group.is_main and (held := build_locks()):
            print(f"  {'note':<15} {held}", flush=True)
        with watchdog.phase("start-up", awaited, limit, detail=build_locks):
            trainer = Trainer(
                config, options, group, data, scheduler, tokenizer, run_dir, watchdog, identity
            )
        status = trainer.train()
        leave_at_once(status)
    if group.is_main:
        close_attempt(run_dir, status)
    launch.stop()  # not on the way out of an error: the other ranks may be stuck
    return status
