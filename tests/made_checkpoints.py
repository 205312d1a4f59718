"""Checkpoints by hand, with the layout and manifest of real ones, for the tests of several
folders."""

from __future__ import annotations

import json
from pathlib import Path

from cero_rl.checkpoint import MANIFEST
from cero_rl.checkpoint.manifest import files_of
from cero_rl.files.durable import describe_file, write_json

SETTINGS = {"zero.stage": 3}


def make(
    run: Path, step: int, score: float | None = None, run_id: str | None = None, ranks: int = 2
) -> Path:
    """A committed directory."""
    directory = run / f"checkpoints/step_{step:06d}"
    (directory / "zero").mkdir(parents=True)
    (directory / "state.json").write_text(json.dumps({"step": step}))
    for name in ("arrays", *(f"rank{rank}" for rank in range(ranks))):
        (directory / f"{name}.safetensors").write_bytes(b"arrays")
    (directory / "zero/shard.pt").write_bytes(bytes(range(256)) * 16)
    files = {p.relative_to(directory).as_posix(): describe_file(p) for p in files_of(directory)}
    manifest = {
        "step": step,
        "run": run_id,
        "world_size": ranks,
        "score": score,
        "score_of": None if score is None else "avg@1",
        "identity": {"settings": SETTINGS, "content": {}},
        "cero_rl": "0",
        "torch": "0",
        "files": files,
    }
    write_json(directory / MANIFEST, manifest)
    return directory
