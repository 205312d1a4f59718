"""Small helpers of this folder's tests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest


def skip_or_fail(reason: str | None) -> None:
    """Skip for want of something; with CERO_REQUIRE_SLURM=1 (make test-slurm) that is a failure."""
    if reason is None:
        return
    if os.environ.get("CERO_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def export_hash(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "export" / "model.safetensors").read_bytes()).hexdigest()
