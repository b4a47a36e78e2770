"""The server's connection to the engine process. The bridge starts and restarts the process, and passes tokens on to
requests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rorqual.core.errors import RorqualError
from rorqual.serve import wire
from rorqual.serve.errors import ApiError, loading_error, stopping_error
from rorqual.serve.limits import SLICE
from rorqual.serve.logs import say
from rorqual.serve.wire import EngineArguments, EngineLimits, PackedRequest, RolloutRecord, SampledToken, ScoredPrompt

TRIES = 2
"""If the engine dies `TRIES` times during a request, the request fails, because the request may be the cause."""
LAST_WORDS = 5.0
"""Seconds that the engine process may take to exit before the server kills the process."""
LONGEST_PAUSE = 30.0
"""Maximum seconds between two starts of an engine that fails to load."""
MOST_ADAPTERS = 64
"""Maximum number of adapters in the engine's memory, beside those that unfinished requests use."""
BEHIND = 131_072
"""Maximum number of tokens and top log-probabilities that are queued for a slow streaming client. If more are queued, the
client's request fails."""


class EngineRestarted:
    """Event that the engine was restarted. The client has received no text yet, so generation of the reply starts over."""


@dataclass(eq=False)
class ServerJob:
    """A request with one or more prompts that was submitted to the engine.

    - `numbers`: the engine's request number of each prompt. Samples are numbered across all prompts of the job.
    - `sent`: whether text was sent to the client; the caller sets this field. If text was sent, the job fails when the engine dies.
    - `streamed`: whether the client reads a stream. The event queue of a stream has a maximum length.
    - `tries`: how often the engine died during this job.
    - `left`: number of unfinished samples.
    """

    asks: tuple[PackedRequest, ...]
    tenant: str
    numbers: tuple[int, ...] = ()
    bound: str | None = None
    streamed: bool = False
    sent: bool = False
    tries: int = 0
    left: int = 0
    events: asyncio.Queue[SampledToken | RolloutRecord | ScoredPrompt | EngineRestarted | ApiError] = field(
        default_factory=asyncio.Queue
    )

    def __post_init__(self) -> None:
        self.left = self.n_samples

    @property
    def n_samples(self) -> int:
        """The total number of samples of all prompts of the job."""
        return sum(ask.n for ask in self.asks)

    @property
    def started(self) -> bool:
        """Whether the engine has sent a token or another event for the job."""
        return self.left < self.n_samples or not self.events.empty() or self.sent

    async def next_event(
        self, timeout: float | None = None
    ) -> SampledToken | RolloutRecord | ScoredPrompt | EngineRestarted | None:
        """Return the next event, or None if no event arrives within `timeout` seconds. Raises ApiError if the request failed."""
        try:
            # Before Python 3.12, `wait_for` swallows a cancellation that arrives together with an event.
            async with asyncio.timeout(timeout):
                event = await self.events.get()
        except TimeoutError:
            return None
        if isinstance(event, ApiError):
            raise event
        return event


class EngineBridge:
    """Supervisor that starts and restarts the engine process, and passes requests to the engine.

    - `queue`: maximum number of running and waiting requests. When the queue is full, only tenants with
      fewer than `share` requests can add a request. Therefore one tenant cannot block other tenants.
    - `hang`: kill a busy engine after `hang` seconds without a heartbeat.
    - `load`: kill an engine that is not ready after `load` seconds.
    - `stats`: the latest statistics of the engine.
    - `adapters`: the folder of each loaded adapter by name. A restarted engine loads them again.
    - `weights`: file and version of the latest weight update, or None before the first update. A restarted engine first loads
      the file in `weights`.
    """

    def __init__(
        self,
        arguments: EngineArguments,
        *,
        queue: int = 256,
        tenants: int = 1,
        hang: float = 120.0,
        load: float = 3600.0,
    ) -> None:
        self.arguments, self.queue, self.hang, self.load = arguments, queue, hang, load
        self.share = max(1, queue // tenants)
        self.info = EngineLimits(0, 0)  # until the engine is ready
        self.alive = False
        self.restarts = 0
        self.jobs: dict[int, ServerJob] = {}  # keyed by the first request number of the job
        self.stats: dict[str, float] = {}
        self.weights: tuple[Path, int] | None = None
        self.adapters: dict[str, Path] = {}
        self._used_adapters: dict[str, Path] = {}  # of `use_adapter`, also unloaded ones
        # message number -> None when the engine has done what the message asks, or why not
        self._calls: dict[int, asyncio.Future[ApiError | None]] = {}
        self._parts: dict[
            int, tuple[ServerJob, int]
        ] = {}  # request number -> (job, number of samples of the job's earlier prompts)
        self._last_message = 0.0  # time of the engine's last message
        self._loading: float | None = None  # time when loading began, or None if the engine is not loading
        self._late = False  # whether the engine was killed because loading took too long
        self._next_number = 0
        self._ended: deque[float] = deque(maxlen=32)  # times at which the latest requests ended
        self._incoming: Counter[str] = Counter()  # requests whose body is being read, by tenant
        self._closing = False
        self._process: asyncio.subprocess.Process | None = None
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._up: asyncio.Future[None] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the engine has been ready once. Requests wait for an engine that restarts."""
        return self.info.max_len > 0

    async def start(self) -> None:
        """Start the engine and wait until the engine is ready. Raises RorqualError if the engine cannot load, for example
        because of a bad checkpoint."""
        self._up = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._supervise()), asyncio.create_task(self._kill_hanging_engine())]
        await self._up

    def close(self) -> None:
        """Fail all unfinished requests and changes of adapters and weights, and accept no more requests."""
        self._closing = True
        for job in list(self.jobs.values()):
            self._fail_job(job, stopping_error())
        for number in list(self._calls):
            self._end_call(number, stopping_error())

    async def stop(self) -> None:
        """Close the bridge, and stop the engine."""
        self.close()
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), LAST_WORDS)
            except TimeoutError:
                process.kill()
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def check_queue_capacity(self, tenant: str) -> None:
        """Raise ApiError if the queue has no room for another request of `tenant`."""
        if self._closing:
            raise stopping_error()
        active = Counter(job.tenant for job in self.jobs.values()) + self._incoming
        if (total := active.total()) >= self.queue and active[tenant] >= self.share:
            raise ApiError(
                429,
                f"The queue is full: {total} requests are running or waiting, the limit is {self.queue}. Try again later.",
                code="queue_full",
                wait=self._seconds_per_request(),
            )

    def _seconds_per_request(self) -> float:
        """Return the mean time between the ends of the latest requests, which is the expected wait for a place in the queue."""
        return (time.monotonic() - self._ended[0]) / len(self._ended) if self._ended else 0.0

    @contextmanager
    def reserve_queue_place(self, tenant: str) -> Iterator[None]:
        """Reserve a place in the queue for a request whose body is still being read."""
        self.check_queue_capacity(tenant)
        self._incoming[tenant] += 1
        try:
            yield
        finally:
            self._incoming[tenant] -= 1

    @contextmanager
    def submitted_job(
        self, asks: Sequence[PackedRequest], tenant: str, bound: str | None = None, *, streamed: bool = False
    ) -> Iterator[ServerJob]:
        """Submit a request. If the request is unfinished when the `with` block ends, cancel the request.

        `bound`: the request parameter that constrains the replies with a grammar, if any. If the grammar is invalid, the
        error names the parameter in `bound`.
        """
        self.check_queue_capacity(tenant)
        if not self.jobs:
            self._last_message = time.monotonic()  # an idle engine sends no heartbeats
            self._ended.clear()  # the wait is that of the present load
        job = ServerJob(
            tuple(asks), tenant, tuple(range(self._next_number, self._next_number + len(asks))), bound, streamed
        )
        self._next_number += len(asks)
        self.jobs[job.numbers[0]] = job
        before = 0
        for number, ask in zip(job.numbers, job.asks):
            self._parts[number] = job, before
            before += ask.n
        self._submit(job)
        try:
            yield job
        finally:
            if self._remove_job(job):
                self._cancel(job)

    async def update_weights(self, file: Path, version: int) -> None:
        """Load new weights into the engine, and return when the engine uses them.

        Raises ApiError if the engine refuses the new weights; the engine then keeps the old weights.
        """
        await self._call("update", file=str(file), version=version)
        self.weights = file, version

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load the LoRA checkpoint `folder` as adapter `name`, and return when requests can use it.

        Raises ApiError with the engine's reason if the engine refuses it. The same adapter may be loaded again, for example
        after a cancelled call.
        """
        await self._call("adapter", name=name, folder=str(folder))
        self.adapters[name] = folder

    async def use_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter unless it is loaded. The engine keeps the `MOST_ADAPTERS` adapters that were used last, and those
        that unfinished requests use."""
        if self.adapters.get(name) != folder:
            await self.load_adapter(name, folder)
        self.adapters[name] = self.adapters.pop(name, folder)
        self._used_adapters[name] = folder
        for old in [*self.adapters][:-MOST_ADAPTERS]:
            with suppress(ApiError):
                await self.unload_adapter(old)

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter. Raises ApiError if it is not loaded, or unfinished requests use it."""
        folder = self.adapters.pop(name, None)  # first, so that no request relies on it meanwhile
        try:
            await self._call("adapter", name=name, folder=None)
        except ApiError:
            if folder is not None:
                self.adapters[name] = folder
            raise

    async def _call(self, kind: str, **fields: Any) -> None:
        """Send a message to the engine, and return when the engine has done what it asks. Raises ApiError if the engine
        refuses it."""
        if not self.alive:
            raise loading_error()
        number, self._next_number = self._next_number, self._next_number + 1
        done = self._calls[number] = asyncio.get_running_loop().create_future()
        self._queue_output(wire.message_line(kind, number=number, **fields))
        if (error := await done) is not None:
            raise error

    def _end_call(self, number: int, error: ApiError | None) -> None:
        done = self._calls.pop(number, None)
        if done is not None and not done.done():  # its caller may have been cancelled
            done.set_result(error)

    def _send_adapter(self, name: str, folder: Path) -> None:
        """Tell the engine to load an adapter before the messages that follow."""
        self.adapters[name] = folder
        self._queue_output(wire.message_line("adapter", number=-1, name=name, folder=str(folder)))

    def _submit(self, job: ServerJob) -> None:
        if self.alive:
            for number, ask in zip(job.numbers, job.asks):
                folder = self._used_adapters.get(ask.adapter)
                if folder is not None and ask.adapter not in self.adapters:  # unloaded since `use_adapter`
                    self._send_adapter(ask.adapter, folder)
                self._queue_output(*wire.submit_message(number, ask, job.tenant))

    def _cancel(self, job: ServerJob) -> None:
        if self.alive:
            for number in job.numbers:
                self._queue_output(wire.message_line("cancel", number=number))

    def _remove_job(self, job: ServerJob) -> bool:
        """Remove a job from the bridge. Return whether the job was unfinished."""
        for number in job.numbers:
            self._parts.pop(number, None)
        if self.jobs.pop(job.numbers[0], None) is None:
            return False
        self._ended.append(time.monotonic())
        return True

    # ---- the process

    async def _supervise(self) -> None:
        pause = 0.5
        while not self._closing:
            try:
                # The engine gets its own session, so that only the server receives a Ctrl-C from the terminal. Idle
                # OpenMP threads sleep, because busy-waiting threads would take cores from working threads on a shared
                # machine.
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "rorqual.serve.worker", json.dumps(asdict(self.arguments)),
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    limit=wire.LONGEST_LINE, start_new_session=True, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
                )  # fmt: skip
            except OSError as error:  # memory or file descriptors may be exhausted for now, so try again later
                say(f"cannot start the engine: {error.strerror}")
                await asyncio.sleep(LONGEST_PAUSE)
                continue
            self._process, self._outbox = process, asyncio.Queue()
            self._loading, self._late = time.monotonic(), False
            was_ready = False
            writing = asyncio.create_task(_write_messages(self._outbox, process))
            try:
                was_ready = await self._dispatch_messages(process)
                await process.wait()
            except (ValueError, LookupError, TypeError) as error:  # an incomplete or malformed message
                say(f"the engine sent an invalid message: {str(error)[:200]}")
            finally:
                self.alive, self._loading = False, None
                writing.cancel()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            if self._closing or (self._up is not None and self._up.done() and self._up.exception()):
                return
            self._handle_engine_exit(process.returncode or 0)
            pause = 0.5 if was_ready else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause if not was_ready else 0)

    async def _dispatch_messages(self, process: asyncio.subprocess.Process) -> bool:
        """Dispatch the engine's messages until the engine exits. Return whether the engine became ready."""
        ready = False
        assert process.stdout is not None
        while text := await process.stdout.readline():
            if not text.endswith(b"\n"):
                break  # the engine died while writing a message
            self._last_message = time.monotonic()
            message = json.loads(text)
            match message.pop("kind"):
                case "ready":
                    ready = True
                    self._handle_ready(EngineLimits(**message))
                case "fatal":
                    self._fail_server_start(
                        RorqualError(message["what"], where=message["where"], remedy=message["remedy"])
                    )
                case "refused":
                    if (part := self._parts.get(message["number"])) is not None:
                        status, param = message["status"], part[0].bound
                        param, code = param if status < 500 else None, "schema_mismatch" if status == 422 else None
                        self._fail_job(part[0], ApiError(status, message["message"], param=param, code=code))
                case "scored":
                    if (part := self._parts.get(number := message["number"])) is not None:
                        part[0].events.put_nowait(ScoredPrompt(part[0].numbers.index(number), message["scores"]))
                case "recorded":
                    number = message.pop("number")
                    if (part := self._parts.get(number)) is not None:
                        message["sample"] += part[1]
                        part[0].events.put_nowait(RolloutRecord(**message))
                case "done":
                    refusal = message["refusal"]
                    if refusal and message["number"] not in self._calls:
                        say(f"the engine was started again, and refuses: {refusal}")
                    error = ApiError(422, refusal, code=message["code"]) if refusal else None
                    self._end_call(message["number"], error)
                case "beat":
                    self.stats = message["stats"]
                case "drawn":
                    for number, *row in message["rows"]:
                        self._deliver(number, SampledToken(*row))
        return ready

    def _handle_ready(self, info: EngineLimits) -> None:
        self.info, self.alive, self._loading = info, True, None
        self._last_message = time.monotonic()
        if self.weights is not None:
            self._queue_output(
                wire.message_line("update", number=-1, file=str(self.weights[0]), version=self.weights[1])
            )
        for name, folder in dict(self.adapters).items():
            self._send_adapter(name, folder)
        for job in self.jobs.values():
            self._submit(job)
        if self._up is not None and not self._up.done():
            self._up.set_result(None)

    def _fail_server_start(self, error: RorqualError) -> None:
        """Fail the server's start with `error`. After a successful start, do nothing, because `_supervise` restarts the engine."""
        if self._up is not None and not self._up.done():
            self._up.set_exception(error)

    def _handle_engine_exit(self, code: int) -> None:
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._late:
            cause = f"it was not ready within {self.load:g} seconds"
        if self._up is not None and not self._up.done():
            problem, remedy = f"the engine exited while loading ({cause})", "Its output above may show the reason."
            if self._late:
                remedy = "Allow more time with load=SECONDS. If the model is small, check its disk and device."
            self._up.set_exception(RorqualError(problem, where="serve", remedy=remedy))
            return
        say(f"the engine died ({cause}); restarting it")
        self.restarts += 1
        self.stats = {}
        lost = "The engine died before it loaded the weights or adapter. Try again."
        for number in list(self._calls):
            self._end_call(number, ApiError(503, lost, code="engine_died"))
        for job in list(self.jobs.values()):
            job.tries += 1
            if job.sent or job.tries >= TRIES:
                self._fail_job(job, ApiError(503, "The engine died during this request.", code="engine_died"))
                continue
            job.left = job.n_samples
            while not job.events.empty():
                job.events.get_nowait()
            job.events.put_nowait(EngineRestarted())

    async def _kill_hanging_engine(self) -> None:
        """Kill an engine that hangs or takes too long to load. `_supervise` then restarts the engine."""
        while True:
            await asyncio.sleep(min(1.0, self.hang / 4, self.load / 4))
            now = time.monotonic()
            if self._loading is not None and now - self._loading > self.load and self._process is not None:
                self._loading, self._late = None, True  # kill only once
                self._process.kill()
            silent = now - self._last_message
            if self.alive and self.jobs and silent > self.hang and self._process is not None:
                say(f"the engine hangs: no heartbeat for {silent:.0f} seconds")
                self.alive = False  # kill only once
                self._process.kill()

    # ---- jobs

    def _deliver(self, number: int, sampled: SampledToken) -> None:
        part = self._parts.get(number)
        if part is None:
            return  # the request was just cancelled
        job, before = part
        job.events.put_nowait(replace(sampled, sample=sampled.sample + before))
        job.left -= sampled.reason is not None
        if not job.left:
            self._remove_job(job)
        elif job.streamed and job.events.qsize() * (1 + len(sampled.top)) > BEHIND:
            problem = f"The client reads too slowly: {job.events.qsize():,} tokens are waiting for it."
            self._fail_job(job, ApiError(503, problem, code="reads_too_slowly"))

    def _fail_job(self, job: ServerJob, error: ApiError) -> None:
        if self._remove_job(job):
            self._cancel(job)  # samples of the job's other prompts may still be running
            job.events.put_nowait(error)

    def _queue_output(self, *parts: bytes) -> None:
        for data in parts:
            self._outbox.put_nowait(data)


async def _write_messages(outbox: asyncio.Queue[bytes], process: asyncio.subprocess.Process) -> None:
    """Write messages to the engine in slices. Therefore a long prompt does not block the event loop, and is not copied as a
    whole."""
    assert process.stdin is not None
    with suppress(ConnectionError):  # the engine exited, which `_dispatch_messages` handles
        while True:
            data = memoryview(await outbox.get())
            for start in range(0, len(data), SLICE):
                process.stdin.write(data[start : start + SLICE])
                await process.stdin.drain()
