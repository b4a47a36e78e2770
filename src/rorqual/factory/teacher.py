"""Teachers that generate samples: a local run, which is sampled in fixed batches, or a remote server."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.records import Message, RunDir, Thinking
from rorqual.core.rows import READERS, name_file_in_read_errors
from rorqual.data.distilled import TeacherSample
from rorqual.engine.engine import Engine
from rorqual.engine.remote.engine import FREE, REFUSED, RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request
from rorqual.engine.score import TopLogprobs, score
from rorqual.engine.seeds import sample_seed
from rorqual.evals.answer_cache import IN_A_ROW
from rorqual.evals.evaluating import with_problem_seed
from rorqual.factory.budget import NOTHING, Budget, Spending
from rorqual.factory.config import FactoryConfig
from rorqual.factory.stored_samples import (
    SampleId,
    StoredSample,
    failed_sample,
    sample_of_completion,
    settings_hash,
)
from rorqual.model.adapter import fingerprint
from rorqual.tasks.examples import OPENINGS_FILE
from rorqual.tasks.task import Problem

SaveSamples = Callable[[Sequence[StoredSample], Callable[[], None]], None]
"""A callback (samples, on_saved) that saves new samples, calls `on_saved` when the samples are on disk, and then grades the samples."""
ReportUnsavedCount = Callable[[int], None]
"""A progress callback that receives the number of samples that are generated but not saved yet."""
LEDGER = "purse.jsonl"
"""The file of all requests to a remote teacher and their costs, if prices are set."""
FAILURES_IN_A_ROW = 5
"""Number of consecutive requests that may fail despite retries before sampling stops. `FAILURES_IN_A_ROW` failures in a
row indicate a problem with the server, not with a single request."""


EngineRequest = tuple[Problem, int, Request]
"""(problem, index of the sample, request): one sample to generate."""
ANY = (Message("user", "?"),)
"""An arbitrary conversation, which is rendered to count the prompt tokens that a thinking mode adds."""


def do_nothing() -> None:
    """Do nothing. This function is the `on_saved` callback for samples that cost no money."""


def input_hashes(config: FactoryConfig) -> dict[str, str]:
    """Return the hash of each input of a dataset by name: `teacher`, and the files that the settings `task`, `data` and
    `decontaminate` name. An input that no longer exists is left out."""
    hashes = {}
    if not config.remote:
        with suppress(CheckpointError):  # the teacher was deleted
            hashes["teacher"] = fingerprint(RunDir(Path(config.teacher)).checkpoint())
    names = [re.sub(r"\.py:\w*$", ".py", name) for name in (config.task, *config.decontaminate)]
    files = [Path(name) for name in names if os.path.isfile(name)]  # Path.is_file raises OSError for a long name
    if config.data:
        data = Path(config.data)
        files += [file for file in (data, *data.glob("*")) if file.is_file() and file.suffix.lower() in READERS]
        files = [file for file in files if file.name != OPENINGS_FILE]  # a log of readings, which each call extends
    for file in files:
        with name_file_in_read_errors(file), file.open("rb") as opened:
            hashes[str(file)] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashes


class LocalTeacher:
    """A local teacher: the latest complete checkpoint of a run.

    - `label`: name of the teacher in the resulting dataset.
    - `of`: identity of the teacher's samples, a hash of teacher, settings and seed.
    - `tokenizer`, `vocab`: fingerprint of the tokenizer, and the vocabulary size. The metadata of the Parquet file stores both.
    - `chosen`: number of tokens at the end of a prompt that force the teacher to think, or to answer without thinking.
    - `spending`: the money spent, including the cost of answers that never arrived.

    The samples of a problem depend only on the config, because each problem has its own seed, and a batch always contains
    the same problems. If a batch was interrupted, the whole batch is generated again, and only its missing samples are saved.
    """

    spending = NOTHING

    def __init__(self, config: FactoryConfig, threads: int) -> None:
        self.config, self.threads = config, threads
        run = RunDir(Path(config.teacher))
        folder = run.checkpoint()
        self.label = f"{config.teacher}@{folder.name}"
        self.of = settings_hash(config, fingerprint(folder))
        self._engine = Engine(run.path, device=config.device, dtype=config.dtype, threads=threads, record_experts=False)
        self.tokenizer, self.vocab = self._engine.tokenizer.fingerprint, self._engine.tokenizer.vocab_size
        if config.top_k > (vocab := self._engine.scoring_model.config.vocab_size):
            raise ConfigError(
                f"top_k={config.top_k} is more than the vocabulary's {vocab} tokens",
                where=config.teacher,
                remedy=f"Set top_k to {vocab} or less.",
            )
        modes: tuple[Thinking, Thinking] = (config.thinking, "auto")
        with_mode, without_mode = (len(self._engine.chat.prompt(ANY, mode)) for mode in modes)
        self.chosen = with_mode - without_mode

    def sample(
        self,
        problems: Sequence[Problem],
        have: Mapping[SampleId, StoredSample],
        keep: SaveSamples,
        under_way: ReportUnsavedCount,
        failed: Collection[SampleId] = (),
    ) -> bool:
        """Generate the samples that `have` does not contain, and pass them to `keep`. Return False if the budget was reached.

        `failed`: samples that failed in an earlier call.
        """
        for batch in self.batches(problems):
            missing = {(p.key, n) for p in batch for n in range(self.config.samples)} - have.keys()
            if missing:
                entries = self._generate(batch, under_way)
                keep([entry for entry in entries if entry.sample_id in missing], do_nothing)
        return True

    def batches(self, problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
        """Yield batches of problems. A batch has about `config.batch` samples, and all samples of a problem are in one batch."""
        size = max(1, self.config.batch // self.config.samples)
        yield from (problems[start : start + size] for start in range(0, len(problems), size))

    def _generate(self, problems: Sequence[Problem], under_way: ReportUnsavedCount) -> list[StoredSample]:
        requests = [request_of(self.config, problem) for problem in problems]
        began = time.process_time()
        answers = self._engine.generate(requests, progress=lambda done, _: under_way(done))
        spent = time.process_time() - began
        tokens = sum(len(completion.token_ids) for group in answers for completion in group)
        return [
            sample_of_completion(
                self.of,
                problem,
                number,
                sample_seed(request.params.seed, number),
                completion,
                core_seconds=spent * len(completion.token_ids) / max(tokens, 1),
            )
            for problem, request, group in zip(problems, requests, answers, strict=True)
            for number, completion in enumerate(group)
        ]

    def top_tokens(self, rows: Sequence[TeacherSample], k: int) -> list[TopLogprobs]:
        """Return the teacher's `k` most likely tokens at each position of each row's reply."""
        pairs = [(row.prompt_ids, row.token_ids) for row in rows]
        return score(self._engine.scoring_model, pairs, k, threads=self.threads)


class RemoteTeacher:
    """A teacher behind an OpenAI-compatible server. Each answer of the server is saved on arrival. The fields have the meaning
    that they have in `LocalTeacher`.

    If prices are set, or if an earlier call left a ledger, the cost of each answer is recorded in the ledger.

    A request that fails despite retries is saved as a failure, and the other requests continue. An error is raised in three
    cases: the server never answered a request, the server rejected `IN_A_ROW` requests in a row, or `FAILURES_IN_A_ROW`
    requests in a row failed for another reason. Requests that failed in an earlier call are sent last, and their failures are
    not counted, so that a repeated call makes progress.
    """

    tokenizer, vocab, chosen = "", 0, 0

    def __init__(self, config: FactoryConfig, out: Path, api_key: str) -> None:
        self.config, self.out = config, out
        access = config.access
        self.label = f"{config.model} at {config.teacher}"
        self.of = settings_hash(config, config.teacher)
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
        """The money spent on the teacher so far."""
        return self._budget.spending if self._budget else NOTHING

    def sample(
        self,
        problems: Sequence[Problem],
        have: Mapping[SampleId, StoredSample],
        keep: SaveSamples,
        under_way: ReportUnsavedCount,
        failed: Collection[SampleId] = (),
    ) -> bool:
        """Generate the missing samples. The parameters and the returned value are those of `LocalTeacher.sample`."""
        asks = [
            (problem, number, request_of(self.config, problem))
            for number in range(
                self.config.samples
            )  # request the first sample of every problem before any second sample
            for problem in problems
            if (problem.key, number) not in have
        ]
        asks.sort(key=lambda ask: (ask[0].key, ask[1]) in failed)
        access = self.config.access
        ledger = self.out / LEDGER
        if not access.price_in and not access.price_out and not ledger.is_file():
            return self._collect_answers(asks, None, keep, failed, bool(have))
        names = [
            (f"{hashlib.sha256(p.key.encode()).hexdigest()[:12]}.{number}", request) for p, number, request in asks
        ]
        with Budget(ledger, access, names, list(have.values())) as self._budget:
            return self._collect_answers(asks, self._budget, keep, failed, bool(have))

    def _collect_answers(
        self,
        asks: Sequence[EngineRequest],
        budget: Budget | None,
        keep: SaveSamples,
        before: Collection[SampleId],
        answered: bool,
    ) -> bool:
        consecutive: Counter[bool] = Counter()
        errors: list[RemoteError] = []

        def save_answer(place: int, completion: Completion) -> None:
            nonlocal answered
            answered = True
            consecutive.clear()
            problem, number, request = asks[place]
            attempt, money = budget.cost_of_answer(place, completion) if budget else ("", 0.0)
            seed = self._engine.seed_of(request, number)
            entry = sample_of_completion(self.of, problem, number, seed, completion, money=money, attempt=attempt)
            keep([entry], lambda: budget.replace_reserve_with_cost(place, money) if budget else None)

        def failed(place: int, error: RemoteError) -> None:
            problem, number, request = asks[place]
            errors.append(error)
            seed = self._engine.seed_of(request, number)
            keep([failed_sample(self.of, problem, number, seed, error.what)], do_nothing)
            refused = error.status in REFUSED
            consecutive[refused] += (problem.key, number) not in before
            if consecutive[refused] == (IN_A_ROW if refused else FAILURES_IN_A_ROW):
                raise error

        numbered_requests = [(request, number) for _, number, request in asks]
        completed = self._engine.collect_completions(numbered_requests, save_answer, budget or FREE, failed=failed)
        if errors and not answered:
            raise errors[0]
        return completed


def request_of(config: FactoryConfig, problem: Problem) -> Request:
    """Return the request for a problem. The seed of the request depends on the problem's key, and the seed of
    each sample on this seed and the sample's number."""
    return Request(problem.messages, with_problem_seed(config.params, problem.key), config.thinking)


Teacher = LocalTeacher | RemoteTeacher
