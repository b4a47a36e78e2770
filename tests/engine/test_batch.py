"""A file's rows asked of an address: what a failure leaves under way, and what is not sent after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from remote_server import Server, fault, remote, reply

from rorqual.engine.remote.engine import RemoteError
from rorqual.generate.batch import remote_answers
from rorqual.generate.schema import RefusedRow, RowParser, RowRequest, RowSampling


def rows() -> Iterator[RowRequest | RefusedRow]:
    for line in range(1, 61):
        yield RowParser(RowSampling()).parse_row(line, {"prompt": f"q{line}"})


@pytest.mark.parametrize("concurrency", [1, 3])
def test_after_a_fatal_refusal_nothing_is_sent_and_all_that_was_answered_comes_in(
    server: Server, concurrency: int
) -> None:
    under_way, answered = threading.Barrier(concurrency), list[int]()

    def answer(body: dict[str, Any], number: int) -> Any:
        line = int(body["messages"][-1]["content"][1:])
        if line <= concurrency:
            under_way.wait(60)
        if line == 1:
            return fault(401, "no such key")
        answered.append(line)
        return reply("late")

    server.answer = answer
    came = list[int]()
    with pytest.raises(RemoteError, match="no such key"):
        for some in remote_answers(remote(server), rows(), concurrency=concurrency):
            came += [ask.line for ask, _ in some]
    assert sorted(came) == sorted(answered) and len(server.bodies) == len(answered) + 1
    assert len(answered) == 0 if concurrency == 1 else len(answered) >= 2
