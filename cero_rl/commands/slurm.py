"""`cero-rl slurm render`: the job script of a run, from recipes/slurm/train.sbatch.in, checked
before Slurm sees it.

In: a run configuration and the shape of the job. Out: the script on stdout (--dry-run), in a file
(--output) or at sbatch (--submit). Everything a user can get wrong is one line and exit code 2. No
torch.
"""

from __future__ import annotations

import argparse
import re
import shlex
import string
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cero_rl.commands.answers import add_json, answer
from cero_rl.config import Config, load_config
from cero_rl.config.paths import path_argument
from cero_rl.config.sizes import check_pool
from cero_rl.data.load import count_prompts
from cero_rl.errors import ConfigError

HELP = "job scripts for a Slurm cluster"

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "recipes" / "slurm" / "train.sbatch.in"
ENTRY = ROOT / "recipes" / "train_cero.py"
HEADER = "# Rendered by cero-rl slurm render"
_REQUIRED = {
    "job_name",
    "nodes",
    "ranks_per_node",
    "log_dir",
    "signal",
    "directives",
    "work_dir",
    "exports",
    "command",
}
# what partitions, accounts and constraints are made of
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,&|*\[\]@:+-]*")
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")
_MEMORY = re.compile(r"\d+[KMGT]?")
_PATH = re.compile(r"[A-Za-z0-9/._+=@-]+")


class _Template(string.Template):
    """@{name} is ours, so that the shell's own $name needs no escape."""

    delimiter, flags = "@", re.NOFLAG
    pattern = (  # pyright: ignore[reportAssignmentType]
        r"@(?:(?P<escaped>@)|\{(?P<braced>[a-z_]+)\}|(?P<named>(?!))|(?P<invalid>\{))"
    )


@dataclass(frozen=True)
class Job:
    """The shape of a job; None leaves a choice to the cluster's defaults."""

    nodes: int
    gpus_per_node: int | None
    ranks_per_node: int  # equal to gpus_per_node where there are GPUs
    cpus_per_task: int | None
    time: str | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    mem: str | None
    interface: str | None
    signal_seconds: int

    @property
    def whole_nodes(self) -> bool:
        """Ranks with a GPU share a node's cores where nothing is said: Slurm's default of one core
        a task would hold Python, the sampler's scheduler and the reward workers."""
        return self.gpus_per_node is not None and self.cpus_per_task is None

    def directives(self) -> list[str]:
        mem = "0" if self.mem is None and self.gpus_per_node is not None else self.mem
        rows = [
            ("gpus-per-node", self.gpus_per_node),
            ("cpus-per-task", self.cpus_per_task),
            ("time", self.time),
            ("partition", self.partition),
            ("account", self.account),
            ("qos", self.qos),
            ("constraint", self.constraint),
            ("mem", mem),
        ]
        given = [f"#SBATCH --{name}={value}" for name, value in rows if value is not None]
        return ["#SBATCH --exclusive", *given] if self.whole_nodes else given

    def exports(self) -> list[str]:
        found = []
        if self.cpus_per_task is not None:
            # since Slurm 22.05 srun does not take it from sbatch
            found.append(f"export SRUN_CPUS_PER_TASK={self.cpus_per_task}")
        if self.whole_nodes:
            share = f"$((SLURM_CPUS_ON_NODE / {self.ranks_per_node}))"
            found.append(f"export SRUN_CPUS_PER_TASK={share}")
        if self.interface is not None:
            name = shlex.quote(self.interface)
            found.append(f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}")
        return found


def seconds_of(time: str) -> int:
    """Of [D-]HH:MM:SS; raises ConfigError for anything else, and for no time at all."""
    matched = _TIME.fullmatch(time)
    if matched is None:
        raise ConfigError(f"--time: got {time!r}, wanted HH:MM:SS or D-HH:MM:SS, e.g. 08:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in matched.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ConfigError(f"--time: got {time!r}, wanted more than no time")
    return total


def _job(arguments: argparse.Namespace) -> Job:
    """Check each argument and build the job. Raises ConfigError."""
    gpus = arguments.gpus_per_node
    numbers = {
        "--nodes": arguments.nodes,
        "--gpus-per-node": gpus,
        "--ranks-per-node": arguments.ranks_per_node,
        "--cpus-per-task": arguments.cpus_per_task,
        "--signal-seconds": arguments.signal_seconds,
    }
    for flag, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"{flag}: got {number}, wanted at least 1")
    for flag, text, shape in (
        ("--partition", arguments.partition, _NAME),
        ("--account", arguments.account, _NAME),
        ("--qos", arguments.qos, _NAME),
        ("--constraint", arguments.constraint, _NAME),
        ("--interface", arguments.interface, _NAME),
        ("--mem", arguments.mem, _MEMORY),
    ):
        if text is not None and not shape.fullmatch(text):
            wanted = (
                "a number with K, M, G or T, e.g. 64G"
                if shape is _MEMORY
                else "a name without spaces or quotes"
            )
            raise ConfigError(f"{flag}: got {text!r}, wanted {wanted}")
    if arguments.time is not None and seconds_of(arguments.time) <= arguments.signal_seconds:
        raise ConfigError(
            f"--time: {arguments.time} is not longer than --signal-seconds = "
            f"{arguments.signal_seconds}, the warning before its end; "
            "raise the one or lower the other"
        )
    return Job(
        nodes=arguments.nodes,
        gpus_per_node=gpus,
        ranks_per_node=gpus if gpus is not None else arguments.ranks_per_node,
        cpus_per_task=arguments.cpus_per_task,
        time=arguments.time,
        partition=arguments.partition,
        account=arguments.account,
        qos=arguments.qos,
        constraint=arguments.constraint,
        mem=arguments.mem,
        interface=arguments.interface,
        signal_seconds=arguments.signal_seconds,
    )


def _check(config: Config, job: Job) -> None:
    """What the run itself would refuse after hours in the queue."""
    if (prompts := count_prompts(config.data)) is not None:
        check_pool(config, prompts)
    ranks = job.nodes * job.ranks_per_node
    for key, size in (
        ("rollout.tensor_parallel", config.rollout.tensor_parallel),
        ("zero.sequence_parallel", config.zero.sequence_parallel),
    ):
        if ranks % size:
            raise ConfigError(
                f"{key}: {size} does not divide {job.nodes} nodes x {job.ranks_per_node} = {ranks} "
                "ranks; choose a divisor"
            )


def log_dir(config: Config) -> Path:
    """Beside the run's directory, which must not exist before the run does."""
    return Path(config.output_dir).absolute() / "slurm"


def render(
    config: Config, config_file: Path, overrides: list[str], job: Job, template: Path
) -> str:
    """The job script. Raises ConfigError where the template and what it is given do not fit."""
    try:
        text = _Template(template.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--template: {template} can't be read ({type(error).__name__}); give "
            "recipes/slurm/train.sbatch.in"
        ) from None
    if not text.is_valid():
        raise ConfigError(
            f"--template: {template} has a malformed @{{name}}; wanted small letters and _ "
            "between the braces"
        )
    found = set(text.get_identifiers())
    for what, names in (
        ("does not use", _REQUIRED - found),
        ("uses the unknown", found - _REQUIRED),
    ):
        if names:
            listed = ", ".join(f"@{{{name}}}" for name in sorted(names))
            raise ConfigError(
                f"--template: {template} {what} {listed}; recipes/slurm/train.sbatch.in "
                "shows all that there are"
            )
    work_dir = Path.cwd()
    for what, path in (("the current directory", work_dir), ("output_dir", log_dir(config))):
        # Slurm reads %, \\ and spaces in --output in its own way
        if not _PATH.fullmatch(str(path)):
            raise ConfigError(
                f"{what}: {str(path)!r} has characters that Slurm reads otherwise; wanted "
                "letters, digits and / . _ - + = @"
            )
    command = [sys.executable, str(ENTRY), "--config", str(config_file)]
    for override in overrides:
        command += ["--set", override]
    if any("\n" in word for word in command):
        raise ConfigError("--set: a value has a line break; put it into the YAML file")
    script = text.substitute(
        job_name=config.name,
        nodes=job.nodes,
        ranks_per_node=job.ranks_per_node,
        log_dir=log_dir(config),
        signal=f"B:USR1@{job.signal_seconds}",
        directives="\n".join(job.directives()),
        work_dir=work_dir,
        exports="\n".join(job.exports()),
        command=shlex.join(command),
    )
    return re.sub(r"\n{3,}", "\n\n", script)  # where an optional part is empty


def _write(path: Path, script: str) -> None:
    if path.is_dir():
        raise ConfigError(f"--output: {path} is a directory; give a file")
    try:
        _write_own(path, script)
    except OSError as error:
        raise ConfigError(f"--output: {error}; give a file that can be written") from error


def _write_own(path: Path, script: str) -> None:
    if path.exists() and HEADER not in path.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(
            f"--output: {path} exists and was not rendered by this command; give another "
            "name or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")


def _submit(path: Path) -> str:
    """Slurm's answer to sbatch; raises ConfigError with its complaint in one line."""
    try:
        done = subprocess.run(
            ["sbatch", str(path)], capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError:
        raise ConfigError(
            "--submit: there is no sbatch on PATH; run this on a login node of the "
            "cluster, or use --output"
        ) from None
    except subprocess.TimeoutExpired:
        raise ConfigError(
            "--submit: sbatch gave no answer in 120 s; ask `sinfo` whether the controller is up"
        ) from None
    if done.returncode:
        raise ConfigError(
            f"--submit: sbatch refused {path}: "
            f"{' '.join(done.stderr.split()) or f'exit code {done.returncode}'}"
        )
    return done.stdout.strip()


def _render(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    job = _job(arguments)
    _check(config, job)
    script = render(config, Path(arguments.config), arguments.overrides, job, arguments.template)
    answer(arguments, script=script)
    if arguments.dry_run:
        print(script, end="")
        return 0
    if arguments.output is None and not arguments.submit:
        raise ConfigError(
            "--dry-run, --output or --submit: got none, wanted at least one: print it, "
            "write it or submit it"
        )
    path = arguments.output or log_dir(config) / f"{config.name}.sbatch"
    _write(path, script)
    # Slurm fails a job without a word when this is missing
    log_dir(config).mkdir(parents=True, exist_ok=True)
    answer(arguments, written=str(path), logs=str(log_dir(config)))
    print(f"wrote {path}; logs go to {log_dir(config)}")
    if not config.checkpoint.every_steps:
        print(
            "note: checkpoint.every_steps is 0: a node that fails loses all since the last "
            "warning; set it",
            file=sys.stderr,
        )
    if arguments.submit:
        said = _submit(path)
        answer(arguments, sbatch=said)
        print(said)
    return 0


def run(arguments: argparse.Namespace) -> int:
    return _render(arguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the parser of `cero-rl slurm`."""
    commands = parser.add_subparsers(dest="slurm_command", required=True, metavar="COMMAND")
    what = "the job script of a run: print, write or submit it"
    page = commands.add_parser("render", help=what, description=what, allow_abbrev=False)
    page.add_argument(
        "--config", type=path_argument, required=True, metavar="FILE", help="run configuration"
    )
    page.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key; repeatable",
    )
    page.add_argument("--nodes", type=int, required=True, metavar="N")
    ranks = page.add_mutually_exclusive_group(required=True)
    ranks.add_argument(
        "--gpus-per-node", type=int, metavar="G", help="ask for G GPUs on each node, one rank a GPU"
    )
    ranks.add_argument(
        "--ranks-per-node",
        type=int,
        metavar="R",
        help="start R ranks on each node and ask for no GPU",
    )
    page.add_argument(
        "--cpus-per-task",
        type=int,
        metavar="N",
        help="CPU cores of a rank (default with GPUs: its share of the whole node)",
    )
    page.add_argument(
        "--time", metavar="HH:MM:SS", help="limit of one attempt; the run goes on in the next"
    )
    page.add_argument(
        "--signal-seconds",
        type=int,
        default=120,
        metavar="S",
        help="warn the run S seconds before the limit (default 120)",
    )
    for flag in ("partition", "account", "qos", "constraint"):
        page.add_argument(f"--{flag}", metavar="NAME", help="as sbatch takes it")
    page.add_argument(
        "--mem",
        metavar="SIZE",
        help="memory of a node, e.g. 512G (default with GPUs: all of it)",
    )
    page.add_argument(
        "--interface",
        metavar="NAME",
        help="network interface between the nodes, for gloo and NCCL, e.g. ib0",
    )
    page.add_argument(
        "--template",
        type=path_argument,
        default=TEMPLATE,
        metavar="FILE",
        help="default: recipes/slurm/train.sbatch.in",
    )
    page.add_argument("--output", type=path_argument, metavar="FILE", help="write the script there")
    end = page.add_mutually_exclusive_group()
    end.add_argument("--dry-run", action="store_true", help="print the script and write nothing")
    end.add_argument(
        "--submit",
        action="store_true",
        help="hand it to sbatch; written to OUTPUT_DIR/slurm/NAME.sbatch without --output",
    )
    add_json(page)
    page.add_argument("--debug", action="store_true", help="show a traceback with an error")
