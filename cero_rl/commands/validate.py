"""`cero-rl validate`: everything that can be told before weights are loaded, cheap things first,
and the sizes that follow. Starts without torch, which only a model in a local directory needs."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from cero_rl import redact
from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.common import add_config
from cero_rl.config import Config, dump_config, load_config
from cero_rl.config.presets import departures
from cero_rl.config.sizes import check_pool, derived_sizes
from cero_rl.train.scheduler import build_scheduler, scheduler_for_pool

HELP = "check a configuration and print the sizes that follow from it"
SAMPLE_ROWS = 256  # of a large file
# LaTeX has \neq and \nabla; what follows a line break is no small letter
_WRITTEN_BREAK = re.compile(r"\\n(?![a-z])")


def print_rows(name: str, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"  {name:<15} {line}")


def print_sizes(config: Config, num_prompts: int | None) -> None:
    print_rows("preset", departures(config.model_dump(include={"scheduler", "learner"})))
    for name, equation in derived_sizes(config, num_prompts):
        print(f"  {name:<15} {equation}")


def text_notes(config: Config) -> list[str]:
    """Free text that may not be what was meant."""
    texts = {
        "data.system_prompt": config.data.system_prompt or "",
        "data.prompt_suffix": config.data.prompt_suffix,
    }
    return [
        f"{key} holds a backslash and an n, two characters; for a line break write $'...' in bash"
        for key, text in texts.items()
        if _WRITTEN_BREAK.search(text)
    ]


def memory_lines(config: Config, where: str) -> list[str]:
    """Will it fit? One line, where torch is installed and the model's shape is at hand."""
    if importlib.util.find_spec("torch") is None:
        return []
    from cero_rl.commands.plan import one_line
    from cero_rl.models.shapes import published

    if where == "hub" and config.model.path not in published():
        return ["known once the model's config.json is looked up (cero-rl plan)"]
    return [f"{one_line(config)} (cero-rl plan tells it by phase)"]


def _check_handed_on(config: Config) -> None:
    """Does DeepSpeed know the keys of zero.deepspeed? Where it is installed; raises ConfigError."""
    if not config.zero.deepspeed or importlib.util.find_spec("deepspeed") is None:
        return
    from cero_rl.zero import launch
    from cero_rl.zero.deepspeed_config import refuse_unfit_zero

    launch.prepare_environment()
    refuse_unfit_zero(config, None)


def report_validation(config: Config, *, look_up: bool = False) -> dict[str, Any]:
    """Check and print, and the same for programs; `look_up`: a model that is a Hugging Face id too,
    over the network."""
    from cero_rl.data.load import count_prompts, left_out_lines, read_local, read_sample
    from cero_rl.environments.pool import tools_of_environment
    from cero_rl.metrics.trackers import refuse_missing
    from cero_rl.models.directory import find_model
    from cero_rl.rewards.several import check_reward
    from cero_rl.rewards.trial import try_reward

    check_reward(config.reward)
    refuse_missing(config)
    _check_handed_on(config)
    where = find_model(config.model.path)
    rewards: list[str] = []
    data = [] if (split := read_local(config.data, config.seed)) is None else left_out_lines(split)
    tools = tools_of_environment(config.rollout, config.reward)
    if config.rollout.environment is not None:
        rewards.append(f"{config.rollout.environment} loads, with {len(tools)} tool(s)")
    elif split is not None:
        rewards += try_reward(config.reward, split.train, "data.source")
        rewards += try_reward(config.reward, split.heldout, "held-out prompts")
    else:
        sample = read_sample(config.data, SAMPLE_ROWS, config.seed)
        rewards += try_reward(config.reward, sample, "the first rows of data.source")
    kept = () if split is None else split.train
    model = [f"{config.model.path} is a Hugging Face id, looked up at the start"]
    num_prompts = count_prompts(config.data) if split is None else len(split.train)
    if where == "directory" or look_up:
        if importlib.util.find_spec("torch") is None:
            model = [f"{config.model.path} is not tried: torch is not installed here"]
        else:
            from cero_rl.data.pool import load_data
            from cero_rl.train.preflight import try_model

            tokenizer, model = try_model(config)
            if split is not None:
                loaded = load_data(config, tokenizer, tools)
                data, kept = list(loaded.report), loaded.train.prompts
                num_prompts = len(kept)
    if num_prompts is not None:
        check_pool(config, num_prompts)
    if split is not None:
        scheduler_for_pool(config, kept)
    group = config.scheduler.rollouts_per_unit * config.scheduler.max_units_per_prompt
    # its options are checked by building it
    build_scheduler(config, num_prompts or -(-config.capacity_rollouts // group))
    print(f"{config.name}: the configuration is valid")
    print_rows(
        "prompts", ["known once the data is loaded" if num_prompts is None else str(num_prompts)]
    )
    rows = {
        "data": data,
        "reward": rewards,
        "model": model,
        "memory": memory_lines(config, where),
        "note": text_notes(config),
    }
    for name, lines in rows.items():
        print_rows(name, lines)
    print_sizes(config, num_prompts)
    sizes = dict(derived_sizes(config, num_prompts))
    return {"valid": True, "name": config.name, "prompts": num_prompts, **rows, "sizes": sizes}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--show", action="store_true", help="print the resolved configuration")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    answer(arguments, **report_validation(config))
    if arguments.show:
        answer(arguments, config=redact.tree(config.model_dump(mode="json")))
        print(dump_config(config), end="")
    return 0
