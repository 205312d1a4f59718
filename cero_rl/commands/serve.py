"""`cero-rl serve`: vLLM's OpenAI-compatible server as the sampler of runs with rollout.mode:
server, kept alive and put away.

In: the configuration of the run. It starts vLLM's own server with the options that training needs,
behind our guard, makes the key, waits until it answers, starts it again when it dies, and ends it
with this process. vLLM's engine outlives a server that was killed, so a whole process group is
ended each time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cero_rl.commands.common import add_config
from cero_rl.config import Config, load_config
from cero_rl.config.paths import path_argument
from cero_rl.config.rollout import is_loopback
from cero_rl.errors import ConfigError, EngineError
from cero_rl.job.parent import dies_with_me
from cero_rl.job.stopping import Interrupt
from cero_rl.models.directory import find_model
from cero_rl.rollout.engines.choose import INSTALL_HINT
from cero_rl.rollout.engines.server_key import VARIABLE, make_key
from cero_rl.rollout.engines.vllm_arguments import (
    ADAPTER,
    CPU_ENVIRONMENT,
    ENVIRONMENT,
    engine_arguments,
)

HELP = "vLLM's server as the sampler of runs with rollout.mode: server"

_EPILOG = """examples:
  cero-rl serve --config FILE                                  at the address of rollout.server.urls
  cero-rl serve --config FILE --port 8001 --tensor-parallel 2  a second one, over two GPUs
  cero-rl serve --config FILE -- --max-num-seqs 256            what follows -- goes to vLLM's server

Start it in the directory that the run is started in: rollout.server.key_file and weights_dir are
looked up from there."""
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Start vLLM's server for runs with rollout.mode: server; Ctrl-C ends it."
    parser.epilog = _EPILOG
    parser.add_argument(
        "--host",
        help="address to listen on (default: the first of rollout.server.urls if it is this "
        "machine's loopback)",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="default: that of the first of rollout.server.urls"
    )
    parser.add_argument(
        "--key-file",
        type=path_argument,
        metavar="FILE",
        help="default rollout.server.key_file; made if it is not there",
    )
    parser.add_argument(
        "--weights-dir",
        type=path_argument,
        metavar="DIR",
        help="default rollout.server.weights_dir",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        metavar="N",
        help="GPUs of this server (default rollout.tensor_parallel)",
    )
    parser.add_argument(
        "--restarts", type=int, default=3, metavar="N", help="starts after a death (default 3)"
    )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="until it answers (default 900)",
    )
    parser.add_argument(
        "vllm_options", nargs="*", metavar="-- OPTION", help="further options of vLLM's server"
    )


@dataclass(frozen=True)
class _Place:
    """Where it listens, and how it is reached from this machine."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    find_model(config.model.path)
    if arguments.tensor_parallel is not None:
        if arguments.tensor_parallel < 1:
            raise ConfigError(f"--tensor-parallel {arguments.tensor_parallel}: wanted at least 1")
        rollout = config.rollout.model_copy(update={"tensor_parallel": arguments.tensor_parallel})
        config = config.model_copy(update={"rollout": rollout})
    if arguments.restarts < 0 or not arguments.start_timeout > 0:
        raise ConfigError(
            f"--restarts {arguments.restarts}, --start-timeout {arguments.start_timeout}: "
            "wanted at least 0, and more than 0"
        )
    place = _place(config, arguments)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"vllm is not installed; {INSTALL_HINT}")
    _check_port(place)
    key_file = arguments.key_file or Path(config.rollout.server.key_file)
    key = make_key(key_file)
    weights_dir = (arguments.weights_dir or Path(config.rollout.server.weights_dir)).absolute()
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"rollout.server.weights_dir: {weights_dir} cannot be made ({error.strerror}); "
            "name another place"
        ) from None
    command, environment = _launch(
        config, place, key, weights_dir, arguments.vllm_options, debug=arguments.debug
    )
    key_from = f"the variable {VARIABLE}" if os.environ.get(VARIABLE) else key_file
    told = f"ready on {place.url}, key in {key_from}, weights through {weights_dir}; Ctrl-C ends it"
    with Interrupt() as interrupt:
        return _supervise(
            command,
            environment,
            place,
            told,
            interrupt,
            restarts=arguments.restarts,
            start_seconds=arguments.start_timeout,
        )


def _place(config: Config, arguments: argparse.Namespace) -> _Place:
    first = urlsplit(config.rollout.server.urls[0])
    host, port = (
        arguments.host,
        arguments.port or first.port or (443 if first.scheme == "https" else 80),
    )
    if host is None:
        host = first.hostname or ""
        if not is_loopback(host):
            raise ConfigError(
                f"rollout.server.urls: {config.rollout.server.urls[0]} is not this machine's "
                "loopback; say with --host which of its addresses to listen on. The key "
                "crosses the network in clear: a private network, or https in front of it"
            )
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: wanted 1 to 65535")
    return _Place("127.0.0.1" if host == "localhost" else host, port)


def _check_port(place: _Place) -> None:
    try:
        family, *_, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise EngineError(
            f"--host {place.host} --port {place.port}: cannot listen there ({error.strerror}); is "
            "another server running? Choose another --port, and name it in rollout.server.urls"
        ) from None


def _launch(
    config: Config,
    place: _Place,
    key: str,
    weights_dir: Path,
    further: Sequence[str],
    *,
    debug: bool,
) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of vLLM's server. The key is in the environment: a command
    line is everyone's to read."""
    import torch

    from cero_rl.rollout.engines.build import vllm_settings
    from cero_rl.rollout.engines.server import MODEL_NAME
    from cero_rl.rollout.engines.weight_files import ROOT_VARIABLE

    on_gpu = torch.cuda.is_available()
    # vLLM deprecates its own entry point
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
    ]
    command += [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        config.model.path,
        "--served-model-name",
        MODEL_NAME,
    ]
    # vLLM takes the name of an adapter with its first weights alone; those of the run take their
    # place
    if config.lora.adapter_only:
        command += [
            "--lora-modules",
            f"{ADAPTER}={_start_adapter(weights_dir / 'start-adapter', config)}",
        ]
    command += [
        "--host",
        place.host,
        "--port",
        str(place.port),
        "--disable-uvicorn-access-log",
        "--uvicorn-log-level",
        "warning",
    ]
    for name, value in engine_arguments(
        vllm_settings(config, config.model.path), on_gpu=on_gpu
    ).items():
        option = name.replace("_", "-")
        if value is not None:
            command += (
                [f"--no-{option}"]
                if value is False
                else [f"--{option}"]
                if value is True
                else [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
            )
    # last: nothing stands before it
    command += [
        *further,
        "--middleware",
        "cero_rl.rollout.engines.server_guard.Guard",
    ]
    environment = {**os.environ, **ENVIRONMENT, **({} if on_gpu else CPU_ENVIRONMENT)}
    if debug:
        environment["VLLM_LOGGING_LEVEL"] = "INFO"
    environment.pop(VARIABLE, None)
    # weights are announced through an endpoint that vLLM has in this mode alone; the guard closes
    # the others
    return command, {
        **environment,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_API_KEY": key,
        ROOT_VARIABLE: str(weights_dir),
    }


def _start_adapter(folder: Path, config: Config) -> Path:
    """Write an adapter of the run's names and shapes that changes nothing, all zeros; returns
    `folder`. Raises ConfigError."""
    import torch

    from cero_rl.files.lora_adapter import stored_name, write_adapter
    from cero_rl.models.load import adapter_without_weights

    adapter, dtype = adapter_without_weights(config), getattr(torch, config.model.dtype)
    zeros = {
        stored_name(s.name): torch.zeros(s.parameters[0].shape, dtype=dtype)
        for s in adapter.weights()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder, zeros, adapter.file_config(config.model.path))
    return folder


def _supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    place: _Place,
    told: str,
    interrupt: Interrupt,
    *,
    restarts: int,
    start_seconds: float,
) -> int:
    for number in range(restarts + 1):
        # a group of its own, which ends as one
        server = subprocess.Popen(
            command, env=environment, start_new_session=True, preexec_fn=dies_with_me()
        )
        try:
            ready = _wait_ready(server, place, interrupt, start_seconds)
            if ready:
                print(f"cero-rl serve: {told}", flush=True)
            while ready and server.poll() is None and interrupt.exit_code is None:
                time.sleep(_POLL_SECONDS)
            status = server.poll()
        finally:
            _end(server)
        if interrupt.exit_code is not None:
            print("cero-rl serve: ended", flush=True)
            return 0
        died = f"vLLM's server ended ({_status(status)})" + ("" if ready else " before it answered")
        if not ready and number == 0:
            raise EngineError(f"{died}; what it said stands above, --debug shows more")
        if number < restarts:
            print(
                f"cero-rl serve: {died}; starting it again, {number + 1} of {restarts}",
                file=sys.stderr,
                flush=True,
            )
    times = "once" if restarts == 0 else f"{restarts + 1} times"
    raise EngineError(
        f"vLLM's server died {times} (--restarts {restarts}); what it said stands above"
    )


def _wait_ready(
    server: subprocess.Popen[bytes], place: _Place, interrupt: Interrupt, seconds: float
) -> bool:
    """Whether it answers; False when it ended or the end was asked for."""
    import httpx2

    end = time.monotonic() + seconds
    with httpx2.Client(trust_env=False, timeout=5.0) as client:
        while server.poll() is None and interrupt.exit_code is None:
            try:
                if client.get(f"{place.url}/health").status_code == 200:
                    return True
            except httpx2.TransportError:
                pass  # not there yet
            if time.monotonic() > end:
                raise EngineError(
                    f"vLLM's server did not answer within --start-timeout {seconds:g} s; "
                    "what it said stands above"
                )
            time.sleep(_POLL_SECONDS)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started: politely, so that shared memory is given back,
    then with force."""
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # all are gone
        os.killpg(server.pid, signal.SIGTERM)
        end = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < end:
            server.poll()
            os.killpg(server.pid, 0)
            time.sleep(_POLL_SECONDS)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _status(status: int | None) -> str:
    return f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
