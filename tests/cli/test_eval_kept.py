"""An evaluation that breaks off, and is begun again: what was answered is not asked a second time, and the result is the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stub_server import StubServer, numbers_in, running, spoken
from typer.testing import CliRunner

from rorqual.cli.evaluating import fingerprint, load_with_fingerprint
from rorqual.cli.main import app
from rorqual.core.records import Message, RunDir
from rorqual.engine import Request, SamplingParams
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.engine.request import Grammar
from rorqual.evals.answer_cache import IN_A_ROW, AnswerCache
from rorqual.evals.evaluation import Evaluation

WORDS = ("task=families:add,gcd", "count=12", "samples=2", "temperature=1", "max_tokens=24", "concurrency=2")


class Server(StubServer):
    """Adds numbers, or what else it is told to do with the question of that number."""

    def __init__(self) -> None:
        super().__init__(self.add)
        self.asked: list[tuple[str, int]] = []
        self.status: Any = lambda number, question: 200
        self.finish: Any = lambda number: "stop"
        self.usage: Any = lambda number: {"completion_tokens": 5}

    def begin_again(self, status: Any = lambda number, question: 200) -> None:
        """Forget what was asked, and do as told from here on."""
        self.asked.clear()
        self.status = status

    def add(self, _: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        question = body["messages"][-1]["content"]
        with self.lock:
            number = len(self.asked)
            self.asked.append((question, body["seed"]))
        status = self.status(number, question)
        if status is None:
            return None
        if status != 200:
            return status, {"error": {"message": "this prompt is too long for me"}}
        total = sum(numbers_in(body)) + body["seed"] % 2
        return 200, spoken(str(total), self.finish(number)) | {"usage": self.usage(number)}


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server()) as found:
        yield found


def start(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "rorqual", "eval", *words], stdout=pipe, stderr=pipe, text=True)


def typed(*words: str, code: int = 0) -> tuple[str, str]:
    """What the command writes to either stream, in this process."""
    done = CliRunner().invoke(app, ["eval", *words], catch_exceptions=False)
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def replies(file: Path) -> list[tuple[str, str, str, int]]:
    return [(s.key, s.reply, s.verdict.value, s.tokens) for s in Evaluation.load(file).samples]


def kept(file: Path) -> list[Path]:
    return sorted(file.parent.glob(f"{file.name}.*.kept"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_loses_no_answer_that_was_paid_for(server: Server, tmp_path: Path, how: signal.Signals) -> None:
    whole, again = tmp_path / "whole.json", tmp_path / "again.json"
    typed(server.url, "model=a", *WORDS, f"out={whole}")
    asked = Counter(server.asked)
    assert len(asked) == 24 == sum(asked.values())
    assert kept(whole) == []
    server.begin_again(lambda number, question: 200 if number < 9 else None)
    with start(server.url, "model=a", *WORDS, f"out={again}") as process:
        end = time.monotonic() + 600
        while not kept(again) or len(kept(again)[0].read_bytes().splitlines()) < 9:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        if how == signal.SIGINT:
            server.held.set()  # what is under way is waited for
        process.send_signal(how)
        _, errors = process.communicate(timeout=600)
        assert process.returncode != 0
    if how == signal.SIGINT:
        assert "The same command resumes" in errors
    assert not again.exists()
    before = len(kept(again)[0].read_bytes().splitlines())
    server.begin_again()
    typed(server.url, "model=a", *WORDS, f"out={again}")
    assert len(server.asked) == 24 - before
    assert replies(again) == replies(whole)
    assert kept(again) == []


def test_more_samples_and_problems_ask_for_the_further_ones_alone_and_another_model_for_all(
    server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    server.status = lambda number, question: 200 if number < 20 else 404
    _, errors = typed(server.url, "model=a", *WORDS, f"out={out}", code=2)
    assert "Saved 20 answers in" in errors
    server.begin_again(lambda number, question: 404)
    _, errors = typed(server.url, "model=b", *WORDS, f"out={out}", code=2)
    assert "Saved" not in errors and len(kept(out)) == 1
    server.begin_again(lambda number, question: 200 if number < 5 else 404)
    _, errors = typed(server.url, "model=b", *WORDS, f"out={out}", code=2)
    assert "Saved 5 answers in" in errors and len(kept(out)) == 2
    server.begin_again()
    more = [word.replace("samples=2", "samples=3").replace("count=12", "count=14") for word in WORDS]
    typed(server.url, "model=a", *more, f"out={out}")
    assert len(server.asked) == 14 * 3 - 20
    assert len(Evaluation.load(out).samples) == 14 * 3
    assert len(kept(out)) == 1  # that of b


def test_a_request_that_is_refused_is_ungraded_and_asked_again_by_the_same_command(
    server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    server.status = lambda number, question: 400 if number in (3, 4) else 200
    text, errors = typed(server.url, "model=a", *WORDS, f"out={out}")
    samples = Evaluation.load(out).samples
    verdicts = Counter(sample.verdict.value for sample in samples)
    assert verdicts["ungraded"] == 2 and sum(verdicts.values()) == 24
    assert [sample.verdict.value for sample in samples if "too long for me" in sample.error] == ["ungraded"] * 2
    assert len(server.asked) == 24
    assert "ungraded" in text
    assert "2 requests failed" in errors and "this prompt is too long for me" in errors
    server.begin_again()
    typed(server.url, "model=a", *WORDS, f"out={out}")
    assert len(server.asked) == 2
    assert not any(sample.error for sample in Evaluation.load(out).samples)
    assert kept(out) == []


def test_a_server_that_refuses_everything_from_some_moment_on_stops_the_evaluation(
    server: Server, tmp_path: Path
) -> None:
    """Some say with 400 that the money is spent."""
    out = tmp_path / "out.json"
    more = [word.replace("count=12", "count=30") for word in WORDS]

    def refuses(number: int, question: str) -> int:
        if number < 10:
            return 200
        end = time.monotonic() + 600
        while (
            len(kept(out)[0].read_bytes().splitlines()) < 10
        ):  # an answer that arrives between refusals ends their row
            assert time.monotonic() < end
            time.sleep(0.01)
        return 400

    server.status = refuses
    _, errors = typed(server.url, "model=a", *more, f"out={out}", code=2)
    assert "Saved 10 answers in" in errors and "too long for me" in errors
    assert 10 + IN_A_ROW <= len(server.asked) <= 10 + IN_A_ROW + 1, "one was under way"
    server.begin_again()
    _, errors = typed(server.url, "model=a", *more, f"out={out}")
    assert "Reusing 10 answers from" in errors
    assert len(server.asked) == 50
    assert kept(out) == []
    server.begin_again(lambda number, question: 200 if number < 5 else 401)
    _, errors = typed(server.url, "model=a", *WORDS, code=2)
    assert "5 answers are lost. Give out=FILE.json" in errors


def test_refusals_that_are_scattered_stop_nothing(server: Server, tmp_path: Path) -> None:
    server.status = lambda number, question: 400 if number % 2 else 200
    typed(server.url, "task=families:add,gcd", "concurrency=1", f"out={tmp_path / 'out.json'}", "model=a", "count=80")
    assert len(server.asked) == 80 > 2 * IN_A_ROW


def test_an_evaluation_that_ends_leaves_what_another_has_paid_for(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    server.status = lambda number, question: 200 if number < 20 else 404
    typed(server.url, "model=a", *WORDS, f"out={out}", code=2)
    server.status = lambda number, question: 200
    typed(server.url, "model=a", "task=families:add,gcd", "count=2", "max_tokens=8", f"out={out}")
    server.asked.clear()
    typed(server.url, "model=a", *WORDS, f"out={out}")
    assert len(server.asked) == 4
    assert kept(out) == []


def test_what_is_kept_answers_the_very_question_alone(server: Server, tmp_path: Path) -> None:
    engine = RemoteEngine(server.url, "a")
    first = Request((Message("user", "1 + 1"),), SamplingParams(temperature=1.0, max_tokens=9, seed=5))
    others = [replace(first, messages=(Message("system", "be brief"), *first.messages)), replace(first, thinking="on")]
    others += [replace(first, messages=(Message("user", "1 + 2"),))]
    for change in (
        {"temperature": 0.5}, {"max_tokens": 10}, {"seed": 6}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}, {"stop": ("a",)},
        {"stop_token_ids": (3,)}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1},
        {"logit_bias": ((3, 1.0),)}, {"ignore_eos": True}, {"grammar": Grammar("regex", "a+")},
    ):  # fmt: skip
        others.append(replace(first, params=replace(first.params, **change)))
    with AnswerCache(engine, tmp_path / "out", {}) as keeper:
        keeper.generate([first])
    with AnswerCache(engine, tmp_path / "out", {}) as keeper:
        for number, request in enumerate([first, *others, first]):
            before = len(server.asked)
            keeper.generate([request])
            assert len(server.asked) - before == (0 < number <= len(others)), request
        keeper.generate([replace(first, params=replace(first.params, n=3))])
        assert len(server.asked) == before + 2, "the first of three samples was there"


def test_what_is_no_answer_is_not_kept_and_usage_is_as_it_was(server: Server, tmp_path: Path) -> None:
    engine = RemoteEngine(server.url, "a", concurrency=1)
    requests = [Request((Message("user", f"{n} + 1"),), SamplingParams(seed=n)) for n in range(4)]
    server.finish = lambda number: "content_filter" if number == 1 else "stop"
    server.usage = lambda number: {"completion_tokens": 5, "reasoning_tokens": 2} if number else None
    with AnswerCache(engine, tmp_path / "out", {}) as keeper:
        found = keeper.generate(requests)
    assert [bool(one.error) for [one] in found] == [False, True, False, False]
    with AnswerCache(engine, tmp_path / "out", {}) as keeper:
        again = keeper.generate(requests)
    assert len(server.asked) == 5 and server.asked[-1][0] == "1 + 1"
    assert [one.usage for [one] in again] == [one.usage for [one] in found]
    assert again[0] == found[0] and not again[1][0].error


def test_a_checkpoint_that_comes_while_another_is_read_is_read_in_its_place(place: Path) -> None:
    run, loads = RunDir(place / "run"), list[Path]()
    old = run.checkpoint()

    def load() -> str:
        loads.append(run.checkpoint())
        if len(loads) == 1:
            new = old.with_name(f"step-{int(old.name.split('-')[1]) + 1:06d}")
            shutil.copytree(old, new)
            (new / "model.safetensors").write_bytes((old / "model.safetensors").read_bytes()[::-1])
        return loads[-1].name

    found, print_, step = load_with_fingerprint(run, load)
    assert found == run.checkpoint().name == f"step-{step:06d}" != old.name
    assert len(loads) == 2
    assert print_ == fingerprint(run, run.checkpoint()) != fingerprint(run, old)
