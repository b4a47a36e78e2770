"""Servers that misbehave, in a process of their own, which bill: what is counted, what is promised, and that the factory goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from billed import RESERVE, Outcome, ask, billing_server
from billing_server import KINDS

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
    """Also over a second call with the same budget, which buys nothing more."""
    found = run(server, tmp_path, kind)
    assert found.billed <= found.budget + found.beyond + 1e-12, found
    assert found.counted >= found.billed - 1e-12, found
    assert found.requests > 0 and (found.kept or kind == "always 504")
    rows = read_distilled(tmp_path / "data.parquet").rows if found.kept else []
    asked = [row for row in rows if kind != "400 for some" or "3" not in row.prompt]
    assert all((row.verdict, row.dropped) == ("right", "") for row in asked), "what is paid is kept"
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


MENDED = [
    kind for kind in KINDS if kind in ("504 after generating", "500 before", "HTML with status 200", "empty choices")
]


@pytest.mark.parametrize("kind", MENDED)
def test_what_can_be_asked_again_is(server: tuple[str, Path], tmp_path: Path, kind: str) -> None:
    found = run(server, tmp_path, kind, budget=1.0, problems=8)
    assert (found.ended, found.requests, found.kept) == ("done", 16, 8)
    rows = read_distilled(tmp_path / "data.parquet").rows
    assert {(row.verdict, row.dropped) for row in rows} == {("right", "")}
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    paid = sum(row.money for row in rows)
    assert f"| paid, by our count | 16 | {found.counted:.6g} |" in card
    assert f"| kept: answer received | 8 | {paid:.6g} |" in card
    assert f"| lost: no answer received, possibly billed | 8 | {found.counted - paid:.6g} |" in card


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
    run(server, tmp_path / "same", "honest", budget=1.0, problems=9)
    assert "another" not in capsys.readouterr().err
    assert "another" not in (tmp_path / "same" / "card.md").read_text(encoding="utf-8").partition("## Filters")[0]
