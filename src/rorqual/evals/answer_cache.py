"""The on-disk answer cache. Each answer is written when it arrives, so that earlier answers are not lost if the process
is killed or a request fails."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from rorqual.core.content_parts import ContentPart, content_json
from rorqual.core.errors import DataError, RorqualError
from rorqual.core.journal import Journal, json_line
from rorqual.core.lock import Closable
from rorqual.core.records import write_atomic
from rorqual.engine.remote.engine import RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request

SYNC_SECONDS = 5.0
IN_A_ROW = 32
"""Number of consecutive requests rejected by the server after which the evaluation stops."""
Progress = Callable[[int, int], None]
SamplePlace = tuple[int, int]
"""(Index of a request, index of a sample of that request)."""


class LocalGenerator(Protocol):
    """A generator that calls `arrived` with the index of the request, the index of the sample and the answer, as soon as there is one."""

    def generate(self, requests: Sequence[Request], *, arrived: Callable[[int, int, Completion], None]) -> object: ...


class AnswerCache(Closable):
    """A `Generator` that caches answers on disk and generates only the missing answers with `generator`.

    The cache file is `OUT.xxxxxxxx.kept` next to `out`, with one JSON line per sample. Each model has its own cache file,
    because the file name contains a digest of `made`. `made` describes the model: the weights and the arithmetic of an engine,
    or the address and the model name of a server. The cache key of a sample consists of the whole request and the sample's
    index, so a larger evaluation generates only the samples that are not cached. One process at a time may use the cache file.
    If `out` is None, nothing is written.

    A request that the server rejects (HTTP 400, 413, 422) yields a completion with an `error`, and the other requests
    continue. A rejection is raised as an error if the server rejects every request, or if it rejects `IN_A_ROW` consecutive
    requests. `IN_A_ROW` consecutive rejections may mean that the account is out of credit. `refusals` lists the requests that
    the server rejected. Completions with an `error` are not cached, so a later run retries them. Cached completions have text,
    reasoning, finish reason, usage and log-probabilities, but no token ids.

    A server may charge for answers. Therefore each answer of a server is synced to disk before the next answer is added.
    Answers of an engine are flushed to the operating system at once, so these answers survive if this process is killed. For an
    engine, the cache file is synced to disk at most once in `SYNC_SECONDS` seconds.
    """

    def __init__(self, generator: LocalGenerator | RemoteEngine, out: Path | None, made: Mapping[str, Any]) -> None:
        self.generator, self.made = generator, made
        self.refusals: list[RemoteError] = []
        self.answered = 0
        """Number of answers generated in this run. Answers from the cache are not counted."""
        self._asked: set[str] = set()
        self._answers: dict[str, Completion] = {}
        self.path: Path | None = None
        self._journal: Journal | None = None
        if out is not None:
            digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
            self.path = out.with_name(f"{out.name}.{digest[:8]}.kept")
            paid = isinstance(generator, RemoteEngine)
            self._journal = Journal(self.path, patience=0.0 if paid else SYNC_SECONDS)
            try:
                self._load(self._journal)
            except DataError:
                self._journal.close()
                raise

    def _load(self, journal: Journal) -> None:
        for where, _, line in journal.read():
            try:
                self._answers[line["asked"]] = _parse_answer(line["answer"])
            except (KeyError, TypeError, ValueError):
                remedy = "Delete the line; its answer is generated again."
                raise DataError("this line is not a cached answer", where=where, remedy=remedy) from None

    def close(self) -> None:
        """Close the cache file, and delete it if it holds no answers. Folders that were created for the lock file are removed."""
        if self._journal is not None:
            if not self._answers:
                self._journal.path.unlink(missing_ok=True)
            self._journal.close()

    @property
    def count(self) -> int:
        """Number of answers in the cache."""
        return len(self._answers)

    def drop_saved_answers(self) -> None:
        """Drop the answers to this run's requests from the cache, because the saved
        result contains these answers. Answers to other requests stay in the cache.
        """
        self._answers = {name: answer for name, answer in self._answers.items() if name not in self._asked}
        if self.path is not None and self._answers:
            lines = [_answer_line(name, answer) for name, answer in self._answers.items()]
            with suppress(RorqualError):  # on a full disk the file keeps lines that are no longer needed
                write_atomic(self.path, map(json_line, lines))

    def generate(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[list[Completion]]:
        """Return the `n` samples of each request. Only samples that are not in the cache are generated."""
        names = {
            (number, sample): _cache_key(request, sample)
            for number, request in enumerate(requests)
            for sample in range(request.params.n)
        }
        self._asked |= set(names.values())
        found = {place: self._answers[name] for place, name in names.items() if name in self._answers}

        def add_answer(number: int, sample: int, completion: Completion) -> None:
            if not completion.error:
                self.answered += 1
                name = names[number, sample]
                if name not in self._answers:
                    self._answers[name] = completion
                    if self._journal is not None:
                        self._journal.append([_answer_line(name, completion)])
            found[number, sample] = completion
            if progress is not None:
                progress(len(found), len(names))

        if progress is not None and found:
            progress(len(found), len(names))
        missing = {place: name for place, name in names.items() if place not in found}
        if isinstance(self.generator, RemoteEngine):
            self._generate_on_server(self.generator, requests, list(missing), add_answer)
            if self.refusals and not self.answered and all(completion.error for completion in found.values()):
                raise self.refusals[0]
        elif missing:
            # Generate all samples of a request, because they share one prefill. Samples that are already cached are
            # generated again with the same result.
            numbers = sorted({number for number, _ in missing})
            for number in numbers:
                for sample in range(requests[number].params.n):
                    found.pop((number, sample), None)
            self.generator.generate(
                [requests[number] for number in numbers],
                arrived=lambda place, sample, completion: add_answer(numbers[place], sample, completion),
            )
        return [
            [found[number, sample] for sample in range(request.params.n)] for number, request in enumerate(requests)
        ]

    def _generate_on_server(
        self,
        engine: RemoteEngine,
        requests: Sequence[Request],
        places: Sequence[SamplePlace],
        arrived: Callable[[int, int, Completion], None],
    ) -> None:
        in_a_row = 0

        def store_answer(place: int, completion: Completion) -> None:
            nonlocal in_a_row
            in_a_row = 0
            arrived(*places[place], completion)

        def record_rejection(place: int, error: RemoteError) -> None:
            nonlocal in_a_row
            in_a_row += 1
            self.refusals.append(error)
            if in_a_row == IN_A_ROW:
                raise error
            message = f"the server rejected the request: {error.what}"
            arrived(*places[place], Completion((), [], [], "stop", "", None, error=message))

        engine.collect_completions(
            [(requests[number], sample) for number, sample in places], store_answer, refused=record_rejection
        )


def _cache_key(request: Request, sample: int) -> str:
    """Return the cache key of a sample: a digest of everything that determines the sample. The digest excludes the request's
    number of samples `n`."""
    fields = asdict(replace(request, params=replace(request.params, n=1), embeds=None))
    if request.embeds is not None:
        fields["embeds"] = request.embeds.digest.hex()
    # Fields that older versions lacked are left out where they change nothing, so that older answers are found.
    if not request.adapter:
        del fields["adapter"]
    for message in fields["messages"]:
        del message["in_loss"]
    return hashlib.sha256(json.dumps([fields, sample], sort_keys=True, default=_to_json_value).encode()).hexdigest()


def _to_json_value(value: object) -> object:
    return content_json([value]) if isinstance(value, ContentPart) else str(value)


def _answer_line(name: str, completion: Completion) -> dict[str, Any]:
    answer = {key: getattr(completion, key) for key in ("text", "reasoning", "finish_reason", "usage", "logprobs")}
    return {"asked": name, "answer": answer}


def _parse_answer(answer: Mapping[str, Any]) -> Completion:
    return Completion(
        prompt_ids=(),
        token_ids=[],
        logprobs=answer.get("logprobs", []),
        finish_reason=answer["finish_reason"],
        text=answer["text"],
        reasoning=answer["reasoning"],
        usage=dict(answer["usage"]),
    )
