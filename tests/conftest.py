"""Settings of the whole suite."""

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings
from matrix import ROWS

# A deadline is a timing assertion: on a busy machine it fails tests that hold. CI repeats the same
# examples at every run; by hand new ones are drawn.
settings.register_profile("cero_rl", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cero_rl")

ENDED = pytest.StashKey[dict[str, list[str]]]()  # outcome of each test, by the rows it covers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix",
        action="store_true",
        help="run only the tests that cover a row of tests/matrix.py, and print all rows",
    )
    parser.addoption(
        "--architectures",
        metavar="FILE",
        help="run the tests of every architecture (many minutes) too; their rows go to FILE",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known = {row for rows in ROWS.values() for row in rows}
    for item in items:
        unknown = set(covered_rows(item)) - known
        assert not unknown, (
            f"{item.nodeid} covers {sorted(unknown)}, which tests/matrix.py does not list"
        )
    if not config.getoption("--architectures"):
        long = [item for item in items if item.get_closest_marker("architectures")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if config.getoption("--matrix"):
        config.hook.pytest_deselected(items=[item for item in items if not covered_rows(item)])
        items[:] = [item for item in items if covered_rows(item)]


def covered_rows(item: pytest.Item) -> list[str]:
    return [row for marker in item.iter_markers("covers") for row in marker.args]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for row in covered_rows(item):
            item.config.stash.setdefault(ENDED, {}).setdefault(row, []).append(report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    ended = config.stash.get(ENDED, {})
    if not ended:
        return
    for name, rows in ROWS.items():
        proven = 0
        if whole := config.getoption("--matrix"):
            terminalreporter.section(f"matrix: {name}")
        for row in rows:
            outcomes = ended.get(row, [])
            counts = ", ".join(
                f"{outcomes.count(kind)} {kind}"
                for kind in ("passed", "failed", "skipped")
                if kind in outcomes
            )
            proven += "passed" in outcomes and "failed" not in outcomes
            if whole:
                terminalreporter.write_line(f"{row:<46} {counts or 'no test'}")
        terminalreporter.write_line(f"{name}: {proven} of {len(rows)} rows proven")
