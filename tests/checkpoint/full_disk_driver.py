"""Saves on a disk of one megabyte, mounted for this process alone: FOLDER ASYNCHRONOUS PART, where
PART (arrays or shards) is what does not fit at the second save. Prints what was said, as JSON.

Exit 77: this user may not mount a disk.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from step_cases import config_of

from cero_rl.checkpoint import commit
from cero_rl.checkpoint.commit import RunState
from cero_rl.checkpoint.manifest import step_dirs, verify
from cero_rl.checkpoint.saver import Saver
from cero_rl.distributed.group import Group
from cero_rl.files.jsonl import append_jsonl

CLONE_NEWNS, MS_PRIVATE_TREE = 0x20000, 0x40000 | 0x4000
SMALL, TOO_LARGE = 1_000, 2**20
folder, asynchronous, part = sys.argv[1:]


def mount() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    at = folder.encode()
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(None, b"/", None, MS_PRIVATE_TREE, None)
        or libc.mount(b"tmpfs", at, b"tmpfs", 0, b"size=1m")
    ):
        os._exit(77)


def save_shards(engine: Any, directory: Path, tag: str) -> None:
    (directory / tag).mkdir()
    engine.checkpoint_engine.create(None)
    shard = {"weights": torch.zeros(bytes_of["shards"], dtype=torch.uint8)}
    engine.checkpoint_engine.save(shard, str(directory / tag / "shard.pt"))


def step(number: int, *, last: bool = False) -> None:
    arrays = {"lengths": np.zeros(bytes_of["arrays"], dtype=np.uint8)}
    saver.step_done(number, lambda: RunState({"step": number}, arrays), None, last=last)


mount()
run = Path(folder)
commit.save_shards = save_shards
bytes_of = {"arrays": SMALL, "shards": SMALL}
said: list[str] = []
settings = (f"checkpoint.asynchronous={asynchronous}", "checkpoint.every_steps=1")
saver = Saver(run, Group.alone(), SimpleNamespace(), config_of(*settings), {}, said.append)
step(1, last=True)
bytes_of[part] = TOO_LARGE
step(2)
if (writing := saver._checkpoints._writing) is not None:
    writing.join()
bytes_of[part] = SMALL
step(3, last=True)
with (run / "filler").open("wb", buffering=0) as file:
    while file.write(bytes(4096)) == 4096:
        if os.statvfs(run).f_bavail == 0:
            break
(run / "log.jsonl").touch()
try:
    for number in range(100):
        append_jsonl(run / "log.jsonl", {"step": number, "text": "x" * 1000})
    full = False
except OSError:
    full = True
log = (run / "log.jsonl").read_bytes()
steps = sorted(verify(directory)["step"] for directory in step_dirs(run))
whole = log == b"" or log.endswith(b"}\n")
left = [path.name for path in (run / "checkpoints").glob("tmp.*")]
print(json.dumps({"steps": steps, "said": said, "full": full, "whole": whole, "left": left}))
