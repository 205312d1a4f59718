"""The doctor for real: the whole of it once, and machines that are made unfit by real means."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cero_rl.commands.doctor import drills
from cero_rl.commands.doctor.machine import disk
from cero_rl.job.versions import RANGES, numbers

ROOT = Path(__file__).resolve().parents[2]


def doctor(
    *arguments: str, before: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "RANK", "WORLD_SIZE")}
    path = os.pathsep.join(filter(None, [variables.pop("PYTHONPATH", ""), str(ROOT)]))
    env = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}
    line = [*before, sys.executable, "-m", "cero_rl", "doctor", *arguments]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_the_whole_doctor_finds_this_machine_fit(tmp_path: Path) -> None:
    done = doctor("--json", "--output-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    found = {f["name"]: f for f in report["findings"]}
    assert report["fit"] is True
    assert {
        *RANGES,
        "python",
        "nvcc",
        "native ops",
        "open files",
        "shared memory",
        "output_dir",
        "port",
        "slurm",
    } <= set(found)
    collective = next(f for name, f in found.items() if name in ("gloo x 2", "nccl x 2"))
    assert collective["status"] == "ok", collective
    assert found["sync parity"]["status"] == "ok", found["sync parity"]
    # a note where the machine is busy
    assert found["reward timeout"]["status"] in ("ok", "note"), found["reward timeout"]
    assert str(tmp_path) in found["output_dir"]["text"]
    assert not list(tmp_path.iterdir()), (
        "the probe is gone, and the run directory's parent was not made"
    )


def test_a_taken_port_and_a_place_that_cannot_be_written_are_bad_and_the_rest_is_still_said() -> (
    None
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        done = doctor(
            "--quick", "--output-dir", "/proc/no_such_place/runs", MASTER_PORT=str(number)
        )
    assert done.returncode == 6, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(
        re.match(
            rf"bad +port +MASTER_PORT {number} cannot be used \(Address already in use\); "
            r"choose another",
            x,
        )
        for x in lines
    )
    assert any(
        re.match(
            r"bad +output_dir +/proc: a file of 32 MiB cannot be written .*give output_dir", line
        )
        for line in lines
    )
    assert any(re.match(r"ok +torch ", line) for line in lines)
    assert not any("gloo x 2" in line for line in lines), "--quick leaves the drills out"
    assert done.stderr.splitlines() == [
        "error: doctor: output_dir, port not as a run needs it; the lines marked bad say what to do"
    ]


def test_a_full_disk_is_bad(tmp_path: Path) -> None:
    namespace = ("unshare", "--mount", "--map-root-user") if os.getuid() else ("unshare", "--mount")
    if (
        subprocess.run(
            [*namespace, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True
        ).returncode
        != 0
    ):
        pytest.skip("this user may not mount a tmpfs")
    code = (
        "from cero_rl.commands.doctor.machine import disk; from pathlib import Path; "
        f"print(*disk(Path({str(tmp_path)!r})))"
    )
    mount = (
        f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c "
        f"'{code.replace(chr(39), chr(34))}'"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*namespace, "sh", "-c", mount], env=env, capture_output=True, text=True, timeout=60
    )
    assert "status='bad', name='output_dir'" in done.stdout, done.stdout + done.stderr
    assert "cannot be written (No space left on device)" in done.stdout
    assert [f.status for f in disk(tmp_path)] != ["bad"], (
        "the same place without the small file system"
    )


def pretend(folder: Path, **versions: str) -> str:
    """A folder for PYTHONPATH whose metadata says that packages are installed in these versions."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
    return str(folder)


@pytest.mark.covers("versions outside the tested range")
def test_versions_outside_the_range_are_bad_and_untested_ones_a_note(tmp_path: Path) -> None:
    path = pretend(tmp_path, torch="2.9.1+cu128", transformers="5.20.0", numpy="2.99.0")
    done = doctor("--quick", PYTHONPATH=path)
    assert done.returncode == 6
    assert re.search(
        r"bad +torch +2\.9\.1\+cu128 is older than 2\.10; tested with .*pip install 'torch==",
        done.stdout,
    )
    assert re.search(
        r"bad +transformers +5\.20\.0 is newer than what this version of cero_rl knows", done.stdout
    )
    assert re.search(r"note +numpy +2\.99\.0; tested with", done.stdout)


@pytest.mark.covers("versions outside the tested range")
def test_a_run_with_an_old_torch_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    path = pretend(tmp_path, torch="2.9.1")
    code = (
        "import sys; from cero_rl.commands.training import train_main as t; c = t(sys.argv[1:]); "
        "print('torch' in sys.modules); sys.exit(c)"
    )
    line = [
        sys.executable,
        "-c",
        code,
        "--config",
        "recipes/digits_cpu.yaml",
        "--set",
        f"output_dir={tmp_path / 'runs'}",
    ]
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6, done.stdout + done.stderr
    assert done.stderr.startswith("error: torch: 2.9.1 is older than 2.10; tested with 2.13.0")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.strip() == "False"
    assert not (tmp_path / "runs").exists()


def test_the_ranges_are_those_of_pyproject_and_the_lock_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["train"]
    asked = dict(re.findall(r"^([\w-]+)(.*)$", "\n".join(wanted), re.MULTILINE))
    locked = dict(
        re.findall(
            r"^([\w.-]+)==(\S+)$",
            (ROOT / "requirements/lock.txt").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    locked["torch"] = re.search(
        r"torch==([\d.]+)", (ROOT / "Makefile").read_text(encoding="utf-8")
    )[1]  # type: ignore[index]
    for name, known in RANGES.items():
        limits = {op: numbers(v) for op, v in re.findall(r"(>=|<|==)([\d.]+)", asked[name.lower()])}
        lowest = limits.get(">=", limits.get("=="))
        assert lowest == numbers(known.lowest), name
        assert ("<" in limits or "==" in limits) == (known.below is not None), name
        assert limits.get("<") in (None, numbers(known.below or "")), name
        assert {k.lower(): v for k, v in locked.items()}[name.lower()] == known.tested, name
        assert numbers(known.lowest) <= numbers(known.tested), name


@pytest.mark.slow
def test_a_collective_that_cannot_work_or_never_ends_is_a_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    [finding] = drills.collective()
    assert (finding.status, finding.name) == ("bad", "gloo x 2")
    assert "nowhere0" in finding.text
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(drills, "_COLLECTIVE_SECONDS", 0.2)
    [finding] = drills.collective()
    assert (finding.status, finding.text.partition(";")[0]) == ("bad", "no end within 0 s")
