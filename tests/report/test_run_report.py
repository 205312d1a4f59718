"""One run's report: its numbers against a run whose truth is known, its page against an HTML
parser, hostile text, and what is no run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import GROUPS, PROMPTS, ROOT, SIZE, STEPS, make_run

from cero_rl.commands.main import main
from cero_rl.report import page as module
from cero_rl.report.drawing import canvas
from cero_rl.report.facts import Facts, facts_of
from cero_rl.report.page import page_of_run
from cero_rl.report.reader import read_run
from cero_rl.report.samples import sorted_samples
from cero_rl.scheduler.offline import water_filling

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags in their order, with what closes wrongly as errors."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all_of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return facts_of(read_run(make_run(tmp_path_factory.mktemp("runs"))), price_per_hour=36.0)


@pytest.fixture(scope="module")
def page(facts: Facts) -> str:
    return page_of_run(facts)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's figures take seconds; other tests draw them."""
    monkeypatch.setattr(module, "figures_of", lambda facts: defaultdict(list))


# --- numbers


def test_where_the_rollouts_went(facts: Facts):
    assert facts.spent.sum() == STEPS * GROUPS * SIZE
    assert not facts.spent[:16].any()
    assert (facts.spent[16:] == STEPS * GROUPS * SIZE // 24).all()
    rates = {name: (pool, used) for name, pool, used in facts.by_rate}
    assert rates["never"] == (16 / PROMPTS, 0.0)
    assert rates["< .05"] == (4 / PROMPTS, pytest.approx(4 / 24)), "the dead ones that were tried"
    assert sum(pool for pool, _ in rates.values()) == pytest.approx(1.0)
    assert sum(used for _, used in rates.values()) == pytest.approx(1.0)
    family = facts.by_label["family"]
    kinds = np.array(facts.run.labels["family"])
    for kind, (pool, used) in family.items():
        assert pool == pytest.approx((kinds == kind).mean())
        assert used == pytest.approx(facts.spent[kinds == kind].sum() / facts.spent.sum())


def test_what_taught_nothing_in_rollouts_tokens_seconds_and_money(facts: Facts):
    groups = facts.run.groups
    dead = ((groups.successes == 0) | (groups.successes == groups.trials)).sum()
    waste = {w.reason.split(" (")[0]: w for w in facts.waste}
    assert waste["dead groups"].rollouts == dead * SIZE
    assert waste["missing reward"].rollouts == 1
    assert waste["not in the loss"].rollouts == pytest.approx(0.25 * STEPS * GROUPS * SIZE)
    assert "below learner.min_advantage" not in waste, "no critic, nothing to say"
    cut = waste["cut at the length limit"]
    assert cut.rollouts == pytest.approx(0.25 * STEPS * GROUPS * SIZE)
    assert cut.tokens == pytest.approx(0.25 * STEPS * 640)
    assert cut.seconds == pytest.approx(0.25 * STEPS * 2.0)
    assert cut.money == pytest.approx(0.25 * STEPS * 2.0 / 3600 * 36.0)
    assert waste["missing reward"].tokens == pytest.approx(640 / (GROUPS * SIZE))


def test_accuracy_stands_at_what_was_spent_for_it(facts: Facts):
    accuracy = facts.accuracy
    assert accuracy.step.tolist() == [0, 4, 8, 12]
    assert accuracy.rollouts.tolist() == [0, 128, 256, 384]
    assert accuracy.tokens.tolist() == [0, 2560, 5120, 7680]
    assert accuracy.seconds.tolist() == [0, 8, 16, 24]
    assert accuracy.value == pytest.approx([0.3, 0.3 + 0.2 / 3, 0.3 + 0.4 / 3, 0.5])
    assert accuracy.passes[4][-1] == pytest.approx(0.7)


def test_the_premise_is_what_was_believed_against_what_came(facts: Facts):
    groups, found = facts.run.groups, facts.calibration
    assert found is not None
    assert found.believed == pytest.approx([0.5] * len(found.believed))
    came = groups.successes.sum() / groups.trials.sum()
    assert np.average(found.came, weights=found.rollouts) == pytest.approx(came)
    assert found.rollouts.sum() == groups.trials.sum()
    assert np.isnan(facts.premise), "one worth for all ranks nothing"


def test_regret_is_against_the_best_of_as_many_rollouts(facts: Facts):
    found = facts.regret
    assert found is not None
    assert (found.best >= found.spent - 1e-12).all()
    assert (found.best >= found.even - 1e-12).all()
    assert found.rollouts[-1] == STEPS * GROUPS * SIZE
    wins, tries = (
        np.bincount(facts.run.groups.prompt, weights=w, minlength=PROMPTS)
        for w in (facts.run.groups.successes, facts.run.groups.trials)
    )
    seen = tries > 0
    prior = (wins[seen] / tries[seen]).mean()
    a, n = prior + wins, 1 + tries
    worth = a * (n - a) / (n * (n + 1))
    budget = facts.run.config.budget.total_rollouts
    c = 4 * facts.run.config.scheduler.saturation * PROMPTS / budget * worth
    if not facts.run.config.scheduler.cell_columns:
        best = -np.expm1(-c * water_filling(c, budget, budget)).mean()
        assert found.best[-1] == pytest.approx(best)
        assert found.spent[-1] == pytest.approx(-np.expm1(-c * facts.spent).mean())


def test_starvation_says_what_a_look_would_cost(facts: Facts):
    starved = facts.summary["starvation"]
    assert starved["never_looked_at"] == 16
    assert starved["uniform_pass_steps"] == pytest.approx(PROMPTS * 4 / (GROUPS * SIZE))
    assert starved["not_for_two_passes"] == 0
    assert starved["look_rollouts"] == 64
    assert starved["look_tokens"] == pytest.approx(64 * 640 / (GROUPS * SIZE))
    assert starved["look_seconds"] == pytest.approx(64 * 2.0 / (GROUPS * SIZE))


def test_samples_are_sorted_by_surprise_worth_and_reward(facts: Facts):
    orders = {name: samples for name, _, samples in sorted_samples(facts.run)}
    assert list(orders) == ["by surprise", "by worth", "highest reward", "lowest reward"]
    for name, sign in (("highest reward", -1), ("lowest reward", 1)):
        rewards = [sign * s.reward for s in orders[name]]
        assert rewards == sorted(rewards)
    assert {s.expected for s in orders["by surprise"]} == {0.5}


# --- the page


def test_every_figure_has_a_reading_aid_and_the_page_is_well_formed(page: str):
    parsed = Page(page)
    assert parsed.wrong == []
    names = {figure["id"] for figure in parsed.all_of("figure")}
    assert names >= {"accuracy-rollouts", "accuracy-tokens", "accuracy-seconds", "passes"}
    assert names >= {"entropy", "by-rate", "by-label-0", "by-prompt", "heat", "price", "posterior"}
    assert names >= {"calibration", "premise", "regret", "age", "signal", "phases", "parity"}
    aids = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(aids) == len(names)
    assert all(len(aid) > 40 and aid.endswith(".") for aid in aids)
    assert all(image.get("alt") for image in parsed.all_of("img"))
    ids = Counter(a["id"] for _, a in parsed.tags if a.get("id"))
    assert max(ids.values()) == 1
    for link in parsed.all_of("a"):
        assert (link["href"] or "").removeprefix("#") in ids


def test_shorter_coordinates_leave_labels_alone():
    with canvas() as made:
        made.axis.plot([0, 1.23456], [0, 1])
        made.axis.set_xticks([0.0625, 1.0], ["0.0625", "1.00001"])
    assert ">0.0625<" in made.svg
    assert ">1.00001<" in made.svg
    assert not re.search(r'd="[^"]*\d\.\d{3}', made.svg)


def test_the_page_needs_no_network_and_no_script(page: str):
    parsed = Page(page)
    assert not parsed.all_of("script")
    assert not parsed.all_of("link")
    assert all((i["src"] or "").startswith("data:image/svg+xml") for i in parsed.all_of("img"))
    assert not [a for _, a in parsed.tags if any(name.startswith("on") for name in a)]
    (policy,) = [m["content"] for m in parsed.all_of("meta") if "http-equiv" in m]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert len(page.encode()) < 1_000_000


@pytest.mark.covers("hostile completions in a report")
def test_hostile_completions_stay_text(tmp_path: Path, undrawn: None):
    hostile = "</pre></details><script>alert(1)</script>\ud800\x00\x1b[31m\u202eevil<img src=x>&lt;"
    run = make_run(tmp_path, completion=hostile)
    with (run / "samples.jsonl").open("a") as file:  # one line of a megabyte
        entry = json.loads((run / "samples.jsonl").read_text().splitlines()[-1])
        file.write(json.dumps({**entry, "completion": "<b>" * 350_000}) + "\n")
    page = page_of_run(facts_of(read_run(run)))
    page.encode("utf-8")
    assert len(page) < 2_000_000
    parsed = Page(page)
    assert parsed.wrong == []
    assert not parsed.all_of("script")
    assert not parsed.all_of("b") or all(a == {} for a in parsed.all_of("b"))
    assert all((i["src"] or "").startswith("data:") for i in parsed.all_of("img"))
    words = "".join(parsed.words)
    assert "</pre></details><script>alert(1)</script>\ufffd\\u0000\\u001b[31m\\u202eevil" in words
    assert "<img src=x>&lt;" in words, "what was escaped already is shown as it was"
    assert "more characters are in samples.jsonl]" in words
    assert not set(page) & {"\x00", "\x1b", "\u202e", "\ud800"}


# --- the command


def test_the_command_writes_one_page_into_the_run(tmp_path: Path, undrawn: None, capsys):
    run = make_run(tmp_path)
    assert main(["report", str(run)]) == 0
    assert "wrote" in capsys.readouterr().err
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("how", ["json", "md"])
def test_numbers_without_a_page(tmp_path: Path, capsys, how: str):
    run = make_run(tmp_path)
    assert main(["report", str(run), "--format", how]) == 0
    said = capsys.readouterr().out
    if how == "json":
        summary = json.loads(said)
        assert summary["heldout"][-1]["accuracy"] == pytest.approx(0.5)
        assert summary["rollouts"] == 384
    else:
        assert "| 12 (end) | 384 | 7.68k | 24 | 0.500 | 0.020 | avg@2 | 0.500 | 0.700 |" in said
    assert not (run / "report.html").exists()


def test_a_run_is_read_without_torch(tmp_path: Path):
    """And, for JSON, without jinja2 and matplotlib."""
    run = make_run(tmp_path)
    heavy = "torch", "transformers", "deepspeed", "datasets", "safetensors", "tokenizers", "rich"
    for how, more in (("html", ()), ("json", ("jinja2", "matplotlib"))):
        code = f"import sys; sys.modules.update(dict.fromkeys({(*heavy, *more)!r}))\n"
        code += "from cero_rl.commands.main import main\n"
        code += f"raise SystemExit(main(['report', {str(run)!r}, '--format', {how!r}]))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (run / "report.html").stat().st_size > 50_000


def test_without_the_extra_the_page_names_it(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", str(make_run(tmp_path))]) == 2
    assert "jinja2 is not installed; pip install 'cero_rl[report]'" in capsys.readouterr().err


ROW = "report of what is no run, half a run or another version's"


@pytest.mark.covers(ROW)
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, capsys):
    run = make_run(tmp_path)
    (tmp_path / "empty").mkdir()
    half = make_run(tmp_path, "half")
    (half / "metrics.jsonl").write_text('{"step": 0, "eval/avg@2": 0.3}\n')
    other = make_run(tmp_path, "other")
    resolved = other / "config.resolved.yaml"
    resolved.write_text(resolved.read_text().replace("budget:", "allowance:"))
    old = make_run(tmp_path, "old")
    (old / "evidence.jsonl").write_text('{"step": 1, "prompts": [1]}\n')
    for given, code, said in (
        (tmp_path / "none", 2, "does not exist; give a run's directory"),
        (run / "metrics.jsonl", 2, "is no directory"),
        (tmp_path / "empty", 2, "has no config.resolved.yaml, so it is no run's directory"),
        (half, 3, "has no finished step yet (metrics.jsonl: 0 steps, evidence.jsonl: 12)"),
        (other, 2, "is not of this version of cero_rl"),
        (old, 2, "is not of this version of cero_rl (the line of step 1: no 'prompt_ids')"),
    ):
        before = sorted(tmp_path.rglob("*"))
        assert main(["report", str(given)]) == code, given
        err = capsys.readouterr().err
        assert said in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


@pytest.mark.covers(ROW)
def test_lines_that_a_kill_cut_off_are_counted(tmp_path: Path, undrawn: None):
    run = make_run(tmp_path, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "rew')
    read = read_run(run)
    assert "metrics.jsonl: 1 lines could not be read and are left out" in read.notes
    assert not read.finished
    assert "family" in read.labels, "a running run has labels, by the order of its file"
    assert "not finished: the numbers are those of now" in page_of_run(facts_of(read))


def test_an_older_run_is_read_without_its_beliefs(tmp_path: Path):
    run = make_run(tmp_path)
    lines = [json.loads(line) for line in (run / "evidence.jsonl").read_text().splitlines()]
    for line in lines:
        del line["worth"], line["expected"]
    (run / "evidence.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = facts_of(read_run(run))
    assert facts.calibration is None
    assert any("no premise check" in note for note in facts.run.notes)


def test_data_that_has_moved_leaves_the_labels_unknown(tmp_path: Path):
    run = make_run(tmp_path)
    resolved = run / "config.resolved.yaml"
    resolved.write_text(resolved.read_text().replace(f"{ROOT}/recipes", "/nowhere"))
    read = read_run(run)
    assert read.labels == {}
    assert any(note.startswith("labels of the prompts are not known") for note in read.notes)
    assert facts_of(read).by_label == {}
