"""`rorqual teach`, from a file to a report, with a tiny base model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from climbed import answers_of_rungs
from example_files import Write, labelled, sums

from in_process import output_of
from rorqual.convert.merge import merge_run
from rorqual.core.errors import ConfigError, DataError, RorqualError, TaskError
from rorqual.core.journal import append_line, read_lines
from rorqual.core.ledger import Ledger
from rorqual.core.records import RunDir, write_json
from rorqual.data.fingerprint import fingerprint
from rorqual.engine.engine import Engine
from rorqual.evals.evaluation import Evaluation
from rorqual.tasks.examples import list_test_readings
from rorqual.teach import stages as running
from rorqual.teach.config import TeachConfig
from rorqual.teach.examples import Example
from rorqual.teach.paths import AFTER, ALONE, BEFORE, TeachPaths
from rorqual.teach.plan import TeachPlan, sft_run
from rorqual.teach.stages import TeachStages, seconds_toward_limit, teach
from rorqual.train.loop import fit

ROWS = 150


def run(config: TeachConfig, out: Path) -> Path:
    return teach(config, out, threads=1, import_progress=lambda *_: None)


def settings(tiny: Path, example_file: Path, **keys: Any) -> TeachConfig:
    return TeachConfig(
        **({"file": str(example_file), "base": str(tiny), "minutes": 0.05, "quiet": True, "encoder": "none"} | keys)
    )


def stages(config: TeachConfig, out: Path) -> TeachStages:
    """Return the stages of a folder, which can be called one by one."""
    return TeachStages(config, TeachPaths(out), 1, Ledger(out.with_suffix(".ledger")), lambda *_: None, "")


@pytest.fixture(scope="module")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TeachConfig, TeachPaths]:
    """A model that was taught to label short texts. One label is in the test split alone."""
    folder = tmp_path_factory.mktemp("taught")
    file = folder / "labels.jsonl"
    rows = [
        *labelled(ROWS - 1),
        {"text": "odd thing", "label": "rare"},
    ]  # the 150th row goes to the smallest fold, the test split
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(tiny, file)
    assert run(config, folder / "out") == folder / "out" / "report.html"
    return config, TeachPaths(folder / "out")


def test_every_model_and_baseline_is_measured_on_the_same_test_examples(
    taught: tuple[TeachConfig, TeachPaths],
) -> None:
    _, paths = taught
    names = json.loads(paths.baselines.read_bytes())["names"]
    assert {"majority", "nearest neighbour", "logistic regression", BEFORE, "base, 4 examples"} < {*names}
    evaluations = [Evaluation.load(paths.evaluation_file(name)) for name in (*names, AFTER)]
    assert len({tuple(sorted(one.problem_keys)) for one in evaluations}) == 1 and len(evaluations[0].problem_keys) > 20
    train, dev = (list(read_lines(paths.data / f"{split}.jsonl")) for split in ("train", "dev"))
    assert {line["key"] for line in (*train, *dev)}.isdisjoint(evaluations[0].problem_keys)
    shots = json.loads(paths.baselines.read_bytes())["shots"]
    assert {*shots} == {*names} and len(shots["base, 4 examples"]) == 4 and shots[BEFORE] == []
    assert all(set(lines) <= {line["line"] for line in train} for lines in shots.values())
    labels = {"card", "pin", "fee"}
    for one in evaluations:
        assert {sample.reply for sample in one.samples} <= labels, "replies are constrained to the labels"


def test_the_model_is_a_run_of_its_own_with_defaults(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    defaults = paths.model.task_defaults()
    assert defaults.thinking == "off" and defaults.grammar is not None and defaults.grammar.kind == "choice"
    assert set(json.loads(defaults.grammar.source)) == {"card", "pin", "fee"}
    plan = json.loads(paths.plan.read_bytes())
    assert defaults.max_tokens == plan["max_tokens"]
    assert Evaluation.load(paths.evaluation_file(AFTER)).thinking == "off"
    assert paths.sft.config()["steps"] == plan["steps"] == max(plan["dev_steps"])
    shutil.move(paths.out / "sft", paths.out / "sft-away")  # the model needs no other folder
    Engine(paths.model.path)
    shutil.move(paths.out / "sft-away", paths.out / "sft")


def test_classical_predictions_stand_beside_their_own_examples(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    train = [
        Example(line["line"], line["prompt"], line["completion"]) for line in read_lines(paths.data / "train.jsonl")
    ]
    for name in ("nearest neighbour", "logistic regression"):
        samples = Evaluation.load(paths.evaluation_file(name)).samples
        alone = answers_of_rungs(train, [Example(1, one.prompt, one.answer) for one in samples], "label")[name]
        assert [one.reply for one in samples] == alone


def test_the_test_split_is_opened_once_for_the_baselines_and_once_for_the_model(
    taught: tuple[TeachConfig, TeachPaths], tiny: Path
) -> None:
    _, paths = taught
    first, second = list_test_readings(paths.data)
    assert first.checkpoint == fingerprint(RunDir(tiny), RunDir(tiny).checkpoint())
    assert second.checkpoint == fingerprint(paths.model, paths.model.checkpoint())


def test_the_same_command_again_changes_nothing(
    taught: tuple[TeachConfig, TeachPaths], capsys: pytest.CaptureFixture[str]
) -> None:
    config, paths = taught
    steady = ("ledger.jsonl", "memory.json", "report.html")

    def state() -> dict[str, str]:
        return {
            str(file.relative_to(paths.out)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(paths.out.rglob("*"))
            if file.is_file() and file.name not in steady
        }

    before = state()
    run(config.model_copy(update={"threads": 2}), paths.out)
    assert state() == before
    assert "rorqual serve" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"seed": 1}, {"minutes": 1.0}, {"count": 30}, {"answer": "label"}])
def test_other_settings_or_another_file_are_refused(
    taught: tuple[TeachConfig, TeachPaths], change: dict[str, Any]
) -> None:
    config, paths = taught
    [(name, value)] = change.items()
    with pytest.raises(ConfigError, match=rf"teach\.yaml.*begun with other settings.*new are: {name}: {value}"):
        run(config.model_copy(update=change), paths.out)
    file = Path(config.file)
    text = file.read_text()
    file.write_text(text + text.splitlines()[0] + "\n")
    try:
        with pytest.raises(ConfigError, match=f"another content of a file; new are: the content of {file}"):
            run(config, paths.out)
    finally:
        file.write_text(text)


def test_long_rows_and_answers_of_another_kind_are_left_out(
    tiny: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"question": f"{'word ' * 80} 5 and 7 more?", "answer": 12}
    tests = [*sums(20, seed=4), long, {"question": "5 and what more?", "answer": "unknown"}]
    file, test = write("a.jsonl", [*sums(100), long | {"question": f"9 {long['question']}"}]), write("b.jsonl", tests)
    out = TeachPaths(tmp_path / "out")
    run(settings(tiny, file, test=str(test), quiet=False), out.out)
    assert len(Evaluation.load(out.evaluation_file(AFTER)).samples) == 20
    said = capsys.readouterr().out
    assert "1 rows are left out: longer than 256 tokens" in said and "2 rows are left out: unusable test row" in said


def rorqual(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = "from rorqual.cli.main import main; import sys; sys.argv[0] = 'rorqual'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_killed_at_any_moment_it_ends_with_the_same_model_and_results(
    taught: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    """The plan of steps is copied, because it is measured."""
    config, paths = taught
    shutil.copy(config.file, tmp_path / "labels.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(paths.plan, out / "plan.json")
    command = (
        "teach",
        config.file,
        f"base={config.base}",
        "encoder=none",
        "minutes=0.05",
        "quiet=true",
        "threads=1",
        f"out={out}",
    )
    kills = 0
    for wait in (2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 300.0):
        process = rorqual(*command, cwd=tmp_path)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=wait)
            break
        process.kill()
        process.wait()
        kills += 1
    assert process.returncode == 0 and kills >= 2
    again = TeachPaths(out)
    weights = [(one.model.checkpoint() / "model.safetensors").read_bytes() for one in (again, paths)]
    assert weights[0] == weights[1]
    assert again.dev.read_bytes() == paths.dev.read_bytes()
    for name in (*json.loads(paths.baselines.read_bytes())["names"], AFTER):
        samples = [Evaluation.load(one.evaluation_file(name)).samples for one in (again, paths)]
        assert samples[0] == samples[1], name


def test_the_model_is_made_of_the_best_checkpoint_and_not_of_the_last(
    taught: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    """The best checkpoint is replaced by one of another run, as if an earlier one had been best."""
    config, paths = taught
    out = TeachPaths(tmp_path / "out")
    shutil.copytree(paths.out, out.out)
    for gone in (out.model.path, out.best.path):
        shutil.rmtree(gone)
    out.evaluation_file(AFTER).unlink()
    plan = TeachPlan(**json.loads(paths.plan.read_bytes())).model_copy(update={"steps": 1})
    fit(sft_run(RunDir(Path(config.base)), out.data, plan, seed=99), out.best, quiet=True)
    run(config, out.out)
    merge_run(out.best, tmp_path / "merged")
    weights = [
        (one.checkpoint() / "model.safetensors").read_bytes() for one in (out.model, RunDir(tmp_path / "merged"))
    ]
    assert weights[0] == weights[1] != (paths.model.checkpoint() / "model.safetensors").read_bytes()


def test_a_test_file_is_measured_and_nothing_of_it_is_trained_on(tiny: Path, write: Write, tmp_path: Path) -> None:
    tests = labelled(30, seed=8)
    file, test = write("a.jsonl", [*labelled(80), *tests[:3]]), write("b.jsonl", tests)
    out = TeachPaths(tmp_path / "out")
    run(settings(tiny, file, test=str(test), count=25), out.out)
    measured = {one.prompt for one in Evaluation.load(out.evaluation_file(AFTER)).samples}
    assert len(measured) == 25 and measured < {row["text"] for row in tests}
    trained = {line["prompt"] for split in ("train", "dev") for line in read_lines(out.data / f"{split}.jsonl")}
    assert trained.isdisjoint(row["text"] for row in tests) and len(trained) > 70


@pytest.mark.parametrize(
    ("rows", "keys", "reason"),
    [
        (labelled(ROWS), {}, "replies have no reasoning"),
        (labelled(ROWS), {"grader": True}, "below minutes=20"),
        (labelled(ROWS), {"grader": True, "minutes": 20.0}, ""),
        (sums(110), {"minutes": 19.9}, "below minutes=20"),
        (sums(110), {"minutes": 20.0}, ""),
    ],
)
def test_grpo_has_time_only_where_it_may_help(
    tiny: Path, write: Write, tmp_path: Path, rows: list[dict[str, Any]], keys: dict[str, Any], reason: str
) -> None:
    (tmp_path / "mine.py").write_text("def grade(prompt, answer, reply):\n    return reply == answer\n")
    if keys.get("grader"):
        keys = keys | {"grader": f"{tmp_path}/mine.py:grade"}
    work = stages(settings(tiny, write("a.jsonl", rows), **keys), tmp_path / "out")
    work.prepare_data()
    assert reason in work.reason_to_skip_grpo and bool(reason) == bool(work.reason_to_skip_grpo)
    work.find_base_and_plan()
    assert (work.plan.grpo_seconds > 0) == (not reason)


def test_words_become_numbers_with_derived_solutions_and_reasoning(tiny: Path, write: Write, tmp_path: Path) -> None:
    out = TeachPaths(tmp_path / "out")
    run(settings(tiny, write("sums.jsonl", sums(110)), count=10), out.out)
    rows = list(read_lines(out.data / "train.jsonl"))
    assert all(re.fullmatch(r"\d+ \+ \d+ = \d+", row["reasoning"]) for row in rows)
    assert Evaluation.load(out.evaluation_file(AFTER)).thinking == "auto"
    assert out.model.task_defaults().thinking == "auto" and out.model.task_defaults().grammar is None
    assert out.model.task_defaults().calculator is True and out.model.task_defaults().temperature == 0
    names = json.loads(out.baselines.read_bytes())["names"]
    calculated = {name: Evaluation.load(out.evaluation_file(name)).params.calculator for name in (*names, ALONE, AFTER)}
    assert calculated == {name: name == AFTER or name.startswith("base, ") for name in calculated}
    shown = json.loads(out.results.read_bytes())
    assert [row["name"] for row in shown["results"]] == [*names, ALONE, AFTER]
    assert ALONE in out.report.read_text() and not any(ALONE in sentence for sentence in shown["sentences"])
    assert "GRPO is skipped" in json.loads(out.grpo_result.read_bytes())["text"]
    assert "logistic regression" not in names and "nearest neighbour" in names


def test_examples_without_a_teachers_reason_are_counted(
    tiny: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tiny, write("a.jsonl", labelled(ROWS)), teacher=str(tiny), quiet=False)
    paths = TeachPaths(tmp_path / "out")
    work = stages(config, tmp_path / "out")
    texts = {one.key: "because" for one in work.dataset.splits["train"][3:]}
    write_json(paths.reasons, {"texts": texts, "given": [], "stopped": "the budget is spent"})
    work.prepare_data()
    said = capsys.readouterr().out
    assert f"  {len(texts)} train, " in said
    assert "  3 examples without a reason are left out\n" in said and "  the budget is spent\n" in said
    assert {row["key"] for row in read_lines(paths.data / "train.jsonl")} == {*texts}


def test_columns_that_are_named_are_read_from_both_files(tiny: Path, write: Write, tmp_path: Path) -> None:
    """`text` and `label` are columns as well, which would be found without names."""
    rows = [
        {
            "text": "x",
            "label": "y",
            "subject": f"subject {row['text']}",
            "team": row["label"],
            "why": f"why {row['text']}",
        }
        for row in labelled(90)
    ]
    named = {"prompt": "subject", "answer": "team", "reasoning": "why"}
    test = str(write("test.jsonl", rows[80:]))
    work = stages(settings(tiny, write("a.jsonl", rows[:80]), test=test, **named), tmp_path / "out")
    work.prepare_data()
    lines = [line for split in ("train", "dev") for line in read_lines(work.paths.data / f"{split}.jsonl")]
    assert {(line["prompt"], line["completion"], line.get("reasoning")) for line in lines} == {
        (row["subject"], row["team"], row["why"]) for row in rows[:80]
    }
    assert {one.prompt for one in work.dataset.splits["test"]} == {row["subject"] for row in rows[80:]}


def test_more_minutes_allow_slower_baselines(
    tiny: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BASELINE_SECONDS", 1e-3)
    work = stages(settings(tiny, write("a.jsonl", labelled(ROWS)), minutes=10.0), tmp_path / "out")
    for stage in (work.check_settings, work.prepare_data, work.find_base_and_plan, work.measure_baselines):
        stage()
    known = json.loads(work.paths.baselines.read_bytes())
    assert "base, 4 examples" in known["names"] and known["left_out"] == []


def test_a_baseline_that_would_take_too_long_is_left_out(
    tiny: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But the base model without examples is always measured."""
    monkeypatch.setattr(running, "BASELINE_SECONDS", 1e-3)
    config = settings(tiny, write("a.jsonl", labelled(ROWS)), minutes=1e-5, quiet=False, track="tensorboard")
    run(config, tmp_path / "out")
    paths = TeachPaths(tmp_path / "out")
    known = json.loads(paths.baselines.read_bytes())
    assert BEFORE in known["names"] and not [name for name in known["names"] if name.startswith("base, 4")]
    assert known["left_out"][0].startswith("base, 4 examples: it would take about 0:")
    assert capsys.readouterr().out.count("left out: base, 4 examples") == 2
    assert json.loads(paths.results.read_bytes())["left_out"] == known["left_out"]
    assert "Left out: base, 4 examples: it would take" in paths.report.read_text(encoding="utf-8")
    events = [*paths.sft.path.glob("tensorboard/*")]
    assert len(events) == 1 and b"loss" in events[0].read_bytes()
    assert "track" not in paths.settings.read_text(encoding="utf-8")


def test_a_rule_and_a_grader_of_the_users_own_are_used(tiny: Path, write: Write, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def rule(prompt):\n    return 'card' if 'card' in prompt else 'pin'\n\n"
        "def grade(prompt, answer, reply):\n    return reply in (answer, 'fee') and prompt.startswith(('my', 'the', 'a'))\n"
    )
    out = TeachPaths(tmp_path / "out")
    config = settings(tiny, write("a.jsonl", labelled(ROWS)), rule=f"{mine}:rule", grader=f"{mine}:grade", count=20)
    run(config, out.out)
    assert {one.reply for one in Evaluation.load(out.evaluation_file("rule")).samples} == {"card", "pin"}
    for name in ("majority", "rule", AFTER):
        samples = Evaluation.load(out.evaluation_file(name)).samples
        assert all((one.verdict.value == "right") == (one.reply in (one.answer, "fee")) for one in samples)
    mine.write_text("def grade(prompt, answer, reply):\n    return 1 / 0\n")
    with pytest.raises(TaskError, match=r"the grader, on .*b\.jsonl:1, raised ZeroDivisionError.*mine\.py:2"):
        run(settings(tiny, write("b.jsonl", labelled(80)), grader=f"{mine}:grade"), tmp_path / "raises")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"base": "nowhere"}, "no model 'nowhere'"),
        ({"base": "nowhere.gguf"}, "no model 'nowhere.gguf'"),
        ({"file": "nowhere.csv"}, "no such file"),
        ({"test": "nowhere.csv"}, "no such file"),
        ({"answer": "labels"}, "no column 'labels'"),
        ({"rule": "x"}, "does not name a function"),
        ({"grader": "./nowhere.py:f"}, "no such file"),
        ({"track": "tensorboard, tensorbord"}, "unknown tracker 'tensorbord'"),
        ({"rule": "MINE:rule", "base": "nowhere"}, "the rule `rule` raised KeyError"),
        ({"rule": "MINE:two"}, "cannot be called with 1 arguments"),
        ({"grader": "MINE:two"}, "cannot be called with 3 arguments"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    tiny: Path, write: Write, tmp_path: Path, keys: dict[str, Any], problem: str
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def rule(prompt):\n    return {}['x']\n\ndef two(gold, reply):\n    return True\n")
    keys = {name: value.replace("MINE", str(mine)) for name, value in keys.items()}
    with pytest.raises(RorqualError, match=problem):
        run(settings(tiny, write("a.jsonl", labelled(60)), **keys), tmp_path / "out")
    assert not TeachPaths(tmp_path / "out").settings.exists()


def test_only_the_stages_that_count_are_counted(tmp_path: Path) -> None:
    spent = {"check": 1, "train": 15, "measure the baselines": 100, "ask the teacher": 1000}
    for stage, seconds in spent.items():
        append_line(tmp_path / "ledger.jsonl", {"stage": stage, "seconds": seconds})
    assert seconds_toward_limit(tmp_path / "ledger.jsonl") == 16


def test_a_folder_with_other_examples_is_refused(taught: tuple[TeachConfig, TeachPaths], tmp_path: Path) -> None:
    config, paths = taught
    old = TeachPaths(shutil.copytree(paths.out, tmp_path / "old"))
    lines = (old.data / "dev.jsonl").read_bytes().splitlines(keepends=True)
    (old.data / "dev.jsonl").write_bytes(b"".join(lines[1:]))
    with pytest.raises(ConfigError, match=r"has other examples.*\n.*another out="):
        run(config, old.out)


def test_a_grader_decides_which_answers_are_usable(tiny: Path, write: Write, tmp_path: Path) -> None:
    """And not whether they are numbers, as nearly all are: two of 51 rows have none."""
    (tmp_path / "mine.py").write_text("def grade(prompt, answer, reply):\n    return reply == answer\n")
    rows = [
        {"question": row["text"], "answer": "none" if n in (507, 508) else f"{n}"}
        for n, row in enumerate(labelled(51), 500)
    ]
    plain = settings(tiny, write("a.jsonl", rows))
    with pytest.raises(DataError, match="only 49 usable examples"):
        stages(plain, tmp_path / "plain").prepare_data()
    work = stages(plain.model_copy(update={"grader": f"{tmp_path}/mine.py:grade"}), tmp_path / "graded")
    work.prepare_data()
    assert work.dataset.left_out == {}


def test_the_report_says_what_the_results_say(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    page, results = paths.report.read_text(), json.loads(paths.results.read_bytes())
    after = results["results"][-1]
    for row in results["results"]:
        samples = Evaluation.load(paths.evaluation_file(row["name"])).samples
        right = sum(one.verdict.value == "right" for one in samples)
        assert (row["right"], row["of"]) == (right, len(samples)) and row["name"] in page
        assert f"{100 * right / len(samples):.1f}" in page
        if row is not after:
            assert row["difference"] == pytest.approx((after["right"] - right) / len(samples))
            assert row["gained"] - row["lost"] == after["right"] - right
    first_screen = page.partition("</header>")[0]
    assert [first_screen.count(mark) for mark in ('class="lede"', "<figure>", 'class="talk"')] == [3, 1, 2]


def test_failures_of_a_run_are_shown(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    assert "examples, majority and taught model" in output_of("failures", str(paths.out), "count=1", "than=majority")
