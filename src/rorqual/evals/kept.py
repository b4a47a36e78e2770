"""Answers that are written down as they come, so that no kill, and no request that fails, loses those before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rorqual.core.errors import DataError
from rorqual.core.journal import Journal
from rorqual.engine.engine import Engine
from rorqual.engine.remote import RemoteEngine, RemoteError
from rorqual.engine.request import Completion, Request

SYNC_SECONDS = 5.0
Progress = Callable[[int, int], None]
Place = tuple[int, int]
"""The number of a request, and of one of its samples."""


class Kept:
    """A `Generator` that asks `generator` for what is not written down yet.

    Beside `out` stands `OUT.xxxxxxxx.kept` meanwhile, one line of JSON a sample; its name holds a digest of `made`, which says what answers
    (weights, address, arithmetic), so that another model's answers are never taken. A request is known by what it asks: more
    problems, or more samples of each, ask for the further ones alone. `out` None: nothing is written.

    What a server refuses for what it asks (HTTP 400, 413, 422) is a completion with an `error`, and the others go on; where it refuses
    everything, that error is raised. Completions have the text, its reasoning, why it ended and the usage, no token ids.
    """

    def __init__(self, generator: Engine | RemoteEngine, out: Path | None, made: Mapping[str, Any]) -> None:
        self.generator = generator
        self.path: Path | None = None
        self._journal: Journal | None = None
        self._known: dict[str, Completion] = {}
        if out is None:
            return
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        self.path = out.with_name(f"{out.name}.{digest[:8]}.kept")
        if not self.path.exists():
            return
        self._journal = self._open(self.path)
        for number, line in enumerate(self._journal.lines, start=1):
            try:
                self._known[line["asked"]] = _read(line["answer"])
            except (KeyError, TypeError):
                self._journal.close()
                raise DataError(
                    "not a kept answer",
                    where=f"{self.path}:{number}",
                    remedy="Delete that line; what it held is asked for again.",
                ) from None

    def _open(self, path: Path) -> Journal:
        # What was paid for is on the disk before the next is; what a model of one's own says can be said again.
        return Journal(path, patience=0.0 if isinstance(self.generator, RemoteEngine) else SYNC_SECONDS)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._journal is not None:
            self._journal.close()

    @property
    def count(self) -> int:
        """Answers that are kept."""
        return len(self._known)

    def forget(self) -> None:
        """Remove the file: what it held stands elsewhere now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def generate(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[list[Completion]]:
        """For each request its `n` samples, of which only those are generated that are not kept yet."""
        names = {
            (number, sample): _name(request, sample)
            for number, request in enumerate(requests)
            for sample in range(request.params.n)
        }
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
        refusals: list[RemoteError] = []

        def refused(place: int, error: RemoteError) -> None:
            refusals.append(error)
            said = f"the server refused it: {error.what}"
            arrived(*missing[place], Completion((), [], [], "stop", "", None, error=said))

        engine.collect(
            [(requests[number], sample) for number, sample in missing],
            lambda place, completion: arrived(*missing[place], completion),
            refused=refused,
        )
        if refusals and len(refusals) == sum(request.params.n for request in requests):
            raise refusals[0]

    def _keep(self, name: str, completion: Completion) -> None:
        if self.path is None or completion.error or name in self._known:
            return
        if self._journal is None:
            self._journal = self._open(self.path)
        self._journal.append([{"asked": name, "answer": _written(completion)}])
        self._known[name] = completion


def _name(request: Request, sample: int) -> str:
    """A digest of all that decides a sample. How many others are drawn is not among it."""
    asked = asdict(replace(request, params=replace(request.params, n=1)))
    return hashlib.sha256(json.dumps([asked, sample], sort_keys=True, default=str).encode()).hexdigest()


def _written(completion: Completion) -> dict[str, Any]:
    usage = {"completion_tokens": len(completion.token_ids)} | completion.usage
    return {
        "text": completion.text,
        "reasoning": completion.reasoning,
        "finish_reason": completion.finish_reason,
        "usage": usage,
    }


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
