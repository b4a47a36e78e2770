"""Answers that are written down as they come, so that no kill, and no request that fails, loses those before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.journal import Journal
from rorqual.core.records import write_atomic
from rorqual.engine.engine import Engine
from rorqual.engine.remote import RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request

SYNC_SECONDS = 5.0
IN_A_ROW = 16
Progress = Callable[[int, int], None]
Place = tuple[int, int]
"""The number of a request, and of one of its samples."""


class Kept:
    """A `Generator` that asks `generator` for what is not written down yet.

    Beside `out` stands `OUT.xxxxxxxx.kept` meanwhile, one line of JSON a sample; its name holds a digest of `made`, which says what answers
    (weights, address, arithmetic), so that another model's answers are never taken. A request is known by all that it asks: more
    problems, or more samples of each, ask for the further ones alone. One process at a time. `out` None: nothing is written.

    What a server refuses for what it asks (HTTP 400, 413, 422) is a completion with an `error`, and the others go on; where it refuses all that
    is asked, or `IN_A_ROW` one after another, its error is raised: the money may be spent. `refusals` are what it said. No completion with an
    `error` is kept. Completions have the text, its reasoning, why it ended and the usage, no token ids.
    """

    def __init__(self, generator: Engine | RemoteEngine, out: Path | None, made: Mapping[str, Any]) -> None:
        self.generator = generator
        self.path: Path | None = None
        self.refusals: list[RemoteError] = []
        self.answered = 0
        """Answers that came, apart from those that were there."""
        self._journal: Journal | None = None
        self._known: dict[str, Completion] = {}
        self._asked: set[str] = set()
        if out is None:
            return
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        self.path = out.with_name(f"{out.name}.{digest[:8]}.kept")
        self._new_folder = not out.parent.exists()
        paid = isinstance(
            generator, RemoteEngine
        )  # so that each is on the disk before the next comes, however full that is
        self._journal = Journal(self.path, spare=paid, patience=0.0 if paid else SYNC_SECONDS)
        for number, line in enumerate(self._journal.lines, start=1):
            try:
                self._known[line["asked"]] = _read(line["answer"])
            except (KeyError, TypeError, ValueError):
                self._journal.close()
                raise DataError(
                    "not a kept answer",
                    where=f"{self.path}:{number}",
                    remedy="Delete that line; what it held is asked for again.",
                ) from None

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._journal is None or self.path is None:
            return
        if not self._known:
            self.path.unlink(missing_ok=True)
        self._journal.close()
        if self._new_folder and not self._known:
            with suppress(OSError):  # somebody has put something there
                self.path.parent.rmdir()

    @property
    def count(self) -> int:
        """Answers that are kept."""
        return len(self._known)

    def forget(self) -> None:
        """What was asked for stands elsewhere now: only answers to other questions stay, of an evaluation that broke off."""
        self._known = {name: answer for name, answer in self._known.items() if name not in self._asked}
        if self.path is not None and self._known:
            lines = [json.dumps(_line(name, answer), separators=(",", ":")) for name, answer in self._known.items()]
            write_atomic(self.path, "\n".join([*lines, ""]).encode())

    def generate(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[list[Completion]]:
        """For each request its `n` samples, of which only those are generated that are not kept yet."""
        names = {
            (number, sample): _name(request, sample)
            for number, request in enumerate(requests)
            for sample in range(request.params.n)
        }
        self._asked |= set(names.values())
        found = {place: self._known[name] for place, name in names.items() if name in self._known}

        def arrived(number: int, sample: int, completion: Completion) -> None:
            self._keep(names[number, sample], completion)
            found[number, sample] = completion
            if progress is not None:
                progress(len(found), len(names))

        if progress is not None and found:
            progress(len(found), len(names))
        missing = [place for place in names if place not in found]
        if isinstance(self.generator, RemoteEngine):
            self._ask_address(self.generator, requests, missing, arrived)
        elif missing:
            # A request's samples share its prompt, and asked again they are the same.
            numbers = sorted({number for number, _ in missing})
            for number in numbers:
                for sample in range(requests[number].params.n):
                    found.pop((number, sample), None)
            self.generator.generate(
                [requests[number] for number in numbers],
                arrived=lambda place, sample, completion: arrived(numbers[place], sample, completion),
            )
        return [
            [found[number, sample] for sample in range(request.params.n)] for number, request in enumerate(requests)
        ]

    def _ask_address(
        self,
        engine: RemoteEngine,
        requests: Sequence[Request],
        missing: Sequence[Place],
        arrived: Callable[[int, int, Completion], None],
    ) -> None:
        in_a_row = 0

        def answer(place: int, completion: Completion) -> None:
            nonlocal in_a_row
            in_a_row = 0
            arrived(*missing[place], completion)

        def refused(place: int, error: RemoteError) -> None:
            nonlocal in_a_row
            in_a_row += 1
            self.refusals.append(error)
            if in_a_row == IN_A_ROW:
                raise error
            said = f"the server refused it: {error.what}"
            arrived(*missing[place], Completion((), [], [], "stop", "", None, error=said))

        engine.collect([(requests[number], sample) for number, sample in missing], answer, refused=refused)
        if missing and in_a_row == len(missing):
            raise self.refusals[0]

    def _keep(self, name: str, completion: Completion) -> None:
        if completion.error:
            return
        self.answered += 1
        if self._journal is None or name in self._known:
            return
        self._known[name] = completion  # a full disk has it all the same, and then says that it is full
        self._journal.append([_line(name, completion)])


def _name(request: Request, sample: int) -> str:
    """A digest of all that decides a sample. How many others are drawn is not among it."""
    asked = asdict(replace(request, params=replace(request.params, n=1)))
    return hashlib.sha256(json.dumps([asked, sample], sort_keys=True, default=str).encode()).hexdigest()


def _line(name: str, completion: Completion) -> dict[str, Any]:
    kept = {key: getattr(completion, key) for key in ("text", "reasoning", "finish_reason", "usage")}
    return {"asked": name, "answer": kept}


def _read(answer: Mapping[str, Any]) -> Completion:
    return Completion(
        prompt_ids=(),
        token_ids=[],
        logprobs=[],
        finish_reason=answer["finish_reason"],
        text=answer["text"],
        reasoning=answer["reasoning"],
        usage=dict(answer["usage"]),
    )
