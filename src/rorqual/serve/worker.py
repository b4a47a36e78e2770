"""The engine's process: `python -m rorqual.serve.worker PLACED`. Requests come on standard input, tokens leave on standard output.

It ends when standard input does, so that it never outlives its server.
"""

from __future__ import annotations

import base64
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

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rorqual.core.errors import CheckpointError, RorqualError
from rorqual.engine.config import CACHE_BYTES
from rorqual.engine.deltas import Delta
from rorqual.engine.engine import Engine
from rorqual.engine.grammar.check import MISMATCH
from rorqual.engine.grammar.compiler import COMPILE_SECONDS, Compiled
from rorqual.engine.grammar.queue import Build
from rorqual.engine.request import Request
from rorqual.model.load.run import check_names
from rorqual.ops.backends import backend
from rorqual.ops.backends.torch_invariant import NOT_HELD
from rorqual.ops.devices import check_device
from rorqual.ops.paged import BLOCK
from rorqual.serve.wire import LONGEST_LINE, TENANT, Placed, ask_of, line, scored

BEAT = 0.5
"""Seconds of work after which the engine says that it is alive, and how it is doing."""
HEADER = 1024
"""Bytes of a safetensors header for each tensor, at most."""
LONGEST_RECORD = LONGEST_LINE // 2


@dataclass
class Compiling:
    """A request whose grammar is not ready yet. `ready` is held until it is submitted, which finds the grammar by that."""

    message: dict[str, Any]
    ready: Build[Compiled]


@dataclass
class PendingWeights:
    """Weights on their way: a file, then its `tensors`, or why they are none of this model's."""

    file: Path
    version: int
    tensors: dict[str, Tensor] | None = None
    refusal: str = ""


class Worker:
    """An engine between two pipes."""

    def __init__(self, engine: Engine, source: BinaryIO, sink: BinaryIO) -> None:
        self.engine, self.source, self.sink = engine, source, sink
        self.inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.numbers: dict[int, int] = {}  # request_id -> the server's number
        self.left: dict[int, int] = {}  # request_id -> samples that have not ended
        self.scored: set[int] = set()  # request_ids whose prompt's log-probabilities were sent
        self.compiling: dict[int, Compiling] = {}  # the server's number -> its request
        self.recorded: set[int] = set()  # request_ids of rollouts
        self.version = 0  # of the weights
        self.updates: list[PendingWeights] = []
        self.held: dict[int, dict[str, Any]] = {}  # the server's number -> a request that waits for the updates
        self.beat = 0.0

    def run(self) -> None:
        """Until standard input ends."""
        threading.Thread(target=self._listen, daemon=True).start()
        while self._hear():
            if self.numbers:
                self._tell(self.engine.step())
            self._install()
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
                message = self.inbox.get(timeout=left if self.compiling or self.updates else None)
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
        number = message.get("number", -1)
        match message["kind"]:
            case "update":
                self.updates.append(PendingWeights(Path(message["file"]), message["version"]))
                threading.Thread(target=self._read, args=(self.updates[-1],), daemon=True).start()
            case "read":
                self._install()
            case "cancel":
                self.held.pop(number, None)
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

    def _read(self, update: PendingWeights) -> None:
        """Beside the loop: read a file of weights, and refuse what the model cannot take."""
        try:
            update.tensors = weights_of(update.file, self.engine.model.state_dict())
        except RorqualError as error:
            update.refusal = _said(error)
        self.inbox.put({"kind": "read"})

    def _install(self) -> None:
        """Take the weights that were read, once nothing runs with the old ones; then go on with what waited for them."""
        while self.updates and not self.numbers and (self.updates[0].tensors is not None or self.updates[0].refusal):
            update = self.updates.pop(0)
            if update.tensors is not None:
                self.engine.load_weights(update.tensors)
                self.version = update.version
            self._send(line("updated", version=update.version, refusal=update.refusal))
            if not self.updates:
                held, self.held = self.held, {}
                for message in held.values():
                    self._obey(message)

    def _submit(self, number: int, message: dict[str, Any]) -> None:
        if self.updates:
            self.held[number] = message
            return
        ask = ask_of(message)
        request = Request(params=ask.params, prompt_ids=ask.prompt, tenant=message["tenant"], priority=ask.priority)
        try:
            request_id = self.engine.submit(request)
        except RorqualError as error:
            self._refuse(number, _said(error))
            return
        self.numbers[request_id], self.left[request_id] = number, ask.params.n
        if message["tenant"] == TENANT:
            self.recorded.add(request_id)

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
            if delta.completion is not None and delta.request_id in self.recorded and not self._record(delta):
                continue
            said = (delta.sample, delta.token, reason, delta.logprob, delta.top, delta.hit)
            rows.append([self.numbers[delta.request_id], *said])
            if reason is not None:
                self.left[delta.request_id] -= 1
                if not self.left[delta.request_id]:
                    self._forget(delta.request_id)
        if rows:
            self._send(line("drawn", rows=rows))

    def _record(self, delta: Delta) -> bool:
        """Send what a rollout brings beside its tokens; whether that fits a message."""
        number, found = self.numbers[delta.request_id], delta.completion
        assert found is not None
        fields = {"experts": array_of(found.experts), "kept": array_of(found.kept)}
        message = line("recorded", number=number, sample=delta.sample, policy_version=self.version, **fields)
        if len(message) <= LONGEST_RECORD:
            self._send(message)
            return True
        self._refuse(number, f"what the answer records takes more than {LONGEST_RECORD:,} bytes: lower max_tokens")
        self.engine.cancel(delta.request_id)
        self._forget(delta.request_id)
        return False

    def _forget(self, request_id: int) -> None:
        del self.numbers[request_id], self.left[request_id]
        self.scored.discard(request_id)
        self.recorded.discard(request_id)

    def _send(self, data: bytes) -> None:
        self.sink.write(data)
        self.sink.flush()


def weights_of(file: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file; other names or shapes than `wanted`, and what is no finite number, are a `RorqualError`."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the body is no safetensors file: {error}", remedy="Send one.") from None
    check_names(found, wanted, where="")
    for name, tensor in found.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{name} ({tensor.dtype}) holds what is no finite number", remedy="Send weights that are."
            )
    return found


def array_of(array: Any) -> dict[str, Any] | None:
    """A tensor or an array as JSON holds it: type, shape, and its bytes in base64."""
    if array is None:
        return None
    found = np.ascontiguousarray(array)
    return {"dtype": str(found.dtype), "shape": found.shape, "data": base64.b64encode(found.tobytes()).decode()}


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
            record_experts=bool(placed.rollout_dir),
            record_kept=placed.record_kept,
            pack=not placed.rollout_dir,  # packed weights cannot be changed
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
    tensors = engine.model.state_dict().values()
    most = HEADER * (1 + len(tensors)) + sum(4 * tensor.numel() for tensor in tensors)
    vocab = engine.model.config.vocab_size
    sink.write(line("ready", max_len=min(engine.max_len, room), vocab_size=vocab, weights_bytes=most))
    sink.flush()
    try:
        Worker(engine, sys.stdin.buffer, sink).run()
        engine.close()
    except BrokenPipeError:  # the server is gone
        os._exit(1)


if __name__ == "__main__":
    main()
