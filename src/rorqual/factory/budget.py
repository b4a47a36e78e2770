"""Budget control: the cost of a request is reserved before it is sent, and no kill or lost answer makes the ledger forget it.

The reserve is an upper bound of the cost: the most tokens that the prompt can have, plus `max_tokens`. If the server
has billed more than these before, the reserve grows by that. The reserve is written to the ledger. The bill of the
answer replaces it. A request costs nothing if it was never sent, or if the server rejected it (HTTP 3xx or 4xx).

The reserve counts as spent if the answer never arrived (server error, timeout, broken connection, no completion),
because it may have been billed. It also counts if the usage is missing, or reports fewer tokens than the text can
have. After such a report, no usage of that server is trusted.

The guarantee: if a server bills no request more than its reserve, it never bills more than the budget. A server may
bill more and report it, because it ignores `max_tokens` or adds a prompt of its own. Then the budget may be exceeded
by what the requests in flight at the first such report cost beyond their reserves. No request is sent after that. With
a budget, the first request is sent alone. So this is one request if all behave the same, and never more than `concurrency`.
A server that bills more and does not report it has no bound.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rorqual.core.errors import RorqualError
from rorqual.core.journal import Journal
from rorqual.core.records import Message
from rorqual.engine.request import Completion, Request
from rorqual.factory.config import Access
from rorqual.factory.entries import Entry

MESSAGE_TOKENS, TEMPLATE_TOKENS = 16, 64
"""The most tokens that a chat template adds per message and per prompt. A text has at most as many tokens as bytes."""


class BudgetReached(RorqualError):
    """The next request could exceed the budget. All paid answers are saved."""


@dataclass(frozen=True)
class Spending:
    """Money, and its number of requests: `kept` returned an answer, `lost` may have been billed without one.

    `raised` reports tokens billed beyond the reserve, `unbelieved` reports an implausible usage; "" if all is well.
    """

    paid: float = 0.0
    lost: float = 0.0
    kept: int = 0
    lost_requests: int = 0
    budget: float = 0.0
    raised: str = ""
    unbelieved: str = ""

    @property
    def total(self) -> float:
        """Money for answers received, and for answers that may have been billed but never arrived."""
        return self.paid + self.lost

    @property
    def over(self) -> float:
        """Money spent beyond the budget; 0 if there is no budget."""
        return max(0.0, self.total - self.budget) if self.budget else 0.0

    def notes(self) -> dict[str, str]:
        """Return one warning per kind."""
        passed = (
            f"the budget of {self.budget:g} is exceeded by {self.over:.4g}: {self.total:.4g} spent" if self.over else ""
        )
        found = {"passed": passed, "raised": self.raised, "unbelieved": self.unbelieved}
        return {kind: text for kind, text in found.items() if text}


NOTHING = Spending()


@dataclass
class _Try:
    """A request in flight: its name, the request, and its reserve in the ledger."""

    name: str
    request: Request
    written: float


class Budget:
    """The budget: counts money paid and reserved. `asks` gives the identity and the request for each index.

    `bought` are the samples so far. It implements `Toll`, and as a context manager it owns the ledger file.
    """

    def __init__(
        self,
        path: Path,
        access: Access,
        asks: Sequence[tuple[str, Request]],
        bought: Sequence[Entry],
    ) -> None:
        self.access, self._asks = access, asks
        self._changed = threading.Condition()
        self._open: dict[int, _Try] = {}
        self._journal = Journal(path)
        lines = self._journal.lines
        arrived = {entry.attempt for entry in bought}
        refused = {line["refused"] for line in lines if "refused" in line}
        sent = {line["sent"]: float(line["most"]) for line in lines if "sent" in line}
        self._tries = Counter(name.rpartition("#")[0] for name in sent)
        lost = [most for name, most in sent.items() if name not in arrived | refused]
        self.lost, self._lost_requests = sum(lost), len(lost)
        self.paid, self._kept = sum(entry.money for entry in bought), len(bought)
        self._beyond = max((int(line["beyond_prompt"]) for line in lines if "beyond_prompt" in line), default=0)
        self._longest = max((int(line["longest_reply"]) for line in lines if "longest_reply" in line), default=0)
        self._believed = not any("unbelieved" in line for line in lines)
        self._told = any("passed" in line for line in lines)

    def __enter__(self) -> Budget:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.close()

    @property
    def spending(self) -> Spending:
        """The current spending."""
        raised = unbelieved = ""
        if self._beyond or self._longest:
            more = [f"{self._beyond} prompt tokens more than the prompt can have"] * bool(self._beyond)
            more += [f"{self._longest} reply tokens, more than max_tokens"] * bool(self._longest)
            raised = f"the server bills up to {' and '.join(more)}; each request now reserves this"
        if not self._believed:
            unbelieved = "the server reports an impossible usage: every request now costs its full reserve"
        return Spending(self.paid, self.lost, self._kept, self._lost_requests, self.access.budget, raised, unbelieved)

    @property
    def spent(self) -> float:
        """Money for answers received, and for answers that may have been billed but never arrived."""
        return self.paid + self.lost

    def enter(self, place: int) -> bool:
        """Reserve the most that the request can cost, waiting for requests in flight if necessary.

        Return False if the budget does not cover it even after all others have ended.
        """
        identity, request = self._asks[place]
        with self._changed:
            self._lose(place)  # an earlier try whose answer never arrived
            while self.access.budget and self._passes(self._most(request)):
                if not self._open:
                    return False
                self._changed.wait()
            self._tries[identity] += 1
            mine = _Try(f"{identity}#{self._tries[identity]}", request, self._most(request))
            self._open[place] = mine
        self._journal.append([{"sent": mine.name, "most": mine.written}])
        return True

    def refused(self, place: int) -> None:
        """Release the reserve: the request was not sent, or the server rejected it."""
        with self._changed:
            mine = self._open.pop(place)
            self._changed.notify_all()
        self._journal.append([{"refused": mine.name}])

    def used(self, place: int, usage: Mapping[str, int]) -> None:
        """Learn from a usage without a completion: later reserves are at least as large."""
        if "prompt_tokens" in usage and "completion_tokens" in usage:
            self._learn(self._open[place].request, usage["prompt_tokens"], usage["completion_tokens"])

    def left(self, place: int) -> None:
        """Count the reserve as spent: the last try returned no answer, or its answer could not be saved."""
        with self._changed:
            self._lose(place)

    def bill(self, place: int, completion: Completion) -> tuple[str, float]:
        """Return the name of the try that returned this answer, and its cost.

        The cost follows from the reported usage, or is the reserve if the usage is missing or not trusted.
        """
        mine, usage = self._open[place], completion.usage
        text = f"{completion.text} {completion.reasoning or ''}"
        least = fewest(text)
        counted = "prompt_tokens" in usage and "completion_tokens" in usage
        asked = max(1, sum(fewest(m.text) for m in mine.request.messages))
        if counted and (usage["prompt_tokens"] < asked or usage["completion_tokens"] < least):
            self._disbelieve(mine.name)
        if counted and self._believed:
            self._learn(mine.request, usage["prompt_tokens"], usage["completion_tokens"])
            return mine.name, self.price(usage["prompt_tokens"], usage["completion_tokens"])
        if least > max(mine.request.params.max_tokens, self._longest):  # a text has at most as many tokens as bytes
            self._learn(mine.request, 0, len(text.encode("utf-8", "replace")))
        return mine.name, self._most(mine.request)

    def settle(self, place: int, money: float) -> None:
        """Book the cost of a saved answer."""
        with self._changed:
            self._open.pop(place)
            self.paid += money
            self._kept += 1
            self._tell()
            self._changed.notify_all()

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of that many tokens."""
        return (prompt_tokens * self.access.price_in + completion_tokens * self.access.price_out) / 1e6

    def _most(self, request: Request) -> float:
        """Return the most that a request can cost, given everything observed so far."""
        prompt = prompt_bound(request.messages) + self._beyond
        return self.price(prompt, max(request.params.max_tokens, self._longest))

    def _passes(self, most: float) -> bool:
        """Return whether another request could exceed the budget."""
        reserved = sum(self._most(mine.request) for mine in self._open.values())
        return self.spent + reserved + most > self.access.budget

    def _learn(self, request: Request, prompt_tokens: int, completion_tokens: int) -> None:
        """Raise later reserves to the largest usage observed."""
        beyond = prompt_tokens - prompt_bound(request.messages)
        with self._changed:
            line: dict[str, Any] = {}
            if beyond > self._beyond:
                self._beyond = line["beyond_prompt"] = beyond
            if completion_tokens > max(request.params.max_tokens, self._longest):
                self._longest = line["longest_reply"] = completion_tokens
            if line:
                self._journal.append([line])

    def _disbelieve(self, name: str) -> None:
        with self._changed:
            if self._believed:
                self._believed = False
                self._journal.append([{"unbelieved": name}])

    def _lose(self, place: int) -> None:
        if place in self._open:
            mine = self._open.pop(place)
            money = max(mine.written, self._most(mine.request))
            if money > mine.written:
                self._journal.append([{"sent": mine.name, "most": money}])
            self.lost += money
            self._lost_requests += 1
            self._tell()
            self._changed.notify_all()

    def _tell(self) -> None:
        """Record once that the budget is exceeded."""
        if self.spending.over and not self._told:
            self._told = True
            self._journal.append([{"passed": self.access.budget, "spent": self.spent}])


def prompt_bound(messages: Sequence[Message]) -> int:
    """Return an upper bound of the tokens of a prompt, for any tokenizer."""
    return TEMPLATE_TOKENS + sum(MESSAGE_TOKENS + len(m.text.encode("utf-8", "replace")) for m in messages)


def fewest(text: str) -> int:
    """Return a lower bound of the tokens of a text for any tokenizer in use: half its words, rounded up."""
    return (len(text.split()) + 1) // 2


def reached(spending: Spending, have: int, total: int, out: Path) -> BudgetReached:
    """Return the error that states the spending and how to continue."""
    how = f"is exceeded by {spending.over:.4g}" if spending.over else "is reached"
    more = f" Note: {spending.raised}." if spending.raised else ""
    return BudgetReached(
        f"the budget of {spending.budget:g} {how}: {spending.total:.6g} spent, {have} of {total} samples received",
        where=str(out),
        remedy=f"They are saved in data.parquet.{more} Repeat the command with a larger budget= to continue.",
    )
