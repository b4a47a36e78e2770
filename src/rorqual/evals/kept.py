"""Answers that are written down as they come, so that no kill, and no request that fails, loses those before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rorqual.core.errors import DataError, RorqualError
from rorqual.core.journal import DiskFull, Journal
from rorqual.core.parts import ContentPart, content_json
from rorqual.core.records import write_atomic
from rorqual.engine.engine import Engine
from rorqual.engine.remote.engine import RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request

SYNC_SECONDS = 5.0
IN_A_ROW = 32
Progress = Callable[[int, int], None]
Place = tuple[int, int]
"""The number of a request, and of one of its samples."""


class Kept:
    """A `Generator` that asks `generator` for what is not written down yet.

    Beside `out` stands `OUT.xxxxxxxx.kept` meanwhile, one line of JSON a sample; its name holds a digest of `made`, which says what answers
    (weights and arithmetic, or an address and the name of a model there), so that what answers otherwise has another file. A request is
    known by all that it asks: more problems, or more samples of each, ask for the further ones alone. One process at a time. `out` None:
    nothing is written.

    What a server refuses for what it asks (HTTP 400, 413, 422) is a completion with an `error`, and the others go on. Where it refuses
    everything, or `IN_A_ROW` one after another that it had not refused before, its error is raised: perhaps the money is spent. `refusals`
    are what it said; they are asked again after all others. No completion with an `error` is kept. Completions have the text, its
    reasoning, why it ended and the usage, no token ids.
    """

    def __init__(self, generator: Engine | RemoteEngine, out: Path | None, made: Mapping[str, Any]) -> None:
        self.generator = generator
        self.refusals: list[RemoteError] = []
        self.answered = 0
        """Answers that came, apart from those that were there."""
        self._asked: set[str] = set()
        self.path: Path | None = None
        if out is not None:
            digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
            self.path = out.with_name(f"{out.name}.{digest[:8]}.kept")
        self._file = _File(self.path, paid=isinstance(generator, RemoteEngine))

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def count(self) -> int:
        """Answers that are there."""
        return len(self._file.answers)

    def forget(self) -> None:
        """What was asked for stands elsewhere now: only answers to other questions stay, of an evaluation that broke off."""
        self._file.drop(self._asked)

    def generate(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[list[Completion]]:
        """For each request its `n` samples, of which only those are generated that are not kept yet."""
        names = {
            (number, sample): _name(request, sample)
            for number, request in enumerate(requests)
            for sample in range(request.params.n)
        }
        self._asked |= set(names.values())
        known = self._file.answers
        found = {place: known[name] for place, name in names.items() if name in known}

        def arrived(number: int, sample: int, completion: Completion) -> None:
            if not completion.error:
                self.answered += 1
                self._file.add(names[number, sample], completion)
            found[number, sample] = completion
            if progress is not None:
                progress(len(found), len(names))

        if progress is not None and found:
            progress(len(found), len(names))
        missing = {place: name for place, name in names.items() if place not in found}
        if isinstance(self.generator, RemoteEngine):
            self._ask_address(self.generator, requests, missing, arrived)
            if self.refusals and all(completion.error for completion in found.values()):
                raise self.refusals[0]
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
        missing: Mapping[Place, str],
        arrived: Callable[[int, int, Completion], None],
    ) -> None:
        before = frozenset(self._file.refused)
        order = sorted(missing, key=lambda place: missing[place] in before)  # what was refused before comes last
        in_a_row = 0

        def answer(place: int, completion: Completion) -> None:
            nonlocal in_a_row
            in_a_row = 0
            arrived(*order[place], completion)

        def refused(place: int, error: RemoteError) -> None:
            nonlocal in_a_row
            name = missing[order[place]]
            in_a_row += name not in before
            self.refusals.append(error)
            self._file.refuse(name)
            if in_a_row == IN_A_ROW:
                raise error
            said = f"the server refused it: {error.what}"
            arrived(*order[place], Completion((), [], [], "stop", "", None, error=said))

        engine.collect([(requests[number], sample) for number, sample in order], answer, refused=refused)


class _File:
    """Answers, and the names of requests that were refused; in memory alone where `path` is None. `paid`: each is on the disk before the next
    comes, however full that is; else in the system's hands, which a kill of this process does not reach."""

    def __init__(self, path: Path | None, *, paid: bool) -> None:
        self.path = path
        self.answers: dict[str, Completion] = {}
        self.refused: set[str] = set()
        self._journal: Journal | None = None
        self._new: list[Path] = []
        if path is None:
            return
        self._new = [folder for folder in path.absolute().parents if not folder.exists()]
        self._journal = Journal(path, spare=paid, patience=0.0 if paid else SYNC_SECONDS)
        for number, line in enumerate(self._journal.lines, start=1):
            try:
                if "refused" in line:
                    self.refused.add(line["refused"])
                else:
                    self.answers[line["asked"]] = _read(line["answer"])
            except (KeyError, TypeError, ValueError):
                self._journal.close()
                raise DataError(
                    "not a kept answer",
                    where=f"{path}:{number}",
                    remedy="Delete that line; what it held is asked for again.",
                ) from None

    def add(self, name: str, completion: Completion) -> None:
        """Write an answer down."""
        if name not in self.answers:
            try:
                self._append(_line(name, completion))
            except DiskFull:  # it took this one all the same
                self.answers[name] = completion
                raise
            self.answers[name] = completion

    def refuse(self, name: str) -> None:
        """Write down that there was none."""
        if name not in self.refused:
            self._append({"refused": name})
            self.refused.add(name)

    def drop(self, names: Collection[str]) -> None:
        """Leave only what is not among `names`."""
        self.answers = {name: answer for name, answer in self.answers.items() if name not in names}
        self.refused -= set(names)
        if self.path is not None and not self._empty:
            lines = [*(_line(name, answer) for name, answer in self.answers.items())]
            lines += [{"refused": name} for name in sorted(self.refused)]
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
            with suppress(RorqualError):  # a full disk: then there is more in it than need be
                write_atomic(self.path, text.encode())

    def close(self) -> None:
        """Let another process have it, if there is anything in it."""
        if self._journal is None or self.path is None:
            return
        if self._empty:
            self.path.unlink(missing_ok=True)
        self._journal.close()
        if self._empty:
            with suppress(OSError):  # somebody has put something there
                for folder in self._new:
                    folder.rmdir()

    @property
    def _empty(self) -> bool:
        return not self.answers and not self.refused

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._journal is not None:
            self._journal.append([line])


def _name(request: Request, sample: int) -> str:
    """A digest of all that decides a sample. How many others are drawn is not among it."""
    asked = asdict(replace(request, params=replace(request.params, n=1), embeds=None))
    del asked["embeds"]  # it is not among what older files name
    if request.embeds is not None:
        asked["embeds"] = request.embeds.digest.hex()
    return hashlib.sha256(json.dumps([asked, sample], sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: object) -> object:
    return content_json([value]) if isinstance(value, ContentPart) else str(value)


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
