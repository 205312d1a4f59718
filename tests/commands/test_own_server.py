"""`cero-rl train` with a rollout server of its own: when it starts one, what is said when it
cannot, and that nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cero_rl.commands.own_server import own_server, wants_server
from cero_rl.config import Config, load_config
from cero_rl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "recipes/digits_cpu.yaml")
SERVED = ("rollout.mode=server", "rollout.engine=vllm")
HERE = "rollout.server.urls=[http://127.0.0.1:8123]"


def config(*settings: str) -> Config:
    return load_config(RECIPE, settings)


def test_when_it_starts_one() -> None:
    assert not wants_server(config(), None)
    assert not wants_server(config(*SERVED, HERE), None)  # it was started by hand
    assert wants_server(config(*SERVED, HERE), True)
    assert not wants_server(config(*SERVED), False)


def test_one_that_listens_already_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8000))
        except OSError:
            pytest.skip("the default port is another program's")
        assert wants_server(config(*SERVED), None)
        assert capsys.readouterr().out == ""
        taken.listen()
        assert not wants_server(config(*SERVED), None)
    said = "rollout server: one listens on http://127.0.0.1:8000 already and is used\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    "settings, words",
    [
        ((), "--serve: got rollout.mode: in_process, wanted server"),
        (
            (*SERVED, "rollout.server.urls=[http://10.0.0.2:1]"),
            "wanted one address of this machine",
        ),
        ((*SERVED, "rollout.server.urls=[http://127.0.0.1:1,http://127.0.0.1:2]"), "wanted one"),
    ],
)
def test_what_cannot_be_started_here(settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        wants_server(config(*settings), True)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A variable that all children inherit, so that those left behind can be found."""
    mark = f"CERO_TEST_OWN_SERVER={os.getpid()}.{time.monotonic_ns()}"
    monkeypatch.setenv(*mark.split("="))
    yield mark
    left = alive(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def alive(mark: str) -> list[int]:
    """Processes that hold the mark and have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def train(place: Path, *settings: str) -> subprocess.Popen[str]:
    given = (*SERVED, f"output_dir={place}", f"rollout.server.key_file={place}/.server/key")
    given += (f"rollout.server.weights_dir={place}/.server/weights",)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    line = [sys.executable, "-m", "cero_rl", "train", RECIPE, *given, *settings]
    return subprocess.Popen(
        line,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.vllm
def test_a_server_that_cannot_start_ends_the_run_with_its_own_line(
    tmp_path: Path, marked: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = train(
            tmp_path, f"rollout.server.urls=[http://127.0.0.1:{port}]", "--serve", "--ranks=1"
        )
        out, err = done.communicate(timeout=120)
    assert done.returncode == 6
    assert err.startswith(f"error: --host 127.0.0.1 --port {port}: cannot listen there")
    assert err.count("\n") == 1
    assert "serve_digits.log)" in err
    assert out.startswith("rollout server: starting on http://127.0.0.1")
    assert "cannot listen" in (tmp_path / ".server/serve_digits.log").read_text()
    assert not (tmp_path / "digits").exists(), "no rank was started"


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -9)]
)
def test_a_signal_while_it_starts_leaves_nobody(
    number: int, code: int, tmp_path: Path, marked: str
) -> None:
    """Of a kill the kernel tells the server."""
    done = train(tmp_path, "--serve", "--ranks=1", "rollout.server.urls=[http://127.0.0.1:8977]")
    assert done.stdout is not None
    assert done.stdout.readline().startswith("rollout server: starting on")
    assert len(alive(marked)) == 2, "the verb and its server"
    done.send_signal(number)
    _, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (code, "")
    end = time.monotonic() + 60.0
    while alive(marked) and time.monotonic() < end:
        time.sleep(0.1)


def test_its_log_needs_a_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = config(*SERVED, f"rollout.server.key_file={tmp_path}/file/key")
    refused = pytest.raises(ConfigError, match=r"key_file: .* cannot be written beside it")
    with refused, own_server(told, []):
        pass


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.long
def test_a_run_with_a_server_of_its_own(tmp_path: Path, marked: str) -> None:
    """Starts vLLM's server, trains two steps through it, and ends it."""
    pytest.importorskip("vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = train(
        tmp_path,
        f"rollout.server.urls=[http://127.0.0.1:{port}]",
        "--serve",
        "--ranks=1",
        "data.limit=40",
        "data.heldout_limit=8",
        "scheduler.rounds=2",
        "budget.total_rollouts=64",
        "optimizer.warmup_steps=0",
        "evaluation.every_steps=0",
        "evaluation.final_samples_per_prompt=1",
        "evaluation.pass_k=[1]",
        "checkpoint.every_steps=0",
        "logging.tensorboard=false",
        f"rollout.kv_cache_memory_bytes={2**26}",
    )
    out, err = done.communicate(timeout=280)
    assert done.returncode == 0, out + err
    assert "rollout server: ready after" in out
    metrics = [json.loads(x) for x in (tmp_path / "digits/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["budget/spent_rollouts"] == 64
    log = (tmp_path / ".server/serve_digits.log").read_text()
    assert log.rstrip().endswith("cero-rl serve: ended")
