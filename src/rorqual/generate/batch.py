"""Answer many prompts with continuous batching. An answer does not depend on the other rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from rorqual.core.errors import DataError, RorqualError
from rorqual.engine.grammar.check import MISMATCH
from rorqual.engine.remote.engine import REFUSED, RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request
from rorqual.generate.prompts import Refused
from rorqual.generate.schema import KEYS, RowRequest

LEADING = re.compile(r"\w+")
BURST = 256
"""Maximum number of rejected rows that are collected before they are yielded."""
Answered = tuple[RowRequest | Refused, list[Completion]]
"""A row and its samples, or no samples if the row was rejected."""


class Stepping(Protocol):
    """The methods of the engine that `answers` uses."""

    def submit(self, request: Request) -> int: ...

    def step(self) -> Sequence[Any]: ...

    def cancel(self, request_id: int) -> None: ...


def refused(ask: RowRequest, error: RorqualError) -> Refused:
    """Turn the engine's error for a request into a rejected row.

    The key is the sampling key that the error names, first in its message or as its place; otherwise it is the key of
    the prompt.
    """
    named = LEADING.match(error.what)
    said = (error.where.rpartition(", ")[2], named.group() if named else "")
    key = next((word for word in said if word in KEYS), ask.key)
    return Refused(ask.line, key, error.what, error.remedy, ask.carried)


def answers(engine: Stepping, asks: Iterable[RowRequest | Refused], *, room: int) -> Iterator[list[Answered]]:
    """Yield the answered rows in small lists, in the order in which they finish.

    A new row is submitted while fewer than `room` samples run. A row that the engine rejects is yielded as `Refused`.
    Any other error of the engine is raised, and the running rows are cancelled.
    """
    rest, running = iter(asks), dict[int, tuple[RowRequest, dict[int, Completion]]]()
    samples, more = 0, True
    try:
        while more or running:
            ready: list[Answered] = []
            while more and samples < room and len(ready) < BURST:
                ask = next(rest, None)
                if ask is None:
                    more = False
                elif isinstance(ask, Refused):
                    ready.append((ask, []))
                else:
                    try:
                        running[engine.submit(ask.request)] = ask, {}
                        samples += ask.request.params.n
                    except RorqualError as error:
                        ready.append((refused(ask, error), []))
            for delta in engine.step() if running else ():
                if delta.completion is None or delta.request_id not in running:
                    continue
                ask, done = running[delta.request_id]
                done[delta.sample] = delta.completion
                samples -= 1
                if len(done) == ask.request.params.n:
                    del running[delta.request_id]
                    ready.append((ask, [done[sample] for sample in sorted(done)]))
            if ready:
                yield ready
    finally:
        for request_id in running:
            engine.cancel(request_id)


def answers_from_afar(
    engine: RemoteEngine, asks: Iterable[RowRequest | Refused], *, concurrency: int
) -> Iterator[list[Answered]]:
    """Yield answered rows like `answers`, from a remote endpoint with `concurrency` rows at a time.

    A row that the server rejects (`REFUSED`) is yielded as `Refused`. Any other failure is raised after all requests in
    flight have finished.
    """
    rest, running = iter(asks), dict[Future[list[list[Completion]]], RowRequest]()
    more, fatal = True, list[RorqualError]()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="generate") as pool:
        while more or running:
            ready: list[Answered] = []
            while more and len(running) < concurrency and len(ready) < BURST:
                ask = next(rest, None)
                if ask is None:
                    more = False
                elif isinstance(ask, Refused):
                    ready.append((ask, []))
                elif (fault := _not_there(ask)) is not None:
                    ready.append((refused(ask, fault), []))
                else:
                    running[pool.submit(engine.generate, [ask.request])] = ask
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                ask = running.pop(future)
                try:
                    ready.append((ask, future.result()[0]))
                except DataError as error:  # the client rejected it before sending
                    ready.append((refused(ask, error), []))
                except RemoteError as error:
                    if error.status in REFUSED:
                        ready.append((refused(ask, error), []))
                    else:
                        more, fatal = False, [*fatal, error]
            if ready:
                yield ready
    if fatal:
        raise fatal[0]


def _not_there(ask: RowRequest) -> DataError | None:
    """Return the error of a row that no remote endpoint can answer, or None."""
    if not ask.request.messages:
        return DataError("a remote endpoint takes text, not token ids", remedy="Give `prompt` or `messages`.")
    if ask.request.params.top_logprobs:
        return DataError(
            "a remote endpoint returns only text",
            where="top_logprobs",
            remedy="Leave it out, or set run= to a run directory.",
        )
    return None


# ---- output lines


def record(
    asked: RowRequest | Refused, samples: Sequence[Completion], *, token_ids: bool = False, logprobs: bool = False
) -> dict[str, Any]:
    """Return the output line of a row. It holds nothing that depends on the time or on other rows, such as cache hits."""
    head = {"line": asked.line, **asked.carried}
    if isinstance(asked, Refused):
        return {**head, "error": {"key": asked.key, "what": asked.what, "remedy": asked.remedy}}
    counts = [_tokens(sample) for sample in samples]
    choices = [
        _choice(number, sample, count, token_ids, logprobs)
        for number, (sample, count) in enumerate(zip(samples, counts))
    ]
    usage = {"prompt_tokens": samples[0].usage.get("prompt_tokens", 0), "completion_tokens": sum(counts)}
    found = {**head, "seed": asked.request.params.seed, "choices": choices, "usage": usage}
    if samples[0].prompt_logprobs is not None:
        found["prompt_logprobs"] = _writable(samples[0].prompt_logprobs)
    if samples[0].prompt_top_logprobs is not None:
        found["prompt_top_logprobs"] = _places(samples[0].prompt_top_logprobs)
    if (fault := fault_of(asked, samples)) is not None:
        found["error"] = {"key": fault.key, "what": fault.what, "remedy": fault.remedy}
    return found


def fault_of(asked: RowRequest, samples: Sequence[Completion]) -> Refused | None:
    """Return the error of a row with an invalid sample, or None if all samples are valid."""
    broken = [(number, sample.error) for number, sample in enumerate(samples) if sample.error]
    if not broken:
        return None
    number, what = broken[0]
    key, remedy = ("grammar", "Simplify the grammar, or change it so that every prefix of a reply can be completed.")
    if what.startswith(MISMATCH):
        remedy = "Use another seed, or simplify the schema."
    elif what.startswith("the server"):
        key, remedy = "", "Check the server. Then repeat the command with a new out=: answers in this file are kept."
    elif "not a number" in what:
        key, remedy = "", "The weights are damaged, or the dtype overflows: try dtype=float32."
    return Refused(asked.line, key, f"sample {number} is incomplete: {what}", remedy, asked.carried)


def _tokens(sample: Completion) -> int:
    return sample.usage.get("completion_tokens", len(sample.token_ids))


def _choice(number: int, sample: Completion, count: int, token_ids: bool, logprobs: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": number,
        "text": sample.text,
        "reasoning": sample.reasoning,
        "finish_reason": sample.finish_reason,
        "tokens": count,
    }
    if sample.error:
        found["error"] = sample.error
    if token_ids:
        found["token_ids"] = sample.token_ids
    if logprobs:
        found["logprobs"] = _writable(sample.logprobs)
    if sample.top_logprobs is not None:
        found["top_logprobs"] = _places(sample.top_logprobs)
    return found


def _writable(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else value for value in values]


def _places(places: Sequence[Sequence[tuple[int, float]]]) -> list[list[list[float | None]]]:
    return [[[token, *_writable([value])] for token, value in place] for place in places]
