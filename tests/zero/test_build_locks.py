"""A lock that a killed compilation has left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from cero_rl.zero.build_locks import build_locks


@pytest.mark.covers("build lock of a killed start")
def test_a_build_lock_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert build_locks() == ""
    (tmp_path / "cpu_adam").mkdir()
    (tmp_path / "cpu_adam/lock").touch()
    said = build_locks()
    assert str(tmp_path / "cpu_adam/lock") in said
    assert "0 min old" in said
    assert "delete it" in said
