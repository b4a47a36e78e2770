"""Many prompts, answered as slots fall free: what answers each does not depend on what runs beside it."""

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
"""Rows that are refused, or answered, before they are handed on."""
Answered = tuple[RowRequest | Refused, list[Completion]]
"""A row and its samples; none where it was refused."""


class Stepping(Protocol):
    """What is used of the engine."""

    def submit(self, request: Request) -> int: ...

    def step(self) -> Sequence[Any]: ...

    def cancel(self, request_id: int) -> None: ...


def refused(ask: RowRequest, error: RorqualError) -> Refused:
    """What the engine says of a request that it cannot run: of a sampling key, which it names first or as the place, or of the prompt."""
    named = LEADING.match(error.what)
    said = (error.where.rpartition(", ")[2], named.group() if named else "")
    key = next((word for word in said if word in KEYS), ask.key)
    return Refused(ask.line, key, error.what, error.remedy, ask.carried)


def answers(engine: Stepping, asks: Iterable[RowRequest | Refused], *, room: int) -> Iterator[list[Answered]]:
    """Rows as they are answered, a few at a time, in whatever order they end. At most `room` samples (and one row) are asked at once.

    A row that the engine refuses comes as `Refused`. What the engine raises in running stops everything; what ran is cancelled.
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
    """The same of an address: `concurrency` rows at a time. A row that the server refuses (`REFUSED`) comes as `Refused`; any other
    failure is raised once what was under way has come in."""
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
                except DataError as error:  # it was not sent
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
    """What an address cannot be asked."""
    if not ask.request.messages:
        return DataError("an address takes messages, no ids", remedy="Give a prompt or messages.")
    if ask.request.params.top_logprobs:
        return DataError(
            "an address gives texts alone", where="top_logprobs", remedy="Leave it out, or name a run's folder."
        )
    return None


# ---- what is written


def record(
    asked: RowRequest | Refused, samples: Sequence[Completion], *, token_ids: bool = False, logprobs: bool = False
) -> dict[str, Any]:
    """The line of the answer. It holds nothing that depends on when or beside what it was answered, such as hits of a cache."""
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
    """What is wrong with a row of which a sample is no answer."""
    broken = [(number, sample.error) for number, sample in enumerate(samples) if sample.error]
    if not broken:
        return None
    number, what = broken[0]
    key, remedy = ("grammar", "Make the grammar simpler, or such that a reply can always go on.")
    if what.startswith(MISMATCH):
        remedy = "Ask again with another seed, or make the schema simpler."
    elif what.startswith("the server"):
        key, remedy = "", "Ask it why, and repeat without out= or with another: what is there is kept."
    elif "not a number" in what:
        key, remedy = "", "The weights, or the type they are computed in, give no number here: try dtype=float32."
    return Refused(asked.line, key, f"sample {number} broke off: {what}", remedy, asked.carried)


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
