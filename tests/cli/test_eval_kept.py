"""An evaluation that breaks off, and is begun again: what was answered is not asked a second time, and the result is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.journal import Journal
from rorqual.evals.evaluation import Evaluation

WORDS = ("task=families:add,gcd", "count=12", "samples=2", "temperature=1", "max_tokens=24", "concurrency=2")


class Adder(BaseHTTPRequestHandler):
    """Adds two numbers, or what else it is told to do with the question of that number (from 0)."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        server: Any = self.server
        with server.lock:
            number = len(server.asked)
            server.asked.append((question, body["seed"]))
        status = server.status(number, question)
        if status is None:  # no answer ever
            server.held.wait(60)
            return
        numbers = [int(word) for word in question.replace("+", " ").replace(",", " ").split() if word.isdigit()]
        message = {"role": "assistant", "content": str(sum(numbers) + body["seed"] % 2)}
        reply: dict[str, Any] = {
            "choices": [{"message": message, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 5},
        }
        if status != 200:
            reply = {"error": {"message": "this prompt is too long for me"}}
        raw = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Adder)
        self.lock, self.held = threading.Lock(), threading.Event()
        self.asked: list[tuple[str, int]] = []
        self.status: Any = lambda number, question: 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.held.set()
    found.shutdown()
    found.server_close()


def start(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "rorqual", "eval", *words], stdout=pipe, stderr=pipe, text=True)


def typed(*words: str, code: int = 0) -> tuple[str, str]:
    with start(*words) as done:
        out, errors = done.communicate(timeout=300)
    assert done.returncode == code, (out, errors)
    return out, errors


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
    server.asked.clear()
    server.status = lambda number, question: 200 if number < 9 else None
    with start(server.url, "model=a", *WORDS, f"out={again}") as process:
        end = time.monotonic() + 120
        while not kept(again) or len(kept(again)[0].read_bytes().splitlines()) < 9:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        if how == signal.SIGINT:
            server.held.set()  # what is under way is waited for
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
        assert process.returncode != 0
    if how == signal.SIGINT:
        assert "The same command goes on" in errors
    assert not again.exists()
    before = len(kept(again)[0].read_bytes().splitlines())
    server.asked.clear()
    server.status = lambda number, question: 200
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
    assert "Answers kept: 20, in" in errors
    server.asked.clear()
    server.status = lambda number, question: 404
    _, errors = typed(server.url, "model=b", *WORDS, f"out={out}", code=2)
    assert "kept" not in errors and len(kept(out)) == 1
    server.asked.clear()
    server.status = lambda number, question: 200 if number < 5 else 404
    _, errors = typed(server.url, "model=b", *WORDS, f"out={out}", code=2)
    assert "Answers kept: 5, in" in errors and len(kept(out)) == 2
    server.asked.clear()
    server.status = lambda number, question: 200
    more = [word.replace("samples=2", "samples=3").replace("count=12", "count=14") for word in WORDS]
    typed(server.url, "model=a", *more, f"out={out}")
    assert len(server.asked) == 14 * 3 - 20
    assert len(Evaluation.load(out).samples) == 14 * 3
    assert len(kept(out)) == 1  # that of b


def test_a_request_that_is_refused_is_ungraded_and_the_others_are_answered(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    server.status = lambda number, question: 400 if number in (3, 4) else 200
    text, _ = typed(server.url, "model=a", *WORDS, f"out={out}")
    verdicts = Counter(sample.verdict.value for sample in Evaluation.load(out).samples)
    assert verdicts["ungraded"] == 2 and sum(verdicts.values()) == 24
    assert len(server.asked) == 24
    assert "ungraded" in text
    server.status = lambda number, question: 400
    _, errors = typed(server.url, "model=a", *WORDS, code=2)
    assert "this prompt is too long for me" in errors


def test_a_run_goes_on_where_it_was_and_gives_the_same_answers(tmp_path: Path, tiny: Path) -> None:
    run = tiny
    whole, again = tmp_path / "whole.json", tmp_path / "again.json"
    words = [word.replace("count=12", "count=60") for word in WORDS]
    typed(str(run), *words, "threads=1", f"out={whole}")
    with start(str(run), *words, "threads=1", f"out={again}") as process:
        end = time.monotonic() + 120
        while not kept(again) or len(kept(again)[0].read_bytes().splitlines()) < 11:
            assert time.monotonic() < end and process.poll() is None
        process.kill()
    before = kept(again)[0].read_bytes()
    assert 11 <= len(before.splitlines()) < 120
    typed(str(run), *words, "threads=1", f"out={again}")
    assert replies(again) == replies(whole)
    # What is kept is used: an answer that somebody changed meanwhile is what comes out.
    with start(str(run), *words, "threads=1", f"out={again}") as process:
        while not kept(again) or len(kept(again)[0].read_bytes().splitlines()) < 60:
            assert process.poll() is None
        process.kill()
    [path] = kept(again)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    for line in lines:
        line["answer"]["text"] = "changed"
    path.unlink()
    with Journal(path) as journal:
        journal.append(lines)
    typed(str(run), *words, "threads=1", f"out={again}")
    changed = Counter(reply == "changed" for _, reply, _, _ in replies(again))
    assert 1 <= changed[True] <= len(lines)


def test_a_kept_file_that_is_none_is_named(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    server.status = lambda number, question: 200 if number < 4 else 404
    typed(server.url, "model=a", *WORDS, f"out={out}", code=2)
    [path] = kept(out)
    raw = path.read_bytes()
    path.write_bytes(b'{"asked": 1}\n' + raw)
    _, errors = typed(server.url, "model=a", *WORDS, f"out={out}", code=2)
    assert f"{path}:1" in errors and "Delete that line" in errors
    path.write_bytes(raw)
    server.status = lambda number, question: 200
    typed(server.url, "model=a", *WORDS, f"out={out}")
    assert os.listdir(tmp_path) == ["out.json"]
