"""The only seam between the server and the engine: a process, started again when it dies, and jobs that wait for its tokens."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field

from rorqual.core.errors import RorqualError
from rorqual.serve import wire
from rorqual.serve.errors import ApiError
from rorqual.serve.wire import Ask, Drawn, Placed, Ready

TRIES = 2
"""Deaths of the engine that one request may see: it may be what kills it."""
LAST_WORDS = 5.0
"""Seconds that the engine has to end by itself."""
LONGEST_PAUSE = 30.0


class Restarted:
    """The engine died before the client had anything: the reply begins again."""


@dataclass(eq=False)
class Job:
    """A request under way. Whoever sends a piece of the reply to the client sets `sent` before."""

    number: int
    ask: Ask
    tenant: str
    sent: bool = False
    tries: int = 0
    left: int = 0
    events: asyncio.Queue[Drawn | Restarted | ApiError] = field(default_factory=asyncio.Queue)

    @property
    def started(self) -> bool:
        return self.left < self.ask.n or not self.events.empty() or self.sent

    async def next(self, timeout: float | None = None) -> Drawn | Restarted | None:
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
    """Starts the engine and keeps it alive. `queue`: requests at a time, running or waiting; more are refused."""

    def __init__(self, placed: Placed, *, queue: int = 256) -> None:
        self.placed, self.queue = placed, queue
        self.info: Ready | None = None
        self.alive = False
        self.restarts = 0
        self.jobs: dict[int, Job] = {}
        self._numbers = 0
        self._closing = False
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._up: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Until the engine is ready for the first time; what keeps it from that, such as a torn checkpoint, is raised."""
        self._up = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep())
        await self._up

    async def stop(self) -> None:
        """End the engine; whoever still waits is told."""
        self._closing = True
        self._fail_all("the server is stopping")
        process = self._process
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), LAST_WORDS)
            except TimeoutError:
                process.kill()
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper

    @contextmanager
    def job(self, ask: Ask, tenant: str) -> Iterator[Job]:
        """A request for as long as somebody waits for it: on leaving, whatever still runs of it is cancelled."""
        if self._closing:
            raise ApiError(503, "the server is stopping", code="stopping")
        if len(self.jobs) >= self.queue:
            raise ApiError(
                429, f"{self.queue} requests are under way, which is the limit; try later", code="queue_full"
            )
        self._numbers += 1
        job = Job(self._numbers, ask, tenant, left=ask.n)
        self.jobs[job.number] = job
        if self.alive:
            self._write(wire.submit(job.number, ask))
        try:
            yield job
        finally:
            if self.jobs.pop(job.number, None) is not None and self.alive:
                self._write(wire.cancel(job.number))

    # ---- the process

    async def _keep(self) -> None:
        pause = 0.5
        while not self._closing:
            # A group of its own: a Ctrl-C in the terminal is the server's to handle.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "rorqual.serve.worker", json.dumps(asdict(self.placed)),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=wire.LONGEST_LINE, start_new_session=True,
            )  # fmt: skip
            self._process = process
            try:
                was_ready = await self._listen(process)
                await process.wait()
            finally:
                self.alive = False
                if process.returncode is None:
                    process.kill()
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
            message = json.loads(text)
            match message.pop("kind"):
                case "ready":
                    ready = True
                    self._ready(Ready(**message))
                case "fatal":
                    self._fatal(RorqualError(message["what"], where=message["where"], remedy=message["remedy"]))
                case "refused":
                    self._end(message["number"], ApiError(400, message["message"]))
                case "drawn":
                    for number, *row in message["rows"]:
                        self._drawn(number, Drawn(*row))
        return ready

    def _ready(self, info: Ready) -> None:
        self.info, self.alive = info, True
        for job in self.jobs.values():
            self._write(wire.submit(job.number, job.ask))
        if self._up is not None and not self._up.done():
            self._up.set_result(None)

    def _fatal(self, error: RorqualError) -> None:
        """Before it was ever ready: the start fails. Later, such as on a checkpoint that was removed: it is tried again."""
        if self._up is not None and not self._up.done():
            self._up.set_exception(error)

    def _died(self, code: int) -> None:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._up is not None and not self._up.done():
            self._up.set_exception(
                RorqualError(
                    f"the engine ended while it was loading ({how})", where="serve", remedy="See what it wrote above."
                )
            )
            return
        print(f"rorqual serve: the engine died ({how}) and is started again", file=sys.stderr, flush=True)
        self.restarts += 1
        for job in list(self.jobs.values()):
            job.tries += 1
            if job.sent or job.tries >= TRIES:
                self._end(job.number, ApiError(503, "the engine died under this request", code="engine_died"))
                continue
            job.left = job.ask.n
            while not job.events.empty():
                job.events.get_nowait()
            job.events.put_nowait(Restarted())

    # ---- jobs

    def _drawn(self, number: int, drawn: Drawn) -> None:
        job = self.jobs.get(number)
        if job is None:
            return  # cancelled a moment ago
        job.events.put_nowait(drawn)
        job.left -= drawn.reason is not None
        if not job.left:
            del self.jobs[number]

    def _end(self, number: int, error: ApiError) -> None:
        job = self.jobs.pop(number, None)
        if job is not None:
            job.events.put_nowait(error)

    def _fail_all(self, message: str) -> None:
        for number in list(self.jobs):
            self._end(number, ApiError(503, message, code="stopping"))

    def _write(self, data: bytes) -> None:
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(data)
