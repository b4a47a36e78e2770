"""A factory that asks a misbehaving server within a budget: what was billed outside, what we count, what is kept."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from billing_server import tokens_of
from sums_task import SUMS

from rorqual.core.errors import RorqualError
from rorqual.core.records import Message
from rorqual.factory import FactoryConfig, RemoteAccess, sample_teacher
from rorqual.factory.budget import Budget, max_prompt_tokens
from rorqual.factory.stored_samples import parse_sample

SERVER = Path(__file__).with_name("billing_server.py")
PRICE_IN, PRICE_OUT, MAX_TOKENS = 1.0, 2.0, 20
RESERVE = (max_prompt_tokens([Message("user", "What is 39 + 40?")]) * PRICE_IN + MAX_TOKENS * PRICE_OUT) / 1e6
"""The most that a request costs which does what was asked for."""


@dataclass
class Outcome:
    """One factory. Money; `beyond`: what the promise allows above the budget; `at_once`: the most requests in flight."""

    kind: str
    concurrency: int
    budget: float
    billed: float
    counted: float
    kept: int
    requests: int
    beyond: float
    at_once: int
    ended: str

    @property
    def holds(self) -> bool:
        """What is promised."""
        return self.billed <= self.budget + self.beyond + 1e-12 and self.counted >= self.billed - 1e-12


@contextmanager
def billing_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """Its address without the kind, and its bill."""
    port, bill = folder / "port", folder / "bill.jsonl"
    bill.touch()
    with subprocess.Popen([sys.executable, str(SERVER), str(port), str(bill)]) as process:
        try:
            while not port.is_file():
                assert process.poll() is None
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port.read_text(encoding='utf-8')}", bill
        finally:
            process.kill()


def billed(bill: Path, skip: int = 0) -> tuple[float, int, int]:
    """Money, number, and the most in flight of the requests after the first `skip`, as the server counts them."""
    lines = [json.loads(line) for line in bill.read_text(encoding="utf-8").splitlines()[skip:]]
    money = sum(line["prompt"] * PRICE_IN + line["completion"] * PRICE_OUT for line in lines) / 1e6
    return money, len(lines), max((line["in_flight"] for line in lines), default=0)


def counted(out: Path) -> tuple[float, int]:
    """What the ledger and the samples add up to, and how many samples there are."""
    raw = (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [parse_sample(json.loads(line), "") for line in raw]
    with Budget(out / "purse.jsonl", RemoteAccess(), [], entries) as purse:
        return purse.spending.total, len(entries)


def settings(address: str, out: Path, kind: str, budget: float, concurrency: int, problems: int) -> FactoryConfig:
    way = {"budget": budget, "price_in": PRICE_IN, "price_out": PRICE_OUT, "concurrency": concurrency, "backoff": 0.001}
    way |= {"timeout": 2.0 if kind == "hangs" else 120.0}
    asked = {"task": SUMS, "model": "adder", "problems": problems, "max_tokens": MAX_TOKENS, "filters": {"names": ()}}
    tag = hashlib.sha256(str(out).encode()).hexdigest()[:8]
    return FactoryConfig.model_validate({"teacher": f"{address}/{quote(kind)}/{tag}/v1", **asked, "access": way})


def ask(
    address: str,
    bill: Path,
    out: Path,
    kind: str,
    *,
    budget: float,
    concurrency: int,
    problems: int,
    quiet: bool = True,
) -> Outcome:
    """Run a factory to its end, of whatever kind that is."""
    _, before, _ = billed(bill)
    try:
        sample_teacher(settings(address, out, kind, budget, concurrency, problems), out, threads=1, quiet=quiet)
        ended = "done"
    except RorqualError as error:
        ended = f"{type(error).__name__}: {error.what}".replace(address, "")
    money, requests, at_once = billed(bill, before)
    prompt, reply = tokens_of(kind)
    cost = (prompt * PRICE_IN + reply * PRICE_OUT) / 1e6
    ours, kept = counted(out)
    beyond = max(0.0, cost - RESERVE)  # of one request
    return Outcome(kind, concurrency, budget, money, ours, kept, requests, beyond, at_once, ended)
