"""Did this program write what is there? Asked before `--overwrite` or `--force` deletes anything.

A directory may go only where every entry of it is one that a run, an export or a conversion writes;
the first other one is named and nothing is touched. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cero_rl.checkpoint.lineage import ABANDONED, RUN_FILE
from cero_rl.checkpoint.manifest import LATEST, MANIFEST
from cero_rl.job.lock import LOCK

RESOLVED = "config.resolved.yaml"  # a run's directory has it from its first moment on
CONVERTED = "converted"  # in a run's directory: its checkpoints for another number of ranks
_LOGS = r"(metrics|ledger|evidence|samples|attempts)\.jsonl"
_SHARDS = r"(\w+_states\.pt|zero/optimizer_state\.pt|zero/[^/]+/\w+\.pt)"
_CHECKPOINT = (
    rf"({re.escape(MANIFEST)}|state\.json|(arrays|rank\d+)\.safetensors|zero/{_SHARDS}"
    r"|zero/latest\w*|(zero/)?zero_to_\w+\.py)"
)
_MODEL = (
    r"([\w.-]+\.safetensors|model\.safetensors\.index\.json|(adapter_|generation_)?config\.json"
    r"|tokenizer[\w.]*|(special_tokens_map|added_tokens)\.json|vocab\.(json|txt)|merges\.txt"
    r"|spiece\.model|chat_template\.\w+|additional_chat_templates/[^/]+\.jinja|README\.md)"
)
_MEGATRON = (
    r"(iter_\d+/(\w+\.distcp|\.metadata|common\.pt|metadata\.json)"
    r"|latest_checkpointed_iteration\.txt|megatron_args\.txt)"
)
_RESULTS = rf"posterior\.parquet|{_LOGS}|(export|adapter)(\.tmp)?/{_MODEL}"
_STEPS = rf"(step_\d+/{_CHECKPOINT}|\.?tmp\.[^/]+/.*|\.step_\d+\.tmp-.*)"
_ASIDE = rf"{ABANDONED}/[^/]+"
_RUN = "|".join(
    (
        rf"{re.escape(LOCK)}|{re.escape(RESOLVED)}|{re.escape(RUN_FILE)}|{re.escape(LATEST)}",
        rf"{_RESULTS}|\.[\w.]+\.tmp|going_back\.json|report\.html|(stacks|error)_rank\d+\.txt",
        r"tensorboard/events\.out\.tfevents\.[^/]+|wandb/.*|profile/(steps_\d+-\d+\.json\.gz)?",
        rf"(checkpoints|{CONVERTED}|{_ASIDE}/checkpoints)/{_STEPS}",
        rf"{_ASIDE}/({_RESULTS}|\.[\w.]+\.tmp)",
        rf"(checkpoints|{CONVERTED}|tensorboard|{_ASIDE}|{_ASIDE}/checkpoints)/",  # empty ones
        r"(export|adapter)(\.tmp)?/",
    )
)


def foreign_in_run(run_dir: Path) -> str | None:
    """What in a run's directory is not of a run, relative to it; None where all is."""
    known = _RUN if (run_dir / RESOLVED).is_file() else re.escape(LOCK)
    return _first_other(run_dir, known)


def foreign_in_output(directory: Path) -> str | None:
    """What in a directory neither a conversion nor an export wrote, relative to it; None where all
    is theirs, which a manifest or a model card says."""
    if (directory / MANIFEST).is_file():
        known = _CHECKPOINT
    elif _has_our_card(directory):
        known = f"{_MODEL}|{_MEGATRON}|{_SHARDS}"
    else:
        known = ""
    return _first_other(directory, known)


def _first_other(directory: Path, known: str) -> str | None:
    pattern = re.compile(known)
    return next((name for name in _names(directory) if not pattern.fullmatch(name)), None)


def _names(directory: Path) -> Iterator[str]:
    """Relative names of all files, links (which are not followed) and, with a slash at their end,
    empty directories."""
    for folder, folders, files in os.walk(directory):
        at = Path(folder).relative_to(directory)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(links))
        for name in sorted([*files, *links]):
            yield (at / name).as_posix()
        if at.parts and not (folders or files or links):
            yield f"{at.as_posix()}/"


def _has_our_card(directory: Path) -> bool:
    try:
        head = (directory / "README.md").read_text(encoding="utf-8").split("---")[1]
    except (OSError, ValueError, IndexError):
        return False
    return "cero_rl" in head
