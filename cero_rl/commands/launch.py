"""`cero-rl launch`: training on the GPUs of this machine. Starts the ranks, passes signals on,
waits for the save, and ends with the run's own exit code (docs/reliability.md)."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import socket
import subprocess
import sys
from collections.abc import Callable

from cero_rl.commands.common import INSTALL_TRAIN, add_config
from cero_rl.commands.training import add_training, words_of
from cero_rl.config import Config, load_config
from cero_rl.errors import ConfigError, EngineError

HELP = "train on this machine: start the ranks, pass signals on, end with the run's exit code"
Server = Callable[[Config], contextlib.AbstractContextManager[int | None]]
_COUNT = "import torch; print(torch.cuda.device_count())"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_ranks(parser)


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """What launch and train have in common."""
    add_training(parser)
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="processes, one a GPU (default: every GPU, or 2 where there is none)",
    )
    parser.add_argument(
        "--master-port", type=int, metavar="PORT", help="where the ranks meet (default: a free one)"
    )


def _default_ranks() -> int:
    """Asked of torch in a process of its own: this one must not hold a GPU."""
    if importlib.util.find_spec("torch") is None:
        raise EngineError(f"torch is not installed here; {INSTALL_TRAIN}")
    done = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True)
    if not done.stdout.strip().isdigit():
        said = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise EngineError(f"torch: the GPUs could not be counted ({said}); give --ranks")
    return int(done.stdout) or 2


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def run(arguments: argparse.Namespace, server: Server | None = None) -> int:
    """Exit code of the run; `server`: what runs beside its ranks, and yields an exit code where
    they are not to be started. Raises ConfigError for flags or a configuration that no rank needs
    to be started for."""
    from cero_rl.job.ranks import Ranks, environments

    ranks, port = arguments.ranks, arguments.master_port
    if ranks is not None and ranks < 1:
        raise ConfigError(f"--ranks {ranks}: wanted at least 1")
    if port is not None and not 0 < port < 65536:
        raise ConfigError(f"--master-port {port}: wanted 1 to 65535")
    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        ranks = 1
    own = environments(ranks or _default_ranks(), port or _free_port())
    command = [sys.executable, "-m", "cero_rl.commands.rank", *words_of(arguments)]
    beside = contextlib.nullcontext() if server is None or arguments.dry_run else server(config)
    with beside as left:
        if left is not None:
            return left
        with Ranks(command, own) as running:
            return running.wait()
