"""`cero-rl diagnose RUN|CONFIG`: what makes a rollout pay, for a start model or for the newest
weights of a run.

Arguments and configuration are checked before torch is imported. Progress goes to standard error,
the table to standard output; everything as JSON with --json, or to the file of --out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cero_rl.commands.answers import add_json, answer
from cero_rl.commands.common import add_overrides
from cero_rl.config import Config, load_config
from cero_rl.config.paths import path_argument
from cero_rl.errors import CheckpointError, ConfigError, tell
from cero_rl.job.versions import refuse_unfit

HELP = "what makes a rollout pay: noise scale, value by kind of prompt, gain of allocations"
RESOLVED, EXPORT = "config.resolved.yaml", "export"
_NEEDED = ("torch", "transformers", "numpy", "safetensors")
_EPILOG = """examples:
  cero-rl diagnose recipes/quickstart_cpu.yaml --by family      the start model, about a minute
  cero-rl diagnose runs/quickstart --by family --out out.json   the newest weights of a run

One process, no DeepSpeed; samples with transformers. How each number is estimated, and what it
cannot tell: docs/diagnose.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Sample a part of the pool and tell live share, gradient noise scale, value of a group by "
        "label, SNR^2 gain of ideal allocations and, of a run, transfer to held-out prompts."
    )
    parser.epilog = _EPILOG
    parser.add_argument(
        "target",
        type=path_argument,
        metavar="RUN|CONFIG",
        help="a run's directory, or a configuration, of which the start model is diagnosed",
    )
    add_overrides(parser)
    parser.add_argument(
        "--prompts",
        type=int,
        default=1024,
        metavar="N",
        help="sampled of the pool, and of the held-out prompts (default 1024)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="rollouts of a group; as many again tell its pass rate (default: the run's group)",
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="value by this column of the data, or source (may be repeated)",
    )
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help="write everything there, as JSON"
    )
    add_json(parser)
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    for name in ("prompts", "samples"):
        value = vars(arguments)[name]
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: wanted an integer >= 1")
    target: Path = arguments.target
    of_run = target.is_dir()
    if of_run and not (target / RESOLVED).is_file():
        raise ConfigError(
            f"{target}: has no {RESOLVED}, so it is no run's directory; give runs/NAME or a "
            "configuration file"
        )
    if not target.exists():
        raise ConfigError(f"{target}: does not exist; give runs/NAME or a configuration file")
    config = load_config(target / RESOLVED if of_run else target, arguments.overrides)
    refuse_unfit(_NEEDED)
    from cero_rl.models.directory import find_model
    from cero_rl.rewards.several import check_reward

    check_reward(config.reward)
    start: str | None = config.model.path
    try:
        find_model(config.model.path)
    except ConfigError:
        if not of_run:
            raise
        start = None
    with _weights(target, config, start) if of_run else contextlib.nullcontext(start) as path:
        assert path is not None
        return _diagnose(arguments, config, path, start, of_run)


def _diagnose(
    arguments: argparse.Namespace, config: Config, path: str, start: str | None, of_run: bool
) -> int:
    from cero_rl.checkpoint.manifest import step_dirs
    from cero_rl.commands.diagnose_report import as_json, print_report
    from cero_rl.data.pool import load_data
    from cero_rl.diagnosis.critic import critic_of
    from cero_rl.diagnosis.diagnose import (
        Diagnoser,
        Request,
        group_rollouts,
        step_groups,
        this_machine,
    )
    from cero_rl.diagnosis.gradients import Estimator
    from cero_rl.environments.pool import tools_of_environment
    from cero_rl.models.load import load_tokenizer
    from cero_rl.train.scheduler import cells_of, scheduler_for_pool

    began = time.monotonic()

    def progress(text: str) -> None:
        tell(f"[{time.monotonic() - began:5.0f} s] {text}")

    group = this_machine()
    tokenizer = load_tokenizer(path)
    tools = tools_of_environment(config.rollout, config.reward)
    data = load_data(config, tokenizer, tools)
    pool = data.train
    keep = scheduler_for_pool(config, pool.prompts, lengths=pool.lengths, warm=False).keep
    samples = arguments.samples or group_rollouts(config)
    newest = next(iter(step_dirs(arguments.target)), None) if of_run else None
    cells = cells_of(config.scheduler, pool.prompts, pool.lengths)
    critic, knows = critic_of(config, len(pool), newest, cells)
    estimator = Estimator(keep, step_groups(config, samples), critic)
    request = Request(arguments.prompts, samples, tuple(arguments.by))
    diagnoser = Diagnoser(config, data, tokenizer, estimator, group, progress)
    found = diagnoser.run(path, start if of_run else None, request, of_run=of_run)
    if knows:
        found.notes.append(knows)
    tree = as_json(found)
    answer(arguments, **tree)
    if arguments.out is not None:
        text = json.dumps(tree, indent=2, allow_nan=False)
        try:
            arguments.out.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--out {arguments.out}: {error.strerror}; name a file that can be written"
            ) from None
    print_report(found, sys.stdout)
    progress("done")
    return 0


@contextlib.contextmanager
def _weights(run: Path, config: Config, start: str | None) -> Iterator[str]:
    """A model directory with the newest weights of a run: its export, else its newest checkpoint,
    converted for the time being. Raises CheckpointError where there is neither."""
    from cero_rl.checkpoint.manifest import step_dirs

    if (run / EXPORT / "config.json").is_file():
        yield str(run / EXPORT)
        return
    found = step_dirs(run)
    if not found:
        raise CheckpointError(
            f"{run}: has neither {EXPORT}/ nor a committed checkpoint; for the start model give "
            f"its configuration, {run / RESOLVED}"
        )
    from cero_rl.convert.actions import zero_to_hf

    tell(f"no {EXPORT}/ in {run}: {found[0].name} is converted")
    with tempfile.TemporaryDirectory(prefix="cero-rl-diagnose-") as place:
        options = argparse.Namespace(
            source=found[0],
            bare=False,
            model=None if start is None or not Path(start).is_dir() else Path(start),
            dtype=None,
            out=Path(place) / found[0].name,
            force=False,
            max_shard_size=5 * 10**9,
        )
        with contextlib.redirect_stdout(sys.stderr):
            zero_to_hf(options)
        yield str(options.out)
