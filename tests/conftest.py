"""Settings of the whole suite."""

import os
from typing import Any

import pytest
from hypothesis import settings
from matrix import ROWS

# A deadline is a timing assertion: on a busy machine it fails tests that hold. CI repeats the same
# examples at every run; by hand new ones are drawn.
settings.register_profile("cero_rl", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cero_rl")

# What starts ranks, engines or clusters takes both cores and longest: under pytest-xdist two
# processes begin with it, half of it each, and share the rest, a file each.
STARTS_RANKS = {
    "tests/rollout/vllm_engine": "engines",
    "tests/slurm": "engines",
    "tests/faults": "ranks",
    "tests/train": "ranks",
    "tests/convert": "ranks",
    "tests/adapters": "ranks",
    "tests/zero": "ranks",
}

ENDED: dict[str, list[str]] = {}  # outcome of each test, by the rows it covers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix",
        action="store_true",
        help="run only the tests that cover a row of tests/matrix.py, and print all rows",
    )
    parser.addoption("--long", action="store_true", help="run the tests of minutes each too")
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
    for marker in ("architectures", "long"):
        if not config.getoption(f"--{marker}"):
            left = [item for item in items if item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in left]
    if config.getoption("--matrix"):
        config.hook.pytest_deselected(items=[item for item in items if not covered_rows(item)])
        items[:] = [item for item in items if covered_rows(item)]

    if hasattr(config, "workerinput"):  # one of the processes of pytest-xdist
        items.sort(key=lambda item: _folder(item.nodeid) not in STARTS_RANKS)


def _folder(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[0]


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is installed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return STARTS_RANKS.get(_folder(nodeid)) or super()._split_scope(nodeid)

    return ByFile(config, log)


def covered_rows(item: pytest.Item) -> list[str]:
    return [row for marker in item.iter_markers("covers") for row in marker.args]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # what a report carries reaches the process that counts, whichever ran the test
    item.user_properties.extend(("covers", row) for row in covered_rows(item))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        for name, row in report.user_properties:
            if name == "covers":
                ENDED.setdefault(str(row), []).append(report.outcome)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not ENDED:
        return
    for name, rows in ROWS.items():
        proven = 0
        if whole := config.getoption("--matrix"):
            terminalreporter.section(f"matrix: {name}")
        for row in rows:
            outcomes = ENDED.get(row, [])
            counts = ", ".join(
                f"{outcomes.count(kind)} {kind}"
                for kind in ("passed", "failed", "skipped")
                if kind in outcomes
            )
            proven += "passed" in outcomes and "failed" not in outcomes
            if whole:
                terminalreporter.write_line(f"{row:<46} {counts or 'no test'}")
        terminalreporter.write_line(f"{name}: {proven} of {len(rows)} rows proven")
