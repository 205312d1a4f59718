"""Where a run came from, and the futures it left: its id, its origin, and what a resume from an
older checkpoint sets aside.

    RUN/run.json          the run's id; the checkpoint outside of it that it began from, or null
    RUN/abandoned/after_step_000004/
                          what came after step 4 when the run went back to it: checkpoints/, the
                          logs as they were, export/, adapter/, posterior.parquet
    RUN/going_back.json   while that is moved; a start that finds it finishes the work first

So the steps of `checkpoints/` and the lines of the logs are one line of ancestors at any time.
Rank 0 alone, under the run's lock. Standard library only.
"""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cero_rl.checkpoint.manifest import LATEST, MANIFEST, all_steps, step_of, write_latest
from cero_rl.errors import CheckpointError
from cero_rl.files.durable import fsync, write_json
from cero_rl.files.jsonl import lines_up_to, write_lines
from cero_rl.job import faults

LOGS = ("metrics.jsonl", "ledger.jsonl", "evidence.jsonl", "samples.jsonl")
ABANDONED = "abandoned"
RUN_FILE = "run.json"
_RESULTS = ("export", "adapter", "posterior.parquet")
_GOING_BACK = "going_back.json"
REPLACED = "tmp.old_"  # what a commit of the same step once more puts out of its way


@dataclass(frozen=True)
class Origin:
    """id: of this run, for trackers and manifests. begun_from: a checkpoint of another run, or a
    converted one of this."""

    id: str
    begun_from: Path | None


def origin_of(run_dir: Path) -> Origin:
    """As run.json has it; a run that has none yet gets an id here."""
    try:
        entry = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        begun_from = entry["begun_from"]
        return Origin(str(entry["id"]), Path(begun_from) if begun_from else None)
    except (OSError, ValueError, KeyError, TypeError):
        return begin(run_dir, None)


def begin(run_dir: Path, begun_from: Path | None, run_id: str | None = None) -> Origin:
    """Write down where a run begins; with an id, where that run goes on from."""
    origin = Origin(run_id or secrets.token_hex(4), begun_from.resolve() if begun_from else None)
    entry = {"id": origin.id, "begun_from": str(origin.begun_from) if begun_from else None}
    write_json(run_dir / RUN_FILE, entry)
    return origin


def refuse_foreign(run_dir: Path, checkpoint: Path, manifest: dict[str, Any]) -> None:
    """Raises CheckpointError for a checkpoint that a run with steps of its own cannot go on from:
    another run's, or one of a future that was set aside."""
    name = "give the new branch a name of its own (--set name=...)"
    place = checkpoint.resolve()
    if place.is_relative_to((run_dir / ABANDONED).resolve()):
        raise CheckpointError(
            f"--resume {checkpoint}: it was set aside, and {run_dir} went on without it; {name}"
        )
    if place.parent == (run_dir / "checkpoints").resolve():
        return
    origin = origin_of(run_dir)
    if manifest.get("run") not in (None, origin.id) and place != origin.begun_from:
        raise CheckpointError(
            f"--resume {checkpoint}: it is another run's, and {run_dir} already holds a run; {name}"
        )


def abandoned(run_dir: Path) -> list[Path]:
    """Futures that were set aside; each is laid out as a run. Nothing here removes them."""
    return sorted(p for p in (run_dir / ABANDONED).glob("after_step_*") if p.is_dir())


# --- going back


def put_back(run_dir: Path) -> list[str]:
    """A checkpoint that a commit of the same step had put out of its way, where that commit came no
    further. Returns what was done, for a person."""
    said = []
    for old in sorted((run_dir / "checkpoints").glob(f"{REPLACED}step_*")):
        final = old.with_name(old.name.removeprefix(REPLACED))
        if (old / MANIFEST).is_file() and not final.exists():
            old.rename(final)
            fsync(final.parent)
            said.append(f"{final}: put back; the commit that was to replace it was cut off")
    return said


def recover(run_dir: Path) -> list[str]:
    """Finish what a kill cut off: a commit between its two renames, a going back. Returns what was
    done, for a person."""
    said = put_back(run_dir)
    if (run_dir / _GOING_BACK).exists():
        said.append(_go_on(run_dir))
    return said


def go_back(run_dir: Path, step: int) -> str | None:
    """Set aside all that came after `step`. Returns what was done, for a person; None where there
    is no checkpoint of a later step."""
    if not any(step_of(directory) > step for directory in all_steps(run_dir)):
        return None
    name = f"{ABANDONED}/after_step_{step:06d}"
    count = 1
    while (run_dir / (aside := name if count == 1 else f"{name}.{count}")).exists():
        count += 1
    write_json(run_dir / _GOING_BACK, {"step": step, "aside": aside})
    return _go_on(run_dir)


def _go_on(run_dir: Path) -> str:
    plan = json.loads((run_dir / _GOING_BACK).read_text(encoding="utf-8"))
    step, aside = int(plan["step"]), run_dir / plan["aside"]
    (aside / "checkpoints").mkdir(parents=True, exist_ok=True)
    for directory in all_steps(run_dir):
        if step_of(directory) > step:
            directory.rename(aside / "checkpoints" / directory.name)
            faults.point("resume.set_aside")
    for name in LOGS:
        if (run_dir / name).exists() and not (aside / name).exists():
            copy = aside / f".{name}.tmp"
            shutil.copyfile(run_dir / name, copy)
            fsync(copy)
            copy.rename(aside / name)
    for name in _RESULTS:
        if (run_dir / name).exists():
            (run_dir / name).rename(aside / name)
    cut_logs(run_dir, step)
    faults.point("resume.logs_cut")
    (run_dir / LATEST).unlink(missing_ok=True)
    for directory in all_steps(run_dir)[:1]:
        write_latest(run_dir, directory)
    fsync(aside / "checkpoints")
    (run_dir / _GOING_BACK).unlink()
    fsync(run_dir)
    kept = ", ".join(sorted(p.name for p in (aside / "checkpoints").iterdir()))
    return f"what came after step {step} is set aside in {aside}: {kept}, logs"


# --- logs


def arrive(run_dir: Path, step: int) -> list[str]:
    """The run goes on from `step`: set aside what came after it, cut the logs back to it. Returns
    what a person should know. Raises CheckpointError where the disk does not let it."""
    try:
        went_back = go_back(run_dir, step)
        _adopt_logs(run_dir, step)
        said = cut_logs(run_dir, step)
        evidence = run_dir / "evidence.jsonl"
        steps = lines_up_to(evidence, step).steps if evidence.exists() else []
    except OSError as error:
        raise CheckpointError(f"{run_dir}: its logs cannot be cut back ({error})") from error
    if steps != list(range(1, step + 1)):
        said.append(
            f"{evidence}: holds {len(steps)} lines for {step} steps; the checkpoint has learned "
            "from all of them, a replay of this file would not"
        )
    return said if went_back is None else [went_back, *said]


def cut_logs(run_dir: Path, step: int) -> list[str]:
    """Drop the lines of steps after `step`. Returns what a person should know."""
    dropped, said = [], []
    for name in LOGS:
        path = run_dir / name
        if not path.exists():
            continue
        cut = lines_up_to(path, step)
        if cut.dropped:
            write_lines(path, cut.kept)
            dropped.append(f"{cut.dropped} of {name}")
        if cut.foreign:
            said.append(
                f"{path}: line {cut.foreign[0]} is none of this program's (it has no step); it "
                f"stays as it is ({len(cut.foreign)} such)"
            )
    if dropped:
        said.insert(0, f"lines after step {step} dropped: {', '.join(dropped)}")
    return said


def _adopt_logs(run_dir: Path, step: int) -> None:
    """The lines up to `step` of the run that this one began from, where it has none itself: the
    checkpoint's posterior holds them."""
    begun_from = origin_of(run_dir).begun_from
    if begun_from is None or begun_from.parent.name != "checkpoints":
        return
    for name in LOGS:
        source = begun_from.parent.parent / name
        if source.exists() and not (run_dir / name).exists():
            write_lines(run_dir / name, lines_up_to(source, step).kept)
