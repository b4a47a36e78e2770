"""The inference engine: batched generation in one or more threads.

Requests are distributed over engine cores. Each engine core has its own batch. In `generate`, each engine core computes with
one torch thread. The distribution of requests does not depend on the number of threads, so the number of threads affects speed
but not completions.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.core.config import parse_config
from rorqual.core.errors import ConfigError, DataError, NumericsError
from rorqual.core.memory import keep_freed_memory, return_freed_memory
from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.call_lock import CallLock, CompletionCollector, Progress, assign_items_to_cores, limit_threads
from rorqual.engine.config import EngineConfig
from rorqual.engine.core import EngineCore, FinishedSequence
from rorqual.engine.deltas import Delta, DeltaQueues
from rorqual.engine.grammar.compiler import CompiledGrammar, GrammarCompiler
from rorqual.engine.native.native_backend import QUANTIZED, Native, NativeInt8
from rorqual.engine.processor import Prompt, RequestProcessor, ValidatedRequest, request_of
from rorqual.engine.request import Arrived, Completion, Request, SamplingParams
from rorqual.engine.weight_fingerprint import fingerprint, tensor_versions
from rorqual.model import Decoder, account
from rorqual.model.adapter.bank import AdapterBank
from rorqual.model.load.run_directory import check_names, load_run
from rorqual.ops.backends import TORCH_INVARIANT, Backend, FittedBackend, backend, backend_cache_id
from rorqual.ops.paged import BLOCK

STEPS_AT_ONCE = 16
"""In `generate`, a backend that can does this many decoding steps in one call. Between two calls, `generate` may be stopped."""
NAN_REMEDY = "The weights contain NaN or infinity. Load an earlier checkpoint."
CORE_WORK = 15_000_000
"""Minimum work per engine core, in multiply-adds per layer and step. `generate` uses more engine cores for more work.

With less work per engine core than `CORE_WORK`, threads mostly wait for Python's GIL, which every torch operation releases and
reacquires. With little work, two engine cores can take longer than one.
"""


class Engine:
    """Batched generation with a KV cache. The engine records the log-probability and the chosen experts of each token.

    With the default backend, a completion is a bitwise deterministic function of its request and the weights. A completion does
    not change with the other requests, the order of requests, prefill chunking or cache hits (docs/explanation/engine.md).

    `Engine(run)` loads a run directory. `Engine.of(model, ...)` uses a model that other code owns, such as a trainer's.
    `Engine` and `Engine.of` take the fields of `EngineConfig` as keywords. For `Engine.of`, the defaults of `reuse` and `pack`
    are False, and the default of `backend` is `torch-invariant`.

    `Engine.of` does not copy the model. After an in-place weight update, the next engine call uses the new weights and
    invalidates the prefix cache (`weights_changed`). Weights must not change during an engine call.

    If an engine step raises an exception, including KeyboardInterrupt, all submitted requests are dropped and the engine stays
    usable. A lock serializes engine calls from several threads.
    """

    def __init__(self, run: Path | str, *, device: str = "cpu", dtype: str = "float32", **settings: Any) -> None:
        """Load the newest complete checkpoint, the tokenizer and the chat format of a run directory.

        With `dtype="int8"` or `dtype="int4"`, which need `backend="native"`, the backend keeps the weights of linear maps in 8 or
        4 bits (`NativeInt8`). The embedding and the KV cache are bfloat16.

        Raises ConfigError if `dtype` is another type that is not floating-point, or a setting does not fit the model.
        """
        if dtype in QUANTIZED:
            if settings.get("backend", "auto") not in (Native.name, "auto"):
                raise ConfigError(
                    f"dtype={dtype} needs backend=native", where="dtype", remedy="Add backend=native, or use bfloat16."
                )
            dtype, settings["backend"] = "float32", QUANTIZED[dtype]
        folder = RunDir(Path(run))
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ConfigError(
                f"'{dtype}' is not a floating-point type", where="dtype", remedy="Use float32, bfloat16, int8 or int4."
            )
        config = parse_config(EngineConfig, settings, where="engine")
        model = load_run(folder, device=device, dtype=kind)
        tokenizer = Tokenizer.load(folder.tokenizer_file)
        checkpoint = folder.checkpoint()
        self._create_cores(model, tokenizer, load_chat(folder, tokenizer), config, take=True, checkpoint=checkpoint)
        if self._packed:  # free the memory of the unpacked weights
            del model
            return_freed_memory()

    @classmethod
    def of(cls, model: Decoder, tokenizer: Tokenizer, chat: ChatFormat, **settings: Any) -> Engine:
        """Create an engine for a model that other code owns, such as a trainer's, and put the model into evaluation mode. The
        settings `reuse` and `pack` default to False, and `backend` to `torch-invariant`."""
        engine = cls.__new__(cls)
        shared = {"reuse": False, "pack": False, "backend": TORCH_INVARIANT.name}
        config = parse_config(EngineConfig, {**shared, **settings}, where="engine")
        engine._create_cores(model, tokenizer, chat, config)
        return engine

    def _create_cores(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        config: EngineConfig,
        *,
        take: bool = False,
        checkpoint: Path | None = None,
    ) -> None:
        """Create the engine cores. With `take`, the engine owns the model, and packing the weights frees the original
        weights. `checkpoint` is the folder of the weights, which adapters may have as their base."""
        keep_freed_memory()
        if config.backend == "auto":
            weight = model.embed_tokens.weight
            is_native = Native().supports(weight.device, weight.dtype, model) is None
            config = config.model_copy(update={"backend": Native.name if is_native else TORCH_INVARIANT.name})
        config.check(model, tokenizer)
        model.eval()
        self.tokenizer, self.chat, self.config = tokenizer, chat, config
        self.max_len = config.max_len or model.config.max_position_embeddings
        self.threads = config.threads
        chosen = backend(config.backend)
        self._packed = pack = config.pack and chosen.prepares(model)
        if isinstance(chosen, NativeInt8) and not pack:
            raise ConfigError("weights are quantised when they are packed", where="pack", remedy="Use pack=True.")
        arithmetic = f"packed={pack} backend={backend_cache_id(config.backend)} experts={config.record_experts}"
        caches_prefixes = config.reuse or config.cache_dir is not None
        self._name = secrets.token_bytes(32) if config.cache_dir is None else fingerprint(model, arithmetic=arithmetic)
        self.model = model = chosen.prepare(model, take=take) if pack else model
        self._backend, self._max_threads = chosen, torch.get_num_threads()
        self._fit = self._fit_backend()
        self._watches = not (take and pack)  # no other code can reach weights that were packed and taken
        self._versions = tensor_versions(model) if self._watches else []
        # Only the first core has a prefix cache, because it runs submitted requests. Only `generate` uses the other
        # cores.
        self._adapters = AdapterBank(model, checkpoint)
        settings = (model, config, self.max_len, chat.stop_ids, self._name, self._fit.backend, self._adapters)
        first = EngineCore(*settings, reuse=caches_prefixes)
        self._cores = [first]
        self._cores += [EngineCore(*settings) for _ in range(config.engine_cores - 1)]
        self._slots = config.slots
        self._row_work = account(model.config).flops / 2 / len(model.config.layers)
        room = first.kv_cache.n_usable_blocks * BLOCK
        vocab_size, hidden_size = model.config.vocab_size, model.config.hidden_size
        self._processor = RequestProcessor(
            vocab_size, hidden_size, self.max_len, room, tokenizer, chat, caches_prefixes, self._adapters.sha256
        )
        self._jobs, self._outbox, self._next_id = dict[int, ValidatedRequest](), DeltaQueues(), 0
        self._step_seconds = math.inf  # of the last decoding step
        # The last delta of each sample whose answer is being validated in another process.
        self._held: list[tuple[Delta, FinishedSequence]] = []
        self._lock, self._cancelled = CallLock(), list[int]()

    def load_weights(self, weights: dict[str, Tensor] | Decoder) -> None:
        """Copy weights into the model in place.

        Raises ConfigError if the engine's weights are packed, and CheckpointError if names or shapes of `weights` differ from
        the model's.
        """
        if self._packed:
            raise ConfigError(
                "packed weights cannot be replaced",
                where="engine.load_weights",
                remedy="Create the engine with pack=False.",
            )
        if self._adapters.sha256:
            raise ConfigError(
                f"{len(self._adapters.sha256)} adapters of the present weights are loaded",
                where="engine.load_weights",
                remedy="Unload them first.",
            )
        state = weights.state_dict() if isinstance(weights, Decoder) else weights
        check_names(state, self.model.state_dict(), where="engine.load_weights")
        with self._lock("load_weights"):
            self.model.load_state_dict(state)
            self._invalidate_if_changed(changed=True)

    def _invalidate_if_changed(self, *, changed: bool = False) -> None:
        """Invalidate the caches of all engine cores if the weights have changed."""
        versions = tensor_versions(self.model) if self._watches else []
        if changed or versions != self._versions:
            self._fit = self._fit_backend()
            self._adapters.checkpoint = None
            name = secrets.token_bytes(32)
            for core in self._cores:
                core.apply_weight_change(name, self._fit.backend)
            # Set last: if `_invalidate_if_changed` is interrupted, the next call starts again.
            self._versions = versions

    def _fit_backend(self) -> FittedBackend:
        """Configure the backend for the shapes of the model, which change if an adapter is attached."""
        specs = (attention.cache_spec() for attention in self.model.config.attentions)
        shapes = [(part.width, BLOCK // part.every) for spec in specs for part in spec]
        return self._backend.fit(self.model, cache_shapes=shapes, threads=self._max_threads)

    def weights_changed(self) -> None:
        """Tell the engine that the model's weights have changed. The engine then invalidates all cached KV blocks.

        Before each engine call, the engine detects in-place weight changes that torch counts (`tensor_versions`). Call
        `weights_changed` after a weight change by a fused optimizer, numpy or `tensor.data`, and after a change of a module's
        settings, such as LoRA's scale.
        """
        with self._lock("weights_changed"):
            self._invalidate_if_changed(changed=True)

    # ---- adapters

    def load_adapter(self, name: str, checkpoint: Path) -> None:
        """Load the LoRA adapter in the folder `checkpoint`, for requests with `adapter=name`.

        One batch may mix requests of several adapters and of none. Raises CheckpointError if the adapter's base is not the
        engine's checkpoint, or if its kind or its targets need merged weights.
        """
        with self._lock("load_adapter"):
            self._invalidate_if_changed()
            if type(self._backend).compile is not Backend.compile and not self._backend.fuses_adapters:
                raise ConfigError(
                    f"backend={self._backend.name} fuses steps, and a fused step runs no adapters",
                    where="engine.load_adapter",
                    remedy="Use backend=torch-invariant.",
                )
            self._adapters.load(name, Path(checkpoint))
            for core in self._cores:
                core.runner.bind_backend(self._fit.backend)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter. Raises ConfigError if unfinished requests use it."""
        with self._lock("unload_adapter"):
            self._drop_cancelled()
            if users := sum(job.request.adapter == name for job in self._jobs.values()):
                raise ConfigError(
                    f"{users} unfinished requests use adapter '{name}'",
                    where="engine.unload_adapter",
                    remedy="Finish or cancel these requests first.",
                )
            self._adapters.unload(name)
            for core in self._cores:
                core.runner.bind_backend(self._fit.backend)

    @property
    def scoring_model(self) -> Decoder:
        """The model bound to the engine's backend. Pass `scoring_model` to `score` and `text_loss`."""
        return self._cores[0].runner.model

    @property
    def invariant(self) -> bool:
        """Whether completions are bitwise independent of the batch. `invariant` is True if the backend guarantees batch
        invariance and a probe of this machine's matrix products confirms batch invariance."""
        return self._fit.is_invariant

    # ---- whole batches

    def generate(
        self,
        prompts: Sequence[Request | Prompt],
        params: SamplingParams | None = None,
        *,
        progress: Progress | None = None,
        arrived: Arrived | None = None,
        stop: threading.Event | None = None,
    ) -> list[list[Completion]]:
        """Generate all samples of each request. Return one list of completions per request, in the order of the requests.

        A prompt that is not a `Request` becomes a `Request` with `params`. A string is a user message, a list of
        `Message` is a conversation, and a list of integers is a tokenized prompt. Prompt i uses the seed `params.seed +
        i`, so equal prompts get independent samples.

        All requests are validated before the first request runs. `arrived(request, sample, completion)` and `progress(done,
        total)` are called after each finished sample, by one thread at a time. Setting `stop` ends `generate` after the current
        engine step, and the returned lists lack the unfinished samples.

        Raises DataError or ConfigError for a request that cannot run, and NumericsError if a logit is NaN or infinite.
        """
        if isinstance(prompts, str | Request):
            raise DataError("prompts is a single prompt", where="engine.generate", remedy="Pass a list of prompts.")
        requests = [request_of(prompt, params or SamplingParams(), number) for number, prompt in enumerate(prompts)]
        with self._lock("generate"):
            return self._generate(requests, progress, arrived, stop or threading.Event())

    def _generate(
        self, requests: list[Request], progress: Progress | None, arrived: Arrived | None, stop: threading.Event
    ) -> list[list[Completion]]:
        self._drop_cancelled()
        if self._jobs:
            raise ConfigError(
                "generate() cannot run while submitted requests are unfinished",
                where="engine",
                remedy="Finish the submitted requests with step(), or cancel them.",
            )
        self._invalidate_if_changed()
        jobs = [
            self._processor.validate_request(request, f"request {number}") for number, request in enumerate(requests)
        ]
        results = CompletionCollector([job.request.params.n for job in jobs], progress, arrived)
        failed = threading.Event()

        def run(core: EngineCore) -> None:
            try:
                while not (core.idle or stop.is_set() or failed.is_set()):
                    for item in core.step(STEPS_AT_ONCE):
                        number = item.sequence.request_id
                        completion = self._processor.completion(jobs[number], item)
                        if item.has_non_finite:
                            raise NumericsError(completion.error, where=f"request {number}", remedy=NAN_REMEDY)
                        results.add(number, item.sequence.sample, completion)
            except BaseException:
                failed.set()
                raise

        try:
            self._lock.run_in_helper_threads(self._distribute_jobs(jobs), run, self.threads, failed)
        except BaseException:
            for core in self._cores:
                core.reset()
            raise
        for core in self._cores:  # after `stop`
            for request_id in core.request_ids():
                core.cancel(request_id)
        return results.completions_by_request()

    def _distribute_jobs(self, jobs: list[ValidatedRequest]) -> list[EngineCore]:
        """Distribute the requests over engine cores and return the engine cores that received requests.

        The number of engine cores grows with the work (`CORE_WORK`), and with the ratio of samples to slots per engine core.
        """
        total = sum(job.request.params.n for job in jobs)
        cores = self._cores[: max(1, int(total * self._row_work) // CORE_WORK, -(-total // self._slots))]
        chosen = assign_items_to_cores([job.request.params.n for job in jobs], len(cores))
        for request_id, (job, core) in enumerate(zip(jobs, chosen)):
            cores[core].submit(self._processor.create_sequences(request_id, job))
        return [core for number, core in enumerate(cores) if number in chosen]

    # ---- step by step

    def submit(self, request: Request, *, plain: bool = False, compiled: CompiledGrammar | None = None) -> int:
        """Queue a request for `step` and return its id, which `Delta.request_id` and `cancel` use.

        With `plain`, the request's grammar applies to the whole reply, also if the chat format has thinking. `compiled` is the
        request's compiled grammar. Without `compiled`, `submit` compiles the grammar.
        Raises DataError or ConfigError for a request that cannot run.
        """
        with self._lock("submit"):
            self._invalidate_if_changed()
            request_id, self._next_id = self._next_id, self._next_id + 1  # ids are never reused, even after an error
            job = self._processor.validate_request(request, "request", compiled)
            job.plain = plain
            try:
                self._jobs[request_id] = job
                self._cores[0].submit(self._processor.create_sequences(request_id, job))
            except BaseException:
                self._jobs.pop(request_id, None)
                self._cores[0].cancel(request_id)
                raise
            return request_id

    def step(self, seconds: float = 0.0) -> list[Delta]:
        """Run one engine step over all submitted requests in the calling thread, and return the step's deltas.

        If no request needs Python between two steps, a backend may run several decoding steps in one call, as many as last about
        `seconds`. A request's deltas are in the order of its tokens.
        The returned deltas exclude requests that `stream` submitted: the iterator of `stream` yields the deltas of these
        requests.
        """
        self._run_one_step(seconds)
        return self._outbox.take_unstreamed()

    def _run_one_step(self, seconds: float = 0.0) -> None:
        with self._lock("step"):
            self._drop_cancelled()
            self._invalidate_if_changed()
            try:
                began, most = time.monotonic(), int(min(seconds / self._step_seconds, STEPS_AT_ONCE))
                with limit_threads(self._fit.threads):
                    self._outbox.put(self._deltas_of_step(max(1, most)))
                self._step_seconds = max(time.monotonic() - began, 1e-6) / self._cores[0].steps
            except BaseException:
                self._cores[0].reset()
                self._jobs.clear()
                self._held.clear()
                self._outbox.take_unstreamed()
                raise
            finally:
                self._drop_cancelled()

    def _deltas_of_step(self, most: int) -> list[Delta]:
        core = self._cores[0]
        finished = {(item.sequence.request_id, item.sequence.sample): item for item in core.step(most)}
        if self._held and not core.sampled:
            time.sleep(0.001)  # the engine is idle while it waits for a validation
        rows: list[tuple[Delta, FinishedSequence | None]] = []
        for sequence, token, logprob, best in reversed(core.sampled):  # a sequence ends with its last token
            hit = max(sequence.hit, 0)
            delta = Delta(sequence.request_id, sequence.sample, token, None, logprob, best, hit, sequence.scores)
            rows.append((delta, finished.pop((sequence.request_id, sequence.sample), None)))
        rows, self._held = [*self._held, *reversed(rows)], []
        deltas = list[Delta]()
        for delta, item in rows:
            if item is None:
                deltas.append(delta)
            elif item.validation is not None and not item.validation.done():
                self._held.append((delta, item))
            else:
                completion = self._processor.completion(self._jobs[delta.request_id], item)
                deltas.append(replace(delta, completion=completion))
        if any(item is not None for _, item in rows):
            live = core.request_ids() | {delta.request_id for delta, _ in self._held}
            self._jobs = {request_id: job for request_id, job in self._jobs.items() if request_id in live}
        return deltas

    def cancel(self, request_id: int) -> None:
        """Cancel a submitted request. The request's slots are freed immediately, or after the engine step that is running.

        `cancel` ignores the ids of unknown and finished requests.
        """
        # During a step, only record the id: garbage collection may close a stream during a step, and closing a stream
        # calls `cancel`.
        self._cancelled.append(request_id)
        if request_id in self._jobs and not self._lock.is_held_by_this_thread():
            with self._lock.lock:
                self._drop_cancelled()

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            request_id = self._cancelled.pop()
            self._outbox.drop_request(request_id)
            if self._jobs.pop(request_id, None) is not None:
                self._cores[0].cancel(request_id)
                for _, item in self._held:
                    if item.sequence.request_id == request_id and item.validation is not None:
                        item.validation.cancel()
                self._held = [row for row in self._held if row[0].request_id != request_id]

    def stream(self, request: Request) -> Iterator[Delta]:
        """Yield the deltas of one request as its tokens are sampled.

        Several iterators of `stream` may be open at the same time. Iterating over any stream runs engine steps that advance all
        requests. Closing the iterator of `stream` cancels the iterator's request.
        """
        request_id = self.submit(request)
        deltas, unfinished = self._outbox.open_stream(request_id), request.params.n
        try:
            while unfinished:
                while not deltas:
                    if request_id not in self._jobs:
                        raise RuntimeError(
                            "this request was dropped: another stream or step() ran an engine step that failed"
                        )
                    self._run_one_step()
                unfinished -= deltas[0].completion is not None
                yield deltas.popleft()
        finally:
            self.cancel(request_id)

    def check(self, request: Request, where: str = "request") -> None:
        """Validate a request, but do not queue the request. Raises the same errors as `submit`."""
        self._processor.validate_request(request, where)

    @property
    def grammar_compiler(self) -> GrammarCompiler:
        """The grammar compiler of this engine.

        `grammar_compiler.submit` compiles a grammar in the background and caches the compiled grammar, so that a later
        `Engine.submit` does not wait.
        """
        return self._processor.grammar_compiler

    def stats(self) -> dict[str, float]:
        """Return statistics of the first engine core: running and queued sequences, preemptions, loaded adapters, KV-cache
        blocks by state, and prefix-cache hits and misses.

        Prefix-cache hits and misses are counted in prompt tokens. `invariant` is 1 if completions are bitwise independent of
        the batch, else 0.
        """
        core = self._cores[0]
        return {
            "running": len(core.scheduler.running) + len(core.scheduler.prefilling),
            "waiting": len(core.scheduler.waiting),
            "invariant": float(self.invariant),
            "preemptions": core.scheduler.preemptions,
            "adapters": len(self._adapters.sha256),
            **core.kv_cache.stats(),
        }

    def close(self) -> None:
        """Write pending blocks to the disk cache, then close the disk cache. The engine must not be used after `close`."""
        for core in self._cores:
            core.close()
