"""Who may import whom, read from the syntax trees: no layer knows a higher one, heavy packages stay in their corner."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "cero_rl"
LAYERS = [
    {"__init__", "errors", "types", "faults", "watchdog", "redact", "durable"}
    | {"config", "config_base", "config_scheduler", "config_lora", "config_rollout", "config_run", "config_io"},
    {"scheduler", "ops", "ledger", "lora_format"},
    {"data", "rewards", "rollout", "learner"},
    {"engine", "adapters"},
    {"train", "evaluate", "checkpoint", "metrics", "report", "doctor", "convert"},  # and every module of one file that is not listed
    {"cli", "__main__"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
LOOP = LEVEL["train"]
BASE_THIRD_PARTY = {"numpy", "pydantic", "yaml"}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes except the bodies of `if TYPE_CHECKING:`, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield other
                yield from walk(other)
            continue
        yield child
        yield from walk(child)


def imports(path: Path) -> Iterator[str]:
    """Dotted names of the modules a file imports, relative imports resolved, lazy imports inside functions included."""
    package = ["cero_rl", *path.relative_to(PACKAGE).parent.parts]
    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names) if name == "cero_rl" else (name,)


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = {path: list(imports(path)) for path in FILES}


def third_party(path: Path) -> set[str]:
    return {name.split(".")[0] for name in IMPORTS[path]} - set(sys.stdlib_module_names) - {"cero_rl"}


def test_every_package_has_a_layer() -> None:
    unknown = {unit_of(path) for path in FILES if path.parent != PACKAGE} - set(LEVEL)
    assert not unknown, f"give each of {sorted(unknown)} a place in LAYERS"


def test_no_import_goes_upwards() -> None:
    wrong = []
    for path, names in IMPORTS.items():
        for name in names:
            parts = name.split(".")
            target = parts[1] if len(parts) > 1 and parts[1] != "__version__" else "__init__"
            if parts[0] == "cero_rl" and LEVEL.get(target, LOOP) > LEVEL.get(unit_of(path), LOOP):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, wrong


def test_scheduler_and_configuration_are_light() -> None:
    for path in FILES:
        if unit_of(path) == "scheduler":
            # Only the posterior's file needs more, and imports it inside the functions that read and write it.
            assert third_party(path) <= ({"numpy", "pyarrow"} if path.name == "export.py" else {"numpy"}), path
            ours = {name.split(".")[1] for name in IMPORTS[path] if name.startswith("cero_rl.")}
            assert ours <= {"scheduler", "types", "errors", "__version__"}, path
        elif LEVEL.get(unit_of(path)) == 0:
            assert third_party(path) <= BASE_THIRD_PARTY, path


def test_deepspeed_and_vllm_stay_in_their_corner() -> None:
    for path in FILES:
        if unit_of(path) != "engine":
            assert "deepspeed" not in third_party(path), path
        if not (unit_of(path) == "rollout" and path.name.startswith("vllm")):
            assert "vllm" not in third_party(path), path


def test_other_trainers_stay_in_their_adapters() -> None:
    for path in FILES:
        if unit_of(path) != "adapters":
            assert not {"trl", "accelerate", "verl", "ray", "transfer_queue"} & third_party(path), path
            assert not any(name.startswith("cero_rl.adapters") for name in IMPORTS[path]), f"{path}: adapters are for users to import"
        else:
            assert not ({"trl", "verl"} - {path.parent.name}) & third_party(path), path


def test_validation_starts_without_torch() -> None:
    code = "import sys, cero_rl.config_io; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, timeout=60).returncode == 0
