"""`cero-rl evaluate`: held-out accuracy of a model directory, with a configuration's prompts, draws
and rewards."""

from __future__ import annotations

import argparse
import json
import sys

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.common import add_config
from cero_rl.config import load_config
from cero_rl.config.paths import text_argument
from cero_rl.errors import DataError, RewardError
from cero_rl.job.versions import refuse_unfit

HELP = "held-out accuracy of a model, e.g. of a run's export/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_json(parser)
    parser.add_argument(
        "--model",
        type=text_argument,
        metavar="DIR",
        help="model directory or hub id; default: the configuration's start model",
    )


def run(arguments: argparse.Namespace) -> int:
    """Held-out accuracy of a model directory, with the prompts, draws and rewards of a
    configuration."""
    config = load_config(arguments.config, arguments.overrides)
    refuse_unfit()
    from cero_rl.data.pool import load_data
    from cero_rl.environments.pool import tools_of_environment
    from cero_rl.job.watchdog import Watchdog
    from cero_rl.models.directory import find_model
    from cero_rl.models.load import load_tokenizer
    from cero_rl.rewards.several import Judge, check_reward
    from cero_rl.rollout.engines.build import build_rollout_engine
    from cero_rl.train.evaluate import evaluate
    from cero_rl.train.preflight import check_model
    from cero_rl.zero import launch

    check_reward(config.reward)
    path = arguments.model or config.model.path
    find_model(path, "--model" if arguments.model else "model.path")
    group = launch.start()
    try:
        tokenizer = load_tokenizer(path)
        check_model(config, path, tokenizer)
        tools = tools_of_environment(config.rollout, config.reward)
        data = load_data(config, tokenizer, tools)
        if group.is_main:
            print("\n".join(data.report), file=sys.stderr)
        heldout = data.heldout
        if not len(heldout):
            raise DataError(
                "data: there are no held-out prompts; set data.heldout_source or "
                "data.heldout_fraction"
            )
        engine = build_rollout_engine(config, tokenizer, group, path)
        watchdog = Watchdog(config.watchdog.stall_seconds)
        with watchdog, Judge(config.reward) as rewards:
            result = evaluate(engine, heldout, rewards, group, watchdog, config, final=True)
        if group.is_main:
            print("\n".join(result.table()), file=sys.stderr)
            found = {"model": str(path), "prompts": result.prompts, **result.metrics()}
            answer(arguments, **found)
            if not arguments.json:
                print(json.dumps(found))
        if not result.is_known:
            raise RewardError(
                f"{result.describe()}; wanted at least {config.evaluation.min_judged_rate:.0%} "
                "(evaluation.min_judged_rate): mend the reward"
            )
        return 0
    finally:
        launch.stop()
