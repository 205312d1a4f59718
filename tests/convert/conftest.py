"""The command line in this process, and real checkpoints: the shipped training command on 2 ranks,
once in each dtype."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Convert = Callable[..., int]


def _module(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def convert() -> Convert:
    main = _module("convert_tool", ROOT / "tools/convert.py").main
    return lambda *arguments: main([str(a) for a in arguments])


@pytest.fixture(scope="session")
def training():
    return _module("training_launch", ROOT / "tests/train/launch.py")


@pytest.fixture(scope="session")
def runs(tmp_path_factory, training) -> Callable[[str], Path]:
    """A run directory by dtype, trained when first asked for."""
    out, made = tmp_path_factory.mktemp("runs"), {}

    def run(dtype: str) -> Path:
        if dtype not in made:
            done = training.launch(out, dtype, settings=[f"model.dtype={dtype}"])
            assert done.returncode == 0, done.stdout + done.stderr
            made[dtype] = out / dtype
        return made[dtype]

    return run
