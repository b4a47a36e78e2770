"""A teacher behind an address writes rows: which are kept, what they cost, and that no held-out example reaches a fit through them."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_files import Write

sys.path.append(str(Path(__file__).parents[1] / "factory"))
from distil_server import Adder, Reply, fault, says

from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.journal import read_lines
from rorqual.core.ledger import Ledger
from rorqual.recipes.sft import sft
from rorqual.teach.climb import Climb
from rorqual.teach.config import TeachConfig
from rorqual.teach.examples import Example
from rorqual.teach.held_out import WITH_WRITTEN, cross_validate
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.classifiers import NearestNeighbour
from rorqual.teach.rungs.features import TfIdf
from rorqual.teach.rungs.rung import Guess, Rung, TrainingRows
from rorqual.teach.rungs.storage import load_rung
from rorqual.teach.stages import TeachStages, teach
from rorqual.teach.written import LIKE_FILE, LIKE_WRITTEN, OTHER_KIND, PER_REQUEST, writing_requests, written_rows
from rorqual.train.loop import fit

LABELS = ("card", "pin", "fee")


def pseudo_word(draw: random.Random) -> str:
    return "".join(draw.choice(letters) for letters in ("bdfgklmnprst", "aeiou") * 3)


DRAW = random.Random(3)
WORDS = {label: [pseudo_word(DRAW) for _ in range(50)] for label in LABELS}
FILLERS = [pseudo_word(DRAW) for _ in range(300)]
LABEL_OF = {word: label for label, words in WORDS.items() for word in words}


def row(draw: random.Random, label: str) -> str:
    """Return a text of five words, of which one decides the label."""
    texts = [*draw.sample(FILLERS, 4), draw.choice(WORDS[label])]
    draw.shuffle(texts)
    return " ".join(texts)


def label_of(text: str) -> str:
    return next((LABEL_OF[word] for word in text.split() if word in LABEL_OF), "none")


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"text": row(draw, label), "label": label} for label in (LABELS * count)[:count]]


TRAIN, TEST = rows(120, 1), rows(40, 2)


def usual(body: dict[str, Any], number: int) -> Reply:
    """Write rows of the label that is asked for, and classify inputs by their words."""
    text = body["messages"][-1]["content"]
    if asked := re.match("These inputs have the answer (.*):", text):
        draw = random.Random(body["seed"])
        return says("\n".join(f"{n}. {row(draw, asked[1])}" for n in range(1, PER_REQUEST + 1)))
    return says(label_of(text.rpartition("\n")[2]))


@pytest.fixture
def server() -> Iterator[Adder]:
    made = Adder()
    made.rule = usual
    made.start()
    yield made
    made.stop()


@pytest.fixture
def config(write: Write, server: Adder) -> TeachConfig:
    return TeachConfig(
        file=str(write("a.jsonl", TRAIN)),
        test=str(write("test.jsonl", TEST)),
        base="none",
        encoder="none",
        teacher=server.url,
        model="large",
        write=60,
        minutes=100,
    )


def taught(config: TeachConfig, out: Path) -> TeachPaths:
    teach(config, out, threads=1, import_progress=lambda *_: None, api_key="secret")
    return TeachPaths(out)


def written(config: TeachConfig, out: Path) -> TeachPaths:
    """Let the teacher write its rows, and measure no rung."""
    paths = TeachPaths(out)
    with closing(Ledger(out / "ledger")) as ledger:
        stages = TeachStages(config, paths, 1, ledger, lambda *_: None, "secret")
        stages.prepare_data()
        written_rows(
            config,
            stages.dataset,
            stages.grade,
            paths.teacher,
            threads=1,
            api_key="secret",
            say=print,
        )
    return paths


def recorded(paths: TeachPaths) -> list[dict[str, Any]]:
    return list(read_lines(paths.teacher / "written.jsonl"))


def test_written_rows_are_a_rung_of_their_own_and_the_report_gives_their_gain(
    config: TeachConfig, server: Adder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = taught(config.model_copy(update={"write": 150}), tmp_path / "out")
    found = json.loads(paths.results.read_bytes())
    names = [one["name"] for one in found["rungs"]]
    written = found["chosen"].rpartition(", then ")[2]  # a faster rung may answer first
    before = written.removesuffix(WITH_WRITTEN)
    assert names.index(written) == names.index(before) + 1 and written.endswith(WITH_WRITTEN)
    used = [line for line in recorded(paths) if not line["dropped"]]
    [gain] = [text for text in found["sentences"] if f"wrote, {before} gains" in text]
    held = {one["name"]: one["held_out"]["right"] for one in found["rungs"]}
    assert (
        f"With {len(used)} rows that large wrote, {before} gains {100 * (held[written] - held[before]) / 120:+.1f} points ["
        in gain
    )
    assert held[written] > held[before] + 10 and found["test"][found["chosen"]]["right"] > 20
    assert len(used) > 100 and all(line["model"] == "" and line["prompt_hash"] and line["time"] for line in used)
    assert "150 new rows" in capsys.readouterr().out and {*server.keys} == {"Bearer secret"}
    assert load_rung(paths.rung_file(written)).predict([used[0]["prompt"]])[0].answer == used[0]["answer"]

    sent = len(server.asked)
    again = taught(config.model_copy(update={"write": 150}), tmp_path / "out")
    assert (
        json.loads(again.results.read_bytes())["sentences"][:2] == found["sentences"][:2] and len(server.asked) == sent
    )


def test_planted_copies_and_wrong_rows_are_dropped_and_counted(
    config: TeachConfig, server: Adder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied, near, train = TEST[0]["text"], TEST[1]["text"], TRAIN[0]["text"]
    words = TEST[2]["text"].split()
    planted = {
        copied.upper() + "!": LIKE_FILE,
        near[:-1]: LIKE_FILE,
        f"hello {' '.join(words)} thanks": LIKE_FILE,
        train: LIKE_FILE,
    }
    wrong = f"{WORDS['pin'][0]} " + " ".join(FILLERS[:4])

    def rule(body: dict[str, Any], number: int) -> Reply:
        text = body["messages"][-1]["content"]
        if text.startswith("These inputs have the answer card:"):
            return says("\n".join(["```", *planted, wrong, "```"]))
        return usual(body, number)

    server.rule = rule
    paths = written(config, tmp_path / "out")
    found = {line["prompt"]: line["dropped"] for line in reversed(recorded(paths))}
    assert {text: found[text] for text in planted} == planted
    assert found[wrong] == "the teacher answers otherwise"
    reasons = Counter(line["dropped"] for line in recorded(paths))
    assert reasons[LIKE_WRITTEN] == 3, "the wrong row of four requests for this label is written four times"
    shown = capsys.readouterr().out
    for reason in filter(None, reasons):
        assert f"{reasons[reason]} written rows are left out: {reason}" in shown
    tests = {one["text"] for one in TEST}
    asked = [body["messages"][-1]["content"] for body in server.asked]
    assert not [text for text in asked if any(test in text for test in tests)], "no test row is shown or checked"


@pytest.mark.parametrize("kind", ["number", "JSON", "text"])
def test_rows_of_other_kinds_are_written_with_their_answers(
    kind: str, config: TeachConfig, server: Adder, write: Write, tmp_path: Path
) -> None:
    draw = random.Random(5)

    def pair(number: int) -> dict[str, Any]:
        a, text = draw.randrange(9999), " ".join(draw.sample(FILLERS, 6))
        answer: Any = {"number": a, "JSON": {"about": text.split()[0], "n": a}, "text": text[::-1]}[kind]
        return {"prompt": f"{text} {a}", "answer": answer}

    bad: Any = {"number": "many", "JSON": {"about": 3}, "text": " "}[kind]

    def rule(body: dict[str, Any], number: int) -> Reply:
        shown = [json.loads(line) for line in body["messages"][-1]["content"].splitlines() if line.startswith("{")]
        assert 1 <= len(shown) <= 5 and all(type(one["answer"]) is (dict if kind == "JSON" else str) for one in shown)
        return says(
            "\n".join(json.dumps(one) for one in [pair(0), pair(1), {"prompt": f"bad {number}", "answer": bad}])
        )

    server.rule = rule
    own = config.model_copy(
        update={"file": str(write("b.jsonl", [pair(n) for n in range(60)])), "test": "", "write": 20}
    )
    paths = written(own, tmp_path / "out")
    dropped = Counter(line["dropped"] for line in recorded(paths))
    assert dropped == {"": 8, OTHER_KIND: 4}
    assert len(server.asked) == 4, "only labels are checked by a second request"


def test_a_budget_stops_the_teacher_and_unchecked_rows_are_not_used(
    config: TeachConfig, server: Adder, tmp_path: Path
) -> None:
    def priced(body: dict[str, Any], number: int) -> Reply:
        """A request for rows has 200 tokens, and a check has 500."""
        text = json.loads(usual(body, number)[1])["choices"][0]["message"]["content"]
        return says(text, prompt=100, tokens=100 if "\n" in text else 400)

    def spent() -> int:
        return sum(200 if "These inputs" in body["messages"][-1]["content"] else 500 for body in server.billed)

    server.rule = priced
    prices = {"price_in": 1e6, "price_out": 1e6}
    for budget in (2_000, 12_000):
        server.billed.clear()
        paths = written(config.model_copy(update={**prices, "budget": float(budget)}), tmp_path / f"{budget}")
        lines, dropped = recorded(paths), Counter(line["dropped"] for line in recorded(paths))
        assert spent() <= budget and round(sum(line["money"] for line in lines)) == spent()
        assert not lines if budget == 2_000 else dropped[""] > 10 < dropped["not checked"]
        assert 0 < len(lines) < 60 or budget == 2_000, "writing leaves money for the checks"


def test_an_interrupted_teacher_is_asked_for_the_missing_answers_only(
    config: TeachConfig, server: Adder, tmp_path: Path
) -> None:
    def until(limit: int, body: dict[str, Any], number: int) -> Reply:
        return usual(body, number) if len(server.billed) < limit else fault(401)

    for limit in (5, 30):  # the server refuses while rows are written, and while they are checked
        server.rule = partial(until, limit)
        with pytest.raises(RorqualError, match="401"):
            written(config, tmp_path / "out")
    server.rule = usual
    paths = written(config, tmp_path / "out")
    paid = Counter((body["messages"][-1]["content"], body["seed"]) for body in server.billed)
    assert len(recorded(paths)) == 60 and {*paid.values()} == {1}


def test_write_needs_a_teacher() -> None:
    with pytest.raises(ConfigError, match="write= needs a teacher"):
        parse_config(TeachConfig, {"file": "a.jsonl", "write": "9"}, where="the command")
    assert (
        parse_config(TeachConfig, {"file": "a.jsonl", "write": "9", "teacher": "runs/a"}, where="the command").write
        == 9
    )


# ---- no leak through a written row


class Recorder(Rung):
    """A rung that records the prompts of each fit."""

    name = "recorder"

    def __init__(self) -> None:
        self.settled: list[set[str]] = []
        self.fits: list[set[str]] = []

    def settle(self, rows: TrainingRows) -> None:
        self.settled.append({*rows.prompts})

    def fit(self, rows: TrainingRows) -> None:
        self.fits.append({*rows.prompts})

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        return [Guess("a", 0.5)] * len(prompts)


POOL = [Example(line, f"text {line}", "a") for line in range(1, 11)]
FOLD = np.arange(10) % 5
EXTRA = [Example(0, f"like fold {fold}", "a", shown=(fold + 1, fold + 6)) for fold in range(1, 5)]


def test_a_written_row_is_in_no_fit_whose_held_out_examples_its_writer_saw() -> None:
    rung = Recorder()
    found = cross_validate(rung, POOL, FOLD, "label", lambda *_: True, seconds=60, extra=EXTRA)
    expected = [{one.prompt for one in EXTRA if one.prompt != f"like fold {held}"} for held in range(5)]
    assert [{text for text in fit if text.startswith("like")} for fit in rung.fits] == expected
    assert {*found.right} == {one.key for one in POOL}, "written rows are never held out"
    assert not any(text.startswith("like") for text in rung.settled[0])


def test_a_written_row_that_repeats_what_its_writer_saw_gains_nothing(tmp_path: Path) -> None:
    """Each row is nearest to the written row that was made from it, and no other row has its answer."""
    words = [f"{FILLERS[n]} {FILLERS[n + 40]}" for n in range(40)]
    pool = [Example(n + 1, text, f"answer {n}") for n, text in enumerate(words)]
    fold = np.arange(40) % 5
    copies = [Example(0, f"{one.prompt} please", one.answer, shown=(one.line,)) for one in pool]

    def climb(written: Sequence[Example], out: str) -> Climb:
        made = Climb(TeachPaths(tmp_path / out), pool, fold, "label", lambda one, reply: one.answer == reply, print)
        made.written = written
        for name in ("near", f"near{WITH_WRITTEN}"):
            rung = NearestNeighbour(name, TfIdf(words=True))
            made.cross_validate(rung, 60)
            made.fit_and_save(rung)
        return made

    leaky = climb([Example(0, one.prompt, one.answer, shown=()) for one in copies], "leaky")
    assert leaky.result(f"near{WITH_WRITTEN}").accuracy == 1.0, "the leak would show"
    honest = climb(copies, "honest")
    assert honest.result(f"near{WITH_WRITTEN}").accuracy == honest.result("near").accuracy == 0.0
    new = climb([Example(0, "zzz qqq", "new", shown=(2,))], "new")
    answers = [load_rung(new.paths.rung_file(one.name)).predict(["zzz qqq"])[0].answer for one in new.results]
    assert answers[0] != "new" and answers[1] == "new"


def test_requests_show_one_fold_of_training_examples_and_take_the_rarest_label_first() -> None:
    pool = [Example(n, f"text {n}", "rare" if n % 7 == 0 else "common") for n in range(1, 71)]
    fold = np.arange(70) % 5
    asked = [*writing_requests(pool, fold, "label", 8 * PER_REQUEST)]
    assert [one.label for one in asked] == ["rare", "common"] * 4
    for one in asked:
        [number] = {int(fold[example.line - 1]) for example in one.shown}
        assert number != 0 and all(example.answer == one.label for example in one.shown) and len(one.shown) <= 5
    assert len({one.shown[0].line for one in asked}) == 8, "each request shows other examples"


def test_a_run_as_teacher_whose_rows_cannot_be_used_changes_nothing(config: TeachConfig, tmp_path: Path) -> None:
    run = tmp_path / "teacher"
    fit(sft(task="families:add", size="tiny", steps=1, rows=1, row=2048), run, quiet=True)
    own = config.model_copy(update={"teacher": str(run), "model": "", "write": 10})
    found = json.loads(taught(own, tmp_path / "out").results.read_bytes())
    reasons = [reason for name, reason in found["skipped"].items() if name.endswith(WITH_WRITTEN)]
    assert reasons == ["no written row can be used"] and not found["chosen"].endswith(WITH_WRITTEN)


@pytest.mark.parametrize("wins", [True, False])
def test_the_language_model_learns_from_written_rows_only_if_they_help(
    config: TeachConfig, tmp_path: Path, wins: bool
) -> None:
    own = config.model_copy(update={"quiet": True} | ({"write": 150} if wins else {"rule": f"{tmp_path}/mine.py:rule"}))
    if not wins:
        table = {one["text"]: one["label"] for one in TRAIN}
        (tmp_path / "mine.py").write_text(
            f"T = {table!r}\ndef rule(text):\n    return T.get(text, 'pin') if hash(text) % 7 else 'pin'\n"
        )
    with closing(Ledger(tmp_path / "ledger")) as ledger:
        stages = TeachStages(own, TeachPaths(tmp_path / "out"), 1, ledger, lambda *_: None, "")
        stages.prepare_data()
        stages.climb_cheap_rungs()
        used = [one for one in stages.model.train_examples if one.line == 0]
    assert stages.climb.written and bool(used) is wins
    assert len(stages.model.train_examples) == len(stages.dataset.splits["train"]) + wins * len(stages.climb.written)
    folds = {one.line: number for one, number in zip(stages.dataset.pool, stages.dataset.fold, strict=True)}
    assert all(folds[line] != 0 for one in stages.climb.written for line in one.shown), "no dev example is shown"
