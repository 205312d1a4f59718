"""Who may import whom, read from the syntax trees: no room knows a higher one, heavy packages stay
in their corner, and every module stands in the list."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "cero_rl"

# Floors from the ground up; a folder stands for its files. A file may import from its own floor and
# from those below. What is not listed here fails.
FLOORS = [
    {"__init__", "errors", "legible", "types", "redact"},
    {"config", "job", "ops", "scheduler", "distributed"},
    {"files", "data"},
    {"models", "rewards", "environments"},
    {"rollout"},
    {"parity"},
    {"zero"},
    {"learner", "checkpoint", "memory"},
    {"metrics", "diagnosis", "report"},
    {"train", "study", "view"},
    {"commands", "convert", "adapters"},
    {"__main__"},
]
FILES_OF = {
    "checkpoint": "__init__ commit export identity lineage manifest ownership progress restore "
    "retention rollout_store saver",
    "commands": "__init__ answers checkpoints common compare complete diagnose diagnose_report "
    "evaluate init launch main own_server plan parity rank recipes report schema serve simulate "
    "simulate_payoff simulate_pool simulate_report slurm study train training validate view",
    "commands/doctor": "__init__ drills finding machine peer",
    "config": "__init__ base data hints io learner lora paths presets recipes reward rollout root "
    "run scheduler sizes zero",
    "convert": "__init__ actions dcp hf inspect_directory layout lora megatron megatron_layout "
    "output reshard run_checkpoint safetensors_io start verify weights zero",
    "adapters": "__init__ rounds stream tinker",
    "adapters/trl": "__init__ parity plan trainer",
    "adapters/verl": "__init__ settings trainer",
    "data": "__init__ encode files load messages pool prompts rows sources",
    "diagnosis": "__init__ critic diagnose gradients labels looks records sketch statistics",
    "distributed": "__init__ block group rendezvous",
    "environments": "__init__ host marks pool tools worker",
    "files": "__init__ durable jsonl lora_adapter pickled_enum plain",
    "job": "__init__ faults heartbeat lock parent process ranks restarts slurm_env stopping "
    "versions watchdog",
    "learner": "__init__ batch coverage losses mismatch packing returns schedule sharing update",
    "memory": "__init__ advice peaks plan planner samplers states workspace",
    "metrics": "__init__ alerts completions console ending recorder samples step throughput "
    "trackers",
    "models": "__init__ attention content decoding directory generation hub_names load logprob "
    "lora shapes shared_attention streaming weights",
    "parity": "__init__ judge probe questions samplers scorers vllm_llm",
    "ops": "__init__ _load advantage reference",
    "report": "__init__ compare drawing facts figures page paired reader samples tables words",
    "rewards": "__init__ answers base extras mathematics missing parts plugin pool process scoring "
    "several trial "
    "verifiers wording worker",
    "rollout": "__init__ collector counts deal episodes lengths protocol random_stream "
    "shared_engine truncation turns",
    "rollout/engines": "__init__ build choose server server_guard server_http server_key "
    "transformers unfit_for_vllm vllm vllm_arguments vllm_classes vllm_cpu vllm_draws vllm_worker "
    "weight_files",
    "scheduler": "__init__ bisection budgeted cells cero critic decisions direction door export "
    "judging ledger live_signal offline open_round options plan planning pool posterior premise "
    "prior progress protocol reasons registry reserve rules sizes state tokens uniform utility "
    "value worth",
    "scheduler/rivals": "__init__ batch_rules common controls elimination greso keep pilots ragged "
    "selection waves",
    "scheduler/simulation": "__init__ measured payoff replay run study suites summary worlds",
    "study": "__init__ page plan runner tables",
    "train": "__init__ accuracy evaluate loop preflight profile room rounds run_directory "
    "scheduler trial weight_sync",
    "view": "__init__ app overview picture prompts reasons screens tables words",
    "zero": "__init__ build_locks deepspeed_config gather launch loss_scale offload policy "
    "sharding shards",
}
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# Inside a floor there is an order too: what stands left may not import what stands right.
ORDER = [
    ("scheduler", "config"),
    ("job", "config"),
    ("ops", "scheduler", "distributed"),
    ("data", "files"),
    ("learner", "checkpoint"),
]
# What may be imported where. Files are patterns on the path inside the package.
ONLY_IN = {
    "deepspeed": ["zero/*"],
    "vllm": ["rollout/engines/vllm*.py", "parity/vllm*.py"],
    "trl": ["adapters/trl/*"],
    "accelerate": ["adapters/*"],
    "verl": ["adapters/verl/*"],
    "textual": ["view/app.py", "view/screens.py", "view/tables.py"],
    "tinker_cookbook": ["adapters/tinker.py"],
    "ray": ["adapters/verl/*"],
    "transfer_queue": ["adapters/verl/*"],
}
WITHOUT_TORCH = [
    "*.py",
    "config/*",
    "job/*",
    "scheduler/*",
    "files/durable.py",
    "files/jsonl.py",
    "files/plain.py",
    "train/scheduler.py",
    "rewards/*",
    "environments/*",
    "report/*",
    "study/*",
    "view/*",
    "models/directory.py",
    "metrics/alerts.py",
    "metrics/console.py",
    "metrics/trackers.py",
    "commands/launch.py",
    "commands/main.py",
    "commands/init.py",
    "commands/parity.py",
    "commands/rank.py",
    "commands/recipes.py",
    "commands/schema.py",
    "commands/train.py",
    "commands/answers.py",
    "commands/complete.py",
    "commands/own_server.py",
    "commands/common.py",
    "commands/plan.py",
    "commands/diagnose.py",
    "commands/compare.py",
    "commands/report.py",
    "commands/study.py",
    "commands/simulate*.py",
    "commands/validate.py",
    "commands/view.py",
]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
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
    """Dotted names of the modules a file imports, relative imports resolved, lazy imports inside
    functions included."""
    package = ["cero_rl", *path.relative_to(PACKAGE).parent.parts]
    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from (
                (f"{name}.{alias.name}" for alias in node.names) if name == "cero_rl" else (name,)
            )


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = {path: list(imports(path)) for path in FILES}


def third_party(path: Path) -> set[str]:
    return (
        {name.split(".")[0] for name in IMPORTS[path]} - set(sys.stdlib_module_names) - {"cero_rl"}
    )


def rooms_imported(path: Path) -> set[str]:
    parts = [name.split(".") for name in IMPORTS[path] if name.split(".")[0] == "cero_rl"]
    inside = {p[1] if len(p) > 1 and p[1] != "__version__" else "__init__" for p in parts}
    return inside - {room_of(path)}


def matches(path: Path, patterns: list[str]) -> bool:
    name = name_of(path)
    return any(fnmatch(name, p) and (p.count("/") or "/" not in name) for p in patterns)


def test_every_file_is_listed() -> None:
    listed = {f"{folder}/{name}.py" for folder, names in FILES_OF.items() for name in names.split()}
    listed |= {
        f"{name}.py" for name in ("__init__", "__main__", "errors", "legible", "types", "redact")
    }
    there = {name_of(path) for path in FILES}
    assert there - listed == set(), "give each new file a place in FILES_OF"
    assert listed - there == set(), "these are listed and gone"
    assert {room_of(path) for path in FILES} <= set(LEVEL), "give each new folder a floor"


def test_no_import_goes_upwards() -> None:
    wrong = set()
    for path in FILES:
        for room in rooms_imported(path):
            if LEVEL[room] > LEVEL[room_of(path)]:
                wrong.add((name_of(path), room))
            for order in ORDER:
                if room_of(path) in order and room in order:
                    assert order.index(room) < order.index(room_of(path)), (name_of(path), room)
    assert not wrong


def test_scheduler_and_configuration_are_light() -> None:
    for path in FILES:
        if room_of(path) == "scheduler":
            # Only the posterior's file needs more, and imports it in the functions that use it.
            light = {"numpy", "pyarrow"} if path.name == "export.py" else {"numpy"}
            assert third_party(path) <= light, path
            assert rooms_imported(path) <= {"types", "errors", "__init__"}, path
        elif room_of(path) == "config":
            assert third_party(path) <= {"numpy", "pydantic", "yaml"}, path


def test_heavy_packages_stay_in_their_corner() -> None:
    for path in FILES:
        for package, corner in ONLY_IN.items():
            assert package not in third_party(path) or matches(path, corner), (path, package)
        if matches(path, WITHOUT_TORCH):
            heavy = {"torch", "transformers", "deepspeed", "vllm"} & third_party(path)
            lazy = {
                "versions.py",
                "worker.py",
                "trackers.py",
            }  # inside functions, where a version is asked for
            assert not heavy or path.name in lazy, (path, heavy)


def test_other_trainers_stay_in_their_adapters() -> None:
    below = {"scheduler", "ops", "data", "files", "parity", "types", "errors", "__init__"}
    for path in FILES:
        if room_of(path) == "adapters":
            assert rooms_imported(path) <= below, path
        else:
            used = [name for name in IMPORTS[path] if name.startswith("cero_rl.adapters")]
            assert not used, f"{path}: adapters are for users to import"


def test_validation_starts_without_torch() -> None:
    code = "import sys, cero_rl.commands.validate, cero_rl.commands.main; "
    code += "sys.exit('torch' in sys.modules)"
    line = [sys.executable, "-c", code]
    assert subprocess.run(line, cwd=PACKAGE.parent, timeout=60).returncode == 0
