"""A budget that is never exceeded, also by requests under way, by answers that got lost, and by a kill.

Before a request is sent, the most that it can cost is reserved and written down. The answer's own bill replaces it; a server
that refused bills nothing; of a request whose answer never came we do not know, so that it counts as billed in full.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

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
        self._open: dict[int, tuple[str, float]] = {}
        self._journal = Journal(path)
        arrived = {entry.attempt for entry in bought}
        refused = {line["refused"] for line in self._journal.lines if "refused" in line}
        sent = {line["sent"]: float(line["most"]) for line in self._journal.lines if "sent" in line}
        self._tries = Counter(name.rpartition("#")[0] for name in sent)
        self.lost = sum(most for name, most in sent.items() if name not in arrived | refused)
        self.paid = sum(entry.money for entry in bought)

    def __enter__(self) -> Purse:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._journal.close()

    @property
    def spent(self) -> float:
        """What is paid for answers that came, and for those that may have been billed and never came."""
        return self.paid + self.lost

    def enter(self, place: int) -> bool:
        """Reserve the most that the request can cost; False where the budget does not hold it even when all others have ended."""
        identity, request = self._asks[place]
        most = self.price(prompt_bound(request.messages), request.params.max_tokens)
        with self._changed:
            self._lose(place)  # an earlier try whose answer never came
            while self.access.budget and self.spent + self._reserved() + most > self.access.budget:
                if not self._open:
                    return False
                self._changed.wait()
            self._tries[identity] += 1
            name = f"{identity}#{self._tries[identity]}"
            self._open[place] = name, most
        self._journal.append([{"sent": name, "most": most}])
        return True

    def refused(self, place: int) -> None:
        """The server said no: nothing is owed."""
        with self._changed:
            name, _ = self._open.pop(place)
            self._changed.notify_all()
        self._journal.append([{"refused": name}])

    def left(self, place: int) -> None:
        """No answer came of the last try, or it could not be kept."""
        with self._changed:
            self._lose(place)

    def bill(self, place: int, completion: Completion) -> tuple[str, float]:
        """The try that brought this answer and what it cost: its own count of tokens, or the reserve where it has none."""
        name, most = self._open[place]
        usage = completion.usage
        if "prompt_tokens" not in usage or "completion_tokens" not in usage:
            return name, most
        return name, self.price(usage["prompt_tokens"], usage["completion_tokens"])

    def settle(self, place: int, money: float) -> None:
        """The answer is kept."""
        with self._changed:
            self._open.pop(place)
            self.paid += money
            self._changed.notify_all()

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Money for that many tokens."""
        return (prompt_tokens * self.access.price_in + completion_tokens * self.access.price_out) / 1e6

    def _reserved(self) -> float:
        return sum(most for _, most in self._open.values())

    def _lose(self, place: int) -> None:
        if place in self._open:
            self.lost += self._open.pop(place)[1]
            self._changed.notify_all()


def prompt_bound(messages: Sequence[Message]) -> int:
    """No fewer tokens than a prompt of these messages has, whatever the tokenizer."""
    return TEMPLATE_TOKENS + sum(MESSAGE_TOKENS + len(m.content.encode("utf-8", "replace")) for m in messages)


def reached(access: Access, spent: float, have: int, total: int, out: Path) -> BudgetReached:
    """The error that says where things stand and how to go on."""
    return BudgetReached(
        f"the budget of {access.budget:g} is reached: {spent:.6g} spent, {have} of {total} samples are here",
        where=str(out),
        remedy="They are kept, and data.parquet holds them. Repeat the command with a larger budget= to go on.",
    )
