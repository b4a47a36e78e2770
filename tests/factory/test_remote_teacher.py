"""An address as the teacher: whatever goes wrong, what arrived is kept, is not asked for again, and is never over the budget."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distil_server import PROMPT_TOKENS, Adder, Reply, answer, fault, says
from sums_task import SUMS, Make

from rorqual.core.errors import TaskError
from rorqual.core.records import Message
from rorqual.data.distilled import TeacherSample, read_distilled
from rorqual.engine.remote.engine import RemoteEngine, RemoteError, usage_of
from rorqual.evals.evaluating import evaluate
from rorqual.factory import BudgetReached, FactoryConfig, sample_teacher
from rorqual.factory.budget import IMAGE_TOKENS, max_prompt_tokens
from rorqual.tasks.find import load_task

PRICES = {"price_in": 1.0, "price_out": 2.0}
MOST = (max_prompt_tokens(next(load_task(SUMS).problems("train", 0)).messages) + 1 + 2 * 20) / 1e6
"""What one question of up to 20 tokens may cost (a byte more, for the longer numbers)."""


def made(config: FactoryConfig, out: Path, **options: Any) -> list[TeacherSample]:
    return read_distilled(sample_teacher(config, out, threads=1, quiet=True, **options)).rows


def kept(out: Path) -> list[dict[str, Any]]:
    file = out / "samples.jsonl"
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]] if file.is_file() else []


def told(rows: list[TeacherSample]) -> list[str]:
    """Everything but at which port the server was."""
    return [repr(replace(row, teacher="")) for row in rows]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What comes out where nothing goes wrong."""
    server = Adder()
    server.start()
    config = FactoryConfig(teacher=server.url, model="adder", task=SUMS, problems=6, samples=2, max_tokens=20)
    rows = made(config, tmp_path_factory.mktemp("straight") / "out")
    server.stop()
    return told(rows)


def asked_for(bodies: list[dict[str, Any]]) -> Counter[tuple[str, int]]:
    return Counter((body["messages"][-1]["content"], body["seed"]) for body in bodies)


def test_every_answer_becomes_a_row(server: Adder, remote: Make, tmp_path: Path) -> None:
    rows = made(remote(PRICES, keep="graded"), tmp_path / "a", api_key="secret")
    assert [(r.key, r.number) for r in rows] == [(f"{a}+{a + 1}", n) for a in range(6) for n in range(2)]
    assert {r.verdict for r in rows} == {"right", "wrong"} and set(asked_for(server.billed).values()) == {1}
    for row in rows:
        assert row.teacher == f"adder at {server.url}" and (row.token_ids, row.prompt_ids) == ([], [])
        assert row.prompt_tokens == PROMPT_TOKENS and 10 <= row.completion_tokens < 20
        assert row.money == pytest.approx((row.prompt_tokens + 2 * row.completion_tokens) / 1e6)
        assert row.messages[-1].reasoning and row.messages[-1].content.isdigit()
    for file in (tmp_path / "a").iterdir():
        assert b"secret" not in file.read_bytes(), file
    assert told(made(remote({"concurrency": 1, **PRICES}, keep="graded"), tmp_path / "b")) == told(rows)


def after(count: int, reply: Reply) -> Any:
    return lambda body, number: reply if number >= count else None


def hang(body: dict[str, Any], number: int) -> None:
    time.sleep(1.5 if number >= 5 else 0)


FAILING = {
    "401": (after(0, fault(401, "bad key")), "HTTP 401: bad key", "api_key", 0),
    "401 after some": (after(5, fault(401, "no credit")), "HTTP 401: no credit", "api_key", 5),
    "403": (after(5, fault(403, "region")), "HTTP 403: region", "may use this model", 5),
    "wrong model": (after(0, fault(404, "no model adder")), "HTTP 404: no model adder", "name of the model", 0),
    "429 for ever": (
        after(5, fault(429, "slow down")),
        r"HTTP 429: slow down \(tried 3 times\)",
        "lower concurrency",
        5,
    ),
    "500 for ever": (after(5, fault(500, "oops")), r"HTTP 500: oops \(tried 3 times\)", "server runs", 5),
    "HTML": (after(5, (200, b"<html>login</html>", {})), "not JSON: <html>login", "ends in /v1", 5),
    "half an answer": (after(5, (200, b'{"choices": [{"mess', {})), "broke off after 19 bytes", "server runs", 5),
    "another protocol": (after(5, (200, b'{"ok": true}', {})), "no choices", "chat completions", 5),
    "silence": (hang, r"timed out \(tried 1 times\)", "server runs", 5),
}
GO_ON = ("401 after some", "half an answer", "silence")
"""After these, the server is mended and the call repeated: it makes no difference what went wrong."""


@pytest.mark.parametrize("name", FAILING)
def test_a_failure_is_named_what_arrived_is_kept_and_the_same_call_goes_on(
    server: Adder, remote: Make, tmp_path: Path, straight: list[str], name: str
) -> None:
    server.rule, says, remedy, arrived = FAILING[name]
    out, config = (
        tmp_path / "out",
        remote({"concurrency": 1, **({"retries": 0, "timeout": 1.0} if name == "silence" else {"retries": 2})}),
    )
    with pytest.raises(RemoteError, match=rf"(?s){server.url}.*{says}.*{remedy}.*{arrived} of 12 samples are saved in"):
        made(config, out)
    assert len(kept(out)) == arrived and not (out / "data.parquet").exists()
    if name not in GO_ON:
        return
    server.rule, before = (lambda body, number: None), asked_for(server.billed[:arrived])
    server.asked.clear()
    rows = made(config, out)
    assert not before & asked_for(server.asked), "what had arrived is not asked for again"
    assert len(rows) == 12 and told(rows) == straight


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_budget_is_reached_and_never_exceeded(server: Adder, remote: Make, tmp_path: Path, concurrency: int) -> None:
    out, budget = tmp_path / "out", MOST * 4.5
    way = {"concurrency": concurrency, "budget": budget, **PRICES}
    with pytest.raises(
        BudgetReached, match=r"(?s)out: the budget of .* is reached: .* of 12 samples received.*larger budget="
    ):
        made(remote(way), out)
    billed = sum(PROMPT_TOKENS + 2 * answer(body)["usage"]["completion_tokens"] for body in server.billed) / 1e6
    rows = read_distilled(out / "data.parquet").rows
    assert 4 <= len(rows) == len(kept(out)) == len(server.billed) < 12
    assert budget - MOST < billed <= budget and billed == pytest.approx(sum(row.money for row in rows))
    card = (out / "card.md").read_text(encoding="utf-8")
    assert f"The budget was reached: {12 - len(rows)} samples are missing" in card
    with pytest.raises(BudgetReached):
        made(remote(way), out)
    assert len(server.billed) == len(rows), "the same budget buys nothing more"
    assert len(made(remote({**way, "budget": 1.0}), out)) == 12
    assert set(asked_for(server.billed).values()) == {1} and len(server.billed) == 12
    assert "missing" not in (out / "card.md").read_text(encoding="utf-8")


HIDDEN = {
    "prompt_tokens": PROMPT_TOKENS, "completion_tokens": 1, "total_tokens": PROMPT_TOKENS + 20,
    "completion_tokens_details": {"reasoning_tokens": 19},
}  # fmt: skip
"""19 tokens of reasoning that only `total_tokens` includes."""


def test_reasoning_outside_completion_tokens_is_paid_and_counted(server: Adder, remote: Make, tmp_path: Path) -> None:
    """By `distil`, within its budget, and by `eval`."""
    server.rule = lambda body, number: (200, json.dumps(json.loads(says("1")[1]) | {"usage": HIDDEN}).encode(), {})
    cost = (PROMPT_TOKENS + 2 * 20) / 1e6
    with pytest.raises(BudgetReached):
        made(remote({"budget": 4.5 * MOST, **PRICES}, keep="all"), tmp_path)
    rows = read_distilled(tmp_path / "data.parquet").rows
    assert {(row.completion_tokens, row.money) for row in rows} == {(20, cost)}
    assert 4 <= len(rows) == len(server.billed) <= 4.5 * MOST / cost
    found = evaluate(RemoteEngine(server.url, "adder"), load_task(SUMS), count=3)
    assert found.usage["completion_tokens"] == 60 and [sample.tokens for sample in found.samples] == [20] * 3


@pytest.mark.parametrize(
    ("reported", "completion"),
    [
        ({"completion_tokens": 9}, 9), ({"completion_tokens": 9, "total_tokens": 29}, 9), ({"total_tokens": 50}, 30),
        ({"completion_tokens": 9, "total_tokens": 20}, 9), ({"completion_tokens": 9, "total_tokens": 2**40}, 9),
    ],
)  # fmt: skip
def test_completion_tokens_are_at_least_what_the_total_leaves(reported: dict[str, int], completion: int) -> None:
    assert usage_of({"usage": {"prompt_tokens": 20, **reported}})["completion_tokens"] == completion


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def test_a_question_with_images_has_a_reserve(server: Adder, remote: Make, tmp_path: Path) -> None:
    """Of so many tokens for each image, and 28 bytes for its label."""
    question = {"type": "text", "text": "What is 1 + 1?"}
    turns = [{"role": "user", "content": [question, IMAGE, IMAGE]}, {"role": "assistant", "content": "2"}]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    server.rule = lambda body, number: says("2")
    access = {"price_in": 1.0, "price_out": 0.0, "budget": 1.0}
    config = remote(access, task="messages", data=str(tmp_path / "train.jsonl"), samples=1)
    assert len(made(config, tmp_path / "out")) == 1
    (sent,) = (tmp_path / "out" / "purse.jsonl").read_text(encoding="utf-8").splitlines()
    most = max_prompt_tokens([Message("user", "What is 1 + 1?")]) + 2 * (IMAGE_TOKENS + 28)
    assert json.loads(sent)["most"] == pytest.approx(most / 1e6)


def test_a_budget_needs_prices(remote: Make) -> None:
    """Both: tokens without a price would be free."""
    for prices in ({}, {"price_in": 1.0}, {"price_out": 1.0}, {"price_in": 0.0, "price_out": 0.0}):
        with pytest.raises(ValueError, match="price_in and price_out"):
            remote({"budget": 1.0, **prices})
    assert remote({"budget": 1.0, "price_in": 0.0, "price_out": 1.0}).access.budget == 1.0


def test_a_grader_that_crashes_stops_and_what_is_under_way_is_kept(server: Adder, remote: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(TaskError, match=r"(?s)task crashing: .*'2\+3'.*samples are saved in"):
        made(remote(task=SUMS.replace(":Sums", ":Crashing")), out)
    assert len(kept(out)) == len(server.billed) < 12


def test_duplicates_in_the_task_are_asked_once(server: Adder, remote: Make, tmp_path: Path) -> None:
    rows = made(remote(options={"limit": 5, "repeats": 3}, problems=9), tmp_path / "out")
    assert len(rows) == len(server.billed) == 10 and len({(r.key, r.number) for r in rows}) == 10
    card = (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    assert "the task has 5 of the 9 requested problems" in card
