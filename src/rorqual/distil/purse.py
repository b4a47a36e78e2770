"""A budget: reserved before it is spent, and not forgotten by requests under way, answers that got lost, or a kill.

Before a request is sent, the most that it can cost is reserved and written down: the most tokens that its prompt can have, and `max_tokens`, or
what the server was seen to count beyond these, where that is more. The answer's own bill replaces the reserve. A request that was never
sent, or that the server turned away (HTTP 3xx or 4xx), costs nothing. Of one whose answer never came (a server's error, a timeout, a broken
connection, no completion) we do not know, so that its reserve counts as spent. So does that of an answer whose usage is missing, or fewer tokens
than it has words could be, from which on no usage of that server is believed.

What is promised: a server that bills no request more than its reserve never bills more than the budget. One that does bill more (it ignores
`max_tokens`, or adds a prompt of its own) and says so in its usage may pass the budget by what the requests under way at the first answer
that shows it cost beyond their reserves; no request is sent after that. With a budget the first request goes alone, so that this is one
request where all are alike, and never more than `concurrency`. A server that bills more and hides it has no bound.
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
from rorqual.distil.config import Access
from rorqual.distil.entries import Entry
from rorqual.engine.request import Completion, Request

MESSAGE_TOKENS, TEMPLATE_TOKENS = 16, 64
"""What a chat template adds, at most, to each message and to the whole. No tokenizer makes more tokens than bytes of the text itself."""


class BudgetReached(RorqualError):
    """The next request could exceed the budget. Everything that was paid for is kept."""


@dataclass(frozen=True)
class Spending:
    """Money, and how many requests it was for: `kept` brought an answer that is here, `lost` may have been billed without one.

    `raised` says what the server counts beyond what was asked for, `unbelieved` that its usage cannot be true; both are "" where all is well.
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
        """What was paid for answers that came, and for those that may have been billed and never came."""
        return self.paid + self.lost

    @property
    def over(self) -> float:
        """How far the budget is passed; 0 where it is not, or there is none."""
        return max(0.0, self.total - self.budget) if self.budget else 0.0

    def notes(self) -> dict[str, str]:
        """What must be said of the money, a sentence for each kind."""
        passed = (
            f"the budget of {self.budget:g} is passed by {self.over:.4g}: {self.total:.4g} spent" if self.over else ""
        )
        found = {"passed": passed, "raised": self.raised, "unbelieved": self.unbelieved}
        return {kind: text for kind, text in found.items() if text}


NOTHING = Spending()


@dataclass
class _Try:
    """A request under way: its name, the most tokens it should have, and the money that stands for it in the ledger."""

    name: str
    request: Request
    written: float


class Purse:
    """Counts money. `asks` gives for each place of the requests its identity and the request.

    `bought`: the samples that are there. It is a `Toll`, and a context that owns its file.
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

    def __enter__(self) -> Purse:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.close()

    @property
    def spending(self) -> Spending:
        """How things stand."""
        raised = unbelieved = ""
        if self._beyond or self._longest:
            more = [f"{self._beyond} tokens more for a prompt than it can have"] * bool(self._beyond)
            more += [f"{self._longest} tokens for a reply, beyond max_tokens"] * bool(self._longest)
            raised = f"the server bills up to {' and '.join(more)}; so much is reserved for each request"
        if not self._believed:
            unbelieved = "the server's usage cannot be true: every request counts as its reserve"
        return Spending(self.paid, self.lost, self._kept, self._lost_requests, self.access.budget, raised, unbelieved)

    @property
    def spent(self) -> float:
        """What is paid for answers that came, and for those that may have been billed and never came."""
        return self.paid + self.lost

    def enter(self, place: int) -> bool:
        """Reserve the most that the request can cost; False where the budget does not hold it even when all others have ended."""
        identity, request = self._asks[place]
        with self._changed:
            self._lose(place)  # an earlier try whose answer never came
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
        """It was not sent, or the server turned it away: nothing is owed."""
        with self._changed:
            mine = self._open.pop(place)
            self._changed.notify_all()
        self._journal.append([{"refused": mine.name}])

    def used(self, place: int, usage: Mapping[str, int]) -> None:
        """No completion came, and the server counts these tokens: no less is reserved from now on."""
        if "prompt_tokens" in usage and "completion_tokens" in usage:
            self._learn(self._open[place].request, usage["prompt_tokens"], usage["completion_tokens"])

    def left(self, place: int) -> None:
        """No answer came of the last try, or it could not be kept."""
        with self._changed:
            self._lose(place)

    def bill(self, place: int, completion: Completion) -> tuple[str, float]:
        """The try that brought this answer and what it cost: its own count of tokens, or the reserve where that is missing or not believed."""
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
        if least > max(mine.request.params.max_tokens, self._longest):  # no more tokens than bytes
            self._learn(mine.request, 0, len(text.encode("utf-8", "replace")))
        return mine.name, self._most(mine.request)

    def settle(self, place: int, money: float) -> None:
        """The answer is kept."""
        with self._changed:
            self._open.pop(place)
            self.paid += money
            self._kept += 1
            self._tell()
            self._changed.notify_all()

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Money for that many tokens."""
        return (prompt_tokens * self.access.price_in + completion_tokens * self.access.price_out) / 1e6

    def _most(self, request: Request) -> float:
        """What a request can cost, by all that was seen so far."""
        prompt = prompt_bound(request.messages) + self._beyond
        return self.price(prompt, max(request.params.max_tokens, self._longest))

    def _passes(self, most: float) -> bool:
        """Whether a further request could pass the budget."""
        reserved = sum(self._most(mine.request) for mine in self._open.values())
        return self.spent + reserved + most > self.access.budget

    def _learn(self, request: Request, prompt_tokens: int, completion_tokens: int) -> None:
        """Reserve the worst that was seen."""
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
        """Write down that the budget is passed, once."""
        if self.spending.over and not self._told:
            self._told = True
            self._journal.append([{"passed": self.access.budget, "spent": self.spent}])


def prompt_bound(messages: Sequence[Message]) -> int:
    """No fewer tokens than a prompt of these messages has, whatever the tokenizer."""
    return TEMPLATE_TOKENS + sum(MESSAGE_TOKENS + len(m.text.encode("utf-8", "replace")) for m in messages)


def fewest(text: str) -> int:
    """No tokenizer that is in use has fewer tokens for a text: half of its words, rounded up."""
    return (len(text.split()) + 1) // 2


def reached(spending: Spending, have: int, total: int, out: Path) -> BudgetReached:
    """The error that says where things stand and how to go on."""
    how = f"is passed by {spending.over:.4g}" if spending.over else "is reached"
    more = f" Mind that {spending.raised}." if spending.raised else ""
    return BudgetReached(
        f"the budget of {spending.budget:g} {how}: {spending.total:.6g} spent, {have} of {total} samples are here",
        where=str(out),
        remedy=f"They are kept, and data.parquet holds them.{more} Repeat the command with a larger budget= to go on.",
    )
