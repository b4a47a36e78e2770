"""The stages of `teach` one by one: plan, training with a stop, GRPO, a teacher's reasons, and failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_files import labelled

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, SamplingParams
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.recipes.sft import sft
from rorqual.tasks.examples import ExamplesTask, write_examples
from rorqual.tasks.task import Verdict
from rorqual.teach import plan as plans
from rorqual.teach import train as training
from rorqual.teach.answer_format import answer_format_instruction
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import rows_of
from rorqual.teach.examples import Example
from rorqual.teach.failures import failure_groups, failures_text, pair_replies
from rorqual.teach.measure import evaluate_baseline, few_shot_examples, measure_base
from rorqual.teach.paths import AFTER, ALONE, BEFORE, TeachPaths
from rorqual.teach.plan import ExampleLengths, TeachPlan, make_plan, sft_run
from rorqual.teach.reasons import TeacherReasons, factory_config
from rorqual.teach.results import TeachResults, load_results
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
        return make_plan(RunDir(tiny), data, lengths, seconds=seconds + probe, reinforce=reinforce, seed=0, threads=1)

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
    measured = plans.measure_step(sft_run(RunDir(tiny), data, plan, seed=0), 1)
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
    assert sft_run(RunDir(tiny), data, plan, seed=5).dtype == "float32"
    run = sft_run(RunDir(tiny), data, plan.model_copy(update={"dtype": "bfloat16"}), seed=5)
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
    assert [one.total for one in whole.dev_results("sft")] == [12, 12, 12]
    monkeypatch.setattr(training, "DEV_SECONDS", 0.0)
    said: list[str] = []
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"DEV = {[one.prompt for one in whole.dev_problems]!r}\ndef grade(prompt, answer, reply):\n    return prompt in DEV[:3]\n"
    )
    work = replace(trained(tiny, tmp_path, grader=f"{mine}:grade"), say=said.append)
    work.train_supervised(RunDir(tiny))
    assert [(one.right, one.total) for one in work.dev_results("sft")] == [(3, 5)] * 3
    assert [line for line in said if "5 of 12 problems" in line] == said[:1]
    monkeypatch.setattr(training, "DEV_SECONDS", 60.0)
    assert work.measure_on_dev(work.paths.best, "grpo", 1) == DevResult("grpo", 1, 3, 5)


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
    run = sft_run(RunDir(tiny), work.paths.data, work.plan, seed=1)
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


def test_grpo_runs_after_the_support_gate_and_is_used_if_dev_improves(
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
    [after] = work.dev_results("grpo")
    before = max(one.accuracy for one in work.dev_results("sft"))
    assert result.used == (after.accuracy > before) and ("is used" in result.text) == result.used
    assert work.train_grpo() == result and len(work.dev_results("grpo")) == 1


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


def test_a_tie_on_dev_keeps_the_model_before_grpo(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MOST_GRPO", 1), ("FEWEST_GRPO", 1), ("GRPO_PROBLEMS", 2), ("GRPO_SAMPLES", 2)):
        monkeypatch.setattr(training, name, value)
    dev = [row["text"] for row in labelled(12, seed=3)]
    work = graded_before_grpo(
        tiny,
        tmp_path,
        f"DEV = {dev!r}\ndef grade(prompt, answer, reply):\n    return prompt in DEV or reply == answer or sum(reply.encode()) % 2 == 0\n",
    )
    result = work.train_grpo()
    assert [one.right for one in work.dev_results("grpo")] == [12] and not result.used and "is not used" in result.text


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


@pytest.mark.parametrize(
    ("kind", "shown"), [("number", "8 - 3 = 5\n5"), ("text", "8 - 3 = 5\n5"), ("label", "5"), ("JSON", "5")]
)
def test_examples_in_a_prompt_show_their_worked_solutions(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shown: str
) -> None:
    """Unless a grammar has no place for them. Chat formats leave out the reasoning of earlier turns."""
    asked: list[tuple[Message, ...]] = []
    heard = Engine.generate

    def generate(self: Engine, requests: Sequence[Any], **keys: Any) -> list[list[Completion]]:
        asked.extend(request.messages for request in requests)
        return heard(self, requests, **keys)

    monkeypatch.setattr(Engine, "generate", generate)
    train = [Example(n, f"8 less 3, {n}", "5", "8 - 3 = 5") for n in range(1, 6)]
    task = ExamplesTask(data_of(tmp_path / "data", train, train[:2], kind))
    shots = train[:4]
    measure_base(
        RunDir(tiny),
        task,
        "base, 4 examples",
        shots,
        train,
        SamplingParams(max_tokens=4, calculator=True),
        most_seconds=60,
        show=lambda *_: None,
    )
    for messages in asked:
        replies = [message for message in messages if message.role == "assistant"]
        assert [one.content for one in replies] == [shown] * len(shots) and not any(one.reasoning for one in replies)
    assert len(asked) == 3


# ---- the report's sentences


def judged(name: str, right: int, *, first: int = 0, total: int = 200) -> Evaluation:
    """Return results of `total` examples of which `right` are right, beginning with number `first`."""
    task_free = [
        GradedSample(key=f"{n:03}", family="examples", prompt="p", answer="a", reply="r", reasoning=None, tokens=0, thinking_tokens=0,
                     thought=False, truncated=False, verdict=Verdict.RIGHT if first <= n < first + right else Verdict.WRONG)
        for n in range(total)
    ]  # fmt: skip
    settings = {
        "task": "examples",
        "model": name,
        "split": "test",
        "seed": 0,
        "count": total,
        "per_family": False,
        "thinking": "off",
    }
    return Evaluation.model_validate(settings | {"params": SamplingParams(), "samples": tuple(task_free)})


# ---- failures


def measured(tmp_path: Path, kind: str, rows: list[tuple[str, str, str]]) -> tuple[Evaluation, Evaluation]:
    """Return evaluations of replies before and after. A row is (gold, before, after)."""
    tests = [Example(n, f"prompt {n}", gold) for n, (gold, _, _) in enumerate(rows, 1)]
    task = ExamplesTask(data_of(tmp_path / "data", tests, [], kind))
    problems = sorted(task.problems("train", 0), key=lambda one: int(one.key.split()[1]))
    before, after = ([row[place] for row in rows] for place in (1, 2))
    return evaluate_baseline("old", task, problems, before), evaluate_baseline("new", task, problems, after)


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


def test_an_unknown_baseline_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    before, after = measured(tmp_path, "label", [("a", "b", "a")])
    paths = TeachPaths(tmp_path)
    with pytest.raises(DataError, match=r"no results of a taught model.*\n.*rorqual teach"):
        load_results(tmp_path)
    before.save(paths.evaluation_file("majority"))
    after.save(paths.evaluation_file("taught model"))
    paths.baselines.write_text('{"names": ["majority"]}')
    assert load_results(tmp_path, "majority")[1] == before
    with pytest.raises(ConfigError, match=r"no baseline 'majorty'.*\n.*majority"):
        load_results(tmp_path, "majorty")


NAMES = {"majority": "majority", "regression": "logistic regression", "base": BEFORE, "many": "base, 9 examples", "rule": "rule",
         "taught": AFTER, "alone": ALONE}  # fmt: skip
AS_GOOD, RIGHT = "The taught model is not shown to be better than", "The taught model is right on 80.0 %"


@pytest.mark.parametrize(
    ("right", "first", "second"),
    [
        ({"regression": 120, "base": 30, "many": 40, "taught": 160}, RIGHT + " of 200 test examples",
         "The best baseline is logistic regression, with 60.0 %: the taught model gains +20.0 points"),
        *(({"regression": 120, "base": 30, "taught": taught}, f"{AS_GOOD} logistic regression, which is right on 60.0 %",
           f"The taught model is right on {taught / 2:.1f} %") for taught in (118, 120, 124)),
        ({"regression": 160, "base": 30, "taught": 120}, "The taught model is worse than logistic regression, which", "The taught model is"),
        ({"regression": 158, "base": 30, "many": 162, "taught": 160}, f"{AS_GOOD} logistic regression, which is right on 79.0 %", RIGHT),
        ({"majority": 20, "base": 30, "many": 158, "taught": 160}, RIGHT,
         "It is not shown to be better than the base model with 9 examples in its prompt: 79.0 %, difference +1.0 points"),
        ({"majority": 20, "base": 30, "taught": 160}, RIGHT, "No other baseline is better"),
        ({"rule": 120, "base": 10, "taught": 122, "alone": 180}, f"{AS_GOOD} your rule, which is right on 60.0 %", "The taught model is"),
    ],
)  # fmt: skip
def test_the_report_leads_with_the_best_baseline_that_is_as_good(
    right: dict[str, int], first: str, second: str
) -> None:
    found = TeachResults({NAMES[key]: judged(NAMES[key], number) for key, number in right.items()})
    said = found.summary_sentences(2)
    assert said[0].startswith(first) and said[1].startswith(second) and len(said) == 3
    assert said[2].endswith("read twice, for the baselines and for the model.") and "90.0" not in "".join(said)
    assert found.summary_sentences(3)[2].endswith("read 3 times instead of twice.")


def test_the_base_is_asked_without_with_four_and_with_all_examples_that_fit() -> None:
    chat, train = chat_format(Tokenizer.byte_level()), examples_of(labelled(300))
    none, four, many = few_shot_examples(train, chat, "label", context=3000, room=200, seed=0).items()
    assert none == (BEFORE, []) and four == ("base, 4 examples", many[1][:4])
    assert many[0] == f"base, {len(many[1])} examples" and len(many[1]) > 30
    turns = [Message("system", answer_format_instruction(train, "label"))]
    for one in many[1]:
        turns += [Message("user", one.prompt), Message("assistant", one.answer)]
    assert 1950 < len(chat.prompt((*turns, Message("user", "?")), "auto")) <= 2048
    *_, fewer = few_shot_examples(train, chat, "label", context=1000, room=200, seed=0).values()
    assert 4 < len(fewer) < len(many[1]) and [
        *few_shot_examples(train, chat, "label", context=300, room=200, seed=0)
    ] == [BEFORE]
    assert few_shot_examples(train, chat, "label", context=3000, room=200, seed=1)["base, 4 examples"] != four[1]
