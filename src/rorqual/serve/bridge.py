"""The only seam between the server and the engine: a process, started again when it dies, and jobs that wait for its tokens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rorqual.core.errors import RorqualError
from rorqual.serve import wire
from rorqual.serve.errors import ApiError
from rorqual.serve.limits import SLICE
from rorqual.serve.wire import Drawn, PackedAsk, Placed, Ready, Recorded, ScoredPrompt

TRIES = 2
"""Deaths of the engine that one request may see: it may be what kills it."""
LAST_WORDS = 5.0
"""Seconds that the engine has to end by itself."""
LONGEST_PAUSE = 30.0
BEHIND = 131_072
"""Tokens, each with its likeliest others, that may wait for the client of a stream: then the request ends."""


class Restarted:
    """The engine died before the client had anything: the reply begins again."""


@dataclass(eq=False)
class ServerJob:
    """A request under way: one prompt or several, of which each has a number, and whose samples are counted through.

    Whoever sends a piece of the reply to the client sets `sent` before. `streamed`: its tokens wait for a client to read them.
    """

    asks: tuple[PackedAsk, ...]
    tenant: str
    numbers: tuple[int, ...] = ()
    bound: str | None = None
    streamed: bool = False
    sent: bool = False
    tries: int = 0
    left: int = 0
    events: asyncio.Queue[Drawn | Recorded | ScoredPrompt | Restarted | ApiError] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.left = self.samples

    @property
    def samples(self) -> int:
        """How many answers there will be."""
        return sum(ask.n for ask in self.asks)

    @property
    def started(self) -> bool:
        return self.left < self.samples or not self.events.empty() or self.sent

    async def next(self, timeout: float | None = None) -> Drawn | Recorded | ScoredPrompt | Restarted | None:
        """What happens next; None after `timeout` seconds of nothing. A request that cannot be answered raises its `ApiError`."""
        try:
            # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together with an event.
            async with asyncio.timeout(timeout):
                event = await self.events.get()
        except TimeoutError:
            return None
        if isinstance(event, ApiError):
            raise event
        return event


class Bridge:
    """Starts the engine and keeps it alive. `queue`: requests at a time, running or waiting; more are refused, but for those of a tenant
    that has less than its `share`, so that nobody takes everybody's place.

    `hang`: seconds of work without a sign of life after which the engine is killed, and `load`: seconds after which it is if it is not
    ready by then. `stats`: what it last said of itself. `weights`: the file and the version of weights that came after the run's own; an engine
    that is started again gets them first.
    """

    def __init__(
        self, placed: Placed, *, queue: int = 256, tenants: int = 1, hang: float = 120.0, load: float = 3600.0
    ) -> None:
        self.placed, self.queue, self.hang, self.load = placed, queue, hang, load
        self.share = max(1, queue // tenants)
        self.info: Ready | None = None
        self.alive = False
        self.restarts = 0
        self.jobs: dict[int, ServerJob] = {}  # by the first of its numbers
        self.stats: dict[str, float] = {}
        self.weights: tuple[Path, int] | None = None
        self._updating: tuple[int, asyncio.Future[None]] | None = None
        self._parts: dict[int, tuple[ServerJob, int]] = {}  # number -> its job, and how many samples of it come before
        self._heard = 0.0
        self._loading: float | None = None  # since when
        self._late = False
        self._numbers = 0
        self._coming: Counter[str] = Counter()
        self._closing = False
        self._process: asyncio.subprocess.Process | None = None
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._up: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Until the engine is ready for the first time; what keeps it from that, such as a torn checkpoint, is raised."""
        self._up = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._watch())]
        await self._up

    async def stop(self) -> None:
        """End the engine; whoever still waits is told."""
        self._closing = True
        self._fail_all("the server is stopping")
        self._updated(None, ApiError(503, "the server is stopping", code="stopping"))
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

    def check_room(self, tenant: str) -> None:
        """Refuse one more request of `tenant` where there is no place for it."""
        if self._closing:
            raise ApiError(503, "the server is stopping", code="stopping")
        under_way = Counter(job.tenant for job in self.jobs.values()) + self._coming
        if (total := under_way.total()) >= self.queue and under_way[tenant] >= self.share:
            raise ApiError(
                429, f"{total} requests are under way, the limit is {self.queue}; try later", code="queue_full"
            )

    @contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """A place for a request on its way, which is to be a `job`."""
        self.check_room(tenant)
        self._coming[tenant] += 1
        try:
            yield
        finally:
            self._coming[tenant] -= 1

    @contextmanager
    def job(
        self, asks: Sequence[PackedAsk], tenant: str, bound: str | None = None, *, streamed: bool = False
    ) -> Iterator[ServerJob]:
        """A request for as long as somebody waits for it: on leaving, whatever still runs of it is cancelled. `bound`: the parameter that
        binds its replies, where one does."""
        self.check_room(tenant)
        if not self.jobs:
            self._heard = time.monotonic()  # an engine without work has nothing to say
        job = ServerJob(tuple(asks), tenant, tuple(range(self._numbers, self._numbers + len(asks))), bound, streamed)
        self._numbers += len(asks)
        self.jobs[job.numbers[0]] = job
        before = 0
        for number, ask in zip(job.numbers, job.asks):
            self._parts[number] = job, before
            before += ask.n
        self._submit(job)
        try:
            yield job
        finally:
            if self._forget(job):
                self._cancel(job)

    async def update(self, file: Path, version: int) -> None:
        """Give the engine other weights; returns once it has them. An `ApiError` says why it does not take them: then it has the old ones."""
        if not self.alive:
            raise ApiError(503, "The engine is loading. Try again in a moment.", code="loading")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._updating = version, done
        self._write(wire.update(str(file), version))
        try:
            await done
        finally:
            self._updating = None
        self.weights = file, version

    def _updated(self, version: int | None, error: ApiError | None) -> None:
        """An update is over: that of `version`, or whichever is under way."""
        if self._updating is None or self._updating[1].done() or version not in (None, self._updating[0]):
            return
        if error is None:
            self._updating[1].set_result(None)
        else:
            self._updating[1].set_exception(error)

    def _submit(self, job: ServerJob) -> None:
        if self.alive:
            for number, ask in zip(job.numbers, job.asks):
                self._write(*wire.submit(number, ask, job.tenant))

    def _cancel(self, job: ServerJob) -> None:
        if self.alive:
            for number in job.numbers:
                self._write(wire.cancel(number))

    def _forget(self, job: ServerJob) -> bool:
        """Whether it was still under way."""
        for number in job.numbers:
            self._parts.pop(number, None)
        return self.jobs.pop(job.numbers[0], None) is not None

    # ---- the process

    async def _keep(self) -> None:
        pause = 0.5
        while not self._closing:
            try:
                # A group of its own: a Ctrl-C in the terminal is the server's to handle. Threads that wait must sleep: spinning on
                # a core that a neighbour has they would hold up the one that works.
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "rorqual.serve.worker", json.dumps(asdict(self.placed)),
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    limit=wire.LONGEST_LINE, start_new_session=True, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
                )  # fmt: skip
            except OSError as error:  # no memory, no file descriptors: perhaps later
                _say(f"the engine cannot be started: {error.strerror}")
                await asyncio.sleep(LONGEST_PAUSE)
                continue
            self._process, self._outbox = process, asyncio.Queue()
            self._loading, self._late = time.monotonic(), False
            was_ready = False
            writing = asyncio.create_task(_written(self._outbox, process))
            try:
                was_ready = await self._listen(process)
                await process.wait()
            except (ValueError, LookupError, TypeError) as error:  # half a line, or what is no message
                _say(f"the engine said what cannot be read: {str(error)[:200]}")
            finally:
                self.alive, self._loading = False, None
                writing.cancel()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            if self._closing or (self._up is not None and self._up.done() and self._up.exception()):
                return
            self._died(process.returncode or 0)
            pause = 0.5 if was_ready else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause if not was_ready else 0)

    async def _listen(self, process: asyncio.subprocess.Process) -> bool:
        """Pass on what the engine says until it ends; whether it was ever ready."""
        ready = False
        assert process.stdout is not None
        while text := await process.stdout.readline():
            if not text.endswith(b"\n"):
                break  # it died in the middle of a word
            self._heard = time.monotonic()
            message = json.loads(text)
            match message.pop("kind"):
                case "ready":
                    ready = True
                    self._ready(Ready(**message))
                case "fatal":
                    self._fatal(RorqualError(message["what"], where=message["where"], remedy=message["remedy"]))
                case "refused":
                    if (part := self._parts.get(message["number"])) is not None:
                        status, param = message["status"], part[0].bound
                        param, code = param if status < 500 else None, "schema_mismatch" if status == 422 else None
                        self._end(part[0], ApiError(status, message["message"], param=param, code=code))
                case "scored":
                    if (part := self._parts.get(number := message["number"])) is not None:
                        part[0].events.put_nowait(ScoredPrompt(part[0].numbers.index(number), message["scores"]))
                case "recorded":
                    number = message.pop("number")
                    if (part := self._parts.get(number)) is not None:
                        message["sample"] += part[1]
                        part[0].events.put_nowait(Recorded(**message))
                case "updated":
                    refusal = message["refusal"]
                    error = ApiError(422, refusal, code="wrong_weights") if refusal else None
                    self._updated(message["version"], error)
                case "beat":
                    self.stats = message["stats"]
                case "drawn":
                    for number, *row in message["rows"]:
                        self._drawn(number, Drawn(*row))
        return ready

    def _ready(self, info: Ready) -> None:
        self.info, self.alive, self._loading = info, True, None
        self._heard = time.monotonic()
        if self.weights is not None:
            self._write(wire.update(str(self.weights[0]), self.weights[1]))
        for job in self.jobs.values():
            self._submit(job)
        if self._up is not None and not self._up.done():
            self._up.set_result(None)

    def _fatal(self, error: RorqualError) -> None:
        """Before it was ever ready: the start fails. Later, such as on a checkpoint that was removed: it is tried again."""
        if self._up is not None and not self._up.done():
            self._up.set_exception(error)

    def _died(self, code: int) -> None:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._late:
            how = f"it was not ready within {self.load:g} seconds"
        if self._up is not None and not self._up.done():
            what, remedy = f"the engine ended while it was loading ({how})", "See what it wrote above."
            if self._late:
                remedy = "Give it more time with load=SECONDS; if it needs none, its disk or device does not answer."
            self._up.set_exception(RorqualError(what, where="serve", remedy=remedy))
            return
        _say(f"the engine died ({how}) and is started again")
        self.restarts += 1
        self.stats = {}
        lost = ApiError(503, "the engine died before it had the weights; send them again", code="engine_died")
        self._updated(None, lost)
        for job in list(self.jobs.values()):
            job.tries += 1
            if job.sent or job.tries >= TRIES:
                self._end(job, ApiError(503, "the engine died under this request", code="engine_died"))
                continue
            job.left = job.samples
            while not job.events.empty():
                job.events.get_nowait()
            job.events.put_nowait(Restarted())

    async def _watch(self) -> None:
        """Kill an engine that has work and shows no sign of life, or is never ready: then it is started again, as one that died."""
        while True:
            await asyncio.sleep(min(1.0, self.hang / 4, self.load / 4))
            now = time.monotonic()
            if self._loading is not None and now - self._loading > self.load and self._process is not None:
                self._loading, self._late = None, True  # once
                self._process.kill()
            silent = now - self._heard
            if self.alive and self.jobs and silent > self.hang and self._process is not None:
                _say(f"the engine hangs: {silent:.0f} seconds without a sign of life")
                self.alive = False  # once
                self._process.kill()

    # ---- jobs

    def _drawn(self, number: int, drawn: Drawn) -> None:
        part = self._parts.get(number)
        if part is None:
            return  # cancelled a moment ago
        job, before = part
        job.events.put_nowait(replace(drawn, sample=drawn.sample + before))
        job.left -= drawn.reason is not None
        if not job.left:
            self._forget(job)
        elif job.streamed and job.events.qsize() * (1 + len(drawn.top)) > BEHIND:
            what = f"the client reads too slowly: {job.events.qsize():,} tokens wait for it"
            self._end(job, ApiError(503, what, code="reads_too_slowly"))

    def _end(self, job: ServerJob, error: ApiError) -> None:
        if self._forget(job):
            self._cancel(job)  # its other prompts
            job.events.put_nowait(error)

    def _fail_all(self, message: str) -> None:
        for job in list(self.jobs.values()):
            self._end(job, ApiError(503, message, code="stopping"))

    def _write(self, *parts: bytes) -> None:
        for data in parts:
            self._outbox.put_nowait(data)


async def _written(outbox: asyncio.Queue[bytes], process: asyncio.subprocess.Process) -> None:
    """Pass on what the engine is told, slice by slice: a long prompt neither holds up the loop nor is copied whole."""
    assert process.stdin is not None
    with suppress(ConnectionError):  # the engine is gone; whoever listens to it sees that, too
        while True:
            data = memoryview(await outbox.get())
            for at in range(0, len(data), SLICE):
                process.stdin.write(data[at : at + SLICE])
                await process.stdin.drain()


def _say(text: str) -> None:
    print(f"rorqual serve: {text}", file=sys.stderr, flush=True)
