"""When a request is at fault and when the server is; a second factory; a model's name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from distil_server import Adder, Reply, fault, says
from sums_task import Make

from rorqual.core.errors import RorqualError
from rorqual.core.lock import acquire_run_lock
from rorqual.data.distilled import TeacherSample, read_distilled
from rorqual.engine.remote.engine import RemoteError
from rorqual.evals.answer_cache import IN_A_ROW
from rorqual.factory import FactoryConfig, sample_teacher
from rorqual.factory.stored_samples import is_same_model
from rorqual.factory.teacher import FAILURES_IN_A_ROW


def made(config: FactoryConfig, out: Path) -> list[TeacherSample]:
    return read_distilled(sample_teacher(config, out, threads=1, quiet=True)).rows


def one_by_one(remote: Make, count: int, **changes: Any) -> FactoryConfig:
    options = {"limit": count}
    return remote({"concurrency": 1, "retries": 0}, problems=count, samples=1, keep="all", options=options, **changes)


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].split()[2])


BROKEN: dict[str, tuple[Reply, int]] = {
    "HTML": ((200, b"<html>later</html>", {}), FAILURES_IN_A_ROW),
    "no choices": ((200, b'{"choices": []}', {}), FAILURES_IN_A_ROW),
    "500": (fault(500), FAILURES_IN_A_ROW),
    "400": (fault(400), IN_A_ROW),
}


@pytest.mark.parametrize("name", BROKEN)
def test_so_many_in_a_row_stop_it_and_one_fewer_does_not(
    server: Adder, remote: Make, tmp_path: Path, name: str
) -> None:
    reply, limit = BROKEN[name]
    server.rule = lambda body, _: reply if 1 <= number(body) < limit else says("1")
    rows = made(one_by_one(remote, limit + 2), tmp_path / "fewer")
    assert [row.dropped for row in rows] == ["", *["error"] * (limit - 1), "", ""]
    server.rule = lambda body, _: reply if 1 <= number(body) < limit + 1 else says("1")
    with pytest.raises(RemoteError, match=f"(?s)1 of {limit + 2} samples are saved"):
        made(one_by_one(remote, limit + 2), tmp_path / "more")
    server.asked.clear()
    rows = made(one_by_one(remote, limit + 2), tmp_path / "more")
    assert [row.dropped for row in rows] == ["", *["error"] * limit, ""], "the same call goes on and gets to the end"
    assert [number(body) for body in server.asked] == [limit + 1, *range(1, limit + 1)], "what failed is asked last"


def test_an_answer_that_comes_later_takes_the_place_of_a_failure(server: Adder, remote: Make, tmp_path: Path) -> None:
    server.rule = lambda body, _: fault(400, "no") if number(body) == 2 else says("5")
    assert [row.dropped for row in made(one_by_one(remote, 4), tmp_path)] == ["", "", "error", ""]
    asked = len(server.asked)
    assert len(made(one_by_one(remote, 4), tmp_path)) == 4 and len(server.asked) == asked, "what is finished is"
    (tmp_path / "finished.json").unlink()
    server.rule = lambda body, _: says("5")
    rows = made(one_by_one(remote, 4), tmp_path)
    assert [(row.dropped, row.verdict) for row in rows][2] == ("", "right") and len(server.asked) == asked + 1


def test_a_refused_second_factory_changes_nothing(server: Adder, remote: Make, tmp_path: Path) -> None:
    """Neither while the first draws its problems, nor when it has begun."""
    out = tmp_path / "out"
    second = remote({"concurrency": 3}, problems=6)

    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    for begun in (False, True):
        if begun:
            server.rule = lambda body, number: fault(401) if number == 5 else None
            with pytest.raises(RorqualError):
                made(remote({"concurrency": 1}), out)
        with acquire_run_lock(out):
            before, asked = state(), len(server.asked)
            with pytest.raises(
                RorqualError, match=rf"another process is writing to this path: process {os.getpid()}, since"
            ):
                made(second, out)
            assert state() == before and len(server.asked) == asked
    server.rule = lambda body, number: None
    assert len(made(second, out)) == 12


@pytest.mark.parametrize(
    ("asked", "answered", "same"),
    [
        ("gpt-4o", "gpt-4o", True), ("gpt-4o", "gpt-4o-2024-08-06", True), ("gpt-4", "gpt-4-0613", True), ("m", "", True),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022", True), ("gemini-1.5-pro", "gemini-1.5-pro-002", True),
        ("deepseek-ai/DeepSeek-V3", "deepseek-v3", True), ("mistral-large-latest", "mistral-large-2411", True),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", True), ("gpt-4o", "gpt-4o-mini", False), ("gpt-4o", "gpt-4", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False), ("qwen", "qwen-7b", False), ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-05-13", False), ("adder", "multiplier", False),
    ],
)  # fmt: skip
def test_which_name_is_another_model(asked: str, answered: str, same: bool) -> None:
    assert is_same_model(asked, answered) is same
