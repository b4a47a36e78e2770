"""The engine's process: `python -m rorqual.serve.worker PLACED`. Requests come on standard input, tokens leave on standard output.

It ends when standard input does, so that it never outlives its server.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rorqual.core.errors import RorqualError
from rorqual.engine.config import CACHE_BYTES
from rorqual.engine.deltas import Delta
from rorqual.engine.engine import Engine
from rorqual.engine.grammar.check import MISMATCH
from rorqual.engine.grammar.compiler import COMPILE_SECONDS, Compiled
from rorqual.engine.grammar.queue import Build
from rorqual.engine.request import Request
from rorqual.ops.backends import backend
from rorqual.ops.backends.torch_invariant import NOT_HELD
from rorqual.ops.devices import check_device
from rorqual.ops.paged import BLOCK
from rorqual.serve.wire import Placed, ask_of, line, scored

BEAT = 0.5
"""Seconds of work after which the engine says that it is alive, and how it is doing."""


@dataclass
class Compiling:
    """A request whose grammar is not ready yet. `ready` is held until it is submitted, which finds the grammar by that."""

    message: dict[str, Any]
    ready: Build[Compiled]


class Worker:
    """An engine between two pipes."""

    def __init__(self, engine: Engine, source: BinaryIO, sink: BinaryIO) -> None:
        self.engine, self.source, self.sink = engine, source, sink
        self.inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.numbers: dict[int, int] = {}  # request_id -> the server's number
        self.left: dict[int, int] = {}  # request_id -> samples that have not ended
        self.scored: set[int] = set()  # request_ids whose prompt's log-probabilities were sent
        self.compiling: dict[int, Compiling] = {}  # the server's number -> its request
        self.beat = 0.0

    def run(self) -> None:
        """Until standard input ends."""
        threading.Thread(target=self._listen, daemon=True).start()
        while self._hear():
            if self.numbers:
                self._tell(self.engine.step())
            self._live()

    def _listen(self) -> None:
        for text in self.source:
            self.inbox.put(json.loads(text))
        self.inbox.put(None)

    def _hear(self) -> bool:
        """Do what was asked for; with nothing to do, wait for it. Not beyond the next sign of life, however much comes. False at the end."""
        until = time.monotonic() + BEAT
        while not self.numbers or not self.inbox.empty():
            left = max(0.0, until - time.monotonic())
            try:
                message = self.inbox.get(timeout=left if self.compiling else None)
            except queue.Empty:
                break
            if message is None:
                return False
            self._obey(message)
            if time.monotonic() > until:
                break
        return True

    def _live(self) -> None:
        """Say now and then, and before a rest, that the engine is alive and how it is doing."""
        now = time.monotonic()
        for number in [number for number, waiting in self.compiling.items() if _late(waiting.ready, now)]:
            del self.compiling[number]
            self._refuse(number, f"the grammar was not compiled within {COMPILE_SECONDS:g} s: make it simpler")
        if now - self.beat > BEAT or not self.numbers:
            self.beat = now
            self._send(line("beat", stats=self.engine.stats()))

    def _obey(self, message: dict[str, Any]) -> None:
        number = message["number"]
        match message["kind"]:
            case "cancel":
                self._give_up(number)
                for request_id in [t for t, known in self.numbers.items() if known == number]:
                    self.engine.cancel(request_id)
                    self._forget(request_id)
            case "compiled":
                if (waiting := self.compiling.pop(number, None)) is not None:
                    self._compiled(number, waiting)
            case _ if message["params"]["grammar"] is not None:
                self._compile(number, message)
            case _:
                self._submit(number, message)

    def _compile(self, number: int, message: dict[str, Any]) -> None:
        """Beside the loop, so that what runs goes on; then the request comes in again."""
        grammar = ask_of(message).params.grammar
        assert grammar is not None
        ready = self.engine.grammars.submit(grammar, message["tenant"])
        self.compiling[number] = Compiling(message, ready)
        ready.add_done_callback(lambda _: self.inbox.put({"kind": "compiled", "number": number}))

    def _compiled(self, number: int, waiting: Compiling) -> None:
        error = waiting.ready.exception()
        if error is None:
            self._submit(number, waiting.message)
        elif isinstance(error, RorqualError):  # known: the engine would compile it once more, and all would wait
            self._refuse(number, _said(error))
        else:
            raise error

    def _give_up(self, number: int) -> None:
        """Nobody waits for a request any more: its grammar is not compiled, unless others wait for that."""
        waiting = self.compiling.pop(number, None)
        if waiting is not None and not any(other.ready is waiting.ready for other in self.compiling.values()):
            waiting.ready.cancel()

    def _submit(self, number: int, message: dict[str, Any]) -> None:
        ask = ask_of(message)
        request = Request(params=ask.params, prompt_ids=ask.prompt, tenant=message["tenant"], priority=ask.priority)
        try:
            request_id = self.engine.submit(request)
        except RorqualError as error:
            self._refuse(number, _said(error))
            return
        self.numbers[request_id], self.left[request_id] = number, ask.params.n

    def _refuse(self, number: int, message: str, status: int = 400) -> None:
        self._send(line("refused", number=number, message=message, status=status))

    def _broke_off(self, number: int, delta: Delta) -> None:
        assert delta.completion is not None
        if delta.completion.error.startswith(MISMATCH):
            self._refuse(
                number, f"{delta.completion.error}. Ask again with another seed, or make the schema simpler", 422
            )
        elif math.isfinite(delta.logprob):
            self._refuse(number, f"the grammar gave up in the middle: {delta.completion.error}")
        else:
            self._refuse(number, delta.completion.error, 500)

    def _tell(self, deltas: list[Delta]) -> None:
        rows = []
        for delta in deltas:
            if delta.request_id not in self.numbers:
                continue  # another sample of it has failed
            reason = None if delta.completion is None else delta.completion.finish_reason
            if delta.completion is not None and delta.completion.error:
                self._broke_off(self.numbers[delta.request_id], delta)
                self.engine.cancel(delta.request_id)
                self._forget(delta.request_id)
                continue
            if delta.scores is not None and delta.request_id not in self.scored:
                self.scored.add(delta.request_id)
                number, scores = self.numbers[delta.request_id], delta.scores
                for message in scored(number, scores.logprobs, scores.best, scores.top):
                    self._send(message)
            said = (delta.sample, delta.token, reason, delta.logprob, delta.top, delta.hit)
            rows.append([self.numbers[delta.request_id], *said])
            if reason is not None:
                self.left[delta.request_id] -= 1
                if not self.left[delta.request_id]:
                    self._forget(delta.request_id)
        if rows:
            self._send(line("drawn", rows=rows))

    def _forget(self, request_id: int) -> None:
        del self.numbers[request_id], self.left[request_id]
        self.scored.discard(request_id)

    def _send(self, data: bytes) -> None:
        self.sink.write(data)
        self.sink.flush()


def _late(build: Build[Compiled], now: float) -> bool:
    """Whether it takes too long. What it waits for its turn is not its fault."""
    return build.began is not None and not build.done() and now - build.began > COMPILE_SECONDS


def _said(error: RorqualError) -> str:
    return f"{error.what}. {error.remedy}".removesuffix(" ")


def main() -> None:
    """Load, say that it is ready (or why it never will be), serve."""
    # Ctrl-C reaches the whole group of processes: the server decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not end up between messages.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    placed = Placed(**json.loads(sys.argv[1]))
    torch.set_num_threads(placed.threads)
    try:
        check_device(placed.device)
        engine = Engine(
            Path(placed.run),
            device=placed.device,
            dtype=placed.dtype,
            slots=placed.slots,
            max_len=placed.max_len or None,
            record_experts=False,
            cache_dir=Path(placed.cache_dir) if placed.cache_dir else None,
            cache_bytes=placed.cache_bytes or CACHE_BYTES,
            disk_bytes=placed.disk_bytes,
            backend=placed.backend,
            step_tokens=placed.step_tokens,
        )
    except RorqualError as error:
        sink.write(line("fatal", what=error.what, where=error.where, remedy=error.remedy))
        sink.flush()
        raise SystemExit(2) from None
    if backend(placed.backend).invariant and not engine.invariant:
        print(f"rorqual serve: {NOT_HELD}", file=sys.stderr, flush=True)
    room = int(engine.stats()["blocks_total"]) * BLOCK
    sink.write(line("ready", max_len=min(engine.max_len, room), vocab_size=engine.model.config.vocab_size))
    sink.flush()
    try:
        Worker(engine, sys.stdin.buffer, sink).run()
        engine.close()
    except BrokenPipeError:  # the server is gone
        os._exit(1)


if __name__ == "__main__":
    main()
