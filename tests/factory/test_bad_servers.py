"""Servers that misbehave, in a process of their own, which bill: what is counted, what is promised, and that the factory goes on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from billed import RESERVE, Outcome, ask, billing_server
from billing_server import EVERY_OTHER, FREE, KINDS, NEVER, tokens_of

from rorqual.data.distilled import read_distilled

BUDGET = 6.5 * RESERVE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    with billing_server(tmp_path_factory.mktemp("server")) as found:
        yield found


def run(server: tuple[str, Path], out: Path, kind: str, budget: float = BUDGET, problems: int = 30) -> Outcome:
    return ask(*server, out, kind, budget=budget, concurrency=4, problems=problems, quiet=False)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_billed_outside_stays_within_the_promise(server: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    """Also over a second call with the same budget, which buys nothing more. Every kind, with the rows that it leaves: below."""
    found = run(server, tmp_path, kind)
    assert found.billed <= found.budget + found.beyond + 1e-12, found
    assert found.counted >= found.billed - 1e-12, found
    assert found.requests > 0 and (found.kept or kind in NEVER)
    if found.ended.startswith("BudgetReached"):
        again = run(server, tmp_path, kind)
        assert again.requests == 0 and again.counted == pytest.approx(found.counted)


DEAR = {
    "ignores max_tokens": "The server bills up to 180 reply tokens, more than max_tokens; each request now reserves this.",
    "adds a system prompt": r"The server bills up to \d+ prompt tokens more than the prompt can have; each request now reserves this.",
}


@pytest.mark.parametrize("kind", DEAR)
def test_an_overrun_is_said_in_the_progress_the_ledger_and_the_card(
    server: tuple[str, Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget holds one request as it should be, and the server bills more for that one."""
    found = run(server, tmp_path, kind, budget=1.5 * RESERVE)
    assert found.requests == found.kept == 1 and found.budget < found.billed == pytest.approx(found.counted)
    passed = f"he budget of {found.budget:g} is exceeded by {found.billed - found.budget:.4g}: {found.billed:.4g} spent"
    told, card = capsys.readouterr().err, (tmp_path / "card.md").read_text(encoding="utf-8")
    assert f"distil: t{passed}\n" in told and told.count("is exceeded") == 1
    assert f"T{passed}." in card and re.search(DEAR[kind], card)
    assert found.ended.startswith(f"BudgetReached: the budget of {found.budget:g} is exceeded by")
    lines = [json.loads(line) for line in (tmp_path / "purse.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if "passed" in line] == [
        {"passed": found.budget, "spent": pytest.approx(found.billed)}
    ]
    capsys.readouterr()
    assert run(server, tmp_path, kind, budget=1.9 * found.billed).requests == 0, "a further call reserves what was seen"
    assert run(server, tmp_path, kind, budget=2.9 * found.billed).requests == 1


@pytest.mark.parametrize("kind", ["usage too low", "negative usage", "no usage"])
def test_usage_that_cannot_be_true_costs_the_reserve(server: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    found = run(server, tmp_path, kind)
    assert found.kept == found.requests == 6
    assert found.counted == pytest.approx(6 * RESERVE, rel=0.05)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert ("The server reports an impossible usage" in card) == (kind != "no usage")
    assert run(server, tmp_path, kind, budget=9.5 * RESERVE).requests == 3, "a further call believes it no more"


UNKNOWN = {"no usage": (0, 0), "usage null": (0, 0), "usage of nulls": (0, 0), "usage in floats": (20, 0), "usage in texts": (20, 0),
           "usage beyond 31 bits": (20, 0)}  # fmt: skip
"""Kinds without a usage that can be counted, and the tokens that their rows have."""
TOKENS = UNKNOWN | {"usage too low": (20, 1), "negative usage": (20, 0), "ignores max_tokens": (20, 180),
                    "adds a system prompt": (720, 15), "two choices": (20, 30)}  # fmt: skip
MODELS = {"another model": ["a-small-one"] * 6, "no model name": [""] * 6,
          "models in turn": ["adder-2024-05-13", "adder-2024-08-06"] * 3}  # fmt: skip
MOST = 134
"""The reserve of each of the first six questions, in millionths."""


def row_of(kind: str, number: int) -> tuple[str, str, int, int, int]:
    """What becomes of the sample with this number, of six: verdict, reason to drop it, tokens of prompt and reply, millionths."""
    if kind == "400 for some" and number in (2, 3):
        return "ungraded", "error", 0, 0, 0
    prompt, reply = TOKENS.get(kind, (20, 15))
    if kind.startswith("tenfold") and (number or kind == "tenfold"):
        prompt += 1340
    if kind == "tenfold, usage from the second" and not number:
        prompt = reply = 0
    guessed = kind in UNKNOWN or kind in ("usage too low", "negative usage") or not prompt
    verdict = "ungraded" if kind == "reasoning alone" else "right"
    return verdict, verdict.replace("right", ""), prompt, reply, MOST if guessed else prompt + 2 * reply


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_server_has_its_bill_and_its_rows(server: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    """To the token, where the budget is ample: of six questions, what was asked, billed, counted and kept."""
    found = run(server, tmp_path, kind, budget=1.0, problems=6)
    if kind in NEVER:
        assert (found.requests, found.kept) == (30, 0), "five requests, each tried six times"
        assert (found.billed, found.counted) == pytest.approx((30 * 50e-6, 30 * MOST * 1e-6))
        assert found.ended.startswith("RemoteError") and not (tmp_path / "data.parquet").exists()
        return
    rows = read_distilled(tmp_path / "data.parquet").rows
    wanted = [row_of(kind, number) for number in range(6)]
    assert [(row.verdict, row.dropped, row.prompt_tokens, row.completion_tokens) for row in rows] == [
        w[:4] for w in wanted
    ]
    assert [row.money for row in rows] == pytest.approx([money / 1e6 for *_, money in wanted])
    answered = [row for row in rows if row.dropped != "error"]
    assert sorted(row.model for row in answered) == sorted(MODELS.get(kind, ["adder-2024-08-06"] * len(answered)))
    assert (
        {row.messages[-1].content for row in answered} == {""}
        if kind == "reasoning alone"
        else all(row.messages[-1].content == str(2 * int(row.key.split("+")[0]) + 1) for row in answered)
    )
    twice = 6 * (kind in EVERY_OTHER)
    lost = twice * (kind not in FREE or kind == "500 before")
    paid = sum(money for *_, money in wanted)
    assert (found.ended, found.requests, found.kept) == ("done", 6 + twice, len(answered))
    assert found.counted == pytest.approx((paid + lost * MOST) / 1e6)
    real = [sum(n * price for n, price in zip(tokens_of(kind, n + 1), (1, 2))) for n in range(6)]
    assert found.billed == pytest.approx((sum(real[: len(answered)]) + twice * (kind not in FREE) * 50) / 1e6)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert f"| paid, by our count | {len(answered) + lost} | {found.counted:.6g} |" in card
    assert f"| kept: answer received | {len(answered)} | {paid / 1e6:.6g} |" in card
    assert f"| lost: no answer received, possibly billed | {lost} | {lost * MOST / 1e6:.6g} |" in card
    assert ("The server does not report the usage of every answer" in card) == any(not row.completion_tokens for row in answered
                                                                                    if kind != "negative usage")  # fmt: skip
    for name, count in Counter(row.model or "no name, or no answer" for row in rows).items():
        assert f"| adder | {name} | {count} |" in card


DEAREST = [kind for kind in KINDS if kind.startswith("tenfold")]


@pytest.mark.parametrize("reserves", [2.5, 30.5, 150.5])
@pytest.mark.parametrize("kind", DEAREST)
def test_sixteen_at_once_exceed_the_budget_by_one_request_at_most(
    server: tuple[str, Path], tmp_path: Path, kind: str, reserves: float
) -> None:
    """Whether a server bills ten times the reserve from its first answer on, from its second, or says so from its second."""
    found = ask(*server, tmp_path, kind, budget=reserves * RESERVE, concurrency=16, problems=40)
    assert found.ended.startswith("BudgetReached")
    assert found.billed - found.budget <= found.beyond and found.counted >= found.billed - 1e-12


@pytest.mark.parametrize("kind", ["honest", "no usage", "usage too low"])
def test_sixteen_are_sent_at_once_where_usage_and_budget_allow_it(
    server: tuple[str, Path], tmp_path: Path, kind: str
) -> None:
    found = ask(*server, tmp_path, kind, budget=1.0, concurrency=16, problems=40)
    assert (found.ended, found.kept) == ("done", 40)
    assert found.at_once > 1 if kind == "honest" else found.at_once == 1


def test_what_cannot_be_asked_is_ungraded_and_the_others_go_on(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, tmp_path, "400 for some", budget=1.0).ended == "done"
    rows = read_distilled(tmp_path / "data.parquet").rows
    odd = [row for row in rows if "3" in row.prompt]
    assert len(rows) == 30 and 5 < len(odd) < 20
    assert {(row.verdict, row.dropped, row.messages[-1].content) for row in odd} == {("ungraded", "error", "")}
    assert all(row.verdict == "right" and not row.dropped for row in rows if row not in odd)
    said = f"{len(odd)} requests failed, and their samples are ungraded"
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert (
        said in card
        and f"| error | no answer: a content filter, a tool call, or an error in mid-answer | {len(odd)} |" in card
    )
    assert "requests failed" in capsys.readouterr().err


def test_another_models_name_is_told_once_and_a_dated_one_is_not(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(server, tmp_path / "other", "another model", budget=1.0, problems=9)
    told, card = capsys.readouterr().err, (tmp_path / "other" / "card.md").read_text(encoding="utf-8")
    said = "he model 'adder' was requested, but the server reports another: 'a-small-one'"
    assert told.count(f"distil: t{said}") == 1 and f"T{said} (9 samples)." in card
    run(server, tmp_path / "turn", "models in turn", budget=1.0, problems=9)
    several = "reports several models: 'adder-2024-05-13' (5 samples), 'adder-2024-08-06' (4 samples)."
    assert several in (tmp_path / "turn" / "card.md").read_text(encoding="utf-8")
    assert "reports several models" in capsys.readouterr().err
    run(server, tmp_path / "same", "honest", budget=1.0, problems=9)
    assert "another" not in capsys.readouterr().err
    assert "another" not in (tmp_path / "same" / "card.md").read_text(encoding="utf-8").partition("## Filters")[0]
