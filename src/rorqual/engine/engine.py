"""The engine: requests in, samples out, over as many threads as there are cores.

Requests are divided over a fixed number of lanes. How many threads run the lanes changes the time and nothing else: a lane
is always run by a thread of its own with one torch thread, and its batch does not depend on the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import RunDir, Thinking
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import scheduler
from rorqual.engine.lane import Finished, Lane, Size
from rorqual.engine.packed import PackedLinear, can_pack, packed
from rorqual.engine.params import check_params
from rorqual.engine.prefix import fingerprint_of
from rorqual.engine.request import Completion, Request
from rorqual.engine.sampler import sample_key
from rorqual.model import Decoder
from rorqual.model.load.run import check_names, load_run
from rorqual.ops.paged import BLOCK

Progress = Callable[[int, int], None]
CACHE_BYTES = 1 << 30
STEP_TOKENS = 2048
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

    A request's answer depends on nothing but itself and the weights, to the last bit: not on what runs beside it, in what order it
    came, how its prompt was cut, or what of it was found in a cache (docs/engine.md).

    `slots`: rows of each lane's batch. `max_len`: longest sequence, prompt and reply (default: the model's context).
    `threads`: lanes that run at once; `lanes`: among how many the requests of one `generate` are divided.
    `record_kept`: give each completion the sets that top-k and top-p left, a bit for each token of the vocabulary.
    `reuse`: keep the blocks of what ended, for prompts that begin alike; `cache_dir`: on disk, too, for the next start.
    `pack`: lay the weights out once, for engines whose model nobody else holds (`engine/packed.py`).
    `cache_bytes`: memory of each lane's keys and values. `step_tokens`: tokens fed in a step at most.
    The model is shared, not copied: weights that a trainer changes in place are used from the next `generate` on, and what was
    cached of older ones is not used again.
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
        reuse: bool = False,
        cache_dir: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        step_tokens: int = STEP_TOKENS,
        pack: bool = False,
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
        self.tokenizer, self.chat = tokenizer, chat
        self.max_len = max_len or context
        self.threads = threads
        print_ = _fingerprint(model, stable=cache_dir is not None)
        self.model = packed(model) if pack and can_pack(model) else model
        model = self.model
        size = Size(slots, self.max_len, cache_bytes, step_tokens)
        self._weights = _version(model)
        record = {"record_experts": record_experts, "record_kept": record_kept}
        # Only the first lane, which serves, keeps anything for later: the others are for batches.
        first = Lane(
            model,
            replace(size, folder=cache_dir),
            chat.stop_ids,
            print_,
            reuse=reuse or cache_dir is not None,
            **record,
        )
        self._lanes = [
            first,
            *(Lane(model, size, chat.stop_ids, print_, **record) for _ in range(lanes - 1)),
        ]
        self._reuse = reuse or cache_dir is not None
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
        reuse: bool = True,
        cache_dir: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        step_tokens: int = STEP_TOKENS,
        pack: bool = True,
    ) -> Engine:
        """An engine for a run directory: its newest whole checkpoint, its tokenizer and its chat format."""
        run = RunDir(Path(path))
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ConfigError(f"no floating-point type '{dtype}'", where="dtype", remedy="Use float32 or bfloat16.")
        model = load_run(run, device=device, dtype=kind)
        tokenizer = Tokenizer.load(run.tokenizer_file)
        chat = load_chat(run, tokenizer)
        return cls(
            model,
            tokenizer,
            chat,
            slots=slots,
            max_len=max_len,
            threads=threads,
            record_experts=record_experts,
            reuse=reuse,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            step_tokens=step_tokens,
            pack=pack,
        )

    def load_weights(self, weights: dict[str, Tensor] | Decoder) -> None:
        """Copy weights into the model in place; other names or shapes are refused."""
        if any(isinstance(module, PackedLinear) for module in self.model.modules()):
            raise ConfigError(
                "this engine's weights are packed",
                where="engine.load_weights",
                remedy="Make the engine with pack=False.",
            )
        state = weights.state_dict() if isinstance(weights, Decoder) else weights
        check_names(state, self.model.state_dict(), where="engine.load_weights")
        self.model.load_state_dict(state)
        self._renew()

    def _renew(self) -> None:
        """Forget what was cached of weights that have changed since."""
        version = _version(self.model)
        if version != self._weights:
            self._weights = version
            print_ = _fingerprint(self.model, stable=False)
            for lane in self._lanes:
                lane.renew(print_)

    # ---- whole batches

    def generate(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[list[Completion]]:
        """For each request its samples. Every request is checked before anything runs.

        `progress(done, total)` is called as samples end, by one thread at a time.
        """
        if self._jobs:
            raise ConfigError(
                "requests were submitted for step()", where="engine", remedy="Finish or cancel them first."
            )
        self._renew()
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
        self._renew()
        job = self._job(request, self._tickets)
        ticket = self._tickets
        self._tickets += 1
        self._lanes[0].submit(self._sequences(ticket, job))
        self._jobs[ticket] = job
        return ticket

    def step(self) -> list[Delta]:
        """Advance everything submitted by one token, in the calling thread."""
        lane = self._lanes[0]
        completed: dict[tuple[int, int], Completion] = {}
        for item in lane.step():
            completed[item.sequence.ticket, item.sequence.sample] = self._completion(
                self._jobs[item.sequence.ticket], item
            )
        deltas = []
        for sequence, token, logprob, best in lane.drawn:
            completion = completed.get((sequence.ticket, sequence.sample))
            deltas.append(
                Delta(sequence.ticket, sequence.sample, token, completion, logprob, best, max(sequence.hit, 0))
            )
        if completed:
            live = lane.tickets()
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

    def check(self, request: Request, where: str = "request") -> None:
        """Raise the `DataError` that `generate` would, of one request."""
        self._prepared(request, where)

    def _job(self, request: Request, number: int) -> _Job:
        return self._prepared(request, f"request {number}")

    def _prepared(self, request: Request, where: str) -> _Job:
        params = request.params
        vocab = self.model.config.vocab_size
        check_params(params, vocab_size=vocab, where=where)
        given = request.prompt_ids
        prompt = tuple(self.chat.prompt(request.messages, request.thinking)) if given is None else tuple(given)
        if not prompt or not all(0 <= token < vocab for token in prompt):
            what = "a token outside the vocabulary" if prompt else "an empty prompt"
            raise DataError(what, where=where, remedy=f"Feed ids from 0 to {vocab - 1}.")
        if len(prompt) >= self.max_len:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, and the context of {self.max_len} must hold it and a reply",
                where=where,
                remedy=f"Shorten it to {self.max_len - 1} tokens or fewer, or use a model with a longer context.",
            )
        longest = min(len(prompt) + params.max_tokens, self.max_len)
        room = self._lanes[0].pages.capacity * BLOCK
        if longest > room:
            raise DataError(
                f"prompt and reply may have {longest} tokens, and the cache holds {room}",
                where=where,
                remedy="Lower max_tokens, or give the engine more cache_bytes.",
            )
        return _Job(request, prompt, request.thinking if given is None else self.chat.chosen(prompt))

    def _sequences(self, ticket: int, job: _Job) -> list[scheduler.Sequence]:
        request, params = job.request, job.request.params
        limit = min(len(job.prompt) + params.max_tokens, self.max_len)
        return [
            scheduler.Sequence(
                ticket, sample, job.prompt, params, sample_key(params.seed, sample), limit,
                tenant=request.tenant, priority=request.priority, reuse=request.reuse and self._reuse,
                halts=self._halts(job) if params.stop else None,
            )
            for sample in range(params.n)
        ]  # fmt: skip

    def _halts(self, job: _Job) -> Callable[[list[int]], bool]:
        """Whether the answer of a sample, given all its ids, holds a stop string now."""
        stops, start = job.request.params.stop, len(job.prompt)
        window = 4 * max(map(len, stops)) + 16  # tokens: the longest character has four bytes

        def halts(ids: list[int]) -> bool:
            tail = self.tokenizer.decode(ids[max(start, len(ids) - window) :])
            if not any(stop in tail for stop in stops):
                return False
            content = self.chat.parse(ids[start:], job.thinking).content
            return any(stop in content for stop in stops)

        return halts

    def _completion(self, job: _Job, finished: Finished) -> Completion:
        sampled, sequence = finished.sampled, finished.sequence
        message = self.chat.parse(sampled.token_ids, job.thinking)
        text = message.content
        for stop in job.request.params.stop:
            text = text.partition(stop)[0]
        hit = max(sequence.hit, 0)
        return Completion(
            prompt_ids=job.prompt,
            token_ids=sampled.token_ids,
            logprobs=sampled.logprobs,
            finish_reason="stop" if finished.stopped else "length",
            text=text,
            reasoning=message.reasoning,
            experts=sampled.experts,
            kept=sampled.kept,
            top_logprobs=sampled.top,
            usage={
                "prompt_tokens": len(job.prompt),
                "completion_tokens": len(sampled.token_ids),
                "prompt_cache_hit_tokens": hit,
                "prompt_cache_miss_tokens": len(job.prompt) - hit,
            },
        )

    def stats(self) -> dict[str, float]:
        """What runs and waits, the blocks of the serving lane by state, and prompt tokens found in its cache and not."""
        lane = self._lanes[0]
        return {
            "running": len(lane.scheduler.active) + len(lane.scheduler.feeding),
            "waiting": len(lane.scheduler.waiting),
            "preemptions": lane.scheduler.preemptions,
            **lane.pages.stats(),
        }

    def close(self) -> None:
        """Write what is on its way to the folder. The engine must not be used afterwards."""
        for lane in self._lanes:
            lane.close()


def _fingerprint(model: Decoder, *, stable: bool) -> bytes:
    """What names the weights: of their contents where it must hold over a restart, else a number nobody had before."""
    if not stable:
        return np.random.bytes(32)
    kind = str(model.embed_tokens.weight.dtype)
    return fingerprint_of({"weights": digest(model), "dtype": kind, "torch": torch.__version__})


def _version(model: Decoder) -> int:
    """A number that grows whenever a weight is changed in place."""
    return sum(tensor._version for tensor in (*model.parameters(), *model.buffers()))


def digest(model: Decoder) -> str:
    """Of all weights and buffers, by name: 64 hexadecimal digits."""
    found = blake2b(digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


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
