"""Money: reserved before it is spent, never more than the budget, and not forgotten by a restart."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rorqual.core.records import Message
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.factory import RemoteAccess
from rorqual.factory.budget import EXCESS, Budget, max_prompt_tokens
from rorqual.factory.stored_samples import StoredSample

REQUEST = Request((Message("user", "2+2?"),), SamplingParams(max_tokens=100))
ASKS = [(f"p{i}.0", REQUEST) for i in range(64)]
PRICES: dict[str, Any] = {"price_in": 1e6, "price_out": 1e6}  # one a token
MOST = max_prompt_tokens(REQUEST.messages) + 100


def completion(tokens: int | None) -> Completion:
    usage = {} if tokens is None else {"prompt_tokens": 4, "completion_tokens": tokens}
    return Completion((), [], [], "stop", "4", None, usage=usage)


def bought(attempt: str, money: float) -> StoredSample:
    return StoredSample("of", "k", 0, 0, "4", None, "stop", 4, 1, money=money, attempt=attempt)


def test_64_at_once_never_overspend(tmp_path: Path) -> None:
    """What servers may bill, billed at the moment of sending, stays within the budget at every moment."""
    budget, rng, lock, billed, worst = MOST * 7.5, Random(0), threading.Lock(), [0.0], [0.0]
    with Budget(tmp_path / "purse.jsonl", RemoteAccess(budget=budget, **PRICES), ASKS, []) as purse:

        def one(place: int, fate: str, tokens: int) -> None:
            if not purse.may_send(place):
                return
            with lock:
                billed[0] += MOST  # under way: it may cost as much
                worst[0] = max(worst[0], billed[0])
            time.sleep(0.001)
            with lock:
                billed[0] -= {"answer": MOST - 4 - tokens, "refused": MOST, "lost": 0}[fate]
            if fate == "answer":
                purse.replace_reserve_with_cost(place, purse.cost_of_answer(place, completion(tokens))[1])
            elif fate == "refused":
                purse.count_unbilled_attempt(place)
            purse.settle_request(place)

        threads = [
            threading.Thread(
                target=one, args=(i, rng.choice(["answer", "answer", "refused", "lost"]), rng.randrange(50))
            )
            for i in range(64)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (
            worst[0] <= budget and purse.spending.total == pytest.approx(billed[0]) and purse.spending.total <= budget
        )
        assert purse.spending.total > budget - MOST, "as much is bought as surely fits"


@pytest.mark.parametrize(
    ("tokens", "budget", "most"),
    [
        ([], 1e9, 1), ([None] * 9, 1e9, 1), ([5], 1e9, 1), ([5] * 3, 1e9, 3), ([5, 0, 5], 1e9, 1), ([5] * 9, 1e9, 9),
        ([5] * 9, 82 + (2 * EXCESS + 0.9) * MOST, 3), ([5] * 9, 82 + (EXCESS - 0.1) * MOST, 1), ([100], 200, 0),
        ([5] * 8 + [99 * MOST], 1e9, 9), ([5] * 8 + [99 * MOST], 72 + 4 + 99 * MOST + 2.2 * (99 * MOST - 100 + MOST), 2),
    ],
)  # fmt: skip
def test_so_many_may_be_under_way_as_answers_have_confirmed_and_the_budget_covers(
    tmp_path: Path, tokens: list[int | None], budget: float, most: int
) -> None:
    """None: an answer without usage. 0: usage that cannot be true."""
    with Budget(tmp_path / "purse.jsonl", RemoteAccess(budget=budget, **PRICES), ASKS, []) as purse:
        for place, count in enumerate(tokens):
            assert purse.may_send(place)
            purse.replace_reserve_with_cost(place, purse.cost_of_answer(place, completion(count))[1])
        sent, places = list[bool](), range(len(tokens), len(tokens) + most + 1)
        threads = [
            threading.Thread(target=lambda place=place: sent.append(purse.may_send(place)), daemon=True)
            for place in places
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 30
        while len(sent) < max(most, 1) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        assert sent == ([True] * most or [False]), "the others wait"
        for place in places:
            purse.settle_request(place)
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
            for place in places:
                purse.settle_request(place)
            time.sleep(0.01)


def test_what_was_under_way_at_a_kill_counts_in_full(tmp_path: Path) -> None:
    path, access = tmp_path / "purse.jsonl", RemoteAccess(budget=MOST * 10, **PRICES)
    with Budget(path, RemoteAccess(**PRICES), ASKS, []) as purse:
        assert all(purse.may_send(place) for place in range(3))
        purse.count_unbilled_attempt(1)
        attempt, money = purse.cost_of_answer(0, completion(5))
        purse.replace_reserve_with_cost(0, money)
    assert (attempt, money) == ("p0.0#1", 9)
    with Budget(path, access, ASKS[1:], [bought(attempt, money)]) as again:
        assert (again.spending.paid, again.spending.lost, again.spending.total) == (9, MOST, MOST + 9)
        assert again.may_send(1)  # p2 once more: another try, with a name of its own
        assert again.cost_of_answer(1, completion(1))[0] == "p2.0#2"


def test_a_prompt_has_no_more_tokens_than_its_bound() -> None:
    from rorqual.data.chat import chat_format
    from rorqual.data.tokenizer import Tokenizer

    chat = chat_format(Tokenizer.byte_level())
    for text in ("", "2+2?", "é" * 30, "\U0001f40b" * 900, "答案" * 500):
        messages = (Message("system", text), Message("user", text))
        assert len(chat.prompt(messages, "on")) <= max_prompt_tokens(messages)
