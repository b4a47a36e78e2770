"""`rorqual teach`, from a file to a report, with a tiny base model."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from example_files import Write, labelled, sums

from rorqual.convert.merge import merge_run
from rorqual.core.errors import ConfigError, DataError, RorqualError, TaskError
from rorqual.core.journal import append_line, read_lines
from rorqual.core.ledger import Ledger, read_ledger
from rorqual.core.records import RunDir, write_json
from rorqual.data.fingerprint import fingerprint
from rorqual.engine.engine import Engine
from rorqual.evals.evaluation import Evaluation
from rorqual.tasks.examples import openings
from rorqual.teach import run as running
from rorqual.teach.check import split_of_group
from rorqual.teach.classical import classical
from rorqual.teach.config import TeachConfig
from rorqual.teach.examples import Example
from rorqual.teach.place import AFTER, ALONE, BEFORE, TeachPaths
from rorqual.teach.plan import TeachPlan, sft_run
from rorqual.teach.run import TeachStages, teach
from rorqual.train.loop import fit

ROWS = 150


def run(config: TeachConfig, out: Path) -> Path:
    return teach(config, out, threads=1, import_progress=lambda *_: None)


def settings(tiny: Path, example_file: Path, **keys: Any) -> TeachConfig:
    return TeachConfig(**({"file": str(example_file), "base": str(tiny), "minutes": 0.05, "quiet": True} | keys))


@pytest.fixture(scope="module")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TeachConfig, TeachPaths]:
    """A model that was taught to label short texts. One label is in the test split alone."""
    folder = tmp_path_factory.mktemp("taught")
    file = folder / "labels.jsonl"
    rare = next(f"odd thing {n}" for n in range(99) if split_of_group(f"odd thing {n}") == "test")
    rows = [*labelled(ROWS), {"text": rare, "label": "rare"}]
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
    evaluations = [Evaluation.load(paths.evaluation(name)) for name in (*names, AFTER)]
    assert len({tuple(sorted(one.keys)) for one in evaluations}) == 1 and len(evaluations[0].keys) > 20
    train, dev = (list(read_lines(paths.data / f"{split}.jsonl")) for split in ("train", "dev"))
    assert {line["key"] for line in (*train, *dev)}.isdisjoint(evaluations[0].keys)
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
    assert Evaluation.load(paths.evaluation(AFTER)).thinking == "off"
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
        samples = Evaluation.load(paths.evaluation(name)).samples
        alone = classical(train, [Example(1, one.prompt, one.answer) for one in samples], "label")[name]
        assert [one.reply for one in samples] == alone


def test_the_best_checkpoint_on_dev_is_the_model(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    lines = [line for line in read_lines(paths.dev) if line["run"] == "sft"]
    assert [line["step"] for line in lines] == json.loads(paths.plan.read_bytes())["dev_steps"]
    best = max(lines, key=lambda line: (line["right"], line["step"]))
    assert paths.best.steps() == [best["step"]]


def test_the_test_split_is_opened_once_for_the_baselines_and_once_for_the_model(
    taught: tuple[TeachConfig, TeachPaths], tiny: Path
) -> None:
    _, paths = taught
    first, second = openings(paths.data)
    assert first.checkpoint == fingerprint(RunDir(tiny), RunDir(tiny).checkpoint())
    assert second.checkpoint == fingerprint(paths.model, paths.model.checkpoint())


def test_an_evaluation_from_outside_is_recorded_with_its_checkpoint(
    taught: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    _, paths = taught
    data = shutil.copytree(paths.data, tmp_path / "data")
    process = rorqual(
        "eval", str(paths.model.path), "task=examples", f"data={data}", "count=5", "out=r.json", cwd=tmp_path
    )
    assert process.communicate(timeout=100) and process.returncode == 0
    *before, last = openings(data)
    assert len(before) == 2 and last.command == f"rorqual eval {paths.model.path}"
    assert last.checkpoint == fingerprint(paths.model, paths.model.checkpoint())


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


def test_a_wrong_setting_does_not_keep_the_folder(tiny: Path, write: Write, tmp_path: Path) -> None:
    file, out = write("a.jsonl", labelled(80)), tmp_path / "out"
    for wrong in ({"base": "nowhere"}, {"rule": "./nowhere.py:f"}, {"answer": "labels"}):
        with pytest.raises((ConfigError, DataError, TaskError)):
            run(settings(tiny, file, **wrong), out)
        assert not TeachPaths(out).settings.exists()


def test_another_grader_is_another_task(tiny: Path, write: Write, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.py", tmp_path / "out"
    mine.write_text("def grade(prompt, answer, reply):\n    return reply == answer\n")
    config = settings(tiny, write("a.jsonl", labelled(80)), grader=f"{mine}:grade", count=10)
    run(config, out)
    mine.write_text("def grade(prompt, answer, reply):\n    return True\n")
    with pytest.raises(ConfigError, match="another content of a file"):
        run(config, out)


def test_long_rows_and_answers_of_another_kind_are_left_out(
    tiny: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"question": f"{'word ' * 80} 5 and 7 more?", "answer": 12}
    tests = [*sums(20, seed=4), long, {"question": "5 and what more?", "answer": "unknown"}]
    file, test = write("a.jsonl", [*sums(100), long | {"question": f"9 {long['question']}"}]), write("b.jsonl", tests)
    out = TeachPaths(tmp_path / "out")
    run(settings(tiny, file, test=str(test), quiet=False), out.out)
    assert len(Evaluation.load(out.evaluation(AFTER)).samples) == 20
    said = capsys.readouterr().out
    assert "1 rows are left out: longer than 256 tokens" in said and "2 rows are left out: unusable test row" in said


def test_the_report_says_what_the_results_say(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    page = paths.report.read_text()
    results = json.loads(paths.results.read_bytes())
    assert len(results["sentences"]) == 3 and results["test_openings"] == 2
    by_name = {row["name"]: row for row in results["results"]}
    for name, row in by_name.items():
        samples = Evaluation.load(paths.evaluation(name)).samples
        right = sum(one.verdict.value == "right" for one in samples)
        assert (row["right"], row["of"]) == (right, len(samples))
        assert f"{100 * right / len(samples):.1f}" in page and name in page
        if name != AFTER:
            after = by_name[AFTER]
            assert row["difference"] == pytest.approx((after["right"] - right) / len(samples))
            assert row["gained"] - row["lost"] == after["right"] - right
    best = max((row for row in results["results"] if row["name"] != AFTER), key=lambda row: row["right"])
    leads = "needs no language model" in results["sentences"][0]
    assert leads == (best["difference_interval"]["low"] <= 0 and not best["name"].startswith("base"))
    assert "read twice" in results["sentences"][2]
    first_screen = page.partition("</header>")[0]
    assert first_screen.count('class="lede"') == 3 and first_screen.count("<figure>") == 1
    assert first_screen.count('class="talk"') == 2


def test_minutes_leave_out_the_baselines_and_are_planned_once(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    stages = [entry.stage for entry in read_ledger(paths.ledger)]
    assert {"check", "base", "measure the baselines", "train", "reinforce", "measure", "report"} <= {*stages}


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
    command = ("teach", config.file, f"base={config.base}", "minutes=0.05", "quiet=true", "threads=1", f"out={out}")
    waits: Iterator[float] = iter([2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0])
    kills = 0
    while True:
        process = rorqual(*command, cwd=tmp_path)
        try:
            process.wait(next(waits))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        except StopIteration:
            process.wait()
            break
    assert process.returncode == 0, process.stderr.read() if process.stderr else ""
    assert kills >= 2
    again = TeachPaths(out)
    ours, theirs = (fingerprint(one.model, one.model.checkpoint()) for one in (again, paths))
    weights = [(one.model.checkpoint() / "model.safetensors").read_bytes() for one in (again, paths)]
    assert weights[0] == weights[1], (ours, theirs)
    assert again.dev.read_bytes() == paths.dev.read_bytes()
    for name in (*json.loads(paths.baselines.read_bytes())["names"], AFTER):
        samples = [Evaluation.load(one.evaluation(name)).samples for one in (again, paths)]
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
    out.evaluation(AFTER).unlink()
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
    measured = {one.prompt for one in Evaluation.load(out.evaluation(AFTER)).samples}
    assert len(measured) == 25 and measured < {row["text"] for row in tests}
    trained = {line["prompt"] for split in ("train", "dev") for line in read_lines(out.data / f"{split}.jsonl")}
    assert trained.isdisjoint(row["text"] for row in tests) and len(trained) > 70


def test_only_the_stages_that_count_are_counted(tiny: Path, write: Write, tmp_path: Path) -> None:
    paths = TeachPaths(tmp_path)
    for stage, seconds in (
        ("check", 1),
        ("train", 10),
        ("measure the baselines", 100),
        ("ask the teacher", 1000),
        ("train", 5),
    ):
        append_line(paths.ledger, {"stage": stage, "seconds": seconds})
    config = settings(tiny, write("a.jsonl", labelled(60)))
    stages = TeachStages(config, paths, 1, Ledger(tmp_path / "other.jsonl"), lambda *_: None, "")
    assert stages._spent() == 16


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
    paths = TeachPaths(tmp_path / "out")
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        work = TeachStages(settings(tiny, write("a.jsonl", rows), **keys), paths, 1, ledger, lambda *_: None, "")
        work.prepare()
        assert reason in work.no_grpo and bool(reason) == bool(work.no_grpo)
        work.find_base()
    assert (work.plan.grpo_seconds > 0) == (not reason)


def test_a_full_disk_is_said_and_nothing_is_lost(tiny: Path, write: Write, tmp_path: Path) -> None:
    """The limit on file sizes stops the first checkpoint."""
    write("a.jsonl", labelled(80))
    command = ("teach", "a.jsonl", f"base={tiny}", "minutes=0.05", "quiet=true", "threads=1", "count=10")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
    try:
        process = rorqual(*command, cwd=tmp_path)
        _, errors = process.communicate(timeout=200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert process.returncode == 2 and "cannot write" in errors and "Traceback" not in errors, errors
    process = rorqual(*command, cwd=tmp_path)
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "rorqual chat runs/a/model" in out and (tmp_path / "runs" / "a" / "report.html").is_file()
    shown = rorqual("failures", "runs/a", "count=1", "than=majority", cwd=tmp_path)
    assert "10 examples, majority and taught model" in shown.communicate(timeout=100)[0] and shown.returncode == 0


def test_words_become_numbers_with_derived_solutions_and_reasoning(tiny: Path, write: Write, tmp_path: Path) -> None:
    out = TeachPaths(tmp_path / "out")
    run(settings(tiny, write("sums.jsonl", sums(110)), count=10), out.out)
    rows = list(read_lines(out.data / "train.jsonl"))
    assert all(re.fullmatch(r"\d+ \+ \d+ = \d+", row["reasoning"]) for row in rows)
    assert Evaluation.load(out.evaluation(AFTER)).thinking == "auto"
    assert out.model.task_defaults().thinking == "auto" and out.model.task_defaults().grammar is None
    assert out.model.task_defaults().calculator is True and out.model.task_defaults().temperature == 0
    names = json.loads(out.baselines.read_bytes())["names"]
    calculated = {name: Evaluation.load(out.evaluation(name)).params.calculator for name in (*names, ALONE, AFTER)}
    assert calculated == {name: name == AFTER or name.startswith("base, ") for name in calculated}
    shown = json.loads(out.results.read_bytes())
    assert [row["name"] for row in shown["results"]] == [*names, ALONE, AFTER]
    assert ALONE in out.report.read_text() and not any(ALONE in sentence for sentence in shown["sentences"])
    assert "GRPO is skipped" in json.loads(out.grpo_result.read_bytes())["text"]
    assert "logistic regression" not in names and "nearest neighbour" in names


def test_errors_of_the_users_functions_come_before_the_base_is_loaded(tiny: Path, write: Write, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def rule(prompt):\n    return {}['x']\n\ndef grade(prompt, answer, reply):\n    return True\n\n"
        "def two(gold, reply):\n    return True\n"
    )
    out, file = tmp_path / "out", write("a.jsonl", labelled(ROWS))
    for keys, error in (
        ({"rule": f"{mine}:rule"}, "the rule `rule` raised KeyError"),
        ({"rule": f"{mine}:two"}, "cannot be called with 1 arguments"),
        ({"grader": f"{mine}:two"}, "cannot be called with 3 arguments"),
    ):
        with pytest.raises(RorqualError, match=error):
            run(settings(tiny, file, **({"base": "no such model"} | keys)), out)
    assert not (out / "base").exists()
    with pytest.raises(RorqualError, match="no such file"):
        run(settings(tiny, tmp_path / "gone.csv"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_examples_without_a_teachers_reason_are_counted(
    tiny: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tiny, write("a.jsonl", labelled(ROWS)), teacher=str(tiny), quiet=False)
    paths = TeachPaths(tmp_path / "out")
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        work = TeachStages(config, paths, 1, ledger, lambda *_: None, "")
        texts = {one.key: "because" for one in work.dataset.splits["train"][3:]}
        write_json(paths.reasons, {"texts": texts, "given": [], "stopped": "the budget is spent"})
        work.prepare()
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
    config = settings(tiny, write("a.jsonl", rows[:80]), test=test, **named)
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        work = TeachStages(config, TeachPaths(tmp_path / "out"), 1, ledger, lambda *_: None, "")
        work.prepare()
    lines = [line for split in ("train", "dev") for line in read_lines(work.paths.data / f"{split}.jsonl")]
    assert {(line["prompt"], line["completion"], line.get("reasoning")) for line in lines} == {
        (row["subject"], row["team"], row["why"]) for row in rows[:80]
    }
    assert {one.prompt for one in work.dataset.splits["test"]} == {row["subject"] for row in rows[80:]}


def test_the_grader_and_the_kind_of_the_training_file_decide_which_rows_are_used(
    tiny: Path, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def grade(prompt, answer, reply):\n    return reply == answer\n")
    rows = [{"question": row["text"], "answer": f"{n}"} for n, row in enumerate(labelled(104), 500)]
    rows[7]["answer"] = "no solution"
    plain = settings(tiny, write("a.jsonl", rows))
    graded = plain.model_copy(update={"grader": f"{tmp_path}/mine.py:grade"})
    test = [*rows[:30], rows[2] | {"answer": "502.0"}, rows[2] | {"answer": "503"}]
    for config, left_out in ((plain, {"no number": 1}), (graded, {})):
        with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
            work = TeachStages(config, TeachPaths(tmp_path / "out"), 1, ledger, lambda *_: None, "")
            assert work.dataset.left_out == left_out
    rows[8]["answer"] = "none"
    file = str(write("few.jsonl", rows[:51]))
    for config, usable in ((plain, "only 49 usable examples"), (graded, "")):
        config = config.model_copy(update={"file": file})
        with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
            work = TeachStages(config, TeachPaths(tmp_path / f"few-{bool(usable)}"), 1, ledger, lambda *_: None, "")
            with pytest.raises(DataError, match=usable) if usable else nullcontext():
                work.prepare()
    rows[8]["answer"] = "508"
    for count, problem in ((31, ""), (32, r"t32\.jsonl:32: the same prompt as line 3")):
        config = plain.model_copy(
            update={"file": str(write("b.jsonl", rows[30:])), "test": str(write(f"t{count}.jsonl", test[:count]))}
        )
        with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
            work = TeachStages(config, TeachPaths(tmp_path / "out"), 1, ledger, lambda *_: None, "")
            with pytest.raises(DataError, match=problem) if problem else nullcontext():
                assert len(work.dataset.splits["test"]) == 29


def test_more_minutes_allow_slower_baselines(
    tiny: Path, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BASELINE_SECONDS", 1e-3)
    config = settings(tiny, write("a.jsonl", labelled(ROWS)), minutes=10.0)
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        work = TeachStages(config, TeachPaths(tmp_path / "out"), 1, ledger, lambda *_: None, "")
        for stage in (work.check_settings, work.prepare, work.find_base, work.baselines):
            stage()
    known = json.loads(work.paths.baselines.read_bytes())
    assert "base, 4 examples" in known["names"] and known["left_out"] == []


def test_an_unknown_tracker_is_refused_before_anything_is_written(tiny: Path, write: Write, tmp_path: Path) -> None:
    file = write("a.jsonl", labelled(ROWS))
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'"):
        run(settings(tiny, file, track="tensorboard, tensorbord"), tmp_path / "out")
    assert not (tmp_path / "out" / "teach.yaml").exists()


def test_a_folder_of_an_earlier_version_resumes_if_its_examples_are_the_same(
    taught: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    config, paths = taught
    old = TeachPaths(shutil.copytree(paths.out, tmp_path / "old"))
    known = json.loads(old.baselines.read_bytes())
    del known["left_out"]
    write_json(old.baselines, known)
    write_json(old.reasons, {"texts": {"a": "b", "c": "d", "e": "f"}, "solved": 2, "given": 1, "stopped": ""})
    read = len(openings(old.data))
    assert run(config, old.out) == old.report
    page = old.report.read_text(encoding="utf-8")
    assert len(openings(old.data)) == read and "A teacher wrote 2 reasons for answers that it found, and 1 " in page
    lines = (old.data / "dev.jsonl").read_bytes().splitlines(keepends=True)
    (old.data / "dev.jsonl").write_bytes(b"".join(lines[1:]))
    with pytest.raises(ConfigError, match=r"has other examples.*\n.*another out="):
        run(config, old.out)


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


@pytest.mark.parametrize("body", ["True", "reply == answer", "reply == answer or reply[0] == 'c'"])
def test_a_grader_that_accepts_everything_is_noticed(
    tiny: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    (tmp_path / "mine.py").write_text(f"def grade(prompt, answer, reply):\n    return {body}\n")
    config = settings(tiny, write("a.jsonl", labelled(ROWS)), grader=f"{tmp_path}/mine.py:grade", quiet=False)
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        TeachStages(config, TeachPaths(tmp_path / "out"), 1, ledger, lambda *_: None, "").prepare()
    assert ("the grader accepts the answer of another example in" in capsys.readouterr().out) == (body == "True")


def test_a_rule_and_a_grader_of_the_users_own_are_used(tiny: Path, write: Write, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def rule(prompt):\n    return 'card' if 'card' in prompt else 'pin'\n\n"
        "def grade(prompt, answer, reply):\n    return reply in (answer, 'fee') and prompt.startswith(('my', 'the', 'a'))\n"
    )
    out = TeachPaths(tmp_path / "out")
    config = settings(tiny, write("a.jsonl", labelled(ROWS)), rule=f"{mine}:rule", grader=f"{mine}:grade", count=20)
    run(config, out.out)
    rule = Evaluation.load(out.evaluation("rule"))
    assert {one.reply for one in rule.samples} == {"card", "pin"}
    for name in ("majority", "rule", AFTER):
        samples = Evaluation.load(out.evaluation(name)).samples
        assert all((one.verdict.value == "right") == (one.reply in (one.answer, "fee")) for one in samples)
    mine.write_text("def grade(prompt, answer, reply):\n    return 1 / 0\n")
    with pytest.raises(TaskError, match=r"the grader, on .*b\.jsonl:1, raised ZeroDivisionError.*mine\.py:2"):
        run(settings(tiny, write("b.jsonl", labelled(80)), grader=f"{mine}:grade"), tmp_path / "raises")
    mine.write_text("def grade(prompt, answer, reply):\n    return answer != 'pin' and reply == answer\n")
    other = TeachPaths(tmp_path / "other")
    config = settings(tiny, write("b.jsonl", labelled(300)), grader=f"{mine}:grade")
    with pytest.raises(DataError, match=r"rows cannot be used: \d+ the grader rejects the answer"):
        run(config, other.out)


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
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    tiny: Path, write: Write, tmp_path: Path, keys: dict[str, Any], problem: str
) -> None:
    config = settings(tiny, write("a.jsonl", labelled(60)), **keys)
    began = time.monotonic()
    with pytest.raises((ConfigError, DataError, Exception), match=problem):
        run(config, tmp_path / "out")
    assert time.monotonic() - began < 20 and not (tmp_path / "out" / "sft").exists()
