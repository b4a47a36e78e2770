"""The engine: requests in, samples out, over as many threads as there are cores.

Requests are divided over a fixed number of lanes. How many threads run the lanes changes the time and nothing else: a lane
is always run by a thread of its own with one torch thread, and its batch does not depend on the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import RunDir, Thinking
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import scheduler
from rorqual.engine.lane import Finished, Lane
from rorqual.engine.request import Completion, Request
from rorqual.engine.sampler import sample_key
from rorqual.model import Decoder
from rorqual.model.load.run import check_names, load_run

Progress = Callable[[int, int], None]
LANE_ROWS = 48
"""Samples from which on a further lane is worth its fixed cost a step."""


@dataclass(frozen=True)
class Delta:
    """What one step of `Engine.step` did for one sample: the token drawn and, where it was the last, the whole sample.

    `logprob` and `top`: its log-probability, and the likeliest tokens with theirs where `top_logprobs` asked for them.
    `hit`: tokens of the prompt that the prefix cache served.
    """

    ticket: int
    sample: int
    token: int
    completion: Completion | None = None
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    hit: int = 0


@dataclass
class _Job:
    """A submitted request."""

    request: Request
    prompt: tuple[int, ...]
    thinking: Thinking


class Engine:
    """Batched, cached generation with exact log-probabilities and expert choices.

    `slots`: rows of each lane's batch. `max_len`: longest sequence, prompt and reply (default: the model's context).
    `threads`: lanes that run at once; `lanes` fixes how requests are divided, and so, to the last bit, the result.
    `record_kept`: give each completion the sets that top-k and top-p left, a bit for each token of the vocabulary.
    The model is shared, not copied: weights that a trainer changes in place are used from the next `generate` on.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        *,
        slots: int = 256,
        max_len: int | None = None,
        threads: int = 1,
        lanes: int = 2,
        record_experts: bool = True,
        record_kept: bool = False,
    ) -> None:
        context = model.config.max_position_embeddings
        if max_len is not None and not 2 <= max_len <= context:
            raise ConfigError(
                f"max_len={max_len}, the model's context is {context}", where="engine", remedy="Lower it."
            )
        if min(slots, threads, lanes) < 1:
            raise ConfigError(
                f"slots={slots}, threads={threads}, lanes={lanes}", where="engine", remedy="Use 1 or more."
            )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DataError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {model.config.vocab_size}",
                where="engine",
                remedy="Use the tokenizer that the model was trained with.",
            )
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.max_len = max_len or context
        self.threads = threads
        record = {"record_experts": record_experts, "record_kept": record_kept}
        self._lanes = [Lane(model, slots, chat.stop_ids, **record) for _ in range(lanes)]
        self._jobs: dict[int, _Job] = {}
        self._tickets = 0

    @classmethod
    def from_run(
        cls,
        path: Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        slots: int = 256,
        max_len: int | None = None,
        threads: int = 1,
        record_experts: bool = True,
    ) -> Engine:
        """An engine for a run directory: its newest whole checkpoint, its tokenizer and its chat format."""
        run = RunDir(Path(path))
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ConfigError(f"no floating-point type '{dtype}'", where="dtype", remedy="Use float32 or bfloat16.")
        model = load_run(run, device=device, dtype=kind)
        tokenizer = Tokenizer.load(run.tokenizer_file)
        chat = load_chat(run, tokenizer)
        return cls(model, tokenizer, chat, slots=slots, max_len=max_len, threads=threads, record_experts=record_experts)

    def load_weights(self, weights: dict[str, Tensor] | Decoder) -> None:
        """Copy weights into the model in place; other names or shapes are refused."""
        state = weights.state_dict() if isinstance(weights, Decoder) else weights
        check_names(state, self.model.state_dict(), where="engine.load_weights")
        self.model.load_state_dict(state)

    # ---- whole batches

    def generate(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[list[Completion]]:
        """For each request its samples. Every request is checked before anything runs.

        `progress(done, total)` is called as samples end, by one thread at a time.
        """
        if self._jobs:
            raise ConfigError(
                "requests were submitted for step()", where="engine", remedy="Finish or cancel them first."
            )
        jobs = [self._job(request, number) for number, request in enumerate(requests)]
        results: list[list[Completion | None]] = [[None] * job.request.params.n for job in jobs]
        total = sum(map(len, results))
        report = _Counter(total, progress)
        used = self._divide(jobs)
        stop = threading.Event()

        def run(lane: Lane) -> None:
            torch.set_num_threads(1)
            try:
                while not lane.idle and not stop.is_set():
                    finished = lane.step()
                    for item in finished:
                        sequence = item.sequence
                        results[sequence.ticket][sequence.sample] = self._completion(jobs[sequence.ticket], item)
                    report.add(len(finished))
            finally:
                if not lane.idle:  # an error here, in another lane or in the caller
                    stop.set()
                    lane.cancel_all()

        with ThreadPoolExecutor(self.threads, thread_name_prefix="engine") as pool:
            futures = [pool.submit(run, lane) for lane in used]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()
        return [[completion for completion in row if completion is not None] for row in results]

    def _divide(self, jobs: list[_Job]) -> list[Lane]:
        """Give each request to the lane that has the fewest samples so far; the lanes used.

        A lane of few rows costs nearly as much a step as one of many, so that a small batch stays in one.
        """
        total = sum(job.request.params.n for job in jobs)
        lanes = self._lanes[: max(1, total // LANE_ROWS)]
        loads = [0] * len(lanes)
        shares: list[list[scheduler.Sequence]] = [[] for _ in lanes]
        for ticket, job in enumerate(jobs):
            least = loads.index(min(loads))
            loads[least] += job.request.params.n
            shares[least] += self._sequences(ticket, job)
        used = [(lane, share) for lane, share in zip(lanes, shares) if share]
        for lane, share in used:
            lane.submit(share)
        return [lane for lane, _ in used]

    # ---- step by step

    def submit(self, request: Request) -> int:
        """Queue a request for `step`; the ticket names it in what `step` returns, and for `cancel`."""
        job = self._job(request, self._tickets)
        ticket = self._tickets
        self._tickets += 1
        self._lanes[0].submit(self._sequences(ticket, job))
        self._jobs[ticket] = job
        return ticket

    def step(self) -> list[Delta]:
        """Advance everything submitted by one token, in the calling thread."""
        lane = self._lanes[0]
        finished = lane.step()
        deltas = [Delta(s.ticket, s.sample, token) for s, token in lane.drawn()]
        for item in finished:
            s = item.sequence
            completion = self._completion(self._jobs[s.ticket], item)
            deltas.append(Delta(s.ticket, s.sample, completion.token_ids[-1], completion))
        live = {s.ticket for s in (*lane.scheduler.active, *lane.scheduler.waiting)}
        self._jobs = {ticket: job for ticket, job in self._jobs.items() if ticket in live}
        return deltas

    def cancel(self, ticket: int) -> None:
        """Stop a submitted request; its slots are free at once. An unknown or finished ticket does nothing."""
        if self._jobs.pop(ticket, None) is not None:
            self._lanes[0].cancel(ticket)

    def stream(self, request: Request) -> Iterator[Delta]:
        """The tokens of one request as they are drawn. Closing the iterator cancels it."""
        ticket = self.submit(request)
        try:
            while ticket in self._jobs:
                yield from (delta for delta in self.step() if delta.ticket == ticket)
        finally:
            self.cancel(ticket)

    # ---- requests and samples

    def _job(self, request: Request, number: int) -> _Job:
        params = request.params
        sane = params.max_tokens >= 1 and params.n >= 1 and params.top_k >= 0
        if not (sane and 0 <= params.temperature < float("inf") and 0 < params.top_p <= 1):
            raise DataError(
                f"cannot sample with {params}",
                where=f"request {number}",
                remedy="max_tokens and n are at least 1, temperature and top_k at least 0, top_p in (0, 1].",
            )
        given = request.prompt_ids
        prompt = tuple(self.chat.prompt(request.messages, request.thinking)) if given is None else tuple(given)
        vocab = self.model.config.vocab_size
        if not prompt or not all(0 <= token < vocab for token in prompt):
            what = "a token outside the vocabulary" if prompt else "an empty prompt"
            raise DataError(what, where=f"request {number}", remedy=f"Feed ids from 0 to {vocab - 1}.")
        if len(prompt) >= self.max_len:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, and the context of {self.max_len} must hold it and a reply",
                where=f"request {number}",
                remedy=f"Shorten it to {self.max_len - 1} tokens or fewer, or use a model with a longer context.",
            )
        return _Job(request, prompt, request.thinking if given is None else self.chat.chosen(prompt))

    def _sequences(self, ticket: int, job: _Job) -> list[scheduler.Sequence]:
        params = job.request.params
        limit = min(len(job.prompt) + params.max_tokens, self.max_len)
        return [
            scheduler.Sequence(ticket, sample, job.prompt, params, sample_key(params.seed, sample), limit)
            for sample in range(params.n)
        ]

    def _completion(self, job: _Job, finished: Finished) -> Completion:
        sampled = finished.sampled
        stopped = sampled.token_ids[-1] in self.chat.stop_ids and not job.request.params.ignore_eos
        reason: Literal["stop", "length"] = "stop" if stopped else "length"
        message = self.chat.parse(sampled.token_ids, job.thinking)
        return Completion(
            prompt_ids=job.prompt,
            token_ids=sampled.token_ids,
            logprobs=sampled.logprobs,
            finish_reason=reason,
            text=message.content,
            reasoning=message.reasoning,
            experts=sampled.experts,
            kept=sampled.kept,
            usage={"prompt_tokens": len(job.prompt), "completion_tokens": len(sampled.token_ids)},
        )


class _Counter:
    """Counts finished samples over threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        if count and self.progress is not None:
            with self._lock:
                self.done += count
                self.progress(self.done, self.total)
