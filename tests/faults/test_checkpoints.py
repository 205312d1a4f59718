"""What counts as a checkpoint: manifests, damage, retention, the `cero-rl checkpoints` command, and
pickles that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_checkpoints import make

from cero_rl.checkpoint import MANIFEST, prune, step_dirs, unfinished, verify
from cero_rl.checkpoint.manifest import share_of
from cero_rl.checkpoint.retention import Score, superfluous
from cero_rl.commands.main import main
from cero_rl.errors import CheckpointError
from cero_rl.job.lock import RunLock


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("bit flip in a checkpoint", lambda d: flip(d / "zero/shard.pt"), "shard.pt: content differs"),
    (
        "truncated checkpoint",
        lambda d: (d / "zero/shard.pt").write_bytes(b"12"),
        "shard.pt: 2 bytes, the manifest says 4096",
    ),
    (
        "zero bytes in a checkpoint",
        lambda d: (d / "state.json").write_bytes(b""),
        "state.json: 0 bytes",
    ),
    (
        "missing or extra file in a checkpoint",
        lambda d: (d / "state.json").unlink(),
        "state.json: missing, but the manifest lists it",
    ),
    (
        "missing or extra file in a checkpoint",
        lambda d: (d / "zero/more.pt").touch(),
        "more.pt: not in the manifest",
    ),
    (
        "all checkpoints invalid",
        lambda d: (d / MANIFEST).write_text("{"),
        "no readable MANIFEST.json",
    ),
    (
        "all checkpoints invalid",
        lambda d: (d / MANIFEST).write_text("[]"),
        "no readable MANIFEST.json",
    ),
]


@pytest.mark.parametrize(
    ("damage", "said"), [pytest.param(d, s, marks=pytest.mark.covers(row)) for row, d, s in DAMAGE]
)
def test_damage_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], Any], said: str):
    directory = make(tmp_path, 2)
    assert verify(directory)["step"] == 2
    damage(directory)
    with pytest.raises(CheckpointError, match=said.replace(".", r"\.")):
        verify(directory)


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(0, 10**12)), st.integers(1, 9))
def test_every_file_has_one_reader_and_none_reads_much_more(sizes: dict[str, int], ranks: int):
    files = {name: {"bytes": size} for name, size in sizes.items()}
    shares = [share_of(files, rank, ranks) for rank in range(ranks)]
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    most = max(sum(sizes[name] for name in share) for share in shares)
    assert most <= sum(sizes.values()) / ranks + max(sizes.values(), default=0)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_flipped_bit_in_any_file_is_found_by_one_rank(tmp_path: Path, ranks: int):
    directory = make(tmp_path, 2)
    for name in verify(directory)["files"]:
        path = directory / name
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        found = []
        for rank in range(ranks):
            try:
                verify(directory, rank=rank, ranks=ranks)
            except CheckpointError as error:
                found.append(str(error))
        assert len(found) == 1, name
        assert f"{path}: content differs" in found[0]
        path.write_bytes(whole)


SCORES = st.none() | st.builds(Score, st.floats(0, 1), st.sampled_from(["avg@1", "avg@4"]))


@given(
    st.dictionaries(st.integers(0, 60), SCORES, max_size=12),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([0, 5, 10]),
)
def test_retention_keeps_the_newest_the_best_of_a_kind_and_every_mth(
    found: dict[int, Score | None], last: int, best: int, every: int
):
    gone = set(
        superfluous(list(found.items()), keep_last=last, keep_best=best, keep_every_steps=every)
    )
    stay = set(found) - gone
    assert set(sorted(found)[-last:]) <= stay
    for kind in ("avg@1", "avg@4"):
        alike = {step: s.value for step, s in found.items() if s is not None and s.of == kind}
        kept = sorted((value for step, value in alike.items() if step in stay), reverse=True)
        assert kept[:best] == sorted(alike.values(), reverse=True)[:best]
    assert not every or {step for step in found if step % every == 0} <= stay
    assert len(stay) <= last + 2 * best + (sum(s % every == 0 for s in found) if every else 0)


@pytest.mark.covers("stale tmp directories")
def test_the_command_lists_verifies_and_prunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for step, score in ((2, 0.9), (4, None), (6, 0.5), (8, 0.6)):
        make(tmp_path, step, score)
    (tmp_path / "checkpoints/tmp.step_000010.1").mkdir()
    assert main(["checkpoints", "list", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [
        "step_000008",
        "step_000006",
        "step_000004",
        "step_000002",
        "tmp.step_000010.1",
    ]
    assert said[3].endswith("2 rank(s)  held-out accuracy 0.900")
    assert main(["checkpoints", "list", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["step"] for one in listed["checkpoints"]] == [8, 6, 4, 2]
    assert [Path(one).name for one in listed["unfinished"]] == ["tmp.step_000010.1"]
    flip(tmp_path / "checkpoints/step_000004/zero/shard.pt")
    assert main(["checkpoints", "verify", str(tmp_path)]) == 4
    shown = capsys.readouterr()
    assert "1 of 4 checkpoints are damaged (step_000004)" in shown.err
    assert shown.out.count("ok: 5 files") == 3
    assert (
        main(
            [
                "checkpoints",
                "prune",
                str(tmp_path),
                "--keep-last",
                "1",
                "--keep-best",
                "1",
                "--dry-run",
            ]
        )
        == 0
    )
    assert len(step_dirs(tmp_path)) == 4
    lock = RunLock(tmp_path)
    assert main(["checkpoints", "prune", str(tmp_path)]) == 2
    lock.release()
    assert "a job works in" in capsys.readouterr().err
    assert (
        main(["checkpoints", "prune", str(tmp_path), "--keep-last", "1", "--keep-best", "1"]) == 0
    )
    assert [d.name for d in step_dirs(tmp_path)] == ["step_000008", "step_000002"]
    assert not unfinished(tmp_path)
    assert main(["checkpoints", "prune", str(tmp_path), "--keep-last", "0"]) == 2


def test_one_whose_manifest_is_unreadable_is_not_pruned(tmp_path: Path):
    old = make(tmp_path, 1)
    (old / MANIFEST).write_text("{")
    for step in (2, 3, 4):
        make(tmp_path, step)
    assert [d.name for d in prune(tmp_path, keep_last=2)] == ["step_000002"]
    assert old.exists()


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/nonexistent/touched"),))


def test_a_shard_that_would_run_code_is_refused(tmp_path: Path):
    from cero_rl.zero.shards import read_shard

    good = {
        "optimizer_state_dict": {"flat": torch.arange(4.0), "shapes": [torch.Size([2, 2])]},
        "ds_version": "0",
    }
    torch.save(good, tmp_path / "good.pt")
    assert torch.equal(
        read_shard(tmp_path / "good.pt")["optimizer_state_dict"]["flat"], torch.arange(4.0)
    )
    torch.save({"x": Hostile()}, tmp_path / "bad.pt")
    with pytest.raises(
        CheckpointError, match=r"bad\.pt: refused, it is more than tensors and settings"
    ):
        read_shard(tmp_path / "bad.pt")
