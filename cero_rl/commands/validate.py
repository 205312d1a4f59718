"""`cero-rl validate`: everything that can be checked without a model, and the sizes that follow.
Starts without torch."""

from __future__ import annotations

import argparse

from cero_rl.commands.common import add_config
from cero_rl.config import Config, dump_config, load_config
from cero_rl.config.sizes import check_pool, derived_sizes
from cero_rl.train.scheduler import build_scheduler

HELP = "check a configuration and print the sizes that follow from it"


def print_sizes(config: Config, num_prompts: int | None) -> None:
    for name, equation in derived_sizes(config, num_prompts):
        print(f"  {name:<15} {equation}")


def report_validation(config: Config) -> int:
    from cero_rl.data.load import count_prompts

    num_prompts = count_prompts(config.data)
    if num_prompts is not None:
        check_pool(config, num_prompts)
    group = config.scheduler.rollouts_per_unit * config.scheduler.max_units_per_prompt
    # its options are checked by building it
    build_scheduler(config, num_prompts or -(-config.capacity_rollouts // group))
    print(f"{config.name}: the configuration is valid")
    print(
        f"  {'prompts':<15} "
        f"{num_prompts if num_prompts is not None else 'known once the data is loaded'}"
    )
    print_sizes(config, num_prompts)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--show", action="store_true", help="print the resolved configuration")


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    status = report_validation(config)
    if arguments.show:
        print(dump_config(config), end="")
    return status
