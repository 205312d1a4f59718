"""The rollout server of a run that asks for one on this machine: `cero-rl serve` as a child of
`cero-rl train`, waited for, and ended with the run.

It has a session of its own, so that a terminal's Ctrl-C reaches the ranks alone: they save first,
then it is told to end. Where this process is killed the kernel tells it (SIGTERM, at which serve
ends vLLM's whole process group).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cero_rl.config import Config
from cero_rl.config.rollout import is_loopback
from cero_rl.errors import ConfigError, EngineError
from cero_rl.job.parent import dies_with_me
from cero_rl.job.stopping import Interrupt

READY = "cero-rl serve: ready on"
_POLL_SECONDS = 0.2
_SAID_EVERY_SECONDS = 10.0
_GRACE_SECONDS = 40.0  # serve gives vLLM 10 s twice


def wants_server(config: Config, asked: bool | None) -> bool:
    """Whether the run is to start it. `asked`: --serve, --no-serve, or neither (None): then where
    rollout.mode is server, rollout.server.urls is left to its default and nobody listens there, as
    a server that was started by hand does. Raises ConfigError where it was asked for and cannot
    be."""
    server = config.rollout.mode == "server"
    if asked and not server:
        raise ConfigError(
            f"--serve: got rollout.mode: {config.rollout.mode}, wanted server; --set "
            "rollout.mode=server --set rollout.engine=vllm"
        )
    if asked is False or not server:
        return False
    urls = list(config.rollout.server.urls)
    hosts = [urlsplit(url).hostname or "" for url in urls]
    if asked and (len(urls) > 1 or not all(map(is_loopback, hosts))):
        raise ConfigError(
            f"--serve: got rollout.server.urls: {', '.join(urls)}, wanted one address of this "
            "machine's loopback; start the servers with cero-rl serve"
        )
    if asked or "urls" in config.rollout.server.model_fields_set:
        return bool(asked)
    first = urls[0]
    if listens := _listens(first):
        print(f"rollout server: one listens on {first} already and is used", flush=True)
    return not listens


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with contextlib.suppress(OSError):
        socket.create_connection((parts.hostname or "", parts.port or 80), timeout=2.0).close()
        return True
    return False


@contextlib.contextmanager
def own_server(config: Config, words: Sequence[str]) -> Iterator[int | None]:
    """Start it with these words of `cero-rl serve` and wait until it is ready; ends it on the way
    out, whichever way that is. Yields None, or the exit code where a signal came before it was
    ready. Raises ConfigError and EngineError with its own last line where it cannot start."""
    log = Path(config.rollout.server.key_file).parent / f"serve_{config.name}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        out = log.open("wb")
    except OSError as error:
        raise ConfigError(
            f"rollout.server.key_file: {log} cannot be written beside it ({error.strerror}); "
            "name another place"
        ) from None
    with out:
        server = subprocess.Popen(
            [sys.executable, "-m", "cero_rl", "serve", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_me(signal.SIGTERM),
        )
    try:
        url = config.rollout.server.urls[0]
        with Interrupt() as interrupt:
            print(f"rollout server: starting on {url}, log {log}", flush=True)
            _wait(server, log, interrupt)
        yield interrupt.exit_code
    finally:
        _end(server)


def _wait(server: subprocess.Popen[bytes], log: Path, interrupt: Interrupt) -> None:
    """Until it says that it is ready, or a signal comes."""
    began = said = time.monotonic()
    while interrupt.exit_code is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        now = time.monotonic()
        if READY in text:
            print(f"rollout server: ready after {now - began:.0f} s", flush=True)
            return
        if server.poll() is not None:
            lines = [line for line in text.splitlines() if line.strip()]
            own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            last = (own or lines or ["it said nothing"])[-1]
            kind = ConfigError if server.returncode == ConfigError.exit_code else EngineError
            raise kind(f"{last} (the rollout server, log {log})")
        if now - said > _SAID_EVERY_SECONDS:
            said = now
            print(f"rollout server: {now - began:.0f} s, not ready yet", flush=True)
        time.sleep(_POLL_SECONDS)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Told politely, since it has vLLM's processes to end; a further Ctrl-C would leave those."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if server.poll() is None:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # all are gone
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
