"""The real server as a user starts it, for the tests in this folder: `cero-rl serve`, with faults
that can be put into it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from make_model import TOKENIZER
from ranks import ROOT, environment, free_port

FOLDER = Path(__file__).parent
POSITIONS = 256


class ServerBox:
    """Port, key and weights of a server in `folder`; restarted once if it dies."""

    def __init__(
        self, folder: Path, model: Path, restarts: int = 1, further: tuple[str, ...] = ()
    ) -> None:
        self.further = further  # settings of server and run
        self.folder, self.model, self.port = folder, model, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key_file, self.weights_dir, self.faults, self.fired = (
            folder / n for n in ("key", "weights", "faults.json", "fired")
        )
        self.log = folder / "log"
        self.faults.write_text("[]")
        env = environment() | {
            "CERO_TEST_FAULTS": str(self.faults),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        env["PYTHONPATH"] += f":{FOLDER}"
        command = [
            sys.executable,
            "-m",
            "cero_rl",
            "serve",
            *self.arguments(),
            "--restarts",
            str(restarts),
        ]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--", "--middleware", "server_faults.Faults"],
                cwd=ROOT,
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def settings(self) -> list[str]:
        """Overrides that make a run sample from this server."""
        return [
            f"model.path={self.model}",
            "seed=7",
            "rollout.mode=server",
            "rollout.engine=vllm",
            f"rollout.server.urls=[{self.url}]",
            f"rollout.server.key_file={self.key_file}",
            f"rollout.server.weights_dir={self.weights_dir}",
            f"rollout.kv_cache_memory_bytes={2**26}",
            "rollout.max_batch_tokens=4096",
            *self.further,
        ]

    def arguments(self) -> list[str]:
        sizes = ["data.max_prompt_tokens=156", "rollout.max_response_tokens=100"]
        return [
            "--config",
            "recipes/digits_cpu.yaml",
            *(word for s in [*self.settings(), *sizes] for word in ("--set", s)),
        ]

    def wait_ready(self, times: int = 1, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while self.log.read_text().count("cero-rl serve: ready on") < times:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    @contextmanager
    def faulty(self, *rules: dict[str, Any]) -> Iterator[None]:
        """The rules hold inside the block; `self.fired` then lists the faults that were done."""
        self.fired.unlink(missing_ok=True)
        self.faults.write_text(json.dumps(rules))
        try:
            yield
        finally:
            self.faults.write_text("[]")

    def done(self) -> list[str]:
        return self.fired.read_text().split() if self.fired.exists() else []

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def make_engine(
    server: ServerBox, *, max_response: int = 24, wait: float = 300, **keys: Any
) -> Any:
    """The shipped engine on this server, with the start model's weights pushed as version 0. Close
    it."""
    from cero_rl.config.rollout import ServerConfig
    from cero_rl.distributed.group import Group
    from cero_rl.models.hub_names import HubNames
    from cero_rl.models.load import load_model, load_model_config, load_tokenizer
    from cero_rl.rollout.engines.server import Expected, ServerEngine
    from cero_rl.rollout.engines.server_key import read_key

    quick: dict[str, Any] = {
        "backoff_seconds": 0.05,
        "retries": 3,
        "read_timeout_seconds": 60,
        **keys,
    }
    config = ServerConfig(
        urls=(server.url,),
        weights_dir=str(server.weights_dir),
        key_file=str(server.key_file),
        **quick,
    )
    decode = partial(load_tokenizer(str(TOKENIZER)).decode, skip_special_tokens=True)
    engine = ServerEngine(
        config,
        Expected("float32", 21, 64, 2, POSITIONS),
        key=read_key(server.key_file),
        eos_token_ids=[1],
        decode=decode,
        max_response_tokens=max_response,
        generate_timeout_seconds=wait,
        sync_timeout_seconds=120,
        seed=7,
        names=HubNames(load_model_config(str(server.model))),
        group=Group.alone(),
    )
    try:
        push(engine, load_model(str(server.model), "float32", "sdpa"), 0)
    except BaseException:
        engine.close()
        raise
    return engine


def push(engine: Any, model: Any, version: int) -> None:
    engine.load_weights(
        ((name, parameter.data) for name, parameter in model.named_parameters()), version
    )
