"""Parts of `teach` one by one: the plan, training with a stop, GRPO, prompts of the base model, failures, and a teacher's reasons."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_files import labelled

from rorqual.core.errors import DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation
from rorqual.recipes.sft import sft
from rorqual.tasks.examples import AnswerKind, ExamplesTask, write_examples
from rorqual.teach import plan as plans
from rorqual.teach import train as training
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import rows_of
from rorqual.teach.examples import Example
from rorqual.teach.failures import failure_groups, failures_text, pair_replies
from rorqual.teach.measure import evaluate_guesses, instruction_message, most_shots
from rorqual.teach.paths import TeachPaths
from rorqual.teach.plan import ExampleLengths, TeachPlan, make_plan, sft_run
from rorqual.teach.reasons import TeacherReasons, factory_config
from rorqual.teach.results import load_results
from rorqual.teach.rungs.rung import Guess
from rorqual.teach.train import DevResult, TeachTraining
from rorqual.train.loop import fit
from rorqual.train.run import Run


def examples_of(rows: list[dict[str, object]]) -> list[Example]:
    ask, answer = ("text", "label") if "text" in rows[0] else ("question", "answer")
    return [Example(n, str(row[ask]), str(row[answer])) for n, row in enumerate(rows, 1)]


def data_of(folder: Path, train: list[Example], dev: list[Example], kind: str) -> Path:
    write_examples(folder, {"train": rows_of(train), "dev": rows_of(dev), "test": rows_of(dev)}, {"kind": kind})
    return folder


# ---- the plan


@pytest.fixture
def planned(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Plan with a known speed of 2 seconds a step in bfloat16, and 3 in float32, instead of measured ones."""
    data = data_of(tmp_path / "data", examples_of(labelled(40)), [], "label")

    def measured(run: Run, threads: int) -> float:
        assert run.source.row >= 8 and threads == 1
        return {"bfloat16": 2.0, "float32": 3.0}[run.dtype]

    monkeypatch.setattr(plans, "measure_step", measured)

    def make(lengths: list[ExampleLengths], seconds: float, reinforce: float = 0.0) -> TeachPlan:
        probe = 4 * (2.0 + 3.0)
        return make_plan(
            RunDir(tiny), data / "train.jsonl", lengths, seconds=seconds + probe, reinforce=reinforce, seed=0, threads=1
        )

    return make


def test_minutes_become_steps_by_the_measured_speed(planned) -> None:  # type: ignore[no-untyped-def]
    many = [ExampleLengths(30, 10)] * 2000
    plan = planned(many, 615.0)
    assert plan.steps == int(600 * 0.88 / 2) == 264 and plan.train_seconds == 528 and plan.grpo_seconds == 0
    assert plan.dev_steps == (106, 158, 211, 264) and plan.step_seconds == 2.0
    assert plan.dtype == "bfloat16"
    assert plan.epochs == pytest.approx(264 * plan.rows * plan.row / (2000 * 40))
    shared = planned(many, 615.0, reinforce=0.25)
    assert shared.steps == 198 and shared.grpo_seconds == pytest.approx(600 * 0.88 * 0.25)
    assert planned(many, -5.0).steps == 8 and planned(many, -5.0).grpo_seconds == 0
    few = planned([ExampleLengths(30, 10)] * 100, 1e6)
    assert few.steps == -(-12 * 100 * 40 // (few.rows * few.row)), "at most twelve epochs"


def test_the_first_step_is_not_timed(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(tmp_path / "data", examples_of(labelled(40)), [], "label")
    plan = TeachPlan(steps=4, dev_steps=(4,), rows=1, row=64, max_tokens=5, epochs=1, step_seconds=1, train_seconds=7)
    seen: list[float] = []

    def fitted(run: Run, out: RunDir, *, observe: Any, **keys: Any) -> Any:
        return fit(run, out, observe=lambda record: (seen.append(record["seconds"]), observe(record)), **keys)

    monkeypatch.setattr(plans, "fit", fitted)
    measured = plans.measure_step(sft_run(RunDir(tiny), data / "train.jsonl", plan, seed=0), 1)
    assert len(seen) == 4 and measured == sorted(seen[1:])[1]


def test_rows_fit_the_longest_example_and_replies_have_room(planned) -> None:  # type: ignore[no-untyped-def]
    plan = planned([ExampleLengths(30, 10)] * 500 + [ExampleLengths(100, 101)], 600.0)
    assert plan.row == 208 and plan.rows == 3 and plan.max_tokens == 101 + 50
    assert planned([ExampleLengths(30, 10)] * 500, 600.0).max_tokens == 26
    long = planned([ExampleLengths(30, 10)] * 500 + [ExampleLengths(232, 25)] * 3, 600.0)
    assert long.skipped == 3 and long.row == 192 and long.rows == 4
    for length in (257, 1025):
        with pytest.raises(DataError, match="all examples are longer than 256 tokens"):
            planned([ExampleLengths(length - 25, 25)], 600.0)
    assert planned([ExampleLengths(226, 30)] * 9, 600.0).model_dump()["max_tokens"] == 30, (
        "the context bounds the reply"
    )


def test_the_run_trains_what_the_plan_says(tiny: Path, tmp_path: Path) -> None:
    data = data_of(tmp_path / "data", examples_of(labelled(40)), [], "label")
    plan = TeachPlan(steps=7, dev_steps=(7,), rows=3, row=64, max_tokens=5, epochs=1, step_seconds=1, train_seconds=7)
    assert sft_run(RunDir(tiny), data / "train.jsonl", plan, seed=5).dtype == "float32"
    run = sft_run(RunDir(tiny), data / "train.jsonl", plan.model_copy(update={"dtype": "bfloat16"}), seed=5)
    assert run.dtype == "bfloat16" and run.chat == "deepseek" and plans.taught_chat_format("smollm2") == "chatml-plain"
    assert (run.steps, run.seed, run.source.row, run.optim.lr, run.start.run) == (7, 5, 64, plans.LR, str(tiny))  # type: ignore[attr-defined]
    source = run.source.model_dump()
    assert source["rows"] == 3 and source["longer"] == "skip" and source["data"] == str(data / "train.jsonl")
    assert run.tune.model_dump() == {
        "kind": "lora",
        "r": 16,
        "alpha": 32.0,
        "targets": ("all-linear",),
        "use_rslora": False,
    }


# ---- training with a stop


def test_a_stopped_run_resumes_with_the_schedule_of_all_steps(tmp_path: Path) -> None:
    run = sft(task="families:add", size="tiny", steps=6, rows=2)
    straight, parts = RunDir(tmp_path / "straight"), RunDir(tmp_path / "parts")
    fit(run, straight, quiet=True)
    asked: list[int] = []

    def stop(finished: int) -> bool:
        asked.append(finished)
        return finished == 2

    assert fit(run, parts, quiet=True, stop=stop).step == 2 and asked == [1, 2] and parts.steps() == [2]
    fit(run, parts, quiet=True, stop=lambda finished: finished >= 4)
    fit(run, parts, quiet=True)
    weights = [(one.checkpoint() / "model.safetensors").read_bytes() for one in (straight, parts)]
    assert weights[0] == weights[1]
    losses = [[record["loss"] for record in one.metrics()] for one in (straight, parts)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


# ---- supervised training and GRPO


OFTEN_RIGHT = "def grade(prompt, answer, reply):\n    return reply == answer or sum(reply.encode()) % 2 == 0\n"


def trained(tiny: Path, tmp_path: Path, *, grader: str = "", steps: int = 4, **plan_keys: object) -> TeachTraining:
    train, dev = examples_of(labelled(60)), examples_of(labelled(12, seed=3))
    paths = TeachPaths(tmp_path / "out")
    data_of(paths.data, train, dev, "label")
    shutil.copy(paths.data / "train.jsonl", paths.sft_rows)
    keys = {"train_seconds": 1000.0} | plan_keys
    plan = TeachPlan(
        steps=steps, dev_steps=(2, 3, steps), rows=2, row=96, max_tokens=8, epochs=1, step_seconds=0.1, **keys
    )  # type: ignore[arg-type]
    config = TeachConfig(file="x", grader=grader, seed=1, quiet=True)
    task = ExamplesTask(paths.data, grader=grader)
    chat, params = chat_format(Tokenizer.byte_level()), SamplingParams(max_tokens=8)
    return TeachTraining(config, paths, plan, task, params, "off", chat, "no time is planned", 1, lambda _: None)


def graded_before_grpo(tiny: Path, tmp_path: Path, grader: str) -> TeachTraining:
    """Supervised training that has ended, with this text of a grader and time for GRPO."""
    mine = tmp_path / "mine.py"
    mine.write_text(grader)
    work = trained(tiny, tmp_path, grader=f"{mine}:grade", grpo_seconds=1e6)
    work.train_supervised(RunDir(tiny))
    return work


def test_slow_replies_shorten_the_dev_split_for_all_checkpoints(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first measurement decides, also for the model of GRPO, and for a process that resumes."""
    monkeypatch.setattr(training, "DEV_FIRST", 5)
    whole = trained(tiny, tmp_path / "whole")
    whole.train_supervised(RunDir(tiny))
    assert [len(one.bits) for one in whole.dev_results("sft")] == [12, 12, 12]
    monkeypatch.setattr(training, "DEV_SECONDS", 0.0)
    said, bits = list[str](), "01110"
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"DEV = {[one.prompt for one in whole.dev_problems]!r}\ndef grade(prompt, answer, reply):\n    return prompt in DEV[1:4]\n"
    )
    work = replace(trained(tiny, tmp_path, grader=f"{mine}:grade"), say=said.append)
    work.train_supervised(RunDir(tiny))
    assert [one.bits for one in work.dev_results("sft")] == [bits] * 3
    assert [line for line in said if "5 of 12 problems" in line] == said[:1]
    monkeypatch.setattr(training, "DEV_SECONDS", 60.0)
    assert work.measure_on_dev(work.paths.best, "grpo", 1) == DevResult("grpo", 1, bits)


def test_a_kill_before_the_best_checkpoint_is_copied_loses_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = trained(tiny, tmp_path)
    copied = training.copy_run

    def killed(src: RunDir, dst: RunDir) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "copy_run", killed)
    with pytest.raises(KeyboardInterrupt):
        work.train_supervised(RunDir(tiny))
    monkeypatch.setattr(training, "copy_run", copied)
    work.train_supervised(RunDir(tiny))
    results = work.dev_results("sft")
    assert [one.step for one in results] == [2, 3, 4]
    assert work.paths.best.steps() == [max(results, key=lambda one: (one.right, one.step)).step]


def test_the_hard_cap_counts_what_a_killed_process_used(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SLACK", 0.0)
    work = trained(tiny, tmp_path, steps=40, train_seconds=100.0)
    run = sft_run(RunDir(tiny), work.paths.sft_rows, work.plan, seed=1)
    fit(run, work.paths.sft, quiet=True, stop=lambda finished: finished == 2)
    metrics = work.paths.sft.metrics_file
    lines = [json.loads(line) | {"seconds": 99.0} for line in metrics.read_text().splitlines()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    metrics.write_text(text)
    state = work.paths.sft.checkpoint() / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"metrics_bytes": len(text)}))
    manifest = work.paths.sft.checkpoint() / "whole.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"state.json": state.stat().st_size}))
    work.train_supervised(RunDir(tiny))
    assert work.paths.ended_early.is_file()
    assert json.loads(work.paths.ended_early.read_bytes()) == {"step": 2, "of": 40} and work.paths.sft.steps() == [2]
    assert [one.step for one in work.dev_results("sft")] == [2]


def test_grpo_runs_after_the_support_gate_and_is_used_if_it_clearly_beats_the_best_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MOST_GRPO", 1), ("FEWEST_GRPO", 1), ("GRPO_PROBLEMS", 3), ("GRPO_SAMPLES", 4)):
        monkeypatch.setattr(training, name, value)
    mine = tmp_path / "mine.py"
    mine.write_text(OFTEN_RIGHT)
    work = trained(tiny, tmp_path, grader=f"{mine}:grade", grpo_seconds=1e6, dtype="bfloat16")
    work = replace(work, params=replace(work.params, calculator=True))
    work.train_supervised(RunDir(tiny))
    result = work.train_grpo()
    config = work.paths.grpo.config()
    assert (config["steps"], config["source"]["problems"], config["source"]["samples"]) == (1, 3, 4)
    assert config["source"]["data"] == str(work.paths.data) and config["source"]["options"] == {
        "grader": f"{mine}:grade"
    }
    assert config["start"]["run"] == str(work.paths.best.path) and config["source"]["thinking"] == "off"
    assert config["tune"]["kind"] == "lora" and config["source"]["max_tokens"] == 8 and config["seed"] == 1
    assert config["source"]["calculator"] is True and config["dtype"] == "bfloat16"
    stored = json.loads(work.paths.grpo_plan.read_bytes())
    assert stored["run"]["steps"] == 1 and "of 16 training problems" in stored["text"]
    assert work.train_grpo() == result and len(work.dev_results("grpo")) == 1
    for before, after, used in (
        (["110000"], "111110", True),
        (["110000"], "101100", False),  # two gained and one lost
        (["111110"], "110000", False),
        (["110000", "000110", "100000"], "111000", False),  # of equally good checkpoints, the latest is kept
    ):
        lines = [*(("sft", bits) for bits in before), ("grpo", after)]
        work.paths.dev.write_text(
            "".join(json.dumps({"run": run, "step": 1, "bits": bits}) + "\n" for run, bits in lines)
        )
        work.paths.grpo_result.unlink()
        result = work.train_grpo()
        assert result.used == used and ("is used" in result.text) == used, (before, after)


def test_a_killed_grpo_resumes_with_its_steps_and_not_with_newly_measured_ones(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MOST_GRPO", 2), ("FEWEST_GRPO", 1), ("GRPO_PROBLEMS", 2), ("GRPO_SAMPLES", 2)):
        monkeypatch.setattr(training, name, value)
    work = graded_before_grpo(tiny, tmp_path, OFTEN_RIGHT)
    measured, calls = TeachTraining.measure_on_dev, list[str]()

    def killed(self: TeachTraining, run: RunDir, name: str, step: int) -> DevResult:
        calls.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(TeachTraining, "measure_on_dev", killed)
    with pytest.raises(KeyboardInterrupt):
        work.train_grpo()
    monkeypatch.setattr(TeachTraining, "measure_on_dev", measured)
    monkeypatch.setattr(training, "MOST_GRPO", 7)
    result = work.train_grpo()
    assert calls == ["grpo"] and work.paths.grpo.config()["steps"] == 2 and "2 of 2 steps" in result.text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return reply == answer + '!'", "solved 0 in every try"),
        ("return True", r"solved 16 in every try and the others never"),
    ],
)
def test_grpo_is_skipped_where_it_cannot_help(tiny: Path, tmp_path: Path, body: str, text: str) -> None:
    work = graded_before_grpo(tiny, tmp_path, f"def grade(prompt, answer, reply):\n    {body}\n")
    result = work.train_grpo()
    assert not result.used and text in result.text and not work.paths.grpo.path.exists()


# ---- the base model's prompts


@pytest.mark.parametrize("kind", ["number", "text", "label", "JSON"])
def test_examples_in_a_prompt_show_their_worked_solutions(kind: AnswerKind) -> None:
    """Unless a grammar has no place for them. Chat formats leave out the reasoning of earlier turns."""
    train, chat = (
        [Example(n, f"8 less 3, {n}", "5", "8 - 3 = 5") for n in range(1, 6)],
        chat_format(Tokenizer.byte_level()),
    )
    turns = most_shots(train, chat, kind, context=9000, room=200, seed=0)
    shown = "8 - 3 = 5\n5" if kind in ("number", "text") else "5"
    assert {*turns[::2]} == {Message("user", one.prompt) for one in train}
    assert turns[1::2] == [Message("assistant", shown)] * 5


def test_a_prompt_has_as_many_examples_as_fit() -> None:
    chat, train = chat_format(Tokenizer.byte_level()), examples_of(labelled(300))
    opening = instruction_message(train, "label")

    def shots(context: int, seed: int = 0) -> list[Message]:
        return most_shots(train, chat, "label", context=context, room=200, seed=seed)

    def length(turns: list[Message]) -> int:
        return len(chat.prompt((*opening, *turns, Message("user", "?")), "auto"))

    assert opening and 1950 < length(shots(3000)) <= 2048 and 750 < length(shots(1000)) <= 800
    assert shots(240) == [] and shots(3000, seed=1) != shots(3000)
    assert shots(1000)[:8] == shots(3000)[:8], "the same examples, but fewer"


# ---- failures


def measured(tmp_path: Path, kind: str, rows: list[tuple[str, str, str]]) -> tuple[Evaluation, Evaluation]:
    """Return evaluations of replies before and after. A row is (gold, before, after)."""
    tests = [Example(n, f"prompt {n}", gold) for n, (gold, _, _) in enumerate(rows, 1)]
    task = ExamplesTask(data_of(tmp_path / "data", tests, [], kind))
    problems = sorted(task.problems("train", 0), key=lambda one: int(one.key.split()[1]))
    old, new = ([Guess(row[place], 0.5) for row in rows] for place in (1, 2))
    return evaluate_guesses("old", task, problems, old), evaluate_guesses("new", task, problems, new)


def test_labels_are_grouped_with_the_worst_first(tmp_path: Path) -> None:
    before, after = measured(
        tmp_path,
        "label",
        [("a", "b", "a"), ("a", "a", "a"), ("b", "b", "c"), ("b", "a", "c"), ("b", "a", "a"), ("c", "", "c")],
    )
    found = failure_groups(pair_replies(before, after), "label")
    assert [(one.name, one.count, one.before, one.after, one.gained, one.lost) for one in found] == [
        ("b", 3, 1, 0, 0, 1),
        ("a", 2, 1, 2, 1, 0),
        ("c", 1, 0, 1, 1, 0),
    ]
    assert found[0].answers == {"c": 2, "a": 1}
    assert "more examples" not in failures_text(before, after, "label", count=2)


def test_json_answers_are_grouped_by_field(tmp_path: Path) -> None:
    before, after = measured(
        tmp_path,
        "JSON",
        [
            ('{"a": 1, "b": {"c": "X"}}', "no JSON", '{"a": 1, "b": {"c": "y"}}'),
            ('{"a": 2}', '{"a": 2}', '{"a": 2, "d": []}'),
        ],
    )
    found = {
        one.name: (one.count, one.before, one.after, one.answers)
        for one in failure_groups(pair_replies(before, after), "JSON")
    }
    assert found == {"a": (2, 1, 2, {}), "b.c": (1, 0, 0, {"y": 1}), "d": (1, 1, 0, {"[]": 1})}


# ---- a teacher's reasons


def test_reasons_are_used_only_if_enough_examples_have_one() -> None:
    train = examples_of(labelled(10))
    half = TeacherReasons({one.key: "because" for one in train[:5]}, [train[2].key])
    assert half.with_reasons(train) == [
        replace(one, reasoning="because", told=n == 2) for n, one in enumerate(train[:5])
    ]
    few = TeacherReasons({one.key: "because" for one in train[:4]})
    assert few.with_reasons(train) == train
    assert "5 examples without a reason are left out" in half.missing_reasons_note(train)
    assert "6 of 10 examples have no reason, so the reasons are not used" in few.missing_reasons_note(train)
    assert not TeacherReasons({one.key: "because" for one in train}).missing_reasons_note(train)


def test_a_server_is_asked_within_its_budget_with_the_users_settings(tmp_path: Path) -> None:
    config = TeachConfig(
        file="x",
        teacher="http://127.0.0.1:9/v1",
        model="large",
        budget=2.0,
        price_in=0.3,
        price_out=1.2,
        grader="./g.py:f",
        seed=7,
    )
    found = factory_config(config, tmp_path / "data", 12)
    assert (found.teacher, found.model, found.data, found.problems) == (
        "http://127.0.0.1:9/v1",
        "large",
        str(tmp_path / "data"),
        12,
    )
    assert (found.access.budget, found.access.price_in, found.access.price_out) == (2.0, 0.3, 1.2)
    with pytest.raises(ValueError, match="budget needs price_in and price_out"):
        TeachConfig(file="x", teacher="http://127.0.0.1:9/v1", model="large", budget=2.0, price_in=0.3)
    assert (
        found.task == "examples"
        and found.options == {"grader": "./g.py:f", "last_line": True}
        and found.seed == 7
        and found.keep == "right"
    )
    assert factory_config(config.model_copy(update={"grader": ""}), tmp_path, 1).options == {"last_line": True}


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    other, chosen = measured(tmp_path, "label", [("a", "b", "a")])
    paths = TeachPaths(tmp_path)
    with pytest.raises(DataError, match=r"the choice of a rung.*\n.*rorqual teach"):
        load_results(tmp_path)
    paths.choice.write_text('{"chosen": "new", "other": "old"}')
    other.save(paths.evaluation_file("old"))
    with pytest.raises(DataError, match=r"no results of a taught model.*\n.*rorqual teach"):
        load_results(tmp_path)
    chosen.save(paths.evaluation_file("new"))
    assert load_results(tmp_path) == ("label", other, chosen)
