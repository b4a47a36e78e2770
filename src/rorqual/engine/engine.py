"""The engine: requests in, samples out, in one or more threads.

Requests are divided over a fixed number of engine cores. How many threads run these changes the time and nothing else: an engine core
is always run by a thread of its own with one torch thread, and its batch does not depend on the others.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.core.memory import give_back, keep_freed
from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.call_lock import CallLock, Progress, Results, at_most, shared_out
from rorqual.engine.config import EngineConfig
from rorqual.engine.core import CoreConfig, EngineCore
from rorqual.engine.deltas import Delta, Outbox
from rorqual.engine.grammar.compiler import Grammars
from rorqual.engine.numerics import NumericsProbe
from rorqual.engine.processor import Job, Processor, Prompt, request_of
from rorqual.engine.request import Arrived, Completion, Request, SamplingParams
from rorqual.engine.weights import Weights, fingerprint
from rorqual.model import Decoder, account
from rorqual.model.load.run import check_names, load_run
from rorqual.ops.backends import arithmetic_of, backend
from rorqual.ops.paged import BLOCK

NO_NUMBER = "Its weights hold NaN or infinity: go back to an earlier checkpoint."
CORE_WORK = 15_000_000
"""Multiply-adds, in a step of a layer, from which on a further core pays. Below, its thread and the others wait for the interpreter's lock,
which each of torch's operations gives up and takes again: two cores took up to twice the time of one (docs/LOG.md)."""


class Engine:
    """Batched, cached generation with exact log-probabilities and expert choices.

    A request's answer depends on nothing but itself and the weights, to the last bit: not on what runs beside it, in what order it
    came, how its prompt was cut, or what of it was found in a cache (docs/engine.md).

    `Engine(run)` is for a run directory, `Engine.of(model, ...)` for a model that somebody holds, such as a trainer.

    Both take the settings of `EngineConfig` as keywords; `of` keeps no blocks and packs nothing unless told to.
    A model given to `of` is shared, not copied: weights that are changed in place are used from the next step on, and what was cached of older
    ones is not used again, whoever changed them (docs/engine.md). The weights of a run directory are the engine's own.
    An error or a Ctrl-C within a step forgets what was submitted; the engine can be used again. Calls of several threads wait for each other.
    """

    def __init__(self, run: Path | str, *, device: str = "cpu", dtype: str = "float32", **settings: Any) -> None:
        """For a run directory: its newest whole checkpoint, its tokenizer and its chat format."""
        folder = RunDir(Path(run))
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ConfigError(f"no floating-point type '{dtype}'", where="dtype", remedy="Use float32 or bfloat16.")
        config = EngineConfig(**settings)
        model = load_run(folder, device=device, dtype=kind)
        tokenizer = Tokenizer.load(folder.tokenizer_file)
        self._begin(model, tokenizer, load_chat(folder, tokenizer), config, take=True)
        if self._packed:  # the weights as they were read
            del model
            give_back()

    @classmethod
    def of(cls, model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, **settings: Any) -> Engine:
        """For a model that somebody holds, such as a trainer."""
        engine = cls.__new__(cls)
        engine._begin(model, tokenizer, chat, EngineConfig(**{"reuse": False, "pack": False, **settings}))
        return engine

    def _begin(
        self, model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, config: EngineConfig, *, take: bool = False
    ) -> None:
        """Build the cores. With `take` the model is the engine's own, and nothing is left of it where its weights are packed."""
        keep_freed()
        config.check(model, tokenizer)
        self.tokenizer, self.chat, self.config = tokenizer, chat, config
        self.max_len = config.max_len or model.config.max_position_embeddings
        self.threads = config.threads
        chosen = backend(config.backend)
        self._packed = pack = config.pack and chosen.prepares(model)
        arithmetic = f"packed={pack} backend={arithmetic_of(config.backend)} experts={config.record_experts}"
        kept = config.reuse or config.cache_dir is not None
        on_disk = config.cache_dir is not None
        print_ = fingerprint(model, arithmetic=arithmetic) if on_disk else secrets.token_bytes(32)
        self.model = model = chosen.prepare(model, take=take) if pack else model
        self._numerics = NumericsProbe(model, chosen)
        fit = self._numerics.fit
        size = CoreConfig(config.slots, self.max_len, config.cache_bytes, config.step_tokens)
        self._weights = Weights(model, print_, contents=kept and not take, watched=not (take and pack))
        self._name = print_
        record = {"record_experts": config.record_experts, "record_kept": config.record_kept}
        # Only the first core, which serves, keeps anything for later: the others are for batches.
        stored = replace(size, folder=config.cache_dir, disk_bytes=config.disk_bytes)
        first = EngineCore(model, stored, chat.stop_ids, self._weights, fit.backend, reuse=kept, **record)
        self._cores = [first]
        self._cores += [
            EngineCore(model, size, chat.stop_ids, self._weights, fit.backend, **record)
            for _ in range(config.engine_cores - 1)
        ]
        self._slots = config.slots
        self._row_work = account(model.config).flops / 2 / len(model.config.layers)
        room = first.kv_cache.capacity * BLOCK
        vocab_size, hidden_size = model.config.vocab_size, model.config.hidden_size
        self._processor = Processor(vocab_size, hidden_size, self.max_len, room, tokenizer, chat, reuse=kept)
        self._jobs, self._outbox, self._next_id = dict[int, Job](), Outbox(), 0
        self._lock, self._gone = CallLock(), list[int]()

    def load_weights(self, weights: dict[str, Tensor] | Decoder) -> None:
        """Copy weights into the model in place; other names or shapes are refused."""
        if self._packed:
            raise ConfigError(
                "this engine's weights are packed",
                where="engine.load_weights",
                remedy="Make the engine with pack=False.",
            )
        state = weights.state_dict() if isinstance(weights, Decoder) else weights
        check_names(state, self.model.state_dict(), where="engine.load_weights")
        with self._lock("load_weights"):
            self.model.load_state_dict(state)
            self._weights.changed()
            self._renew()

    def _renew(self) -> None:
        """Forget what was cached of weights that have changed since."""
        name = self._weights.look()
        if name != self._name:
            self._numerics.renew()
            for core in self._cores:
                core.renew(name, self._numerics.fit.backend)
            self._name = name  # at the end: what was broken off is done again

    def weights_changed(self) -> None:
        """Forget what was cached of older weights. Changes are seen without this call, too, but for those that docs/engine.md names."""
        with self._lock("weights_changed"):
            self._weights.changed()
            self._renew()

    @property
    def scorer(self) -> Decoder:
        """The model, computed by the engine's backend: what `score` and `text_loss` take."""
        return self._cores[0].runner.model

    @property
    def invariant(self) -> bool:
        """Whether the same bits were asked for, and this machine's products keep that promise."""
        return self._numerics.fit.held

    # ---- whole batches

    def generate(
        self,
        prompts: Sequence[Request | Prompt],
        params: SamplingParams | None = None,
        *,
        progress: Progress | None = None,
        arrived: Arrived | None = None,
    ) -> list[list[Completion]]:
        """For each request its samples. Every request is checked before anything runs.

        What is no `Request` is made one with `params`: a text is what a user says, a list of `Message` a conversation, and a list of ids
        is the prompt itself; prompt number i is sampled with `params.seed + i`, so that equal prompts have answers of their own.
        `arrived(request, sample, completion)` and `progress(done, total)` are called as samples end, by one thread at a time.
        """
        requests = [request_of(prompt, params or SamplingParams(), number) for number, prompt in enumerate(prompts)]
        with self._lock("generate"):
            return self._generate(requests, progress, arrived)

    def _generate(
        self, requests: list[Request], progress: Progress | None, arrived: Arrived | None
    ) -> list[list[Completion]]:
        self._drop()
        if self._jobs:
            raise ConfigError("requests were submitted for step()", where="engine", remedy="Finish or cancel them.")
        self._renew()
        jobs = [self._processor.job(request, f"request {number}") for number, request in enumerate(requests)]
        results = Results([job.request.params.n for job in jobs], progress, arrived)
        stop = threading.Event()

        def run(core: EngineCore) -> None:
            try:
                while not core.idle and not stop.is_set():
                    for item in core.step():
                        number = item.sequence.request_id
                        found = self._processor.completion(jobs[number], item)
                        if item.lost:
                            raise NumericsError(found.error, where=f"request {number}", remedy=NO_NUMBER)
                        results.add(number, item.sequence.sample, found)
            except BaseException:
                stop.set()  # the others need not go on
                raise

        try:
            self._lock.share(self._divide(jobs), run, self.threads, stop)
        except BaseException:
            for core in self._cores:  # whatever it was doing
                core.reset()
            raise
        return results.rows()

    def _divide(self, jobs: list[Job]) -> list[EngineCore]:
        """Share the requests out; the cores used: as many as the work pays for, or the slots need."""
        total = sum(job.request.params.n for job in jobs)
        cores = self._cores[: max(1, int(total * self._row_work) // CORE_WORK, -(-total // self._slots))]
        chosen = shared_out([job.request.params.n for job in jobs], len(cores))
        for request_id, (job, core) in enumerate(zip(jobs, chosen)):
            cores[core].submit(self._processor.sequences(request_id, job))
        return [core for number, core in enumerate(cores) if number in chosen]

    # ---- step by step

    def submit(self, request: Request) -> int:
        """Queue a request for `step`; its id names it in what `step` returns, and for `cancel`."""
        with self._lock("submit"):
            self._renew()
            request_id, self._next_id = self._next_id, self._next_id + 1  # nobody else's, whatever comes
            job = self._processor.job(request, "request")
            try:
                self._jobs[request_id] = job
                self._cores[0].submit(self._processor.sequences(request_id, job))
            except BaseException:
                self._jobs.pop(request_id, None)
                self._cores[0].cancel(request_id)
                raise
            return request_id

    def step(self) -> list[Delta]:
        """Advance everything submitted by one token, in the calling thread. What belongs to a `stream` is kept for it."""
        self._advance()
        return self._outbox.take()

    def _advance(self) -> None:
        with self._lock("step"):
            self._drop()
            self._renew()
            try:
                with at_most(self._numerics.fit.threads):
                    self._outbox.put(self._deltas())
            except BaseException:
                self._cores[0].reset()
                self._jobs.clear()
                self._outbox.take()
                raise
            finally:
                self._drop()

    def _deltas(self) -> list[Delta]:
        core = self._cores[0]
        completed: dict[tuple[int, int], Completion] = {}
        for item in core.step():
            completed[item.sequence.request_id, item.sequence.sample] = self._processor.completion(
                self._jobs[item.sequence.request_id], item
            )
        deltas = list[Delta]()
        for sequence, token, logprob, best in core.drawn:
            completion = completed.get((sequence.request_id, sequence.sample))
            hit = max(sequence.hit, 0)
            deltas.append(
                Delta(sequence.request_id, sequence.sample, token, completion, logprob, best, hit, sequence.scores)
            )
        if completed:
            live = core.request_ids()
            self._jobs = {request_id: job for request_id, job in self._jobs.items() if request_id in live}
        return deltas

    def cancel(self, request_id: int) -> None:
        """Stop a submitted request; its slots are free at once, or after the step that runs. An unknown or finished id does nothing."""
        self._gone.append(request_id)  # perhaps in the middle of a step, by a garbage collection that closes a stream
        if request_id in self._jobs and not self._lock.mine():
            with self._lock.lock:
                self._drop()

    def _drop(self) -> None:
        while self._gone:
            request_id = self._gone.pop()
            self._outbox.close(request_id)
            if self._jobs.pop(request_id, None) is not None:
                self._cores[0].cancel(request_id)

    def stream(self, request: Request) -> Iterator[Delta]:
        """The tokens of one request as they are drawn; several may be open, and each advances all. Closing the iterator cancels it."""
        request_id = self.submit(request)
        deltas, left = self._outbox.open(request_id), request.params.n
        try:
            while left:
                while not deltas:
                    if request_id not in self._jobs:
                        raise RuntimeError("a step that another stream or step() asked for broke off")
                    self._advance()
                left -= deltas[0].completion is not None
                yield deltas.popleft()
        finally:
            self.cancel(request_id)

    def check(self, request: Request, where: str = "request") -> None:
        """Raise what `submit` would."""
        self._cores[0].runner.check()
        self._processor.job(request, where)

    @property
    def grammars(self) -> Grammars:
        """What compiles grammars for this engine. `grammars.submit` does so beside the loop and keeps the result, so that a request whose
        grammar is ready is submitted without delay."""
        return self._processor.grammars

    def stats(self) -> dict[str, float]:
        """What runs and waits, the blocks of the serving core by state, and prompt tokens found in its cache and not."""
        core = self._cores[0]
        return {
            "running": len(core.scheduler.running) + len(core.scheduler.prefilling),
            "waiting": len(core.scheduler.waiting),
            "invariant": float(self.invariant),
            "preemptions": core.scheduler.preemptions,
            **core.kv_cache.stats(),
        }

    def close(self) -> None:
        """Write what is on its way to the folder. The engine must not be used afterwards."""
        for core in self._cores:
            core.close()
