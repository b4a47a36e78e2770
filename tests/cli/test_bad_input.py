"""Bad input, typed as a command: a message with the place and the remedy, no traceback, and nothing changed on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from commands import listing, refused, typed
from in_process import output_of

GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
SILENT = '{"messages": [{"role": "user", "content": "hi"}]}\n'
SFT = ("train", "sft", "size=tiny", "steps=1", "rows=2", "out=out")
TASK = """
from rorqual.tasks.task import Problem, Task, Verdict

class Mine(Task):
    name = "mine"

    def problems(self, split, seed):
        yield Problem(key=split, prompt="1?", answer="1", family="mine", steps="1")

    def grade(self, problem, reply):
        {grade}
"""


@dataclass(frozen=True)
class Case:
    """`files` are written into the empty folder, a tiny run lies in `run/`; the message must hold all of `says`. `keeps`: a file whose name
    begins so, which holds what was answered before."""

    name: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    stdin: str = ""
    keeps: str = ""


def file(name: str, text: str | bytes) -> tuple[tuple[str, bytes], ...]:
    return ((name, text.encode() if isinstance(text, str) else text),)


def sft_on(data: str) -> tuple[str, ...]:
    return (*SFT, f"data={data}")


CASES = [
    Case("mistyped key", (*SFT, "task=families", "sede=1"), ("'sede'", "'seed'")),
    Case("mistyped dotted key", (*SFT, "task=families", "optim.lrr=1"), ("'optim.lrr'", "'lr'")),
    Case("mistyped recipe", ("train", "stf", "task=families"), ("'stf'", "'sft'")),
    Case("dashes", (*SFT, "task=families", "--seed=1"), ("'--seed=1'", "seed=1, without dashes")),
    Case("wrong type", (*SFT, "task=families", "seed=many"), ("'seed'", "integer", "'many'")),
    Case("negative rate", (*SFT, "task=families", "lr=-1"), ("'lr'", "greater than or equal to 0", "-1")),
    Case("rate that is none", (*SFT, "task=families", "optim.lr=nan"), ("'optim.lr'", "greater than 0", "nan")),
    Case(
        "null prompt",
        sft_on("null.jsonl"),
        ("null.jsonl:2", "'prompt' is null", "Give text"),
        file("null.jsonl", GOOD + '{"prompt": null, "completion": "a"}\n'),
    ),
    Case("missing file", sft_on("nowhere.jsonl"), ("nowhere.jsonl", "no such file", "Check the path")),
    Case("empty data", sft_on("empty.jsonl"), ("empty.jsonl", "empty", "Give a file"), file("empty.jsonl", "")),
    Case(
        "not UTF-8",
        sft_on("latin.jsonl"),
        ("latin.jsonl:2", "not UTF-8", "0xe9", "Convert"),
        file("latin.jsonl", GOOD.encode() + GOOD.replace("hello", "h\u00e9llo").encode("latin-1")),
    ),
    Case(
        "line not JSON",
        sft_on("cut.jsonl"),
        ("cut.jsonl:3", "not JSON", "on each line"),
        file("cut.jsonl", GOOD + GOOD + GOOD[:40] + "\n"),
    ),
    Case(
        "nothing to train on",
        sft_on("silent.jsonl"),
        ("silent.jsonl", "nothing to train on", "'assistant'"),
        file("silent.jsonl", SILENT),
    ),
    Case("prompt too long", ("chat", "run"), ("tokens", "context of 128", "Shorten"), stdin="long " * 200),
    Case(
        "vocabulary does not fit",
        (*SFT, "task=families", "model.vocab_size=100"),
        ("model.vocab_size", "263 tokens", "model.vocab_size=263"),
    ),
    Case(
        "unparsable gold",
        ("train", "grpo", "task=gsm8k", "data=train.jsonl", "from=run", "steps=1", "out=out"),
        ("train.jsonl:1", "no number after '####'", "Fix or remove"),
        file("train.jsonl", '{"question": "How many?", "answer": "All of them. #### many"}\n'),
    ),
    Case(
        "run of another shape",
        ("train", "sft", "task=families", "size=small", "steps=3", "out=run"),
        ("run.yaml", "another run", "hidden_size", "another out="),
    ),
    Case(
        "unwritable folder",
        ("train", "sft", "size=tiny", "steps=1", "task=families", "out=file/run"),
        ("file/run", "Not a directory", "another folder"),
        file("file", "here"),
    ),
    Case(
        "task that raises",
        ("eval", "run", "task=./mine.py:Mine", "count=1", "max_tokens=2"),
        ("task mine", "ZeroDivisionError", "mine.py:11", "Fix this line", "Saved 1 answers", "resumes from them"),
        file("mine.py", TASK.format(grade="return 1 / 0")),
        keeps="run/evals",
    ),
    Case(
        "task file that raises",
        ("train", "grpo", "task=./mine.py:Mine", "from=run", "out=out"),
        ("mine.py:1", "NameError", "Fix the line"),
        file("mine.py", "nonsense\n"),
    ),
    Case("no such run", ("eval", "nowhere", "task=families"), ("nowhere", "not a run directory", "rorqual train")),
    Case("unknown task", ("eval", "run", "task=famlies"), ("'famlies'", "'families'")),
    Case("unknown model", ("inspect", "deepsek-v3"), ("'deepsek-v3'", "'deepseek-v3'")),
    Case("no device", ("inspect", "deepseek-v3", "device=gpu9"), ("device", "'gpu9'", "device=cpu")),
    Case("no evaluations", ("compare", "run", "run"), ("run, run", "no evaluation in common", "rorqual eval run")),
    Case("no quickstart", ("report", "run"), ("run/summary.json", "does not exist", "Repeat the command")),
    Case("report of teach", ("report", "."), ("folder of rorqual teach", "report.html"), file("teach.yaml", "minutes: 10\n")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_refused_by_name_and_nothing_changed(case: Case, place: Path) -> None:
    for name, data in case.files:
        (place / name).write_bytes(data)
    refused(place, *case.words, says=case.says, stdin=case.stdin, keeps=case.keeps or None)
    assert len([*place.rglob("*.kept")]) == bool(case.keeps)


VALID: list[tuple[str, Callable[[Path], object]]] = [
    ("sft task=families", lambda place: None),
    ("sft data=good.jsonl", lambda place: (place / "good.jsonl").write_text(GOOD + SILENT, encoding="utf-8")),
    ("grpo task=./mine.py:Mine from=run problems=2 samples=2 max_tokens=4", lambda place: (place / "mine.py").write_text(
        TASK.format(grade="return Verdict.RIGHT if reply == '1' else Verdict.WRONG"), encoding="utf-8")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "prepare"), VALID, ids=lambda value: value.split()[1] if isinstance(value, str) else ""
)
def test_the_nearest_valid_command_is_taken(
    words: str, prepare: Callable[[Path], object], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(place)
    monkeypatch.chdir(place)
    size = [] if "from=" in words else ["size=tiny", "rows=2"]
    output_of("train", *words.split(), "steps=1", "out=out", *size)
    assert (place / "out" / "step-000001").is_dir()


def test_a_loss_that_is_not_a_number_stops_before_a_checkpoint(place: Path) -> None:
    words = ("train", "sft", "task=families", "size=tiny", "rows=2", "steps=9", "out=out", "save_seconds=0.0001")
    before = listing(place)
    done = typed(place, *words, "optim.lr=1e30", "optim.adamw.lr=1e30", "optim.schedule.warmup=0")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert re.search(r"(loss|norm|weight).* (nan|inf|finite)", done.err), done.err
    assert "optim.lr" in done.err
    assert _finite(place / "out"), "a checkpoint was written after the loss had become no number"
    assert {name: value for name, value in listing(place).items() if not name.startswith("out")} == before


def _finite(run: Path) -> bool:
    from safetensors.torch import load_file

    return all(
        bool(t.isfinite().all()) for file in run.glob("step-*/model.safetensors") for t in load_file(file).values()
    )


def test_weights_that_do_not_fit_their_config_are_named(place: Path) -> None:
    config = place / "run" / "run.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("hidden_size: 32", "hidden_size: 64", 1), encoding="utf-8")
    says = ("model.safetensors", "does not match the model", "embed_tokens.weight has shape (263, 32), not (263, 64)")
    refused(place, "eval", "run", "task=families", "count=1", says=says)


def test_an_unusable_gold_answer_is_ungraded_in_an_evaluation_and_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ['{"question": "How many?", "answer": "#### many"}', '{"question": "And now?", "answer": "#### 3"}']
    (place / "gold.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.chdir(place)
    output_of("eval", "run", "task=gsm8k", "data=gold.jsonl", "max_tokens=2", "out=found.json")
    from rorqual.evals.evaluation import Evaluation

    assert Evaluation.load(place / "found.json").rows("all")[0].ungraded == 1
