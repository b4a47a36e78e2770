"""Who is asked: a run of ours, in batches that are always the same, or an address, whose every answer is kept as it comes."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rorqual.core.records import Message, RunDir, Thinking
from rorqual.data.distilled import Distilled
from rorqual.distil.config import FactoryConfig
from rorqual.distil.entries import Entry, Place, entry_of, identity
from rorqual.distil.purse import Purse
from rorqual.engine.engine import Engine
from rorqual.engine.remote import FREE, RemoteEngine
from rorqual.engine.request import Completion, Request
from rorqual.engine.score import Scored, score
from rorqual.evals.run import seeded
from rorqual.model.adapter import fingerprint
from rorqual.tasks.base import Problem

Keep = Callable[[Sequence[Entry], Callable[[], None]], None]
"""Takes samples that are there, calls the second argument when they are on the disk, and looks at them after."""
UnderWay = Callable[[int], None]
"""Told how many samples are drawn and not kept yet."""


ANY = (Message("user", "?"),)


def nothing() -> None:
    """What is to be done when a sample is kept that nobody has to pay for."""


class Teacher(ABC):
    """`label` names it in the result; `of` is the identity of its samples. `tokenizer` and `vocab` as in the Parquet's metadata.

    `chosen`: how many ids at the end of a prompt made it think, or answer at once.
    """

    label: str
    of: str
    tokenizer: str = ""
    vocab: int = 0
    chosen: int = 0

    @abstractmethod
    def sample(self, problems: Sequence[Problem], have: Mapping[Place, Entry], keep: Keep, under_way: UnderWay) -> bool:
        """Sample what is not in `have` and hand it to `keep`; False where money ran out."""

    def spent(self) -> float:
        """Money, lost answers included."""
        return 0.0

    def top(self, rows: Sequence[Distilled], k: int) -> list[Scored]:
        """The `k` likeliest tokens at each place of each row's reply."""
        raise NotImplementedError


class LocalTeacher(Teacher):
    """A run's newest whole checkpoint.

    A problem's samples depend on the config alone: its seed is its own, and the batch in which it is drawn always holds the
    same problems. So a batch of which a kill left a part is drawn again as a whole, and only what is missing is kept.
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

    def sample(self, problems: Sequence[Problem], have: Mapping[Place, Entry], keep: Keep, under_way: UnderWay) -> bool:
        for batch in self.batches(problems):
            missing = {(p.key, n) for p in batch for n in range(self.config.samples)} - have.keys()
            if missing:
                drawn = self._draw(batch, under_way)
                keep([entry for entry in drawn if entry.place in missing], nothing)
        return True

    def batches(self, problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
        """The problems that are drawn together: `config.batch` samples, no problem divided."""
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
        return score(self._engine.model, pairs, k, threads=self.threads)


class RemoteTeacher(Teacher):
    """An OpenAI-compatible address: each answer is kept on arrival, and paid from a purse where there are prices, or were."""

    def __init__(self, config: FactoryConfig, out: Path, api_key: str) -> None:
        self.config, self.out = config, out
        access = config.access
        self.label = f"{config.model} at {config.teacher}"
        self.of = identity(config, config.teacher)
        self._spent = 0.0
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

    def spent(self) -> float:
        return self._spent

    def sample(self, problems: Sequence[Problem], have: Mapping[Place, Entry], keep: Keep, under_way: UnderWay) -> bool:
        asks = [
            (problem, number, request_of(self.config, problem))
            for number in range(self.config.samples)  # a first sample of each before a second of any
            for problem in problems
            if (problem.key, number) not in have
        ]
        access = self.config.access
        ledger = self.out / "purse.jsonl"
        if not access.price_in and not access.price_out and not ledger.is_file():

            def arrived(place: int, completion: Completion) -> None:
                problem, number, request = asks[place]
                keep([entry_of(self.of, problem, number, request.params, completion)], nothing)

            return self._engine.collect([(request, number) for _, number, request in asks], arrived, FREE)
        names = [
            (f"{hashlib.sha256(p.key.encode()).hexdigest()[:12]}.{number}", request) for p, number, request in asks
        ]
        with Purse(ledger, access, names, list(have.values())) as purse:

            def paid(place: int, completion: Completion) -> None:
                problem, number, request = asks[place]
                attempt, money = purse.bill(place, completion)
                entry = entry_of(self.of, problem, number, request.params, completion, money=money, attempt=attempt)
                keep([entry], lambda: purse.settle(place, money))

            try:
                return self._engine.collect([(request, number) for _, number, request in asks], paid, purse)
            finally:
                self._spent = purse.spent


def request_of(config: FactoryConfig, problem: Problem) -> Request:
    """What is asked for a problem, with a seed of its own."""
    return Request(problem.messages, seeded(config.params, problem.key), config.thinking)
