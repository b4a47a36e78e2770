"""A remote model that answers the prompts of which no rung is sure enough, within a budget."""

from __future__ import annotations

from collections.abc import Iterator

from rorqual.core.journal import Journal
from rorqual.core.records import Message
from rorqual.core.rows import read_rows
from rorqual.engine.remote.engine import RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.factory.budget import Budget
from rorqual.factory.config import RemoteAccess
from rorqual.factory.stored_samples import StoredSample
from rorqual.serve.logs import say
from rorqual.teach.paths import TeachPaths

FALLBACK = "fallback"
"""The name of the rung in an answer of the remote model, and of its requests in the ledger."""
EXAMPLES = 64
"""Maximum number of training examples before a prompt, each with another answer."""
INSTRUCTION = "Answer as in the examples, with nothing else."
PARAMS = SamplingParams(max_tokens=512, temperature=0.0)


class Fallback:
    """A remote model that is asked one prompt at a time, after training examples.

    `ledger.jsonl` in `OUT/fallback` has the reserve of each request, and `paid.jsonl` the cost of each answer, so that the budget
    also covers earlier servers of the folder.
    """

    def __init__(self, engine: RemoteEngine, access: RemoteAccess, paths: TeachPaths) -> None:
        self.engine, self.access, self.folder = engine, access, paths.out / FALLBACK
        self.opening = tuple(_opening(paths))
        self.folder.mkdir(exist_ok=True)
        self.paid = Journal(self.folder / "paid.jsonl")
        self.bought = [_sample(line["attempt"], line["money"]) for _, _, line in self.paid.read()]

    def answer(self, prompt: str) -> str | None:
        """Return the remote model's answer, or None if the budget is spent or the server gives no answer."""
        request = Request((*self.opening, Message("user", prompt)), PARAMS)
        found: list[Completion] = []
        with Budget(self.folder / "ledger.jsonl", self.access, [(FALLBACK, request)], self.bought) as budget:

            def arrived(place: int, completion: Completion) -> None:
                attempt, money = budget.cost_of_answer(place, completion)
                self.paid.append([{"attempt": attempt, "money": money}])
                self.bought.append(_sample(attempt, money))
                budget.replace_reserve_with_cost(place, money)
                found.append(completion)

            try:
                self.engine.collect_completions([(request, 0)], arrived, budget)
            except RemoteError as error:
                say(f"the fallback gives no answer: {error}")
        return found[0].text if found and not found[0].error else None


def _sample(attempt: str, money: float) -> StoredSample:
    return StoredSample("", "", 0, 0, "", None, "stop", 0, 0, attempt=attempt, money=money)


def _opening(paths: TeachPaths) -> Iterator[Message]:
    """Yield an instruction, and training examples with different answers as turns of a user and an assistant."""
    yield Message("system", INSTRUCTION)
    first: dict[str, str] = {}
    for row in read_rows(paths.data / "train.jsonl"):
        first.setdefault(row.get("completion"), row.get("prompt"))
    for answer, prompt in [*first.items()][:EXAMPLES]:
        yield Message("user", prompt)
        yield Message("assistant", answer)
