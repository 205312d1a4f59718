"""`cero-rl simulate`: table, files, help, and one clear line for what is wrong."""

import json
from pathlib import Path

import pytest

from cero_rl.commands.main import main

SMALL = [
    "simulate",
    "--suite",
    "smoke",
    "--seeds",
    "2",
    "--processes",
    "1",
    "--prompts",
    "60",
    "--rounds",
    "8",
    "--budget",
    "1024",
]


def test_table_picture_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--out", str(tmp_path / "new")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(
        "unfiltered (learning): 60 prompts, 8 rounds, 1024 rollouts (17.1 a prompt), 2 seeds"
    )
    assert lines[1].split()[:3] == ["allocator", "spent", "rounds"]
    assert lines[2].startswith("uniform")
    assert "100.0%" in lines[2]
    assert "\x1b" not in out  # plain where it is no terminal
    assert "simulating: 2 of 2 jobs" in err
    rows = [
        json.loads(line)
        for line in (tmp_path / "new" / "simulate_smoke.jsonl").read_text().splitlines()
    ]
    assert [row["label"] for row in rows][:2] == ["uniform", "cero, as published"]
    assert rows[0]["gain"] == [0.0, 0.0]
    assert rows[1]["spent"] == [1.0, 0.0]
    assert rows[0]["regret"] == [None, None]
    assert len(rows[0]["curve_ability"]) == len(rows[0]["budget_share"]) == 21
    assert (tmp_path / "new" / "simulate_smoke.png").read_bytes()[:4] == b"\x89PNG"


def test_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--only", "vigor"]) == 0
    labels = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:4]]
    assert labels == ["uniform", "vigor"]


def test_replay_of_a_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {
        "step": 1,
        "prompt_ids": list(range(40)),
        "generated": [8] * 40,
        "trials": [8] * 40,
        "successes": [i % 9 for i in range(40)],
    }
    (tmp_path / "evidence.jsonl").write_text(
        "".join(json.dumps({**entry, "round": k}) + "\n" for k in range(4))
    )
    command = [
        "simulate",
        "--replay",
        str(tmp_path),
        "--seeds",
        "2",
        "--processes",
        "1",
        "--only",
        "thompson",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(
        "replay (recorded rates): 40 prompts, 4 rounds, 1280 rollouts"
    )


def test_replay_of_parquet_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "rollouts").mkdir()
    for k in range(2):
        reward = [None if i % 9 == 0 else float(i % 2) for i in range(160)]
        table = {"round": [k] * 160, "prompt_id": [i // 8 for i in range(160)], "reward": reward}
        parquet.write_table(pyarrow.table(table), tmp_path / "rollouts" / f"round_{k}.parquet")
    assert (
        main(
            [
                "simulate",
                "--replay",
                str(tmp_path),
                "--seeds",
                "2",
                "--processes",
                "1",
                "--only",
                "cero",
            ]
        )
        == 0
    )
    assert "20 prompts, 2 rounds" in capsys.readouterr().out


@pytest.mark.covers("unreadable run given to a replay")
def test_replay_of_something_else_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow
    from pyarrow import parquet

    good = {"round": [0, 0], "prompt_id": [1, 1], "reward": [0.0, None]}
    evidence = {"round": 0, "prompt_ids": [1], "trials": [1], "successes": [1]}
    for content, message in (
        (b"not parquet", "Parquet magic bytes"),
        (b"", "0 bytes"),
        ({"question": ["a"], "answer": ["b"]}, "no column round, prompt_id, reward, it has quest"),
        ({**good, "reward": ["0", "1"]}, "column reward is string, wanted numbers"),
        ({**good, "prompt_id": [1, None]}, "column prompt_id has 1 empty entries"),
        ({**good, "reward": [None, float("nan")]}, "no rollout with a reward"),
        ({**evidence, "round": float("inf")}, "line 1: not a line of evidence (OverflowError"),
        ({**evidence, "prompt_ids": [[1, 2], [3]], "trials": [1, 1]}, "line 1: not a line"),
        ({**evidence, "trials": ["many"]}, "line 1: not a line of evidence (ValueError"),
    ):
        path = tmp_path / ("x.jsonl" if "prompt_ids" in str(content) else "x.parquet")
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".jsonl":
            path.write_text(json.dumps(content))
        else:
            parquet.write_table(pyarrow.table(content), path)
        assert main(["simulate", "--replay", str(path), "--seeds", "2"]) == 3, message
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"error: --replay: {path}") or "no rollout" in err
        assert err.count("\n") == 1
        assert message in err


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (
            ["--suite", "rival"],
            2,
            "--suite rival: unknown, wanted one of rivals, cero, drift, late, smoke",
        ),
        (["--seeds", "1"], 2, "--seeds 1: wanted at least 2"),
        (["--processes", "0"], 2, "--processes 0"),
        (["--rounds", "0"], 2, "--rounds 0"),
        (
            ["--budget", "100"],
            2,
            "not a multiple of 16, the largest unit of the entries; nearest: 96 or 112",
        ),
        (["--only", "nobody"], 2, "no such allocator in suite rivals; it has: uniform;"),
        (
            ["--prompts", "4", "--rounds", "2", "--budget", "81920"],
            2,
            "budget_rollouts <= rounds * capacity_rollouts fails",
        ),
        (["--out", "/dev/null/here"], 2, "--out /dev/null/here"),
        (["--replay", "/no/such/run"], 3, "--replay /no/such/run: does not exist"),
        (["--replay", "pool.jsonl", "--budget", "100"], 3, "--replay pool.jsonl: does not exist"),
        (["--replay", "docs"], 3, "found neither evidence.jsonl nor rollouts/*.parquet"),
        (["--replay", ".", "--prompts", "5"], 2, "--prompts has no meaning with --replay"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_help_says_what_it_is_and_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["simulate", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "no substitute for training" in text
    assert "--replay PATH" in text
    with pytest.raises(SystemExit) as stop:
        main(["simulate", "--seed", "3"])
    assert stop.value.code == 2
