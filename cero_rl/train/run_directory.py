"""The run directory at the start of a job: one job at a time, nothing overwritten by accident,
nothing started over in silence."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cero_rl.checkpoint.identity import Change, Identity, changes_since, refuse_other_ranks
from cero_rl.checkpoint.lineage import (
    ABANDONED,
    RUN_FILE,
    arrive,
    begin,
    cut_logs,
    origin_of,
    recover,
    refuse_foreign,
)
from cero_rl.checkpoint.manifest import LATEST, all_steps, read_manifest
from cero_rl.checkpoint.ownership import RESOLVED, foreign_in_run
from cero_rl.checkpoint.progress import Progress
from cero_rl.checkpoint.restore import check, find_valid, load
from cero_rl.config import Config, dump_config
from cero_rl.config.sizes import derived_sizes
from cero_rl.distributed.group import Group
from cero_rl.errors import CheckpointError, ConfigError, NoProgressError
from cero_rl.files.plain import refuse_links_beside
from cero_rl.job.lock import LOCK, RunLock
from cero_rl.job.restarts import (
    Attempt,
    next_attempt,
    read_attempts,
    why_stop,
    write_attempts,
    write_end,
)
from cero_rl.scheduler.protocol import Scheduler


@dataclass(frozen=True)
class Start:
    """How the command line wants a filled run directory treated. `resume` is None, `auto` or a
    checkpoint's directory; `new_reward`: go on with another reward than the checkpoint's."""

    resume: str | None
    overwrite: bool
    new_reward: bool = False


def _on_main(group: Group, action: Callable[[], None]) -> None:
    """Run `action` on rank 0; what it raises, every rank raises. A disk's error is the fault of
    output_dir."""

    def said() -> None:
        try:
            action()
        except OSError as error:
            raise ConfigError(
                f"output_dir: {error}; give a directory that can be written"
            ) from error

    group.on_main(said, (CheckpointError, ConfigError, NoProgressError))


def _is_filled(run_dir: Path) -> bool:
    """With more than the first two files that a start makes."""
    return run_dir.is_dir() and any(p.name not in (LOCK, RUN_FILE) for p in run_dir.iterdir())


def open_run_dir(
    run_dir: Path, config: Config, num_prompts: int, start: Start, identity: Identity, group: Group
) -> Path | None:
    """Lock and prepare the directory; returns the checkpoint to resume from, which is of the same
    run. The same answer or the same error on every rank."""
    if start.resume is not None and start.overwrite:
        raise ConfigError(
            f"--overwrite with --resume {start.resume}: one deletes what the other goes on from; "
            "give one of them"
        )
    given = Path(start.resume) if start.resume not in (None, "auto") else None
    if given is not None and (problem := check(given, group)) is not None:
        raise CheckpointError(f"--resume {given}: {problem}")
    filled = bool(group.all_max(int(_is_filled(run_dir))))
    if filled:
        _on_main(group, lambda: _refuse_to_lose(run_dir, config, start))
    _on_main(group, lambda: _lock(run_dir))
    if filled and start.resume is not None:
        _on_main(group, lambda: _recover(run_dir, given))
        found = given or _newest(run_dir, group)
        changes: list[Change] = []
        if found is None:
            _on_main(group, lambda: _start_over(run_dir))
        else:
            changes = _changes(found, identity, start, group)
            _on_main(group, lambda: _goes_on_elsewhere(run_dir, given))
        _on_main(group, lambda: _begin_attempt(run_dir, found, changes))
        if changes:
            _on_main(group, lambda: _write_resolved(run_dir, config, num_prompts))
        return found
    changes = [] if given is None else _changes(given, identity, start, group)
    _on_main(group, lambda: _prepare(run_dir, config, num_prompts, given))
    _on_main(group, lambda: _begin_attempt(run_dir, given, changes))
    return given


def _refuse_to_lose(run_dir: Path, config: Config, start: Start) -> None:
    """A filled directory is gone on with or replaced only where it is a run's, and replaced only
    where nothing else is in it. Raises ConfigError or CheckpointError."""
    foreign = foreign_in_run(run_dir)
    if not (run_dir / RESOLVED).is_file():
        words = f"{run_dir} holds {foreign or LATEST}, and no run of this program"
        if start.resume is not None:
            raise CheckpointError(f"--resume {start.resume}: {words}; set another name")
        raise ConfigError(f"{words}; set another name or output_dir")
    if start.resume is not None:
        return
    if foreign is not None and start.overwrite:
        raise ConfigError(
            f"--overwrite: {run_dir} holds {foreign}, which is not of a run; move it away, or set "
            "another name"
        )
    if not start.overwrite:
        raise ConfigError(
            f"{run_dir} already holds a run; go on with --resume auto{_or_overwrite(run_dir)}, or "
            "set another name"
        )
    for key, named in _sources(config):
        if Path(named).resolve().is_relative_to(run_dir.resolve()):
            raise ConfigError(
                f"--overwrite: {key} is {named}, which lies in {run_dir} and would be deleted "
                "first; copy it elsewhere, or set another name"
            )


def _or_overwrite(run_dir: Path) -> str:
    """The remedy, where it is one."""
    return ", replace it with --overwrite" if foreign_in_run(run_dir) is None else ""


def _sources(config: Config) -> list[tuple[str, str]]:
    """Paths that this run reads."""
    data = config.data
    named = {
        "model.path": config.model.path,
        "data.source": data.source,
        "data.heldout_source": data.heldout_source,
        "scheduler.warm_start": config.scheduler.warm_start,
    }
    functions = [
        ("reward.functions" if config.reward.functions else "reward.function", path)
        for part in config.reward.parts
        if (path := part.function.rpartition(":")[0])
    ]
    return functions + [
        (key, path) for key, paths in named.items() for path in (paths or "").split(",") if path
    ]


def _changes(checkpoint: Path, identity: Identity, start: Start, group: Group) -> list[Change]:
    """What was changed since the checkpoint, said once; CheckpointError for what may not be."""
    manifest = read_manifest(checkpoint)
    changes = changes_since(checkpoint, manifest, identity, new_reward=start.new_reward)
    refuse_other_ranks(checkpoint, manifest, group.world_size)
    if changes and group.is_main:
        print(f"changed since {checkpoint}: {'; '.join(map(str, changes))}", flush=True)
    return changes


def _recover(run_dir: Path, given: Path | None) -> None:
    """Finish what a kill cut off, and look at a checkpoint that was given by name."""
    for text in recover(run_dir):
        print(text, flush=True)
    if given is not None:
        refuse_foreign(run_dir, given, read_manifest(given))


def _goes_on_elsewhere(run_dir: Path, given: Path | None) -> None:
    """Until its next save the run has no checkpoint of its own to come back to."""
    if given is not None and given.resolve().parent != (run_dir / "checkpoints").resolve():
        begin(run_dir, given, origin_of(run_dir).id)


def _newest(run_dir: Path, group: Group) -> Path | None:
    """The newest valid checkpoint of the run, or the one elsewhere that it began from."""

    def report(text: str) -> None:
        if group.is_main:
            print(text, file=sys.stderr, flush=True)

    if (found := find_valid(run_dir, group, report)) is not None:
        return found
    origin = group.gather_json(str(origin_of(run_dir).begun_from or "") if group.is_main else "")[0]
    if not origin or any(all_steps(run_dir)):
        return None
    if (problem := check(Path(origin), group)) is not None:
        raise CheckpointError(f"--resume auto: the run began from {origin}: {problem}")
    return Path(origin)


def close_attempt(run_dir: Path, exit_code: int) -> None:
    """Write down how this job ended; rank 0 alone calls it."""
    if attempts := read_attempts(run_dir):
        write_end(run_dir, attempts[-1], exit_code, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _begin_attempt(run_dir: Path, resume: Path | None, changes: Sequence[Change]) -> None:
    """Write this start and its `changes` down, or refuse it after three restarts of one job that
    got nowhere."""
    earlier = read_attempts(run_dir)
    step = read_manifest(resume)["step"] if resume is not None else 0
    this: Attempt = next_attempt(
        earlier, step, environ=os.environ, host=socket.gethostname(), time=_now()
    )
    if (problem := why_stop(earlier, this, run_dir)) is not None:
        raise NoProgressError(problem)
    changed = {change.key: [change.was, change.now] for change in changes}
    write_attempts(run_dir, [replace(this, changes=changed or None)])


def _lock(run_dir: Path) -> None:
    refuse_links_beside(run_dir)  # what this job appends to lies in its own directory
    RunLock(run_dir)  # until the process ends


def _prepare(run_dir: Path, config: Config, num_prompts: int, begun_from: Path | None) -> None:
    # the file that says whose directory this is goes last
    for path in sorted(run_dir.iterdir(), key=lambda path: path.name == RESOLVED):
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    begin(run_dir, begun_from)
    _write_resolved(run_dir, config, num_prompts)


def _write_resolved(run_dir: Path, config: Config, num_prompts: int) -> None:
    """What this attempt really runs; attempts.jsonl has what it changed."""
    sizes = "".join(
        f"# {name}: {equation}\n" for name, equation in derived_sizes(config, num_prompts)
    )
    (run_dir / RESOLVED).write_text(sizes + dump_config(config), encoding="utf-8")


def _start_over(run_dir: Path) -> None:
    """A run that was cut before its first checkpoint begins again, and says so; one that had a
    checkpoint never does."""
    if (run_dir / LATEST).exists() or all_steps(run_dir) or (run_dir / ABANDONED).exists():
        raise CheckpointError(
            f"--resume auto: {run_dir} holds a run but no valid checkpoint"
            f"{_or_overwrite(run_dir)}, or set another name"
        )
    print(
        f"{run_dir}: the run ended before its first checkpoint was committed; it begins "
        "again at step 0",
        flush=True,
    )
    cut_logs(run_dir, -1)


def run_directory(config: Config) -> Path:
    return Path(config.output_dir) / config.name


def restore(
    run_dir: Path,
    checkpoint: Path,
    group: Group,
    ds_engine: Any,
    identity: Mapping[str, Any],
    progress: Progress,
    scheduler: Scheduler,
    total_rollouts: int,
) -> dict[str, Any]:
    """Take over a checkpoint, with this run's budget, set aside what the run did after it, and cut
    the logs back to its step; returns this rank's own arrays.

    Raises CheckpointError for one that does not fit this run. A collective.
    """
    state = load(checkpoint, group, ds_engine, identity=identity)
    progress.restore(state, scheduler)
    progress.set_budget(total_rollouts, scheduler)

    def settle() -> None:
        for text in arrive(run_dir, progress.step):
            print(text, flush=True)

    group.on_main(settle, (CheckpointError,))
    return state.own
