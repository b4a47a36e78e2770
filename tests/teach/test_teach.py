"""`rorqual teach`, from a file to a report, with a tiny base model or none."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from example_files import Write, labelled, sums

from commands import started
from in_process import output_of
from rorqual.convert.merge import merge_run
from rorqual.core.errors import ConfigError, DataError, RorqualError, TaskError
from rorqual.core.journal import append_line, read_lines
from rorqual.core.ledger import Ledger
from rorqual.core.records import RunDir, write_json
from rorqual.data.fingerprint import fingerprint
from rorqual.engine.engine import Engine
from rorqual.evals.evaluation import Evaluation
from rorqual.tasks.examples import SEALED_FILE, list_test_readings
from rorqual.teach.answerer import load_answerer
from rorqual.teach.config import TeachConfig
from rorqual.teach.examples import Example
from rorqual.teach.held_out import HeldOut
from rorqual.teach.paths import TeachPaths
from rorqual.teach.plan import TeachPlan, sft_run
from rorqual.teach.promise import calibrate, possible_promises, promise
from rorqual.teach.rungs.language_model import ALONE, TAUGHT
from rorqual.teach.rungs.rung import TrainingRows
from rorqual.teach.rungs.simple import Majority
from rorqual.teach.rungs.storage import save_rung
from rorqual.teach.stages import TeachStages, teach
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


def doubtful(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return short texts with labels of which each ninth is drawn, so that no method is always right."""
    draw = random.Random(seed)
    rows = labelled(count, seed)
    return [row | {"label": draw.choice(["card", "pin", "fee"])} if n % 9 == 0 else row for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TeachConfig, TeachPaths]:
    """A language model that was taught to label short texts, and must be used. One label is in the test split alone."""
    folder = tmp_path_factory.mktemp("taught")
    file = folder / "labels.jsonl"
    rows = [
        *doubtful(ROWS - 1),
        {"text": "odd thing", "label": "rare"},
    ]  # the 150th row goes to the smallest fold, the test split
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(tiny, file, rung=TAUGHT)
    assert run(config, folder / "out") == folder / "out" / "report.html"
    return config, TeachPaths(folder / "out")


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeachConfig, TeachPaths]:
    """The rungs without a language model on many examples, of which a promise can be made.

    The rung is named, because it depends on measured times whether another one answers before it.
    """
    folder = tmp_path_factory.mktemp("climbed")
    file = folder / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in doubtful(300)))
    config = settings(Path("none"), file, promise=0.8, minutes=5.0, rung="logistic regression")
    run(config, folder / "out")
    return config, TeachPaths(folder / "out")


def held_out_of(paths: TeachPaths, name: str) -> HeldOut:
    return HeldOut(**json.loads(paths.held_out_file(name).read_bytes()))


def pool_of(paths: TeachPaths) -> set[str]:
    return {line["key"] for split in ("train", "dev") for line in read_lines(paths.data / f"{split}.jsonl")}


# ---- rungs and the choice


def test_each_rung_is_measured_on_held_out_examples_and_two_on_the_test_split(
    taught: tuple[TeachConfig, TeachPaths], climbed: tuple[TeachConfig, TeachPaths]
) -> None:
    for _, paths in (taught, climbed):
        pool, choice = pool_of(paths), json.loads(paths.choice.read_bytes())
        assert {*held_out_of(paths, "majority").right} == pool >= {*held_out_of(paths, "logistic regression").right}
        tested = [Evaluation.load(paths.evaluation_file(choice[key])) for key in ("chosen", "other")]
        assert {*tested[0].problem_keys} == {*tested[1].problem_keys} and len(tested[0].problem_keys) > 20
        assert pool.isdisjoint(tested[0].problem_keys)
        assert {file.name for file in (paths.out / "evals").iterdir()} == {
            paths.evaluation_file(choice[key]).name for key in choice
        }
        assert {one.reply for one in tested[0].samples} <= {"card", "pin", "fee"}, "replies are held to the labels"
    assert choice == {"chosen": "logistic regression", "other": "nearest neighbour"}


def test_the_language_model_and_its_base_are_measured_on_the_dev_split(taught: tuple[TeachConfig, TeachPaths]) -> None:
    config, paths = taught
    dev = {line["key"] for line in read_lines(paths.data / "dev.jsonl")}
    prompted = stages(config, paths.out).model.prompted
    bare, shots = prompted
    assert held_out_of(paths, TAUGHT).right.keys() == dev and held_out_of(paths, TAUGHT).offered
    for name, opening in prompted.items():
        assert held_out_of(paths, name).right.keys() <= dev and not held_out_of(paths, name).offered
        assert opening[0].role == "system" and "card" in str(opening[0].content)
    train = {line["prompt"] for line in read_lines(paths.data / "train.jsonl")}
    asked = [turn.content for turn in prompted[shots] if turn.role == "user"]
    assert train >= {*asked} and shots == f"base model, {len(asked)} examples" and len(prompted[bare]) == 1
    grammar = json.loads(paths.model.task_defaults().grammar.source)  # type: ignore[union-attr]
    assert {*grammar} == {"card", "pin", "fee"}, "labels of the training examples alone"


def test_without_a_language_model_nothing_is_imported_or_trained(
    climbed: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    paths = TeachPaths(tmp_path / "out")
    said = output_of("teach", climbed[0].file, "base=none", "encoder=none", f"out={paths.out}")
    assert not any(one.exists() for one in (paths.base, paths.sft.path, paths.model.path, paths.plan))
    assert "no language model" in said and "rorqual export" not in said
    results = json.loads(paths.results.read_bytes())
    assert results["skipped"] == {TAUGHT: "base=none"} and results["chosen"].endswith("logistic regression")
    assert results["sentences"][0].startswith(f"Use {results['chosen']}: right on ")


def test_a_language_model_is_not_trained_if_a_cheap_rung_makes_no_error(write: Write, tmp_path: Path) -> None:
    """The base model that is named does not exist, and is not looked for."""
    run(settings(Path("nobody/nothing"), write("a.jsonl", labelled(ROWS)), minutes=5.0), tmp_path / "out")
    results = json.loads(TeachPaths(tmp_path / "out").results.read_bytes())
    assert results["skipped"][TAUGHT].startswith("even a method without an error would not clearly beat ")
    assert results["chosen"].endswith(results["skipped"][TAUGHT].rpartition(" clearly beat ")[2])


def test_the_best_rung_answers_before_the_language_model_is_trained(
    taught: tuple[TeachConfig, TeachPaths], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = taught
    work = stages(config.model_copy(update={"quiet": False, "minutes": 5.0}), tmp_path / "out")
    for stage in (work.check_settings, work.prepare_data, work.climb_cheap_rungs):
        stage()
    assert "can be asked: rorqual chat" in capsys.readouterr().out
    [answer] = load_answerer(tmp_path / "out", threads=1).answer(["my chip 77"])
    assert answer.text == "card" and answer.rung == "logistic regression" and 0.5 < answer.probability < 1


def test_the_test_split_is_read_once_and_after_the_choice(
    taught: tuple[TeachConfig, TeachPaths], climbed: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    [opened] = list_test_readings(taught[1].data)
    assert opened.checkpoint == fingerprint(taught[1].model, taught[1].model.checkpoint())
    assert [one.checkpoint for one in list_test_readings(climbed[1].data)] == [""]
    work = stages(climbed[0], tmp_path / "out")
    for stage in (work.check_settings, work.prepare_data, work.climb_cheap_rungs, work.climb_with_language_model):
        stage()
    assert not work.paths.choice.exists()
    (work.paths.data / SEALED_FILE).unlink()
    with pytest.raises(DataError, match="the test split cannot be read"):
        work.choose_and_open_test_split()
    assert json.loads(work.paths.choice.read_bytes())["chosen"] == "logistic regression"


def test_the_test_split_is_answered_by_the_saved_rungs(climbed: tuple[TeachConfig, TeachPaths], tmp_path: Path) -> None:
    config, paths = climbed
    out = TeachPaths(shutil.copytree(paths.out, tmp_path / "out"))
    for name in json.loads(out.choice.read_bytes()).values():
        other = Majority()
        other.fit(TrainingRows([Example(1, "?", f"by {name}")], "label"))
        save_rung(other, out.rung_file(name))
    shutil.rmtree(out.out / "evals")
    run(config, out.out)
    for name in json.loads(out.choice.read_bytes()).values():
        assert {one.reply for one in Evaluation.load(out.evaluation_file(name)).samples} == {f"by {name}"}


def test_the_promise_is_made_of_the_held_out_answers(climbed: tuple[TeachConfig, TeachPaths]) -> None:
    config, paths = climbed
    held = held_out_of(paths, json.loads(paths.choice.read_bytes())["chosen"])
    right, calibration = [*held.right.values()], calibrate([*held.probability.values()], [*held.right.values()])
    made = promise(0.8, [calibration.probability(one) for one in held.probability.values()], right)
    answerer, results = load_answerer(paths.out, threads=1), json.loads(paths.results.read_bytes())
    assert made is not None and made.answered > 100 and answerer.config.promise == made
    assert answerer.config.steps[0].calibration == calibration and answerer.config.columns == ("text",)
    samples = Evaluation.load(paths.evaluation_file(held.name)).samples
    answers = answerer.answer([one.prompt for one in samples])
    assert [one.text for one in answers] == [one.reply for one in samples], "the served answers are the measured ones"
    assert json.loads(paths.test_probabilities.read_bytes()) == {
        one.key: answer.probability for one, answer in zip(samples, answers, strict=True)
    }
    sure = [one for one, answer in zip(samples, answers, strict=True) if answer.sure]
    assert results["promise"]["test_answered"] == len(sure) and results["promise"]["accuracy"] == config.promise == 0.8
    assert results["promise"]["test_right"] == sum(one.verdict.value == "right" for one in sure)
    assert all(answer.sure == (answer.probability >= made.threshold) for answer in answers)


def test_a_rung_that_the_user_names_is_used(climbed: tuple[TeachConfig, TeachPaths], tmp_path: Path) -> None:
    config, _ = climbed
    run(config.model_copy(update={"rung": "nearest neighbour", "promise": 0.0}), tmp_path / "out")
    paths = TeachPaths(tmp_path / "out")
    results = json.loads(paths.results.read_bytes())
    assert (results["chosen"], results["other"]) == ("nearest neighbour", "logistic regression")
    assert results["sentences"][0].startswith("As asked, use nearest neighbour: right on ")
    answerer = load_answerer(paths.out, threads=1)
    assert answerer.answer(["my chip 77"])[0].rung == "nearest neighbour" and answerer.config.promise is None


def test_the_rungs_have_a_share_of_the_minutes(climbed: tuple[TeachConfig, TeachPaths], tmp_path: Path) -> None:
    config, _ = climbed
    work = stages(config.model_copy(update={"minutes": 1e-6}), tmp_path / "out")
    for stage in (work.prepare_data, work.climb_cheap_rungs):
        stage()
    dev = {one.key for one in work.dataset.splits["dev"]}
    assert [one.right.keys() for one in work.climb.results] == [dev] * 3, "one fold, even without time"


# ---- the folder


def test_the_model_is_a_run_of_its_own_with_defaults(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    defaults, plan = paths.model.task_defaults(), json.loads(paths.plan.read_bytes())
    assert defaults.thinking == "off" and defaults.grammar is not None and defaults.grammar.kind == "choice"
    assert defaults.max_tokens == plan["max_tokens"] and defaults.temperature == 0
    assert paths.sft.config()["steps"] == plan["steps"] == max(plan["dev_steps"])
    shutil.move(paths.out / "sft", paths.out / "sft-away")  # the model needs no other folder
    Engine(paths.model.path)
    shutil.move(paths.out / "sft-away", paths.out / "sft")


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


@pytest.mark.parametrize("change", [{"seed": 1}, {"minutes": 0.01}, {"count": 30}, {"rung": "majority"}])
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


def test_another_promise_trains_nothing_and_opens_nothing(
    climbed: tuple[TeachConfig, TeachPaths], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, paths = climbed
    out = TeachPaths(shutil.copytree(paths.out, tmp_path / "out"))
    names = [
        file.relative_to(out.out) for folder in ("rungs", "evals", "data") for file in (out.out / folder).iterdir()
    ]
    accuracy = 0.999
    for accuracy in (0.999, 0.7):
        run(config.model_copy(update={"promise": accuracy}), out.out)
        assert all((out.out / name).read_bytes() == (paths.out / name).read_bytes() for name in names)
        assert load_answerer(out.out, threads=1).config.asked == accuracy
        assert f"promise: {accuracy}" in out.settings.read_text() and len(list_test_readings(out.data)) == 1
        said = capsys.readouterr().out
        page, results = out.report.read_text(), json.loads(out.results.read_bytes())
        can = accuracy == 0.7
        assert ("Warning: every prompt is refused, because an accuracy of 0.999 could not" in said) != can
        assert (f"rorqual serve {out.out}" in said) == can == ("every prompt is refused" not in page)
        assert f"maybe mislabelled: rorqual check {config.file} encoder=none suspects=true" in said
        assert f"<code>rorqual check {config.file} encoder=none suspects=true</code>" in page
        held = held_out_of(out, "logistic regression")
        calibration = calibrate([*held.probability.values()], [*held.right.values()])
        sure = [calibration.probability(one) for one in held.probability.values()]
        pairs = possible_promises(sure, [*held.right.values()])
        listed = ", ".join(f"promise={bound:g} answers {100 * share:.1f} %" for bound, share in pairs)
        assert pairs and f"without training again: {listed}." in results["sentences"][1]
    prompts = [one.prompt for one in Evaluation.load(out.evaluation_file(held.name)).samples]
    answers = load_answerer(out.out, threads=1).answer(prompts)
    assert results["promise"]["test_answered"] == sum(one.sure for one in answers) > 0.9 * len(answers)


def test_a_prompt_unlike_all_examples_is_not_answered(climbed: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = climbed
    answerer, nearest = load_answerer(paths.out, threads=1), held_out_of(paths, "nearest neighbour")
    assert answerer.config.least_similar == min(nearest.probability.values()) > 0
    like, unlike = answerer.answer(["my chip 77", "今天天气很好"])
    assert like.sure and like.probability > 0.8 and unlike.probability == 0 and not unlike.sure


def test_more_minutes_train_another_model_beside_the_same_rungs(
    taught: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    """The time of the first model is not taken from that of the second one."""
    config, paths = taught
    out = TeachPaths(shutil.copytree(paths.out, tmp_path / "out"))
    append_line(out.ledger, {"stage": "train", "seconds": 1000.0})
    run(config.model_copy(update={"minutes": 1000.0}), out.out)  # more than the life of this process, which counts
    cheap = [file for file in sorted((paths.out / "rungs").iterdir()) if "language-model" not in file.name]
    assert len(cheap) > 4 and all(file.read_bytes() == (out.out / "rungs" / file.name).read_bytes() for file in cheap)
    before, after = (json.loads(one.plan.read_bytes())["steps"] for one in (paths, out))
    assert after > before and held_out_of(out, TAUGHT).fit_seconds < 1000
    assert len(list_test_readings(out.data)) == 2 and "the test split was read 2 times" in out.report.read_text()


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
        f"rung={TAUGHT}",
        "quiet=true",
        "threads=1",
        f"out={out}",
    )
    kills = 0
    for wait in (0.4, 0.8, 1.2, 1.6, 2.0, 3.0, 4.0, 300.0):
        process = started(tmp_path, *command)
        process.join(wait)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0 and kills >= 2
    again = TeachPaths(out)
    weights = [(one.model.checkpoint() / "model.safetensors").read_bytes() for one in (again, paths)]
    assert weights[0] == weights[1]
    assert again.dev.read_bytes() == paths.dev.read_bytes()
    for name in json.loads(paths.choice.read_bytes()).values():
        samples = [Evaluation.load(one.evaluation_file(name)).samples for one in (again, paths)]
        assert samples[0] == samples[1], name
    assert again.answerer.read_bytes() == paths.answerer.read_bytes()


def test_the_model_is_made_of_the_best_checkpoint_and_not_of_the_last(
    taught: tuple[TeachConfig, TeachPaths], tmp_path: Path
) -> None:
    """The best checkpoint is replaced by one of another run, as if an earlier one had been best."""
    config, paths = taught
    out = TeachPaths(tmp_path / "out")
    shutil.copytree(paths.out, out.out)
    for gone in (out.model.path, out.best.path):
        shutil.rmtree(gone)
    out.held_out_file(TAUGHT).unlink()
    plan = TeachPlan(**json.loads(paths.plan.read_bytes())).model_copy(update={"steps": 1})
    fit(sft_run(RunDir(Path(config.base)), out.sft_rows, plan, seed=99), out.best, quiet=True)
    run(config, out.out)
    merge_run(out.best, tmp_path / "merged")
    weights = [
        (one.checkpoint() / "model.safetensors").read_bytes() for one in (out.model, RunDir(tmp_path / "merged"))
    ]
    assert weights[0] == weights[1] != (paths.model.checkpoint() / "model.safetensors").read_bytes()


def test_a_test_file_is_measured_and_nothing_of_it_is_trained_on(write: Write, tmp_path: Path) -> None:
    tests = labelled(30, seed=8)
    file, test = write("a.jsonl", [*labelled(80), *tests[:3]]), write("b.jsonl", tests)
    out = TeachPaths(tmp_path / "out")
    run(settings(Path("none"), file, test=str(test), count=25), out.out)
    choice = json.loads(out.choice.read_bytes())
    measured = {one.prompt for one in Evaluation.load(out.evaluation_file(choice["chosen"])).samples}
    assert len(measured) == 25 and measured < {row["text"] for row in tests}
    trained = {line["prompt"] for split in ("train", "dev") for line in read_lines(out.data / f"{split}.jsonl")}
    assert trained.isdisjoint(row["text"] for row in tests) and len(trained) > 70
    assert pool_of(out).isdisjoint(row["text"].lower() for row in tests)


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
    assert reason in work.model.reason_to_skip_grpo and bool(reason) == bool(work.model.reason_to_skip_grpo)
    work.model.find_base_and_plan()
    assert (work.model.plan.grpo_seconds > 0) == (not reason)


def test_words_become_numbers_with_derived_solutions_and_reasoning(
    tiny: Path, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that are too long for the model, and test rows without a number, are told."""
    long = {"question": f"{'word ' * 80} 5 and 7 more?", "answer": 12}
    tests = [*sums(20, seed=4), long, {"question": "5 and what more?", "answer": "unknown"}]
    file, test = write("a.jsonl", [*sums(100), long | {"question": f"9 {long['question']}"}]), write("b.jsonl", tests)
    paths = TeachPaths(tmp_path / "out")
    run(settings(tiny, file, test=str(test), quiet=False, rung=TAUGHT, track="tensorboard"), paths.out)
    said = capsys.readouterr().out
    assert "1 examples are longer than a row" in said and "rows are left out: unusable test row" in said
    assert all(re.search(r"\d+ \+ \d+ = \d+$", row["reasoning"]) for row in read_lines(paths.sft_rows))
    defaults, results = paths.model.task_defaults(), json.loads(paths.results.read_bytes())
    assert (defaults.thinking, defaults.grammar, defaults.calculator, defaults.temperature) == ("auto", None, True, 0)
    names = [row["name"] for row in results["rungs"]]
    assert names[:3] == ["majority", "nearest neighbour", "ranked calculations"] and names[-2:] == [ALONE, TAUGHT]
    samples = Evaluation.load(paths.evaluation_file(TAUGHT)).samples
    assert {one.reply for one in samples if one.prompt.startswith("word")} == {""} and len(samples) in (20, 21)
    assert f"the row '{ALONE}'" in unescape(paths.report.read_text()) and ALONE not in "".join(results["sentences"])
    assert "GRPO is skipped" in json.loads(paths.grpo_result.read_bytes())["text"]
    [events] = paths.sft.path.glob("tensorboard/*")
    assert b"loss" in events.read_bytes() and "track" not in paths.settings.read_text(encoding="utf-8")


def test_a_forced_language_model_that_fits_no_example_is_refused(tiny: Path, write: Write, tmp_path: Path) -> None:
    rows = [row | {"text": f"{row['text']} {'word ' * 80}"} for row in doubtful(60)]
    config = settings(tiny, write("a.jsonl", rows), minutes=5.0)
    with pytest.raises(DataError, match="all examples are longer than 256 tokens"):
        run(config.model_copy(update={"rung": TAUGHT}), tmp_path / "forced")
    run(config, tmp_path / "out")
    results = json.loads(TeachPaths(tmp_path / "out").results.read_bytes())
    assert results["skipped"] == {TAUGHT: "all examples are longer than 256 tokens"}


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
    work.model.find_base_and_plan()
    assert {row["key"] for row in read_lines(paths.sft_rows)} == {*texts}


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


def test_a_rule_of_the_users_own_is_a_rung(write: Write, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def rule(prompt):\n    return 'card' if 'card' in prompt else 'pin'\n")
    out = TeachPaths(tmp_path / "out")
    run(settings(Path("none"), write("a.jsonl", labelled(ROWS)), rule=f"{mine}:rule", rung="rule"), out.out)
    assert {one.reply for one in Evaluation.load(out.evaluation_file("rule")).samples} == {"card", "pin"}
    assert load_answerer(out.out, threads=1).answer(["my card", "my fee"])[1].text == "pin"


def test_a_grader_of_the_users_own_decides_everywhere(tiny: Path, write: Write, tmp_path: Path) -> None:
    """A grader that accepts every answer makes all of them right, in training, on held-out and on test examples."""
    mine = tmp_path / "mine.py"
    mine.write_text("def grade(prompt, answer, reply):\n    return True\n")
    out = TeachPaths(tmp_path / "out")
    run(settings(tiny, write("a.jsonl", doubtful(ROWS)), grader=f"{mine}:grade", rung=TAUGHT, count=20), out.out)
    assert {bit for line in read_lines(out.dev) for bit in line["bits"]} == {"1"}
    found = [HeldOut(**json.loads(file.read_bytes())) for file in (out.out / "rungs").glob("*.json")]
    assert len(found) > 4 and {one.accuracy for one in found} == {1.0}
    tested = [Evaluation.load(file) for file in (out.out / "evals").iterdir()]
    assert {sample.verdict.value for one in tested for sample in one.samples} == {"right"} and len(tested) == 2
    mine.write_text("def grade(prompt, answer, reply):\n    return 1 / 0\n")
    with pytest.raises(TaskError, match=r"the grader, on .*b\.jsonl:1, raised ZeroDivisionError.*mine\.py:2"):
        run(settings(tiny, write("b.jsonl", labelled(80)), grader=f"{mine}:grade"), tmp_path / "raises")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"base": "nowhere"}, "no model 'nowhere'"),
        ({"base": "nowhere.gguf"}, "no model 'nowhere.gguf'"),
        ({"encoder": "nowhere"}, "nowhere: no encoder"),
        ({"rung": "logistic regresion"}, "(?s)no rung 'logistic regresion'.*kind label.*'logistic regression'"),
        ({"rung": "ranked calculations"}, "no rung 'ranked calculations' for answers of the kind label"),
        ({"rung": TAUGHT, "base": "none"}, "no rung 'language model'"),
        ({"file": "nowhere.csv"}, "no such file"),
        ({"test": "nowhere.csv"}, "no such file"),
        ({"answer": "labels"}, "no column 'labels'"),
        ({"rule": "x"}, "does not name a function"),
        ({"grader": "./nowhere.py:f"}, "no such file"),
        ({"track": "tensorboard, tensorbord"}, "unknown tracker 'tensorbord'"),
        ({"rule": "MINE:rule", "base": "nobody/nothing"}, "the rule `rule` raised KeyError"),
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


@pytest.mark.parametrize(
    ("spent", "counts"),
    [(["rungs", "ask the base model", "ask the taught model", "ask the teacher"], False), (["check"], True)],
)
def test_only_the_stages_that_count_are_counted(
    tiny: Path, write: Write, tmp_path: Path, spent: list[str], counts: bool
) -> None:
    """The time of the cheap rungs, and of asking models, is not taken from the training."""
    work = stages(settings(tiny, write("a.jsonl", labelled(ROWS)), minutes=10.0), tmp_path / "out")
    work.prepare_data()
    for stage in spent:
        append_line(work.paths.ledger, {"stage": stage, "seconds": 1000})
    work.model.find_base_and_plan()
    assert (work.model.plan.steps == 8) == counts


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


def test_the_report_says_what_the_files_say(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    page, results = paths.report.read_text(), json.loads(paths.results.read_bytes())
    for row in results["rungs"]:
        held = held_out_of(paths, row["name"])
        assert row["held_out"] == {
            "right": sum(held.right.values()), "of": len(held.right), "interval": vars(held.interval)
        } and (row["answer_seconds"], row["fit_seconds"]) == (held.answer_seconds, held.fit_seconds)  # fmt: skip
        file = paths.rung_file(row["name"])
        assert row["bytes"] == (file.stat().st_size if file.exists() else None)
        assert row["name"] in page and f"{100 * held.accuracy:.1f}" in page
    right = {}
    for name, row in results["test"].items():
        samples = Evaluation.load(paths.evaluation_file(name)).samples
        right[name] = sum(one.verdict.value == "right" for one in samples)
        assert (row["right"], row["of"]) == (right[name], len(samples))
    ahead = right[results["chosen"]] - right[results["other"]]
    assert results["chosen"] == TAUGHT and results["test_openings"] == 1
    assert results["difference"]["mean"] == pytest.approx(ahead / len(samples))
    assert results["difference"]["gained"] - results["difference"]["lost"] == ahead
    first_screen = page.partition("</header>")[0]
    assert [first_screen.count(mark) for mark in ('class="lede"', "<figure>", 'class="talk"')] == [3, 1, 2]


def test_failures_of_a_run_are_shown(taught: tuple[TeachConfig, TeachPaths]) -> None:
    _, paths = taught
    assert f"examples, logistic regression and {TAUGHT}: " in output_of("failures", str(paths.out), "count=1")
