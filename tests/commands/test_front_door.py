"""The first verbs of a new user: recipes, init, schema, train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cero_rl.commands import init, schema
from cero_rl.commands.main import main
from cero_rl.commands.train import spelled_out
from cero_rl.config import load_config
from cero_rl.config.recipes import all_recipes
from cero_rl.data.load import read_local

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "recipes/assets/tiny_digits"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fifty rows in the current directory, an empty one otherwise."""
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "recipes/assets/digits_balanced.jsonl").read_text().splitlines()[:50]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


def test_every_recipe_is_listed_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [one["name"] for one in listed] == sorted(p.stem for p in ROOT.glob("recipes/*.yaml"))
    for one in listed:
        given = yaml.safe_load((ROOT / f"recipes/{one['name']}.yaml").read_text())
        assert one["rollouts"] == str(given["budget"]["total_rollouts"])
        assert one["model"] == given["model"]["path"]
        assert one["hardware"] != "not said"
    assert main(["recipes", "list"]) == 0
    words = capsys.readouterr().out
    assert all(one["hardware"] in words for one in listed)


def test_a_recipe_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "chain_cpu"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes/chain_cpu.yaml").read_text()


def test_a_copied_recipe_finds_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "quickstart_cpu"]) == 0
    config = load_config("quickstart_cpu.yaml")
    split = read_local(config.data, config.seed)
    assert split is not None
    assert (len(split.train), len(split.heldout)) == (4000, 800)
    assert Path(config.model.path, "config.json").is_file()
    assert (tmp_path / "schema.json").is_file()
    assert "next: cero-rl train quickstart_cpu.yaml" in capsys.readouterr().out
    assert main(["recipes", "copy", "quickstart_cpu"]) == 0
    assert " 0 files written" in capsys.readouterr().out


def test_a_file_in_the_way_of_a_copy_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "digits_cpu.yaml"
    mine.write_text("mine")
    assert main(["recipes", "copy", "digits_cpu", "--to", str(tmp_path)]) == 2
    assert "another file of this name" in said(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["digits_cpu.yaml"]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("words", [["recipes", "show", "gsm9k"], ["train", "gsm9k"]])
def test_a_recipe_that_does_not_ship(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    line = said(capsys)
    assert "'gsm9k'" in line
    assert all(one.name in line for one in all_recipes())


def test_a_recipe_by_name_where_its_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits_cpu"]) == 2
    assert "cero-rl recipes copy digits_cpu" in said(capsys)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nowhere.yaml"]) == 2
    assert said(capsys).startswith("error: CONFIG nowhere.yaml: does not exist; give a YAML file")


def test_a_mistyped_verb_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trian", "my.yaml"])
    assert ended.value.code == 2
    assert "did you mean train? see cero-rl --help" in said(capsys)


def test_settings_are_words_wherever_they_stand() -> None:
    given = ["my.yaml", "seed=1", "--resume", "auto", "a.b=c=d", "--set", "x=1", "--ranks=2"]
    assert spelled_out(given) == [
        "my.yaml",
        "--set=seed=1",
        "--resume",
        "auto",
        "--set=a.b=c=d",
        "--set",
        "x=1",
        "--ranks=2",
    ]


def test_a_mistyped_setting_names_the_right_key(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "recipes/digits_cpu.yaml")
    assert main(["train", config, "--overwrite", "optimizer.learning_rat=1"]) == 2
    line = said(capsys)
    assert "optimizer.learning_rat: unknown key" in line
    assert "learning_rate" in line
    assert len(line.splitlines()) == 1


def test_init_writes_what_validates_and_fits_the_model(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["init", "--data", "mine.jsonl", "--model", str(MODEL), "--reward", "exact", "--yes"]
    assert main([*words, "--out", "my.yaml"]) == 0
    out = capsys.readouterr().out
    config = load_config("my.yaml")
    window = json.loads((MODEL / "config.json").read_text())["max_position_embeddings"]
    assert config.data.max_prompt_tokens + config.rollout.max_response_tokens <= window
    # 45 prompts are left beside the tenth that is held out: 16 rollouts each, in whole groups
    assert config.budget.total_rollouts == 704
    assert "45 prompts" in out
    assert config.budget.total_rollouts % config.scheduler.rollouts_per_unit == 0
    assert config.optimizer.learning_rate == 1e-4
    assert "cero-rl train my.yaml" in out


def test_init_takes_the_columns_that_are_there(rows: Path) -> None:
    row = {"id": 1, "question": "1+1", "solution": "2"}
    other = {"id": 2, "question": "1+2", "solution": "3"}
    Path("sums.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    words = ["init", "--data", "sums.jsonl", "--rollouts", "500", "--out", "a b.yaml", "--yes"]
    assert main(words) == 0
    config = load_config("a b.yaml")
    assert (config.data.prompt_column, config.data.answer_column) == ("question", "solution")
    assert config.name == "a-b"
    assert abs(config.budget.total_rollouts - 500) < config.scheduler.rounds * init.GROUP
    assert config.optimizer.learning_rate == 1e-6


def test_init_asks_a_person(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"Prompts": "mine.jsonl", "Model": str(MODEL), "Who": "exact", "Rollouts": "640"}
    asked = []

    def answer(question: str) -> str:
        asked.append(question)
        return next((a for start, a in answers.items() if question.startswith(start)), "")

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["init"]) == 0
    assert len(asked) == 5
    assert load_config("my.yaml").budget.total_rollouts == 640


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "--data: missing"),
        (["--data", "none.jsonl"], 3, "--data: none.jsonl does not exist"),
        (["--data", "mine.jsonl", "--rollouts", "many"], 2, "--rollouts many: wanted"),
        (["--data", "mine.jsonl", "--out", "mine.jsonl"], 2, "--out mine.jsonl: is there already"),
        (["--data", "odd.jsonl"], 3, "--prompt-column: none of prompt"),
        (["--data", "mine.jsonl", "--reward", "exakt"], 5, "did you mean"),
    ],
)
def test_init_refuses_in_one_line_and_writes_nothing(
    words: list[str], code: int, line: str, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.jsonl").write_text('{"text": "1", "answer": "2"}\n')
    assert main(["init", *words, "--yes"]) == code
    told = said(capsys)
    assert line in told
    assert len(told.splitlines()) == 1
    assert sorted(path.name for path in rows.iterdir()) == ["mine.jsonl", "odd.jsonl"]


def test_the_schema_knows_the_keys_that_the_recipes_give(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["schema"]) == 0
    text = capsys.readouterr().out
    assert text == schema.text()
    known = json.loads(text)
    for one in all_recipes():
        assert one.text.startswith("# yaml-language-server: $schema=schema.json\n")
        for section, keys in yaml.safe_load(one.text).items():
            place = known["properties"][section]
            if isinstance(keys, dict):
                fields = known["$defs"][place["$ref"].rpartition("/")[2]]["properties"]
                assert set(keys) <= set(fields), (one.name, section)
