"""Budget control for a remote teacher. The maximum cost of a request is reserved in a ledger before the request is sent.

The reserve is an upper bound of the cost: the price of the maximum number of prompt tokens, plus the price of
`max_tokens` reply tokens. Only for images, which have no known maximum, it is an estimate (`IMAGE_TOKENS`). If the server billed
more tokens than were reserved for an earlier request, later requests reserve
these extra tokens too. The actual cost of an answer replaces its reserve. A request costs nothing if the request was never sent, or
if the server rejected the request (HTTP 3xx or 4xx).

The reserve counts as spent if the answer never arrived (server error, timeout, broken connection, no completion),
because the server may have billed the request. The reserve counts as spent if the server reports no token usage, or
fewer tokens than the answer's text must have. Once the server has reported too few tokens, later usage reports of the server
are not trusted.

The guarantee: if a server bills no request more than its reserve, the total bill never exceeds the budget. A server may
bill and report more tokens than were reserved, because it ignores `max_tokens` or adds its own prompt. The budget may then be
exceeded by at most the cost of one request, if no request costs more than `EXCESS` times its reserve or more than the server
billed before. With a budget, the number of requests in flight therefore starts at one. It grows with the number of answers
whose usage is plausible, up to `concurrency`, and only while the remaining budget covers `EXCESS` times the reserves of all
requests in flight but one. Without plausible usage, requests are sent one at a time. Once the budget is exceeded, no further
request is sent. If a server bills more tokens than it reports, the budget may be exceeded by any amount.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rorqual.core.content_parts import TextPart
from rorqual.core.errors import RorqualError
from rorqual.core.journal import Journal
from rorqual.core.lock import Closable
from rorqual.core.records import Message
from rorqual.engine.remote.engine import BudgetGuard
from rorqual.engine.request import Completion, Request
from rorqual.factory.config import RemoteAccess
from rorqual.factory.stored_samples import StoredSample

MESSAGE_TOKENS, TEMPLATE_TOKENS = 16, 64
"""Maximum number of tokens that a chat template adds per message and per prompt. The text of a message has at most one token
per byte."""
IMAGE_TOKENS = 4096
"""Number of tokens to reserve for an image. A server that bills more for an image bills more than was reserved."""
EXCESS = 16
"""A request may cost so many times its reserve before more than one request exceeds the budget."""
USAGE_FAULTS = {"trusted": "unbelieved", "reported": "unreported"}
"""The key of the ledger's line for each fault of the server's usage, by field of `Spending`."""


class BudgetReached(RorqualError):
    """The next request could exceed the budget, so sampling stops. All paid answers are saved."""


@dataclass(frozen=True)
class Spending:
    """The money spent on a remote teacher so far, and the number of requests.

    - `paid`, `kept`: total cost and number of the requests that returned an answer.
    - `lost`, `lost_requests`: total reserve and number of the requests without an answer, which the server may have billed.
    - `beyond`: the largest number of prompt tokens that were billed in excess of `max_prompt_tokens`. `longest`: the largest
      number of reply tokens that the server billed for a request with a lower `max_tokens`.
    - `trusted`: whether the server never reported fewer tokens than a prompt or an answer must have.
    - `reported`: whether the server reported the usage of every answer.
    """

    budget: float = 0.0
    paid: float = 0.0
    lost: float = 0.0
    kept: int = 0
    lost_requests: int = 0
    beyond: int = 0
    longest: int = 0
    trusted: bool = True
    reported: bool = True

    @property
    def total(self) -> float:
        """The cost of all received answers, and of lost answers that may have been billed."""
        return self.paid + self.lost

    @property
    def overspent(self) -> float:
        """The money spent in excess of the budget, or 0 if no budget is set."""
        return max(0.0, self.total - self.budget) if self.budget else 0.0

    def warnings_by_kind(self) -> dict[str, str]:
        """Return the warnings on spending by kind: exceeded budget, excess billing, impossible or missing usage."""
        found = {}
        if self.overspent:
            found["passed"] = (
                f"the budget of {self.budget:g} is exceeded by {self.overspent:.4g}: {self.total:.4g} spent"
            )
        if self.beyond or self.longest:
            excess = [f"{self.beyond} prompt tokens more than the prompt can have"] * bool(self.beyond)
            excess += [f"{self.longest} reply tokens, more than max_tokens"] * bool(self.longest)
            found["raised"] = f"the server bills up to {' and '.join(excess)}; each request now reserves this"
        if not self.trusted:
            found["unbelieved"] = "the server reports an impossible usage: every request now costs its full reserve"
        if not self.reported:
            found["unreported"] = (
                "the server does not report the usage of every answer: an answer without usage costs its full reserve,"
                " and with a budget, answers with usage decide how many requests are sent at a time"
            )
        return found


NOTHING = Spending()


@dataclass
class _RequestInFlight:
    """A request in flight. `name` is the request's name in the ledger, and `written` is the request's reserve in the ledger."""

    name: str
    request: Request
    written: float


class Budget(BudgetGuard, Closable):
    """The account of paid and reserved money. The remote engine calls `may_send` before each request, and the methods that book
    the cost after the response.

    `asks` holds (name in the ledger, request) for each request index. `bought` holds the paid samples of earlier calls. As a
    context manager, a `Budget` owns the ledger file.
    """

    def __init__(
        self,
        path: Path,
        access: RemoteAccess,
        asks: Sequence[tuple[str, Request]],
        bought: Sequence[StoredSample],
    ) -> None:
        self.access, self._asks = access, asks
        self._condition = threading.Condition()
        self._open: dict[int, _RequestInFlight] = {}
        self._journal = Journal(path)
        lines = [line for _, _, line in self._journal.read()]
        arrived = {entry.attempt for entry in bought}
        refused = {line["refused"] for line in lines if "refused" in line}
        sent = {line["sent"]: float(line["most"]) for line in lines if "sent" in line}
        self._tries = Counter(name.rpartition("#")[0] for name in sent)
        answered = arrived | refused
        lost = [reserve for name, reserve in sent.items() if name not in answered]
        self.spending = Spending(
            access.budget,
            paid=sum(entry.money for entry in bought),
            lost=sum(lost),
            kept=len(bought),
            lost_requests=len(lost),
            beyond=max((int(line["beyond_prompt"]) for line in lines if "beyond_prompt" in line), default=0),
            longest=max((int(line["longest_reply"]) for line in lines if "longest_reply" in line), default=0),
            trusted=not any(USAGE_FAULTS["trusted"] in line for line in lines),
            reported=not any(USAGE_FAULTS["reported"] in line for line in lines),
        )
        """The money spent so far. Each change replaces the whole `Spending` object, which is immutable."""
        self._excess_recorded = any("passed" in line for line in lines)
        self._n_confirmed = 0  # answers of this call with plausible usage: an earlier call may have met another server

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def may_send(self, place: int) -> bool:
        """Reserve the maximum cost of a request. If the remaining budget does not cover the request's maximum cost, or too few
        answers have confirmed the cost of a request, wait for requests in flight to finish.

        Return False if the budget does not cover the request even when no other request is in flight.
        """
        identity, request = self._asks[place]
        with self._condition:
            self._count_lost_request(place)  # if an earlier attempt is still open, it got no answer
            while self.access.budget and self._must_wait(request):
                if not self._open:
                    return False
                self._condition.wait()
            self._tries[identity] += 1
            attempt = _RequestInFlight(f"{identity}#{self._tries[identity]}", request, self._max_cost(request))
            self._open[place] = attempt
        self._journal.append([{"sent": attempt.name, "most": attempt.written}])
        return True

    def count_unbilled_attempt(self, place: int) -> None:
        """Release the reserve of a request that was not sent or that the server rejected."""
        with self._condition:
            attempt = self._open.pop(place)
            self._condition.notify_all()
        self._journal.append([{"refused": attempt.name}])

    def charge_failed_attempt(self, place: int, usage: Mapping[str, int]) -> None:
        """Handle a response that reports usage but has no completion. If the server billed more tokens than were reserved,
        later requests reserve more tokens."""
        if "prompt_tokens" in usage and "completion_tokens" in usage:
            self._raise_reserves_if_exceeded(
                self._open[place].request, usage["prompt_tokens"], usage["completion_tokens"]
            )

    def settle_request(self, place: int) -> None:
        """Count the request's reserve as spent. Call this method if the last attempt returned no answer, or if the answer could not be saved."""
        with self._condition:
            self._count_lost_request(place)

    def cost_of_answer(self, place: int, completion: Completion) -> tuple[str, float]:
        """Return the name of the attempt that returned the answer, and the cost of the answer.

        The cost is computed from the reported usage. If the usage is missing or not trusted, the cost equals the request's
        reserve.
        """
        attempt, usage = self._open[place], completion.usage
        text = f"{completion.text} {completion.reasoning or ''}"
        least_reply = min_text_tokens(text)
        has_usage = "prompt_tokens" in usage and "completion_tokens" in usage
        least_prompt = max(1, sum(min_text_tokens(m.label) for m in attempt.request.messages))
        if has_usage and (usage["prompt_tokens"] < least_prompt or usage["completion_tokens"] < least_reply):
            self._record_usage_fault("trusted", attempt.name)
        if not has_usage:
            self._record_usage_fault("reported", attempt.name)
        if has_usage and self.spending.trusted:
            self._raise_reserves_if_exceeded(attempt.request, usage["prompt_tokens"], usage["completion_tokens"])
            self._n_confirmed += 1
            return attempt.name, self.price(usage["prompt_tokens"], usage["completion_tokens"])
        if least_reply > max(
            attempt.request.params.max_tokens, self.spending.longest
        ):  # a text has at most one token per byte
            self._raise_reserves_if_exceeded(attempt.request, 0, len(text.encode("utf-8", "replace")))
        return attempt.name, self._max_cost(attempt.request)

    def replace_reserve_with_cost(self, place: int, money: float) -> None:
        """Replace the reserve of a saved answer with the answer's cost."""
        with self._condition:
            self._open.pop(place)
            self._update_spending(paid=self.spending.paid + money, kept=self.spending.kept + 1)
            self._condition.notify_all()

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of the given numbers of prompt and reply tokens."""
        return (prompt_tokens * self.access.price_in + completion_tokens * self.access.price_out) / 1e6

    def _max_cost(self, request: Request) -> float:
        """Return the maximum cost of a request. If the server ever reported more tokens than were reserved, the maximum cost
        includes this excess."""
        prompt = max_prompt_tokens(request.messages) + self.spending.beyond
        return self.price(prompt, max(request.params.max_tokens, self.spending.longest))

    def _max_excess_cost(self, request: Request) -> float:
        """Return the cost of a request that costs `EXCESS` times its reserve, or as much as the server has billed before."""
        reserve = self.price(max_prompt_tokens(request.messages), request.params.max_tokens)
        return max(EXCESS * reserve, self._max_cost(request))

    def _must_wait(self, request: Request) -> bool:
        """Return whether `request` could exceed the budget, or whether too many requests would be in flight with it."""
        in_flight = [attempt.request for attempt in self._open.values()]
        total = self.spending.total
        if total + sum(map(self._max_cost, [*in_flight, request])) > self.access.budget:
            return True
        if not in_flight:
            return False
        covered = total + sum(map(self._max_excess_cost, in_flight)) <= self.access.budget
        return len(in_flight) >= self._n_confirmed * self.spending.trusted or not covered

    def _raise_reserves_if_exceeded(self, request: Request, prompt_tokens: int, completion_tokens: int) -> None:
        """If the server billed more tokens than were reserved for `request`, record the numbers of tokens. All later requests
        then reserve more tokens (`_max_cost`)."""
        excess = prompt_tokens - max_prompt_tokens(request.messages)
        with self._condition:
            if excess > self.spending.beyond:
                self._update_spending(beyond=excess)
                self._journal.append([{"beyond_prompt": excess}])
            if completion_tokens > max(request.params.max_tokens, self.spending.longest):
                self._update_spending(longest=completion_tokens)
                self._journal.append([{"longest_reply": completion_tokens}])

    def _record_usage_fault(self, fault: str, name: str) -> None:
        """Set the field `fault` of `spending` to False. At the first fault, write the name of the attempt to the ledger."""
        with self._condition:
            if getattr(self.spending, fault):
                self._update_spending(**{fault: False})
                self._journal.append([{USAGE_FAULTS[fault]: name}])

    def _count_lost_request(self, place: int) -> None:
        if place in self._open:
            attempt = self._open.pop(place)
            money = max(attempt.written, self._max_cost(attempt.request))
            if money > attempt.written:
                self._journal.append([{"sent": attempt.name, "most": money}])
            self._update_spending(lost=self.spending.lost + money, lost_requests=self.spending.lost_requests + 1)
            self._condition.notify_all()

    def _update_spending(self, **changes: Any) -> None:
        """Update `spending` with `changes`. When the budget is exceeded for the first time, write a line to the ledger."""
        self.spending = replace(self.spending, **changes)
        if self.spending.overspent and not self._excess_recorded:
            self._excess_recorded = True
            self._journal.append([{"passed": self.access.budget, "spent": self.spending.total}])


def max_prompt_tokens(messages: Sequence[Message]) -> int:
    """Return an upper bound of the number of tokens of a prompt, for any tokenizer. An image counts as `IMAGE_TOKENS`."""
    parts = [part for message in messages if not isinstance(message.content, str) for part in message.content]
    n_images = sum(not isinstance(part, TextPart) for part in parts)
    text_tokens = sum(MESSAGE_TOKENS + len(m.label.encode("utf-8", "replace")) for m in messages)
    return TEMPLATE_TOKENS + IMAGE_TOKENS * n_images + text_tokens


def min_text_tokens(text: str) -> int:
    """Return a lower bound of the number of tokens of a text for common tokenizers: half its words, rounded up."""
    return (len(text.split()) + 1) // 2


def budget_error(spending: Spending, have: int, total: int, out: Path) -> BudgetReached:
    """Return the error to raise when the budget is reached. The error states the money spent and how to continue."""
    state = f"is exceeded by {spending.overspent:.4g}" if spending.overspent else "is reached"
    note = "".join(f" Note: {text}." for kind, text in spending.warnings_by_kind().items() if kind == "raised")
    return BudgetReached(
        f"the budget of {spending.budget:g} {state}: {spending.total:.6g} spent, {have} of {total} samples received",
        where=str(out),
        remedy=f"The samples are saved in data.parquet.{note} Repeat the command with a larger budget= to continue.",
    )
