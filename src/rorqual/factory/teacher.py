"""Teachers: a local run, sampled in fixed batches, or a remote address, whose answers are saved one by one."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from rorqual.core.records import Message, RunDir, Thinking
from rorqual.data.distilled import Distilled
from rorqual.engine.engine import Engine
from rorqual.engine.remote.engine import FREE, REFUSED, RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request
from rorqual.engine.score import Scored, score
from rorqual.evals.answer_cache import IN_A_ROW
from rorqual.evals.run import seeded
from rorqual.factory.budget import NOTHING, Budget, Spending
from rorqual.factory.config import FactoryConfig
from rorqual.factory.entries import Entry, Place, entry_of, failure_of, identity, is_same_model
from rorqual.model.adapter import fingerprint
from rorqual.tasks.base import Problem

Keep = Callable[[Sequence[Entry], Callable[[], None]], None]
"""Saves samples, calls the second argument once they are on disk, then verifies them."""
UnderWay = Callable[[int], None]
"""Receives the number of samples generated but not saved yet."""
FAILURES_IN_A_ROW = 5
"""Stop after this many requests in a row that fail after their retries: the server is at fault, not a request."""


Ask = tuple[Problem, int, Request]
"""A problem, the index of the sample, and its request."""
ANY = (Message("user", "?"),)


def nothing() -> None:
    """Do nothing: the callback of a saved sample that costs no money."""


class Teacher(ABC):
    """The base of teachers. `label` names it in the result; `of` is the identity of its samples.

    `tokenizer` and `vocab` are stored in the Parquet's metadata. `chosen` is the number of ids at the end of a prompt
    that force the teacher to think, or to answer at once.
    """

    label: str
    of: str
    tokenizer: str = ""
    vocab: int = 0
    chosen: int = 0

    @abstractmethod
    def sample(
        self,
        problems: Sequence[Problem],
        have: Mapping[Place, Entry],
        keep: Keep,
        under_way: UnderWay,
        failed: Collection[Place] = (),
    ) -> bool:
        """Generate the samples that are not in `have` and pass them to `keep`; return False if the budget ran out.

        `failed` holds the samples that failed in an earlier call.
        """

    @property
    def spending(self) -> Spending:
        """Money spent, lost answers included."""
        return NOTHING

    def top(self, rows: Sequence[Distilled], k: int) -> list[Scored]:
        """Return the `k` most likely tokens at each position of each row's reply."""
        raise NotImplementedError


class LocalTeacher(Teacher):
    """The newest complete checkpoint of a run.

    A problem's samples depend on the config alone: each problem has its own seed, and a batch always contains the same
    problems. A batch that a kill interrupted is generated again as a whole, and only its missing samples are saved.
    """

    def __init__(self, config: FactoryConfig, threads: int) -> None:
        self.config, self.threads = config, threads
        run = RunDir(Path(config.teacher))
        folder = run.checkpoint()
        self.label = f"{config.teacher}@{folder.name}"
        self.of = identity(config, fingerprint(folder))
        self.tokenizer = hashlib.sha256(run.tokenizer_file.read_bytes()).hexdigest()
        self._engine = Engine(run.path, device=config.device, dtype=config.dtype, threads=threads, record_experts=False)
        self.vocab = self._engine.tokenizer.vocab_size
        modes: tuple[Thinking, Thinking] = (config.thinking, "auto")
        made, free = (len(self._engine.chat.prompt(ANY, mode)) for mode in modes)
        self.chosen = made - free

    def sample(
        self,
        problems: Sequence[Problem],
        have: Mapping[Place, Entry],
        keep: Keep,
        under_way: UnderWay,
        failed: Collection[Place] = (),
    ) -> bool:
        for batch in self.batches(problems):
            missing = {(p.key, n) for p in batch for n in range(self.config.samples)} - have.keys()
            if missing:
                drawn = self._draw(batch, under_way)
                keep([entry for entry in drawn if entry.place in missing], nothing)
        return True

    def batches(self, problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
        """Yield the problems that are generated together: `config.batch` samples, with no problem split."""
        size = max(1, self.config.batch // self.config.samples)
        yield from (problems[start : start + size] for start in range(0, len(problems), size))

    def _draw(self, problems: Sequence[Problem], under_way: UnderWay) -> list[Entry]:
        requests = [request_of(self.config, problem) for problem in problems]
        began = time.process_time()
        answers = self._engine.generate(requests, progress=lambda done, _: under_way(done))
        spent = time.process_time() - began
        tokens = sum(len(one.token_ids) for group in answers for one in group)
        return [
            entry_of(
                self.of, problem, number, request.params, one, core_seconds=spent * len(one.token_ids) / max(tokens, 1)
            )
            for problem, request, group in zip(problems, requests, answers, strict=True)
            for number, one in enumerate(group)
        ]

    def top(self, rows: Sequence[Distilled], k: int) -> list[Scored]:
        pairs = [(row.prompt_ids, row.token_ids) for row in rows]
        return score(self._engine.scorer, pairs, k, threads=self.threads)


class RemoteTeacher(Teacher):
    """An OpenAI-compatible address: each answer is saved on arrival, and booked against the budget if there are prices.

    A ledger from an earlier call also turns booking on. A request that fails after its retries is saved as a failure,
    and the others continue. The error is raised if the server answered nothing at all, after `FAILURES_IN_A_ROW`
    failures in a row, and after `IN_A_ROW` rejections in a row. Requests that failed in an earlier call are sent last
    and do not count, so the same call always makes progress.
    """

    def __init__(self, config: FactoryConfig, out: Path, api_key: str) -> None:
        self.config, self.out = config, out
        access = config.access
        self.label = f"{config.model} at {config.teacher}"
        self.of = identity(config, config.teacher)
        self._budget: Budget | None = None
        self._engine = RemoteEngine(
            config.teacher,
            config.model,
            api_key=api_key,
            concurrency=access.concurrency,
            timeout=access.timeout,
            retries=access.retries,
            backoff=access.backoff,
            seed_bits=config.seed_bits,
        )

    @property
    def spending(self) -> Spending:
        return self._budget.spending if self._budget else NOTHING

    def sample(
        self,
        problems: Sequence[Problem],
        have: Mapping[Place, Entry],
        keep: Keep,
        under_way: UnderWay,
        failed: Collection[Place] = (),
    ) -> bool:
        asks = [
            (problem, number, request_of(self.config, problem))
            for number in range(self.config.samples)  # the first sample of every problem comes before any second sample
            for problem in problems
            if (problem.key, number) not in have
        ]
        asks.sort(key=lambda ask: (ask[0].key, ask[1]) in failed)
        access = self.config.access
        ledger = self.out / "purse.jsonl"
        if not access.price_in and not access.price_out and not ledger.is_file():
            return self._collect(asks, None, keep, failed, bool(have))
        names = [
            (f"{hashlib.sha256(p.key.encode()).hexdigest()[:12]}.{number}", request) for p, number, request in asks
        ]
        with Budget(ledger, access, names, list(have.values())) as self._budget:
            return self._collect(asks, self._budget, keep, failed, bool(have))

    def _collect(
        self, asks: Sequence[Ask], budget: Budget | None, keep: Keep, before: Collection[Place], answered: bool
    ) -> bool:
        in_a_row: Counter[bool] = Counter()
        errors: list[RemoteError] = []

        def arrived(place: int, completion: Completion) -> None:
            nonlocal answered
            answered = True
            in_a_row.clear()
            problem, number, request = asks[place]
            attempt, money = budget.bill(place, completion) if budget else ("", 0.0)
            other = "" if is_same_model(self.config.model, completion.model) else completion.model
            entry = entry_of(
                self.of, problem, number, request.params, completion, money=money, attempt=attempt, model=other
            )
            keep([entry], lambda: budget.settle(place, money) if budget else None)

        def failed(place: int, error: RemoteError) -> None:
            problem, number, request = asks[place]
            errors.append(error)
            keep([failure_of(self.of, problem, number, request.params, error.what)], nothing)
            refused = error.status in REFUSED
            in_a_row[refused] += (problem.key, number) not in before
            if in_a_row[refused] == (IN_A_ROW if refused else FAILURES_IN_A_ROW):
                raise error

        wanted = [(request, number) for _, number, request in asks]
        alone = bool(self.config.access.budget) and not answered  # the first answer shows what this server bills
        whole = self._engine.collect(wanted, arrived, budget or FREE, failed=failed, first_alone=alone)
        if errors and not answered:
            raise errors[0]
        return whole


def request_of(config: FactoryConfig, problem: Problem) -> Request:
    """Return the request for a problem, with the problem's own seed."""
    return Request(problem.messages, seeded(config.params, problem.key), config.thinking)
