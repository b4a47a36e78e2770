"""What `rorqual teach` chose, served: the answers as measured, abstention, and requests in another form than the taught one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from test_serve_options import OPTIONS, ORIGINS, told

from rorqual.cli.serving import TAUGHT as EFFECTIVE
from rorqual.cli.serving import ServeSettings
from rorqual.cli.serving import start_server as start_here
from rorqual.core.errors import RorqualError
from rorqual.teach.answerer import Answer, Step, load_answerer
from rorqual.teach.fallback import INSTRUCTION
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import PlattCalibration
from rorqual.teach.rungs.language_model import TAUGHT
from rorqual.teach.rungs.simple import UserRule
from served import Server, running, write_run
from taught_task import CALIBRATION, COLUMNS, PROMISE, WORDS, orders, sums, texts, write_grammar, write_task

CHAT = "/v1/chat/completions"
RULE = """
def rule(prompt):
    if "boom" in prompt:
        raise ValueError("boom")
    return "fee"
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rungs with two columns and a promise."""
    return write_task(tmp_path_factory.mktemp("task") / "bank", texts(90))


@pytest.fixture(scope="module")
def served(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(task, tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def http(served: Server) -> Iterator[httpx.Client]:
    with served.client as client:
        yield client


def ask(http: httpx.Client, content: Any = "my card\n\nnumber 1", **own: Any) -> httpx.Response:
    return http.post(CHAT, json={"model": "bank", "messages": [{"role": "user", "content": content}], **own})


def asked(server: Server, name: str, prompts: list[str]) -> list[tuple[str | None, str | None, dict[str, Any]]]:
    """The content, refusal and probability of each prompt, eight at a time; every second one is streamed."""
    http = httpx.Client(trust_env=False, timeout=600)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, http_client=http, max_retries=0)

    def one(place: int) -> tuple[str | None, str | None, dict[str, Any]]:
        turns: Any = [{"role": "user", "content": prompts[place]}]
        if place % 2:
            made = client.chat.completions.create(model=name, messages=turns)
            message = made.choices[0].message
            assert made.usage is not None and made.usage.prompt_tokens == -(-len(prompts[place].encode()) // 4)
            return message.content, message.refusal, made.model_extra["rorqual"]  # type: ignore[index]
        usage: Any = {"include_usage": True}
        *chunks, last = client.chat.completions.create(model=name, messages=turns, stream=True, stream_options=usage)
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert last.usage is not None and last.usage.total_tokens > last.usage.prompt_tokens > 0
        assert chunks[-1].choices[0].finish_reason == "stop"
        content, refusal = ("".join(getattr(d, name) or "" for d in deltas) for name in ("content", "refusal"))
        return None if refusal else content, refusal or None, last.model_extra["rorqual"]  # type: ignore[index]

    with http, ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(len(prompts))))


def expected(answer: Answer, promised: bool) -> tuple[str | None, str | None, dict[str, Any]]:
    about = {"probability": answer.probability, "rung": answer.rung, "promise": 0.95 if promised else None}
    if not promised or answer.probability >= PROMISE.threshold:
        return answer.text, None, about
    said = f"not sure enough: probability {answer.probability:.3g}, the promise of 0.95 needs 0.7"
    return None, said, about


@pytest.mark.parametrize("kind", ["two rungs", "numbers", "fields", "language model"])
def test_two_hundred_served_answers_are_the_measured_ones(tmp_path: Path, kind: str) -> None:
    folder, plain = tmp_path / "task", {"promise": None, "columns": ("text",)}
    pairs = sums(200, 5) if kind == "numbers" else orders(200, 5) if kind == "fields" else texts(200, 5)
    if kind == "two rungs":
        write_task(folder, texts(90))
    elif kind == "language model":
        write_run(folder / "model")
        write_grammar(folder / "model", sorted(WORDS), thinking="off")
        write_task(folder, texts(60), steps=[Step(rung=TAUGHT, calibration=CALIBRATION)], **plain)
    elif kind == "numbers":
        steps = [Step(rung="ranked calculations", calibration=PlattCalibration())]
        write_task(folder, sums(40), "number", steps=steps, **plain)
    else:
        write_task(
            folder, orders(40), "JSON", steps=[Step(rung="conditional random fields", calibration=CALIBRATION)], **plain
        )
    prompts = [prompt for prompt, _ in pairs]
    answers = load_answerer(folder, threads=1).answer(prompts)
    with running(folder, tmp_path, "ui=false") as server:
        found = asked(server, "task", prompts)
    assert found == [expected(answer, kind == "two rungs") for answer in answers]
    if kind == "two rungs":
        assert {answer.rung for answer in answers} == {"nearest neighbour", "logistic regression"}
        assert {answer.sure for answer in answers} == {True, False}
    else:
        assert len({(answer.text, answer.probability) for answer in answers}) > 20, "a swap of two would be seen"


# ---- the prompt is a contract


DEPARTS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"temperature": 0, "top_p": 0.5, "seed": 4, "user": "me"}, None),
    ({"temperature": 0.5}, "temperature"),
    ({"stop": ["a"], "logit_bias": {"5": 1}}, "logit_bias, stop"),
    ({"max_tokens": 1}, None),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"messages": [("system", "Be brief."), ("user", "my card\n\nnumber 1")]}, "system"),
    ({"messages": [("user", "a"), ("assistant", "b"), ("user", "my card\n\nnumber 1")], "temperature": 1}, "turns, temperature"),
    ({"columns": {"subject": "my card", "body": "number 1"}, "messages": []}, None),
    ({"columns": {"subject": "my card", "body": "number 1"}}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "departs"), DEPARTS)
def test_a_request_of_another_form_is_answered_in_the_taught_one_and_told_so(
    served: Server, http: httpx.Client, own: dict[str, Any], departs: str | None
) -> None:
    turns = {"messages": [{"role": r, "content": c} for r, c in own["messages"]]} if "messages" in own else {}
    answer, plain = ask(http, **{**own, **turns}), ask(http)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain.json()["choices"] and answer.json()["rorqual"] == plain.json()["rorqual"]
    assert answer.headers.get("x-rorqual-departs") == departs
    line = f"request {answer.headers['x-request-id']} is answered in the taught form, without its {departs}"
    assert (line in served.log.read_text(encoding="utf-8")) == (departs is not None)


def test_a_task_that_refuses_every_prompt_is_announced(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "bank", texts(20), promise=None, asked=0.9)
    with running(folder, tmp_path, "ui=false") as server, server.client as http:
        message = ask(http).json()["choices"][0]["message"]
        log = server.log.read_text(encoding="utf-8")
    assert "Warning: every prompt is refused, because an accuracy of 0.9 could not be promised." in log
    assert message["content"] is None and message["refusal"].startswith("no prompt is answered: an accuracy of 0.9 ")


def test_an_answer_that_is_longer_than_max_tokens_is_whole_and_told_so(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "bank", [("a", "a long label"), ("b", "other")], steps=[
        Step(rung="majority", calibration=PlattCalibration())], promise=None, columns=("text",))  # fmt: skip
    with running(folder, tmp_path, "ui=false") as server, server.client as http:
        for most, told_so in ((2, "max_tokens"), (3, None)):
            answer = ask(http, max_tokens=most)
            assert answer.json()["choices"][0]["message"]["content"] == "a long label"
            assert answer.headers.get("x-rorqual-departs") == told_so


FIELDS = {"subject": "my card", "body": "number 1"}


@pytest.mark.parametrize(
    ("content", "own"),
    [
        (" my card\n\nnumber 1\n", {}),
        ([{"type": "text", "text": "my card\n\n"}, {"type": "text", "text": "number 1"}], {}),
        (json.dumps(FIELDS), {}),
        ("", {"columns": dict(reversed(FIELDS.items()))}),
        ("", {"columns": {"subject": " my card", "body": "number 1 "}}),
    ],
)
def test_text_json_and_columns_are_the_same_prompt(http: httpx.Client, content: Any, own: dict[str, Any]) -> None:
    one, other = ask(http, content, **own).json(), ask(http).json()
    assert (one["choices"], one["rorqual"], one["usage"]) == (other["choices"], other["rorqual"], other["usage"])


def test_a_column_may_be_empty(http: httpx.Client) -> None:
    one, other = ask(http, "", columns={"subject": "my card", "body": None}), ask(http, "my card")
    assert one.json()["rorqual"] == other.json()["rorqual"] != ask(http).json()["rorqual"]


REFUSED: list[tuple[Any, dict[str, Any], str, str]] = [
    ("", {"columns": {"subject": "my card", "bodi": "x"}}, "columns", "unknown column 'bodi'. Did you mean 'body'?"),
    ("", {"columns": {"subject": "my card"}}, "columns", "column 'body' is missing"),
    ("", {"columns": {"subject": "", "body": " "}}, "columns", "the prompt is empty"),
    ('{"subject": "my card", "b": 1}', {}, "messages", "unknown column 'b'"),
    ('{"subject": "my card"}', {}, "messages", "column 'body' is missing"),
    (" ", {}, "messages", "the prompt is empty"),
    ("a" * 20_001, {}, "messages", "has 20,001 characters, and at most 20,000 are answered"),
    ("", {"columns": {"subject": "a" * 20_001, "body": ""}}, "columns", "at most 20,000 are answered"),
    ("a", {"messages": []}, "messages", "there is no user message"),
    ("a", {"messages": [{"role": "assistant", "content": "a"}]}, "messages", "there is no user message"),
    ("a", {"n": 2}, "n", "`n` is not supported: a prompt has one answer"),
    ("a", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "calls no tools"),
    ("a", {"logprobs": True}, "logprobs", "an answer has a probability, in `rorqual`"),
    ("a", {"prompt_logprobs": 1}, "prompt_logprobs", "not supported"),
    ("a", {"response_format": {"type": "json_object"}}, "response_format", "the form of the training examples"),
    ("a", {"guided_choice": ["x", "y"]}, "guided_choice", "the form of the training examples"),
    ([{"type": "image_url", "image_url": {"url": "data:,a"}}], {}, "messages[0].content[0]", "is not text"),
    ("a", {"colunms": FIELDS}, "colunms", "Did you mean 'columns'?"),
]


@pytest.mark.parametrize(("content", "own", "param", "said"), REFUSED)
def test_what_no_rung_can_do_is_refused_by_name(
    http: httpx.Client, content: Any, own: dict[str, Any], param: str, said: str
) -> None:
    error = ask(http, content, **own)
    assert error.status_code == 400 and said in error.json()["error"]["message"], error.text
    assert error.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "own",
    [{"n": 1}, {"tools": []}, {"logprobs": False}, {"response_format": {"type": "text"}}, {"columns": None}, {"stream": False}],
)  # fmt: skip
def test_the_nearest_valid_request_is_answered(http: httpx.Client, own: dict[str, Any]) -> None:
    answer = ask(http, **own)
    assert answer.status_code == 200 and "x-rorqual-departs" not in answer.headers, answer.text


def test_the_model_has_one_name_and_its_description_fits_the_openapi_document(http: httpx.Client) -> None:
    assert ask(http, model="bank2").json()["error"]["code"] == "model_not_found"
    card = http.get("/v1/models/bank").json()
    assert (card["rungs"], card["promise"], card["columns"]) == (
        ["nearest neighbour", "logistic regression"], 0.95, [*COLUMNS]
    )  # fmt: skip
    document = http.get("/openapi.json").json()
    assert "/v1/completions" not in document["paths"] and http.post("/v1/completions", json={}).status_code == 404
    assert {"columns", "temperature", "user"} <= document["components"]["schemas"]["TaughtRequest"]["properties"].keys()
    needed = document["paths"]["/v1/models/{name}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(needed["required"]) == set(card)
    assert http.get("/health").status_code == 200 and "completion" in http.get("/metrics").text


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    pairs = [("user: fee?\n\nassistant: no\n\nuser: pin?", "pin"), ("fee", "fee")] * 2
    steps = [Step(rung="nearest neighbour", calibration=PlattCalibration())]
    folder = write_task(tmp_path / "bank", pairs, steps=steps, promise=None, columns=())
    turns = [("system", "s"), ("user", "fee?"), ("assistant", "no"), ("user", "pin?")]
    with running(folder, tmp_path, "ui=false") as server, server.client as http:
        answer = ask(http, messages=[{"role": role, "content": text} for role, text in turns])
        assert ask(http, columns={"a": "b"}).json()["error"]["param"] == "columns"
    assert answer.headers["x-rorqual-departs"] == "system"
    assert answer.json()["rorqual"]["probability"] > 0.99 and answer.json()["choices"][0]["message"]["content"] == "pin"


# ---- a fallback


def test_unsure_prompts_go_to_the_fallback_until_its_budget_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "remote")
    write_grammar(tmp_path / "remote", sorted(WORDS), thinking="off")
    folder = write_task(tmp_path / "bank", texts(90))
    (folder / "data").mkdir()
    rows = [{"prompt": prompt, "completion": label} for prompt, label in texts(90)]
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prompts = [prompt for prompt, _ in texts(200, 5)]
    answers = load_answerer(folder, threads=1).answer(prompts)
    unsure, sure = ([prompt for prompt, answer in zip(prompts, answers, strict=True) if answer.sure == s] for s in (False, True))  # fmt: skip
    shown = dict(reversed([(row["completion"], row["prompt"]) for row in rows]))
    assert len(unsure) > 20
    with running(tmp_path / "remote", tmp_path, "ui=false") as remote, remote.client as there:
        monkeypatch.setenv("RORQUAL_API_KEY", remote.key)
        words = ["ui=false", f"fallback={remote.url}/v1", "fallback_model=remote", "fallback_budget=0.005"]
        words += ["price_in=2", "price_out=1"]
        (tmp_path / "here").mkdir()
        with running(folder, tmp_path / "here", *words) as server:
            found = asked(server, "bank", [*unsure[:20], *sure[:5]])
            with server.client as http:
                first = ask(http, unsure[0]).json()
        answered = [one for one in found if one[2]["rung"] == "fallback"]
        assert all(about == {"probability": None, "rung": "fallback", "promise": None} for *_, about in answered)
        assert 3 < len(answered) < 20, "some are answered, then the budget is spent"
        assert [one for one in found if one not in answered][-5:] == [
            expected(answer, True) for answer in answers if answer.sure
        ][:5]
        assert first["choices"][0]["message"]["refusal"].startswith("not sure enough")
        place = next(place for place, one in enumerate(found) if one in answered)
        opening = [{"role": "system", "content": INSTRUCTION}]
        for label in dict.fromkeys(row["completion"] for row in rows):
            opening += [{"role": "user", "content": shown[label]}, {"role": "assistant", "content": label}]
        body = {"model": "remote", "temperature": 0, "messages": [*opening, {"role": "user", "content": unsure[place]}]}
        direct = there.post(CHAT, json=body).json()
        assert found[place][0] == direct["choices"][0]["message"]["content"]
        price = (2 * direct["usage"]["prompt_tokens"] + direct["usage"]["completion_tokens"]) / 1e6
        paid = [json.loads(line)["money"] for line in (folder / "fallback" / "paid.jsonl").read_bytes().splitlines()]
        assert len(paid) == len(answered) and sum(paid) <= 0.005 and min(abs(one - price) for one in paid) < price / 10
        (tmp_path / "again").mkdir()
        with running(folder, tmp_path / "again", *words) as server:
            assert asked(server, "bank", unsure[:2])[0][1], "an earlier server spent the budget"
    plain = write_task(tmp_path / "plain", texts(90), promise=None)
    for model, given, said in (
        (plain, words, "nothing is promised"),
        (folder, ["price_in=1"], "key 'price_in': it has no effect"),
        (folder, words[1:2], "model= is required"),
        (folder, words[1:4], "budget needs price_in and price_out"),
        (tmp_path / "remote", words, "only what `rorqual teach` chose has a fallback"),
    ):
        with pytest.raises(RorqualError, match=said):
            start_here(str(model), ["port=0", f"keys={tmp_path / 'k'}", *given])


# ---- failures, the queue, and options


def test_a_rung_that_fails_on_a_prompt_answers_the_next(tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text(RULE, encoding="utf-8")
    rule = UserRule(lambda _: "", f"{tmp_path / 'rule.py'}:rule")
    steps = [Step(rung="rule", calibration=PlattCalibration())]
    folder = write_task(tmp_path / "bank", texts(9), steps=steps, promise=None, columns=("text",), rungs=[rule])
    with running(folder, tmp_path, "ui=false") as server, server.client as http:
        failed = ask(http, "boom")
        assert failed.status_code == 500 and "the rule `rule`" in failed.json()["error"]["message"]
        assert ask(http, "a").json()["choices"][0]["message"]["content"] == "fee"
        assert server.metric("failed_total") == 1


def test_a_full_queue_refuses_the_tenant_that_filled_it(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"tenant": name, "sha256": f"{number:064x}"} for number, name in enumerate(("default", "other"))]
    (tmp_path / "k").write_text(json.dumps({"keys": rows}), encoding="utf-8")
    service = told(task, [f"keys={tmp_path / 'k'}", "queue=2"], monkeypatch)[0].service
    with service.reserve_queue_place("default"), service.reserve_queue_place("default"):
        with (
            pytest.raises(Exception, match="The queue is full: 2 requests") as caught,
            service.reserve_queue_place("default"),
        ):
            pass
        assert caught.value.status == 429  # type: ignore[attr-defined]
        with service.reserve_queue_place("other"):
            assert service.active_requests()[1] == {"default": 2, "other": 1}
    assert service.active.total() == 0


def test_every_option_arrives_and_those_of_the_engine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("task/model"))
    write_grammar(Path("task/model"), sorted(WORDS))
    task = write_task(Path("task"), texts(9), steps=[Step(rung=TAUGHT, calibration=CALIBRATION)])
    given = {name: OPTIONS[name] for name in EFFECTIVE if name in OPTIONS}
    app, settings = told(task, [f"{name}={word}" for name, (word, *_) in given.items()], monkeypatch)
    model = app.service.answerer.predictors[0]
    found = {
        name: arrives(app, settings) for name, (_, arrives, *_) in given.items() if name not in ("queue", "threads")
    }
    assert found | {"queue": app.service.queue, "threads": model.engine.threads} == {
        name: there for name, (_, _, there, _) in given.items()
    }
    assert app.service.cors == frozenset(ORIGINS) and app.service.created == int(
        TeachPaths(task).answerer.stat().st_mtime
    )
    app, _ = told(task, ["keys=k"], monkeypatch)
    assert (app.service.name, app.service.queue) == ("task", 256)
    for name in ServeSettings.model_fields.keys() - EFFECTIVE - {"fallback"}:
        value = {"record_kept": "true", "device": "cpu", "dtype": "float32", "sure": "0.5"}.get(name, "64")
        value = {"disk_bytes": "2000000"}.get(name, value)
        with pytest.raises(RorqualError, match=f"key '{name}': it has no effect on what `rorqual teach` chose"):
            start_here(str(task), ["port=0", f"{name}={value}"])


def test_a_folder_that_cannot_answer_is_refused_before_a_key_is_made(task: Path, tmp_path: Path) -> None:
    words = ["port=0", f"keys={tmp_path / 'keys'}"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RorqualError, match=r"no complete checkpoint|run\.yaml"):
        start_here(str(tmp_path / "empty"), words)
    (tmp_path / "empty" / "teach.yaml").touch()
    with pytest.raises(RorqualError, match="`rorqual teach` has not chosen what answers here"):
        start_here(str(tmp_path / "empty"), words)
    broken = tmp_path / "broken"
    shutil.copytree(task, broken)
    file = TeachPaths(broken).rung_file("nearest neighbour")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RorqualError, match=r"nearest-neighbour\.skops"):
        start_here(str(broken), words)
    file.write_bytes(whole)
    for text in ("{", '{"steps": []}', '{"steps": 1}'):
        TeachPaths(broken).answerer.write_text(text, encoding="utf-8")
        with pytest.raises(RorqualError, match=r"answerer\.json"):
            start_here(str(broken), words)
    assert not (tmp_path / "keys").exists()
