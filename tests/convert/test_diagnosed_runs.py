"""`cero-rl diagnose` on a real run: its export, and its newest checkpoint where there is none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cero_rl.commands.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_export_and_checkpoint_say_the_same(
    runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    whole = runs("float32")
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare, copy_function=os.link)
    shutil.rmtree(bare / "export")
    found = []
    for run in (whole, bare):
        assert main(["diagnose", str(run), "--prompts", "24", "--samples", "4", "--json"]) == 0
        out, err = capsys.readouterr()
        found.append(json.loads(out))
        assert ("is converted" in err) == (run == bare)
    models = [each.pop("model") for each in found]
    assert models[0] == str(whole / "export")
    assert found[0] == found[1]
    assert found[0]["transfer"][0]["name"] == "all"
