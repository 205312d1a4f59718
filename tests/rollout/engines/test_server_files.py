"""What server mode needs beside a server: keys, weights in files, the guard, the configuration. No
vLLM here."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cero_rl.config import load_config
from cero_rl.errors import ConfigError, EngineError
from cero_rl.rollout.engines.choose import choose_engine
from cero_rl.rollout.engines.server_guard import Guard
from cero_rl.rollout.engines.server_key import make_key, read_key
from cero_rl.rollout.engines.vllm_draws import make_completion
from cero_rl.rollout.engines.weight_files import (
    WeightStore,
    check_weights,
    new_label,
    read_weights,
    write_weights,
)

RECIPE = Path(__file__).resolve().parents[3] / "recipes/digits_cpu.yaml"
SERVER = ["rollout.mode=server", "rollout.engine=vllm"]


def tensors() -> list[tuple[str, torch.Tensor]]:
    return [(f"layer.{i}", torch.arange(100.0).reshape(10, 10) + i) for i in range(5)] + [
        ("head", torch.ones(3, dtype=torch.bfloat16))
    ]


# --- key


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "deep/key"
    key = make_key(file)
    assert len(key) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    assert make_key(file) == key == read_key(file)


def test_a_key_that_others_read_or_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    with pytest.raises(
        ConfigError, match=r"cannot be read \(No such file or directory\); start the server first"
    ):
        read_key(file)
    make_key(file)
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0640\); chmod 600 it"):
        read_key(file)
    file.chmod(0o600)
    file.write_text("two words\nand lines of them")
    with pytest.raises(ConfigError, match="holds no key"):
        read_key(file)
    monkeypatch.setenv("CERO_SERVER_KEY", "x" * 20)
    assert read_key(file) == "x" * 20


# --- weights


def test_weights_come_back_whole_in_bounded_shards(tmp_path: Path) -> None:
    label = new_label(3)
    write_weights(tensors(), tmp_path, label, shard_bytes=900)
    paths = check_weights(tmp_path, label).shards
    assert len(paths) == 3  # two tensors of 400 bytes each
    back = dict(read_weights(paths))
    assert back.keys() == {name for name, _ in tensors()}
    assert all(back[name].dtype == t.dtype and torch.equal(back[name], t) for name, t in tensors())
    assert [p.name for p in tmp_path.iterdir()] == [label]  # nothing temporary stays


@pytest.mark.parametrize(
    ("spoil", "said"), [(lambda b: b[:-1], "is torn"), (lambda b: b[:-1] + b"\x55", "is damaged")]
)
def test_a_spoilt_file_is_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    label = new_label(0)
    write_weights(tensors(), tmp_path, label)
    shard = tmp_path / label / "shard-00000.safetensors"
    shard.write_bytes(spoil(shard.read_bytes()))
    with pytest.raises(ValueError, match=said):
        check_weights(tmp_path, label)


@pytest.mark.parametrize(
    "label",
    ["../v0-0123456789abcdef", "v0-0123456789abcdef/..", "", "/etc", "v0-0123456789abcdef\n"],
)
def test_a_label_leads_nowhere_else(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValueError, match="is no label of weights"):
        check_weights(tmp_path, label)


def test_a_copy_under_another_label_is_refused(tmp_path: Path) -> None:
    first, second = new_label(1), new_label(2)
    write_weights(tensors(), tmp_path, first)
    (tmp_path / first).rename(tmp_path / second)
    with pytest.raises(ValueError, match=f"is a copy of {first}"):
        check_weights(tmp_path, second)


def test_a_full_disk_ends_in_one_line_and_the_gather_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    seen = []

    def gathered() -> Any:
        for name, tensor in tensors():
            seen.append(name)
            yield name, tensor

    with pytest.raises(
        EngineError, match=r"could not take the weights .*needs room for two copies"
    ):
        write_weights(gathered(), tmp_path / "file", new_label(0))
    assert seen == [name for name, _ in tensors()]


def test_a_directory_is_one_runs_alone_and_keeps_the_last_version(tmp_path: Path) -> None:
    (tmp_path / "v9-0123456789abcdef.tmp").mkdir()  # of a run that was killed
    (tmp_path / "notes").mkdir()  # not ours
    store = WeightStore(tmp_path)
    with pytest.raises(EngineError, match="another run hands its weights over"):
        WeightStore(tmp_path)
    first, second = new_label(1), new_label(2)
    for label in (first, second):
        store.write(tensors(), label)
    store.keep_only(second)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"notes", second}
    store.close()
    WeightStore(tmp_path).close()


# --- guard


def ask(
    guard: Guard, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer; what is behind the guard answers 200 to everything."""
    sent: list[Any] = []
    scope = {"type": "http", "method": method, "path": path}
    scope["headers"] = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
    ]

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], {
        name.decode(): value.decode() for name, value in sent[0].get("headers", [])
    }


async def inner(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    if scope["path"] == "/collective_rpc":
        asked = json.loads((await receive())["body"])  # the guard read it, and gives it again
        body = json.dumps({"results": [{"label": asked["args"][0]}]}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def test_the_guard_lets_in_keys_and_stamps_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ValueError, match="VLLM_API_KEY is not set"):
        Guard(inner)
    monkeypatch.setenv("VLLM_API_KEY", "k" * 20)
    guard, ours = Guard(inner), {"authorization": "Bearer " + "k" * 20}
    assert ask(guard, "GET", "/health")[0] == 200
    for headers in ({}, {"authorization": "Bearer " + "k" * 19}, {"authorization": "k" * 20}):
        assert ask(guard, "POST", "/v1/completions", **headers)[0] == 401
        assert ask(guard, "OPTIONS", "/collective_rpc", **headers)[0] == 401
    assert ask(guard, "POST", "/sleep", **ours)[0] == 403
    assert ask(guard, "POST", "/collective_rpc", b'{"method": "exec"}', **ours)[0] == 403
    assert ask(guard, "POST", "/collective_rpc", b"not json", **ours)[0] == 400
    assert ask(guard, "POST", "/collective_rpc", b" " * 70000, **ours)[0] == 413
    wanted = {**ours, "x_cero_weights": "v1-a"}
    assert ask(guard, "POST", "/v1/completions", **wanted)[0] == 409
    assert (
        ask(
            guard,
            "POST",
            "/collective_rpc",
            b'{"method": "load_weight_files", "args": ["v1-a"]}',
            **ours,
        )[0]
        == 200
    )
    assert ask(guard, "POST", "/v1/completions", **wanted) == (200, {"x-cero-weights": "v1-a"})
    assert (
        ask(
            guard,
            "POST",
            "/collective_rpc",
            b'{"method": "load_weight_files", "args": ["v2-b"]}',
            **ours,
        )[0]
        == 200
    )
    assert ask(guard, "POST", "/v1/completions", **wanted)[0] == 409


# --- configuration


def test_a_client_needs_no_vllm() -> None:
    assert choose_engine(load_config(RECIPE, SERVER), on_gpu=False).rollout.mode == "server"
    assert (
        choose_engine(load_config(RECIPE, SERVER), on_gpu=False).learner.importance_sampling
        == "truncate"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "rollout.engine=transformers",
            "mode: server needs engine: vllm, got engine: transformers",
        ),
        ("rollout.server.urls=[ftp://x:1]", "wanted http://HOST:PORT or https://HOST:PORT"),
        ("rollout.server.urls=[http://x:1/v1]", "nothing after it"),
        ("rollout.server.urls=[http://x:1,http://x:1/]", "got a server twice"),
        ("rollout.server.urls=[http://x:port]", "number 1 is no address"),
        ("rollout.server.urls=[]", "rollout.server.urls"),
        ("rollout.server.read_timeout_seconds=0", "greater than 0"),
        ("rollout.server.key=abc", "unknown key; did you mean rollout.server.key_file?"),
    ],
)
def test_a_wrong_server_section_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(RECIPE, [*SERVER, override])
    assert said in str(raised.value)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(
        ConfigError, match="number 1 carries a user name or password; keys belong into key_file"
    ) as raised:
        load_config(RECIPE, [*SERVER, "rollout.server.urls=[http://me:hunter2hunter2@x:1]"])
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "logps", [[None, -1.0], [float("nan"), -1.0], [float("-inf"), -1.0], [-9999.0, -1.0]]
)
def test_log_probs_that_are_no_numbers_are_refused(logps: list[float | None]) -> None:
    with pytest.raises(EngineError, match="are not finite"):
        make_completion([1, 2], logps, "stop", prompt_id=0, decode=str, version=0)


def test_serve_asks_for_an_address_when_the_servers_is_not_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cero_rl.commands.main import main

    assert (
        main(
            [
                "serve",
                "--config",
                str(RECIPE),
                "--set",
                "rollout.server.urls=[http://10.1.2.3:8000]",
            ]
        )
        == 2
    )
    assert "is not this machine's loopback; say with --host" in capsys.readouterr().err
