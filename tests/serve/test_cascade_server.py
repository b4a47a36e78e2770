"""A served cascade: who answers, what is billed, and what is refused before the server starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_serve_options import told

from rorqual.cli.serving import start_server as start_here
from rorqual.core.errors import RorqualError
from rorqual.core.records import Message, RunDir
from rorqual.data.fingerprint import fingerprint
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.evals.calibration import Calibration
from rorqual.evals.cascade import Cascade
from rorqual.evals.evaluation import Evaluation
from served import Server, running, start, stop, write_run

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SLOPE, INTERCEPT = 2.0, 1.5
PROMPTS = [f"{word} {number}" for word in ("add", "swap", "what is") for number in range(4)]
STOPS = tuple(range(40, 264, 14))
TOKENIZERS = {"little": Tokenizer.byte_level(), "large": Tokenizer.byte_level(PROMPTS * 20, 300)}
"""With another tokenizer, a prompt of the student is another text for the teacher."""
PARAMS = SamplingParams(max_tokens=60, stop_token_ids=STOPS)


def calibration_file(
    path: Path, student: Path, teacher: Path, signal: Any = "logprob", sure: float = 0.5, temperature: float = 0.0
) -> Path:
    """The result of an evaluation of a cascade, without answers, because a server reads none."""

    def empty(model: Path) -> Evaluation:
        sampling = SamplingParams(temperature=temperature)
        return Evaluation(
            task="t", model=str(model), split="test", seed=0, count=1, per_family=False, thinking="auto", params=sampling, samples=(),
        )  # fmt: skip

    calibration = Calibration(signal=signal, slope=SLOPE, intercept=INTERCEPT)
    found = [RunDir(run) for run in (student, teacher)]
    prints = tuple(fingerprint(run, run.checkpoint()) if run.config_file.is_file() else "" for run in found)
    Cascade(
        student=empty(student),
        teacher=empty(teacher),
        calibration=calibration,
        sure=sure,
        fingerprints=(prints[0], prints[1]),
    ).save(path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cascade")
    return write_run(folder / "little"), write_run(folder / "large", head_dim=16, tokenizer=TOKENIZERS["large"])


@pytest.fixture(scope="module")
def replies(runs: tuple[Path, Path]) -> dict[str, list[Any]]:
    """The greedy replies of both models to all prompts."""
    requests = [Request((Message("user", prompt),), PARAMS) for prompt in PROMPTS]
    return {run.name: [c for [c] in Engine(run, record_experts=False, threads=1).generate(requests)] for run in runs}


@pytest.fixture(scope="module")
def chances(replies: dict[str, list[Any]]) -> list[float]:
    calibration = Calibration(signal="logprob", slope=SLOPE, intercept=INTERCEPT)
    found = [
        calibration.probability(sum(c.logprobs) / len(c.logprobs)) if c.finish_reason == "stop" else 0.0
        for c in replies["little"]
    ]
    assert 0.0 in found, "a truncated reply is never kept"
    return found


@pytest.fixture(scope="module")
def sure(chances: list[float]) -> float:
    """Between the confidences of the sixth and the seventh prompt: each model answers a half."""
    return sum(sorted(chances)[5:7]) / 2


@pytest.fixture(scope="module")
def server(runs: tuple[Path, Path], sure: float, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    file = calibration_file(folder / "c.json", *runs)
    model = Path(f"cascade={runs[0]},{runs[1]}")
    with running(model, folder, "slots=2", f"calibration={file}", f"sure={sure}", "ui=false") as found:
        yield found


def body(prompt: str) -> dict[str, Any]:
    """A request with the sampling of the calibration, which is the default."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": "cascade", "messages": messages, "max_tokens": 60, "stop_token_ids": STOPS}


def ask(server: Server, prompt: str, **more: Any) -> dict[str, Any]:
    with server.client as client:
        found: dict[str, Any] = client.post(CHAT, json=body(prompt) | more).json()
    return found


def test_the_teacher_answers_where_the_student_is_not_sure(
    server: Server, replies: dict[str, list[Any]], chances: list[float], sure: float
) -> None:
    assert server.metric("engine_up") == 1
    before = {kind: server.metric(rf'tokens_total\{{tenant="default",kind="{kind}"\}}', 0) for kind in ("completion",)}
    spent, by = 0, []
    for number, prompt in enumerate(PROMPTS):
        little, large = (replies[name][number] for name in ("little", "large"))
        found = ask(server, prompt)
        usage = found["usage"]
        cascade = usage["cascade"]
        assert cascade["confidence"] == pytest.approx(chances[number], abs=1e-6)
        kept = chances[number] >= sure
        by.append(cascade["answered_by"])
        assert by[-1] == ("little" if kept else "large")
        expected = little if kept else large
        message = found["choices"][0]["message"]
        ids = expected.token_ids[:-1] if expected.token_ids[-1] in STOPS else expected.token_ids
        assert message["content"] == TOKENIZERS[by[-1]].decode(ids) and not message.get("reasoning_content")
        assert usage["prompt_tokens"] == len(expected.prompt_ids)
        assert usage["completion_tokens"] == len(expected.token_ids)
        assert ("student_usage" in cascade) == (not kept)
        spent += usage["completion_tokens"]
        if not kept:
            assert cascade["student_usage"]["completion_tokens"] == len(little.token_ids)
            spent += len(little.token_ids)
    assert by.count("little") == by.count("large") == 6
    now = server.metric(r'tokens_total\{tenant="default",kind="completion"\}')
    assert now - before["completion"] == spent, "the tokens of both models are billed"


def test_a_stream_gives_the_same_answer_and_usage(server: Server) -> None:
    for prompt in PROMPTS:
        whole = ask(server, prompt)
        with server.client as client:
            text = client.post(
                CHAT, json=body(prompt) | {"stream": True, "stream_options": {"include_usage": True}}
            ).text
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        message = whole["choices"][0]["message"]
        for name in ("content", "reasoning_content"):
            assert "".join(delta.get(name) or "" for delta in deltas) == (message.get(name) or "")
        assert len({event["id"] for event in events}) == 1 and text.rstrip().endswith("data: [DONE]")
        usage, expected = events[-1]["usage"], whole["usage"]
        assert usage["cascade"]["answered_by"] == expected["cascade"]["answered_by"]
        assert usage["completion_tokens"] == expected["completion_tokens"]
        assert all(event["usage"] is None for event in events[:-1])


def test_what_a_cascade_cannot_do(server: Server) -> None:
    error = ask(server, "add 1", n=2)["error"]
    assert error["param"] == "n" and "a cascade gives one reply" in error["message"]
    assert ask(server, "add 1", n=1)["usage"]["cascade"]
    with server.client as client:
        text = client.post(TEXT, json={"model": "cascade", "prompt": "add", "max_tokens": 2}).json()
        assert "cascade" not in text["usage"], "text is continued by the student alone"
        [card] = client.get("/v1/models").json()["data"]
        assert card["id"] == "cascade" and client.get("/health").json() == {"status": "ok"}
        metrics = client.get("/metrics").text
    for name in ("blocks_total", "teacher_blocks_total"):
        assert f'engine{{what="{name}"}}' in metrics


def test_options_reach_the_teacher(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = calibration_file(tmp_path / "c.json", *runs, sure=0.7, temperature=0.5)
    model = f"cascade={runs[0]},{runs[1]}"
    words = [f"keys={tmp_path / 'k'}", f"calibration={file}", "slots=3", f"cache_dir={tmp_path / 'cache'}"]
    for more, sure in (([], 0.7), (["sure=0.25"], 0.25), (["sure=0"], 0.0)):
        app, _ = told(model, [*words, *more], monkeypatch)  # type: ignore[arg-type]
        service, teacher = app.service, app.service.teacher
        assert teacher is not None and teacher.sure == sure
        assert service.defaults.temperature == teacher.service.defaults.temperature == 0.5, "that of the evaluation"
        assert teacher.service.chat is not service.chat
        assert teacher.calibration == Calibration(signal="logprob", slope=SLOPE, intercept=INTERCEPT)
        arguments = [one.bridge.arguments for one in (service, teacher.service)]
        assert [one.run for one in arguments] == [str(run) for run in runs]
        assert [one.engine["slots"] for one in arguments] == [3, 3]
        folders = [one.engine["cache_dir"] for one in arguments]
        assert folders == [str(tmp_path / "cache"), str(tmp_path / "cache" / "teacher")]
        assert (teacher.student, teacher.name, service.name) == ("little", "large", "cascade")
        assert service.bridges == (service.bridge, teacher.service.bridge)
        assert teacher.service.metrics is service.metrics and teacher.service.keys is service.keys
    app, _ = told(str(runs[0]), [f"keys={tmp_path / 'k'}"], monkeypatch)  # type: ignore[arg-type]
    assert app.service.teacher is None and app.service.bridges == (app.service.bridge,)


def test_generation_settings_of_a_run_do_not_change_the_calibrated_sampling(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "student", tmp_path / "teacher"
    for copy, run in zip(own, runs, strict=True):
        shutil.copytree(run, copy)
        with RunDir(copy).config_file.open("a", encoding="utf-8") as config:
            config.write("generation: {temperature: 0.9, top_p: 0.8, top_k: 5, min_p: 0.1, repetition_penalty: 1.3}\n")
    file = calibration_file(tmp_path / "c.json", *own, temperature=0.5)
    app, _ = told(f"cascade={own[0]},{own[1]}", [f"keys={tmp_path / 'k'}", f"calibration={file}"], monkeypatch)  # type: ignore[arg-type]
    for service in (app.service, app.service.teacher.service):  # type: ignore[union-attr]
        found = service.defaults
        assert (found.temperature, found.top_p, found.top_k, found.min_p, found.repetition_penalty) == (0.5, 1, 0, 0, 1)


def test_bad_cascades_are_refused_before_anything_starts(runs: tuple[Path, Path], tmp_path: Path) -> None:
    little, large = map(str, runs)
    good = calibration_file(tmp_path / "good.json", *runs)
    turned = calibration_file(tmp_path / "turned.json", *runs[::-1])
    votes = calibration_file(tmp_path / "votes.json", *runs, signal="votes")
    both = f"cascade={little},{large}"
    bad: list[tuple[str, list[str], str]] = [
        (both, [], "a cascade needs a calibration"),
        (both, [f"calibration={tmp_path / 'none.json'}"], "the file does not exist"),
        (both, [f"calibration={turned}"], "the calibration is for other checkpoints"),
        (both, [f"calibration={votes}"], "the calibration is by votes"),
        (both, [f"calibration={good}", f"rollout_dir={tmp_path / 'w'}"], "a cascade gives no rollouts"),
        (both, [f"calibration={good}", "sure=1.5"], "key 'sure'"),
        (little, [f"calibration={good}"], "only a cascade has a calibration"),
        (little, ["sure=0.5"], "only a cascade has a calibration"),
        (f"cascade={little},http://h/v1", [f"calibration={good}"], "a served cascade needs two runs"),
        (f"cascade={little}", [f"calibration={good}"], "names 1 models"),
        (f"cascade={little},{large},{large}", [f"calibration={good}"], "names 3 models"),
    ]
    for model, words, what in bad:
        with pytest.raises(RorqualError, match=what):
            start_here(model, ["port=0", f"keys={tmp_path / 'keys.json'}", *words])
    assert not (tmp_path / "keys.json").exists() and not (tmp_path / "w").exists()
    gone = calibration_file(tmp_path / "gone.json", runs[0], tmp_path / "missing")
    with pytest.raises(RorqualError, match="missing"):
        start_here(
            f"cascade={little},{tmp_path / 'missing'}", [f"calibration={gone}", f"keys={tmp_path / 'keys.json'}"]
        )


def test_both_engines_are_watched_and_stopped(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Of the two engines, whichever is dead makes the server unhealthy; both restart, and both end with the server."""
    server = cascade_server(runs, tmp_path, "sure=1")
    engines = children(server)
    assert len(engines) == 2
    for dead in engines:
        os.kill(dead, signal.SIGKILL)
        seen = set[int]()
        end = time.monotonic() + 120
        with server.client as client:
            while time.monotonic() < end and not (503 in seen and client.get("/health").status_code == 200):
                seen.add(client.get("/health").status_code)
                time.sleep(0.02)
        assert 503 in seen
    assert server.metric("engine_restarts_total") == 2
    now = children(server)
    assert stop(server) == 0
    assert not any(Path(f"/proc/{engine}/cmdline").exists() and alive(engine) for engine in now)


def test_a_held_stream_shows_that_it_is_alive_and_survives_the_students_death(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """Until the student's reply is complete, comments are sent and no text; an engine that dies meanwhile starts again."""
    server = cascade_server(runs, tmp_path, "sure=0")
    student = server.engine()
    os.kill(student, signal.SIGSTOP)
    asked = body(PROMPTS[0]) | {"stream": True, "max_tokens": 4, "stop_token_ids": list(range(40, 56))}
    text, killed = "", False
    with server.client as client, client.stream("POST", CHAT, json=asked) as response:
        for part in response.iter_text():
            text += part
            if not killed and ": still here" in text:
                assert "data:" not in text
                os.kill(student, signal.SIGKILL)
                killed = True
    assert killed and text.rstrip().endswith("data: [DONE]") and '"error"' not in text
    assert stop(server) == 0


def test_a_full_teacher_refuses_before_the_student_generates(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """The teacher has two places. One request has it, one is with the student and has reserved the other, so a third is refused."""
    server = cascade_server(runs, tmp_path, "sure=1", "queue=2", "hang=3600")
    student = server.engine()
    teacher = next(pid for pid in children(server) if pid != student)
    os.kill(teacher, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        try:
            asked = [pool.submit(ask, server, PROMPTS[0])]
            kind = r'tokens_total\{tenant="default",kind="completion"\}'
            while not server.metric(kind, 0):
                time.sleep(0.05)
            os.kill(student, signal.SIGSTOP)
            asked.append(pool.submit(ask, server, PROMPTS[1]))
            server.wait("waiting", 2)
            with httpx.Client(headers={"authorization": f"Bearer {server.key}"}, timeout=20, trust_env=False) as client:
                try:
                    code = client.post(server.url + CHAT, json=body(PROMPTS[2])).json()["error"]["code"]
                except httpx.ReadTimeout:
                    code = "the student generates"
            assert code == "queue_full"
        finally:
            os.kill(student, signal.SIGCONT)
            os.kill(teacher, signal.SIGCONT)
        assert [one.result()["usage"]["cascade"]["answered_by"] for one in asked] == ["large", "large"]
    assert stop(server) == 0


def cascade_server(runs: tuple[Path, Path], folder: Path, *words: str) -> Server:
    file = calibration_file(folder / "c.json", *runs)
    model = Path(f"cascade={runs[0]},{runs[1]}")
    return start(model, folder / "keys.json", folder / "log", "port=0", f"calibration={file}", "ui=false", *words)


def children(server: Server) -> list[int]:
    text = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text(encoding="ascii")
    return [int(pid) for pid in text.split()]


def alive(pid: int) -> bool:
    return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
