"""How an address is asked: each setting of `access` has its own effect on the requests, the waits and the money."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from distil_server import PROMPT_TOKENS, Adder, Reply, answer, fault
from sums_task import Make

from rorqual.core.errors import RorqualError
from rorqual.data.distilled import TeacherSample, read_distilled
from rorqual.engine.remote.engine import RemoteError
from rorqual.factory import FactoryConfig, RemoteAccess, sample_teacher
from rorqual.factory.budget import MESSAGE_TOKENS, TEMPLATE_TOKENS

TOKENS = 20
QUESTION = "What is 0 + 1?"
PROMPT_MOST = TEMPLATE_TOKENS + MESSAGE_TOKENS + len(QUESTION)
"""The most tokens that such a question may have; numbers below ten are as long."""
COVERED = {"concurrency", "timeout", "retries", "backoff", "budget", "price_in", "price_out"}


def made(config: FactoryConfig, out: Path, **options: Any) -> list[TeacherSample]:
    return read_distilled(sample_teacher(config, out, threads=1, quiet=True, **options)).rows


def plain(remote: Make, access: dict[str, Any], **changes: Any) -> FactoryConfig:
    """The settings of `remote`, of which `access` is the default but for what is given."""
    config = remote(max_tokens=TOKENS, keep="all", **changes)
    return FactoryConfig.model_validate({**config.model_dump(), "access": access})


def bills(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "purse.jsonl").read_text(encoding="utf-8").splitlines()]


def test_no_setting_is_forgotten_here() -> None:
    assert set(RemoteAccess.model_fields) == COVERED


@pytest.mark.parametrize(("access", "at_once"), [({"concurrency": 3}, 3), ({"concurrency": 1}, 1), ({}, 8)])
def test_so_many_requests_are_under_way(
    server: Adder, remote: Make, tmp_path: Path, access: dict[str, Any], at_once: int
) -> None:
    """No fewer, for all wait for each other; and no more."""
    barrier, lock, under_way, most = threading.Barrier(at_once, timeout=60), threading.Lock(), [0], [0]

    def rule(body: dict[str, Any], number: int) -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        barrier.wait()
        with lock:
            under_way[0] -= 1

    server.rule = rule
    assert len(made(plain(remote, {"retries": 0, **access}, problems=24, samples=1), tmp_path)) == 24
    assert most == [at_once]


@pytest.mark.parametrize(("access", "tries"), [({"retries": 2}, 3), ({"retries": 0}, 1), ({}, 6)])
def test_a_server_that_fails_is_asked_again_so_often(
    server: Adder, remote: Make, tmp_path: Path, access: dict[str, Any], tries: int
) -> None:
    server.rule = lambda body, number: fault(503, "busy")
    with pytest.raises(RemoteError, match=rf"HTTP 503: busy \(tried {tries} times\)"):
        made(plain(remote, {"backoff": 0.001, **access}, problems=1, samples=1), tmp_path)
    assert len(server.asked) == tries


def test_before_it_is_asked_again_the_wait_is_as_said_and_doubles(server: Adder, remote: Make, tmp_path: Path) -> None:
    times: list[float] = []

    def rule(body: dict[str, Any], number: int) -> Reply | None:
        times.append(time.monotonic())
        return fault(429, "later") if number < 2 else None

    server.rule = rule
    made(plain(remote, {"backoff": 0.8}, problems=1, samples=1), tmp_path)
    first, second = times[1] - times[0], times[2] - times[1]
    assert first >= 0.79 and second >= 1.59
    assert RemoteAccess().backoff == 0.5


@pytest.mark.parametrize(("price_in", "price_out"), [(3.0, 0.0), (0.0, 7.0), (3.0, 7.0), (0.0, 0.0)])
def test_each_price_is_of_its_own_tokens(
    server: Adder, remote: Make, tmp_path: Path, price_in: float, price_out: float
) -> None:
    """A row's money is that of its own answer, and the reserve is of the longest question and answer."""
    access = {"price_in": price_in, "price_out": price_out, "concurrency": 2}
    rows = made(plain(remote, access, problems=3, samples=2), tmp_path)
    for row in rows:
        assert row.prompt_tokens == PROMPT_TOKENS and 10 <= row.completion_tokens < 20
        assert row.money == pytest.approx((price_in * PROMPT_TOKENS + price_out * row.completion_tokens) / 1e6)
    if not price_in and not price_out:
        assert not (tmp_path / "purse.jsonl").exists(), "without a price there is nothing to count"
        return
    names = [f"{hashlib.sha256(row.key.encode()).hexdigest()[:12]}.{row.number}#1" for row in rows]
    most = (price_in * PROMPT_MOST + price_out * TOKENS) / 1e6
    assert sorted(line["sent"] for line in bills(tmp_path)) == sorted(names)
    assert all(line["most"] == pytest.approx(most) for line in bills(tmp_path))
    paid = sum(row.money for row in rows)
    assert re.search(rf"paid</[^>]+>\s*<[^>]+>{paid:.4g}", (tmp_path / "card.html").read_text(encoding="utf-8"))


def test_what_a_server_refused_is_not_owed_after_a_restart(server: Adder, remote: Make, tmp_path: Path) -> None:
    """A refusal is free and an answer that broke off is not; the next call counts both as the first did."""
    replies: dict[int, Reply] = {
        0: fault(429, "later"), 1: (200, b'{"choices": [', {}), 3: fault(429, "later"), 5: fault(401, "no credit"),
    }  # fmt: skip
    server.rule = lambda body, number: replies.get(number)
    access = {"price_in": 1.0, "price_out": 2.0, "backoff": 0.001, "concurrency": 1}
    config = plain(remote, access, problems=6, samples=1)
    with pytest.raises(RorqualError, match="no credit"):
        made(config, tmp_path)
    assert ["refused" in line for line in bills(tmp_path)] == [
        False,
        True,
        False,
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    rows = made(config, tmp_path)
    billed = sum(PROMPT_TOKENS + 2 * answer(body)["usage"]["completion_tokens"] for body in server.billed[1:]) / 1e6
    assert len(rows) == 6 and billed == pytest.approx(sum(row.money for row in rows))
    lost = (PROMPT_MOST + 2 * TOKENS) / 1e6
    card = (tmp_path / "card.html").read_text(encoding="utf-8")
    assert re.search(rf"paid</[^>]+>\s*<[^>]+>{billed + lost:.4g}", card), "the card tells what got lost, too"
    attempts = [json.loads(line)["attempt"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    sent = [line["sent"] for line in bills(tmp_path) if "sent" in line]
    assert [name.rpartition("#")[2] for name in sent] == ["1", "2", "3", "1", "2", "1", "2", "1", "1", "1"]
    assert len(set(sent)) == len(sent) and attempts == [
        name for place, name in enumerate(sent) if place not in (0, 1, 3, 5)
    ]


def test_a_second_call_without_prices_forgets_no_money(server: Adder, remote: Make, tmp_path: Path) -> None:
    server.rule = lambda body, number: fault(401, "no credit") if number == 4 else None
    with pytest.raises(RorqualError, match="no credit"):
        made(plain(remote, {"price_in": 1.0, "price_out": 2.0, "concurrency": 1}), tmp_path)
    rows = made(plain(remote, {}), tmp_path)
    paid = sum(row.money for row in rows)
    assert [row.money > 0 for row in rows].count(True) == 4
    assert re.search(rf"paid</[^>]+>\s*<[^>]+>{paid:.4g}", (tmp_path / "card.html").read_text(encoding="utf-8"))
