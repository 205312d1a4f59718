"""`cero-rl checkpoints list|verify|prune RUN`: what a run can go on from, whether it is intact, and
what may go. Starts without torch."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cero_rl.checkpoint import prune, read_manifest, step_dirs, unfinished, verify
from cero_rl.checkpoint.lineage import abandoned, put_back
from cero_rl.commands.answers import add_json, answer
from cero_rl.config.paths import path_argument
from cero_rl.errors import CheckpointError, ConfigError
from cero_rl.job.lock import is_locked

HELP = "list, verify or prune the checkpoints of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="step, size, ranks and held-out accuracy of each")
    actions.add_parser(
        "verify",
        help="read every file and compare its sha256 with the manifest; exit 4 if one differs",
    )
    pruning = actions.add_parser(
        "prune", help="remove old checkpoints and what a killed writer left"
    )
    pruning.add_argument(
        "--keep-last",
        type=int,
        default=2,
        metavar="N",
        help="newest that stay, at least 1 (default 2)",
    )
    pruning.add_argument(
        "--keep-best", type=int, default=0, metavar="N", help="and the best by held-out accuracy"
    )
    pruning.add_argument(
        "--keep-every",
        type=int,
        default=0,
        metavar="M",
        help="and every step that is a multiple of M",
    )
    pruning.add_argument("--dry-run", action="store_true", help="only say what would go")
    for action in (listing, actions.choices["verify"], pruning):
        action.add_argument(
            "run", type=path_argument, metavar="RUN", help="a run's directory, e.g. runs/quickstart"
        )
        add_json(action)
        action.add_argument("--debug", action="store_true", help="show a traceback with an error")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.run.is_dir():
        raise ConfigError(
            f"RUN: {arguments.run} is no directory; give a run's directory, e.g. runs/quickstart"
        )
    return {"list": _list, "verify": _verify, "prune": _prune}[arguments.action](arguments)


def _bytes(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def _megabytes(directory: Path) -> str:
    return f"{_bytes(directory) / 1e6:.1f} MB"


def _list(arguments: argparse.Namespace) -> int:
    run: Path = arguments.run
    found, listed = step_dirs(run), list[dict[str, Any]]()
    if not found:
        print(f"{run}: no committed checkpoint")
    for directory in found:
        try:
            manifest = read_manifest(directory)
        except CheckpointError as error:
            listed.append({"directory": str(directory), "error": str(error)})
            print(f"{directory.name}  {error}")
            continue
        parent = (manifest.get("parent") or {}).get("step")
        entry = {
            "step": manifest["step"],
            "directory": str(directory),
            "bytes": _bytes(directory),
            "world_size": manifest["world_size"],
            "parent": parent,
            "score": manifest.get("score"),
            "cero_rl": manifest["cero_rl"],
            "torch": manifest["torch"],
        }
        listed.append(entry)
        score = "" if entry["score"] is None else f"  held-out accuracy {entry['score']:.3f}"
        after = "" if parent is None else f"  after step {parent}"
        size, ranks = _megabytes(directory), entry["world_size"]
        print(f"{directory.name}  {size}  {ranks} rank(s){after}{score}")
    left, aside = unfinished(run), abandoned(run)
    for directory in left:
        print(
            f"{directory.name}  {_megabytes(directory)}  "
            f"unfinished{', a job is at work' if is_locked(run) else ''}"
        )
    for directory in aside:
        steps = ", ".join(step.name for step in reversed(step_dirs(directory)))
        print(
            f"{directory.relative_to(run)}  {_megabytes(directory)}  set aside when the "
            f"run went back: {steps}"
        )
    answer(arguments, checkpoints=listed, unfinished=_names(left), set_aside=_names(aside))
    return 0


def _names(directories: Sequence[Path]) -> list[str]:
    return [str(directory) for directory in directories]


def _verify(arguments: argparse.Namespace) -> int:
    found, bad = step_dirs(arguments.run), dict[str, str]()
    if not found:
        raise CheckpointError(f"{arguments.run}: no committed checkpoint to verify")
    for directory in found:
        try:
            manifest = verify(directory)
            print(f"{directory.name}  ok: {len(manifest['files'])} files, {_megabytes(directory)}")
        except CheckpointError as error:
            bad[directory.name] = str(error)
            print(f"{directory.name}  damaged: {error}")
    intact = [directory.name for directory in found if directory.name not in bad]
    answer(arguments, intact=intact, damaged=bad)
    if bad:
        raise CheckpointError(
            f"{arguments.run}: {len(bad)} of {len(found)} checkpoints are damaged "
            f"({', '.join(bad)})"
        )
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    if arguments.keep_last < 1 or arguments.keep_best < 0 or arguments.keep_every < 0:
        raise ConfigError("--keep-last must be at least 1, --keep-best and --keep-every at least 0")
    if is_locked(arguments.run):
        raise ConfigError(
            f"RUN: a job works in {arguments.run}; it prunes by itself (checkpoint.keep_last)"
        )
    word = "would remove" if arguments.dry_run else "removed"
    for text in [] if arguments.dry_run else put_back(arguments.run):
        print(text)
    stale = unfinished(arguments.run)
    for directory in stale:
        print(f"{word} {directory.name}  {_megabytes(directory)}  unfinished")
        if not arguments.dry_run:
            shutil.rmtree(directory)
    rules = {
        "keep_last": arguments.keep_last,
        "keep_best": arguments.keep_best,
        "keep_every_steps": arguments.keep_every,
    }
    removed = prune(arguments.run, **rules, dry_run=arguments.dry_run)
    for directory in removed:
        print(f"{word} {directory.name}")
    gone = [directory.name for directory in (*stale, *removed)]
    answer(arguments, removed=gone, dry_run=arguments.dry_run)
    if not gone:
        print("nothing to remove")
    return 0
