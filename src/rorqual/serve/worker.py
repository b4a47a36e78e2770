"""The engine process: `python -m rorqual.serve.worker ARGUMENTS`, where ARGUMENTS are `EngineArguments` as JSON.

The process reads requests from standard input and writes tokens to standard output. The process exits when standard
input closes. Standard input also closes when the server dies.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rorqual.core.errors import CheckpointError, RorqualError
from rorqual.engine.deltas import Delta
from rorqual.engine.engine import Engine
from rorqual.engine.grammar.compiler import CompiledGrammar
from rorqual.engine.grammar.queue import CompileTask
from rorqual.engine.grammar.trial_process import MISMATCH
from rorqual.engine.request import Request
from rorqual.model.load.run_directory import check_names
from rorqual.ops.backends import TORCH_INVARIANT, backend
from rorqual.ops.backends.torch_invariant import NOT_HELD
from rorqual.ops.devices import check_device
from rorqual.ops.paged import BLOCK
from rorqual.serve.wire import LONGEST_LINE, TENANT, EngineArguments, message_line, parse_submit_message, score_messages

BEAT = 0.5
"""Seconds between two heartbeats of the engine process. A heartbeat contains the engine's statistics."""
BURST = 0.01
"""Seconds of decoding steps that the backend may run in one call, in which no message is read."""
ROWS = 64
"""Maximum number of sampled tokens in one message, if they waited for the log-probabilities of the prompt."""
HEADER = 1024
"""Maximum bytes of one tensor's entry in a safetensors header."""
LONGEST_RECORD = LONGEST_LINE // 2


class EngineWorker:
    """The engine's main loop, which reads requests from one pipe and writes tokens to another pipe."""

    def __init__(self, engine: Engine, source: BinaryIO, sink: BinaryIO) -> None:
        self.engine, self.source, self.sink = engine, source, sink
        self.inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.numbers: dict[int, int] = {}  # request_id -> the server's request number
        self.left: dict[int, int] = {}  # request_id -> number of unfinished samples
        self.scored: set[int] = (
            set()
        )  # request_ids for which the log-probabilities of the prompt were sent or are in `unsent`
        # The server's request number -> (messages with the log-probabilities of the prompt, sampled tokens to send after these messages)
        self.unsent: dict[int, tuple[Iterator[bytes], list[list[Any]]]] = {}
        # The server's request number -> (request, its grammar)
        self.compiling: dict[int, tuple[dict[str, Any], CompileTask[CompiledGrammar]]] = {}
        self.recorded: set[int] = set()  # request_ids whose rollout data is recorded
        self.version = 0  # version of the current weights
        self.updates: list[tuple[int, Path, int]] = []  # (message number, file, version) of weights to load
        self.held: dict[
            int, dict[str, Any]
        ] = {}  # the server's request number -> request that waits for weight updates
        self.beat = 0.0

    def run(self) -> None:
        """Run the main loop until standard input closes."""
        threading.Thread(target=self._queue_input_messages, daemon=True).start()
        while self._read_messages():
            if self.numbers:
                self._send_deltas(self.engine.step(BURST))
            self._send_prompt_scores()
            self._install_weights()
            self._send_heartbeat()

    def _queue_input_messages(self) -> None:
        for text in self.source:
            self.inbox.put(json.loads(text))
        self.inbox.put(None)

    def _read_messages(self) -> bool:
        """Handle the queued messages from the server. If no request is running, first wait for a message. Return False when
        standard input closes.

        The call returns when the next heartbeat is due, even if more messages are queued. The call waits only once, because a
        message may end the last running request: a weight update can then start, and a heartbeat is due.
        """
        until = time.monotonic() + BEAT
        waits = not (self.numbers or self.unsent)
        while waits or not self.inbox.empty():
            try:
                message = self.inbox.get(timeout=BEAT if self.compiling else None)
            except queue.Empty:
                break
            waits = False
            if message is None:
                return False
            self._handle_message(message)
            if time.monotonic() > until:
                break
        return True

    def _send_heartbeat(self) -> None:
        """Send a heartbeat if the next heartbeat is due or the engine is idle."""
        now = time.monotonic()
        if now - self.beat > BEAT or not (self.numbers or self.unsent):
            self.beat = now
            self._send(message_line("beat", stats=self.engine.stats()))

    def _handle_message(self, message: dict[str, Any]) -> None:
        number = message.get("number", -1)
        match message["kind"]:
            case "update":
                self.updates.append((number, Path(message["file"]), message["version"]))
                self._install_weights()
            case "adapter":
                with self._answered(number, "adapter_refused"):
                    if message["folder"] is None:
                        self.engine.unload_adapter(message["name"])
                    else:
                        self.engine.load_adapter(message["name"], Path(message["folder"]))
            case "cancel":
                self.held.pop(number, None)
                self.unsent.pop(number, None)
                if (waiting := self.compiling.pop(number, None)) is not None:
                    waiting[1].cancel()
                for request_id in [t for t, known in self.numbers.items() if known == number]:
                    self.engine.cancel(request_id)
                    self._forget(request_id)
            case "compiled":
                if (waiting := self.compiling.pop(number, None)) is not None:
                    self._end_compilation(number, *waiting)
            case _ if message["params"]["grammar"] is not None:
                self._compile_grammar(number, message)
            case _:
                self._submit(number, message)

    def _compile_grammar(self, number: int, message: dict[str, Any]) -> None:
        """Compile a request's grammar in a thread, so that running requests continue.

        When compilation ends, the thread puts a `compiled` message in the inbox, and the main loop submits or refuses
        the request.
        """
        grammar = parse_submit_message(message).params.grammar
        assert grammar is not None
        ready = self.engine.grammar_compiler.submit(grammar, message["tenant"])
        self.compiling[number] = message, ready
        ready.add_done_callback(lambda _: self.inbox.put({"kind": "compiled", "number": number}))

    def _end_compilation(self, number: int, message: dict[str, Any], ready: CompileTask[CompiledGrammar]) -> None:
        error = ready.exception()
        if error is None:
            self._submit(number, message, ready.result())
        elif isinstance(error, RorqualError):
            self._refuse_request(number, message_of(error))
        else:
            raise error

    def _install_weights(self) -> None:
        """Load new weights when no request is running. After the last update, submit the waiting requests."""
        while self.updates and not self.numbers:
            number, file, version = self.updates.pop(0)
            with self._answered(number, "wrong_weights"):
                self.engine.load_weights(load_checked_weights(file, self.engine.model.state_dict()))
                self.version = version
            if not self.updates:
                held, self.held = self.held, {}
                for message in held.values():
                    self._handle_message(message)

    @contextmanager
    def _answered(self, number: int, code: str) -> Iterator[None]:
        """Report to the server whether the engine refused what message `number` asked, with the error code `code`."""
        refusal = ""
        try:
            yield
        except RorqualError as error:
            refusal = message_of(error)
        self._send(message_line("done", number=number, refusal=refusal, code=code))

    def _submit(self, number: int, message: dict[str, Any], compiled: CompiledGrammar | None = None) -> None:
        """Submit a request. `compiled` is the request's grammar: to compile a grammar here would block all requests."""
        if self.updates:
            self.held[number] = message
            return
        ask = parse_submit_message(message)
        request = Request(
            params=ask.params,
            prompt_ids=ask.prompt,
            tenant=message["tenant"],
            priority=ask.priority,
            adapter=ask.adapter,
        )
        try:
            request_id = self.engine.submit(request, plain=ask.plain, compiled=compiled)
        except RorqualError as error:
            self._refuse_request(number, message_of(error))
            return
        self.numbers[request_id], self.left[request_id] = number, ask.params.n
        if message["tenant"] == TENANT:
            self.recorded.add(request_id)

    def _refuse_request(self, number: int, message: str, status: int = 400) -> None:
        self._send(message_line("refused", number=number, message=message, status=status))

    def _refuse_failed_sample(self, number: int, delta: Delta) -> None:
        assert delta.completion is not None
        if delta.completion.error.startswith(MISMATCH):
            self._refuse_request(
                number, f"{delta.completion.error}. Try another seed, or make the schema simpler.", 422
            )
        elif math.isfinite(delta.logprob):
            self._refuse_request(number, f"The grammar failed during generation: {delta.completion.error}")
        else:
            self._refuse_request(number, delta.completion.error, 500)

    def _send_deltas(self, deltas: list[Delta]) -> None:
        rows: list[list[Any]] = []
        for delta in deltas:
            if delta.request_id not in self.numbers:
                continue  # the request was removed because another of its samples failed
            reason = None if delta.completion is None else delta.completion.finish_reason
            if delta.completion is not None and delta.completion.error:
                self._refuse_failed_sample(self.numbers[delta.request_id], delta)
                self.engine.cancel(delta.request_id)
                self._forget(delta.request_id)
                continue
            if delta.scores is not None and delta.request_id not in self.scored:
                self.scored.add(delta.request_id)
                number, scores = self.numbers[delta.request_id], delta.scores
                self.unsent[number] = score_messages(number, scores.logprobs, scores.best, scores.top), []
            if (
                delta.completion is not None
                and delta.request_id in self.recorded
                and not self._send_rollout_record(delta)
            ):
                continue
            said = (delta.sample, delta.token, reason, delta.logprob, delta.top, delta.hit)
            later = self.unsent.get(self.numbers[delta.request_id])
            (rows if later is None else later[1]).append([self.numbers[delta.request_id], *said])
            if reason is not None:
                self.left[delta.request_id] -= 1
                if not self.left[delta.request_id]:
                    self._forget(delta.request_id)
        if rows:
            self._send(message_line("drawn", rows=rows))

    def _send_prompt_scores(self) -> None:
        """Send the next message with log-probabilities of a prompt. One message per engine step delays other requests little.

        Sampled tokens wait for the last of these messages: a stream begins with the echoed prompt, and the prompt's
        log-probabilities are complete only when the first token is sampled.
        """
        for number, (messages, rows) in [*self.unsent.items()][:1]:
            del self.unsent[number]
            if (message := next(messages, None)) is not None:
                self._send(message)
                self.unsent[number] = messages, rows  # behind all other requests
                continue
            for start in range(0, len(rows), ROWS):
                self._send(message_line("drawn", rows=rows[start : start + ROWS]))

    def _send_rollout_record(self, delta: Delta) -> bool:
        """Send a `recorded` message for a finished rollout. If the message is too long, refuse the request and return False."""
        number, found = self.numbers[delta.request_id], delta.completion
        assert found is not None
        fields = {"experts": encode_array(found.experts), "kept": encode_array(found.kept)}
        message = message_line("recorded", number=number, sample=delta.sample, policy_version=self.version, **fields)
        if len(message) <= LONGEST_RECORD:
            self._send(message)
            return True
        self._refuse_request(number, f"The recorded experts take more than {LONGEST_RECORD:,} bytes. Lower max_tokens.")
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


def load_checked_weights(file: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file.

    Raises RorqualError if the tensors' names or shapes differ from those in `wanted`, or if a weight is not finite.
    """
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the body is not a safetensors file: {error}", remedy="Send the weights as safetensors."
        ) from None
    check_names(found, wanted, where="")
    for name, tensor in found.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{name} ({tensor.dtype}) has values that are not finite floating-point numbers",
                remedy="Send finite weights of a floating-point type.",
            )
    return found


def encode_array(array: Any) -> dict[str, Any] | None:
    """Encode a tensor or array as a JSON object with the array's dtype, shape and bytes (in base64). If `array` is None,
    return None."""
    if array is None:
        return None
    found = np.ascontiguousarray(array)
    return {"dtype": str(found.dtype), "shape": found.shape, "data": base64.b64encode(found.tobytes()).decode()}


def message_of(error: RorqualError) -> str:
    """Return the problem and the remedy of an error as one text."""
    return f"{error.what}. {error.remedy}".removesuffix(" ")


def main() -> None:
    """Load the engine and process requests until standard input closes. A `ready` or `fatal` message tells the server
    whether loading succeeded."""
    # Ctrl-C may reach the whole process group, but the server decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Messages go to a copy of standard output. Text that libraries print to standard output goes to standard error.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    arguments = EngineArguments(**json.loads(sys.argv[1]))
    torch.set_num_threads(arguments.threads)
    try:
        check_device(arguments.device)
        if arguments.rollout_dir and arguments.engine.get("backend", "auto") == "auto":
            arguments.engine["backend"] = TORCH_INVARIANT.name  # as a trainer's own engine
        engine = Engine(
            Path(arguments.run),
            device=arguments.device,
            dtype=arguments.dtype,
            record_experts=bool(arguments.rollout_dir),
            pack=not arguments.rollout_dir,  # prepacked weights cannot be updated
            **arguments.engine,
        )
    except RorqualError as error:
        sink.write(message_line("fatal", what=error.what, where=error.where, remedy=error.remedy))
        sink.flush()
        raise SystemExit(2) from None
    if backend(engine.config.backend).invariant and not engine.invariant:
        print(f"rorqual serve: {NOT_HELD}", file=sys.stderr, flush=True)
    room = int(engine.stats()["blocks_total"]) * BLOCK
    tensors = engine.model.state_dict().values()
    most = HEADER * (1 + len(tensors)) + sum(4 * tensor.numel() for tensor in tensors)
    vocab = engine.model.config.vocab_size
    sink.write(message_line("ready", max_len=min(engine.max_len, room), vocab_size=vocab, weights_bytes=most))
    sink.flush()
    try:
        EngineWorker(engine, sys.stdin.buffer, sink).run()
        engine.close()
    except BrokenPipeError:  # the server exited
        os._exit(1)


if __name__ == "__main__":
    main()
