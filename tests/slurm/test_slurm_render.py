"""`cero-rl slurm render`: the script, and one line with exit code 2 for everything that a cluster
would choke on."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cero_rl.commands.main import main
from cero_rl.commands.slurm import TEMPLATE, seconds_of

ROOT = Path(__file__).resolve().parents[2]
RENDER = ["slurm", "render", "--config", "recipes/digits_cpu.yaml"]
VLLM_OVER_4 = ["--set", "rollout.engine=vllm", "--set", "rollout.tensor_parallel=4"]
SHAPE = ["--nodes", "2", "--ranks-per-node", "1"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line on stderr of a call that must exit with 2."""
    try:
        status = main([*RENDER, *flags])
    except SystemExit as left:  # argparse
        status = left.code
    out, err = capsys.readouterr()
    assert status == 2, out + err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err


def rendered(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main([*RENDER, "--dry-run", *flags]) == 0
    script = capsys.readouterr().out
    checked = subprocess.run(
        ["bash", "-n"], input=script, capture_output=True, text=True, check=False, timeout=30
    )
    assert checked.returncode == 0, checked.stderr
    return script


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH --(.*)$", script, re.MULTILINE)


def command_of(script: str) -> list[str]:
    """The words after srun, as the shell reads them."""
    found = re.search(r"^srun (.*?) --resume auto &$", script, re.MULTILINE | re.DOTALL)
    assert found
    return shlex.split(found[1].replace("\\\n", " "))


def test_every_choice_is_in_the_script(capsys, tmp_path):
    flags = [
        "--nodes",
        "4",
        "--gpus-per-node",
        "8",
        "--cpus-per-task",
        "12",
        "--time",
        "1-08:00:00",
        "--partition",
        "batch",
    ]
    flags += [
        "--account",
        "lab",
        "--qos",
        "high",
        "--constraint",
        "h100|h200",
        "--mem",
        "900G",
        "--interface",
        "ib0",
    ]
    flags += ["--signal-seconds", "300"]
    script = rendered(capsys, *flags, "--set", f"output_dir={tmp_path}", "--set", "name=long-run")
    assert directives(script) == [
        "job-name=long-run",
        "nodes=4",
        "ntasks-per-node=8",
        f"output={tmp_path}/slurm/%x-%j.out",
        "open-mode=append",
        "requeue",
        "signal=B:USR1@300",
        "gpus-per-node=8",
        "cpus-per-task=12",
        "time=1-08:00:00",
        "partition=batch",
        "account=lab",
        "qos=high",
        "constraint=h100|h200",
        "mem=900G",
    ]
    assert "export SRUN_CPUS_PER_TASK=12\n" in script
    assert "export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0\n" in script
    assert "@{" not in script


def test_ranks_with_gpus_get_the_cores_and_the_memory_of_whole_nodes(capsys):
    script = rendered(capsys, "--nodes", "2", "--gpus-per-node", "8")
    assert {"exclusive", "gpus-per-node=8", "mem=0"} <= set(directives(script))
    exports = "\n".join(line for line in script.splitlines() if line.startswith("export "))
    shown = subprocess.run(
        ["bash", "-c", f"{exports}\necho $SRUN_CPUS_PER_TASK $OMP_NUM_THREADS"],
        env={"SLURM_CPUS_ON_NODE": "192", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert shown.stdout.split() == ["24", "24"]
    shared = rendered(
        capsys, "--nodes", "1", "--gpus-per-node", "2", "--cpus-per-task", "12", "--mem", "100G"
    )
    assert "exclusive" not in directives(shared)
    assert "mem=100G" in directives(shared)


def test_unset_choices_leave_no_trace(capsys):
    script = rendered(capsys, *SHAPE)
    assert [line.split("=")[0] for line in directives(script)] == [
        "job-name",
        "nodes",
        "ntasks-per-node",
        "output",
        "open-mode",
        "requeue",
        "signal",
    ]
    assert "SOCKET_IFNAME" not in script
    assert "SRUN_CPUS_PER_TASK=" not in script


def test_overrides_reach_the_ranks_as_they_were_given(capsys):
    odd = ['reward.function=it\'s $HOME `id` "x" @{nodes} %j \\', "name=odd"]
    script = rendered(capsys, *SHAPE, *(word for setting in odd for word in ("--set", setting)))
    words = command_of(script)
    start = words.index(sys.executable)
    assert words[start + 1 :] == [
        str(ROOT / "recipes/train_cero.py"),
        "--config",
        "recipes/digits_cpu.yaml",
        "--set",
        odd[0],
        "--set",
        odd[1],
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "0", "--ranks-per-node", "1"], "--nodes: got 0, wanted at least 1"),
        (["--nodes", "two", "--ranks-per-node", "1"], "invalid int value: 'two'"),
        (["--nodes", "1", "--gpus-per-node", "0"], "--gpus-per-node: got 0, wanted at least 1"),
        (["--nodes", "1", "--ranks-per-node", "-1"], "--ranks-per-node: got -1, wanted at least 1"),
        (["--nodes", "1"], "one of the arguments --gpus-per-node --ranks-per-node is required"),
        (["--nodes", "1", "--gpus-per-node", "1", "--ranks-per-node", "1"], "not allowed with"),
        (["--ranks-per-node", "1"], "required: --nodes"),
        ([*SHAPE, "--time", "8h"], "--time: got '8h', wanted HH:MM:SS or D-HH:MM:SS"),
        ([*SHAPE, "--time", "00:61:00"], "--time: got '00:61:00', wanted"),
        ([*SHAPE, "--time", "00:00:00"], "wanted more than no time"),
        (
            [*SHAPE, "--time", "00:02:00"],
            "--time: 00:02:00 is not longer than --signal-seconds = 120",
        ),
        ([*SHAPE, "--cpus-per-task", "0"], "--cpus-per-task: got 0"),
        (
            [*SHAPE, "--partition", "a b"],
            "--partition: got 'a b', wanted a name without spaces or quotes",
        ),
        (
            [*SHAPE, "--account", "x\n#SBATCH --uid=0"],
            "--account: got 'x\\n#SBATCH --uid=0', wanted a name",
        ),
        ([*SHAPE, "--interface", "$(id)"], "--interface: got '$(id)'"),
        ([*SHAPE, "--mem", "lots"], "--mem: got 'lots', wanted a number with K, M, G or T"),
        ([*SHAPE, "--set", "sheduler.name=cero"], "did you mean scheduler"),
        ([*SHAPE, "--set", "scheduler.rounds=0"], "scheduler.rounds: got 0"),
        ([*SHAPE, "--set", "data.limit=10"], "capacity C <= prompts M * largest group fails"),
        ([*SHAPE, "--set", "data.source=nowhere.jsonl"], None),
        (
            [*SHAPE, *VLLM_OVER_4],
            "rollout.tensor_parallel: 4 does not divide 2 nodes x 1 = 2 ranks",
        ),
        (
            [*SHAPE, "--set", "zero.sequence_parallel=4"],
            "zero.sequence_parallel: 4 does not divide 2 nodes x 1 = 2 ranks",
        ),
        ([*SHAPE, "--set", "output_dir=a b"], "wanted letters, digits and"),
        ([*SHAPE, "--set", "reward.function=a\nb"], "--set: a value has a line break"),
        (
            [*SHAPE, "--template", "nowhere.in"],
            "--template: nowhere.in can't be read (FileNotFoundError)",
        ),
        ([*SHAPE, "--dry-run", "--submit"], "not allowed with"),
        (SHAPE, "got none, wanted at least one: print it, write it or submit it"),
    ],
)
def test_nonsense_is_refused(capsys, flags, message):
    if message is None:  # the data error has its own exit code
        assert main([*RENDER, "--dry-run", *flags]) == 3
        assert "nowhere.jsonl" in capsys.readouterr().err
        return
    ask = [] if flags == SHAPE or "--dry-run" in flags else ["--dry-run"]
    assert message in refused(capsys, *ask, *flags)


@pytest.mark.covers("Slurm template variables missing")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "#SBATCH --signal=@{signal}\n",
            "",
            "does not use @{signal}; recipes/slurm/train.sbatch.in shows",
        ),
        ("@{command}", "@{comand}", "does not use @{command}"),
        ("@{nodes}", "@{nodes}@{gpus}", "uses the unknown @{gpus}"),
        ("@{nodes}", "@{NODES}", "malformed @{name}"),
    ],
)
def test_templates_that_do_not_fit_are_refused(capsys, tmp_path, old, new, message):
    text = TEMPLATE.read_text()
    assert old in text
    own = tmp_path / "own.in"
    own.write_text(text.replace(old, new))
    assert message in refused(capsys, *SHAPE, "--dry-run", "--template", str(own))


def test_output_is_written_anew_but_never_over_another_file(capsys, tmp_path):
    path = tmp_path / "deep" / "job.sbatch"
    flags = [
        *SHAPE,
        "--output",
        str(path),
        "--set",
        f"output_dir={tmp_path}/runs",
        "--set",
        "checkpoint.every_steps=0",
    ]
    for _ in range(2):
        assert main([*RENDER, *flags]) == 0
        out, err = capsys.readouterr()
        assert out == f"wrote {path}; logs go to {tmp_path}/runs/slurm\n"
        assert "checkpoint.every_steps is 0" in err
    assert (tmp_path / "runs" / "slurm").is_dir()
    assert main([*RENDER, *SHAPE, "--dry-run", *flags[6:]]) == 0
    assert capsys.readouterr().out == path.read_text()
    path.write_text("my own notes")
    assert "was not rendered by this command" in refused(capsys, *flags)
    assert path.read_text() == "my own notes"
    assert "is a directory" in refused(capsys, *SHAPE, "--output", str(tmp_path))
    (tmp_path / "file").touch()
    nowhere = refused(capsys, *SHAPE, "--output", str(tmp_path / "file/x.sh"))
    assert "give a file that can be written" in nowhere


def test_submit_without_slurm_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*RENDER, *SHAPE, "--submit", "--set", f"output_dir={tmp_path}"]) == 2
    assert "--submit: there is no sbatch on PATH" in capsys.readouterr().err


def test_time_in_seconds():
    assert [seconds_of(text) for text in ("00:00:01", "01:02:03", "2-03:04:05", "100:00:00")] == [
        1,
        3723,
        183845,
        360000,
    ]


def test_rendering_needs_no_torch():
    code = (
        "import sys; from cero_rl.commands.main import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *RENDER, *SHAPE, "--dry-run"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
