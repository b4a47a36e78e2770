"""From tokens to an answer: the choices of one request, whole or in pieces, and what they used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from rorqual.data.chat import ChatFormat
from rorqual.serve.bridge import Job
from rorqual.serve.metrics import Metrics
from rorqual.serve.reading import Piece, Reader, Stops
from rorqual.serve.wire import Drawn

Reason = Literal["stop", "length"]


@dataclass
class Choice:
    """One sample on its way. Stop strings are looked for in the answer, not in the reasoning."""

    reader: Reader
    stops: Stops
    reasoning: str = ""
    content: str = ""
    reason: str | None = None

    def add(self, drawn: Drawn) -> Piece:
        """The text that one more token brings; after the end, nothing."""
        if self.reason is not None:
            return Piece()
        fresh = self._cut(self.reader.feed(drawn.token))
        if drawn.reason is not None and not self.stops.hit:
            last = self._cut(self.reader.finish(), last=True)
            fresh = Piece(fresh.reasoning + last.reasoning, fresh.content + last.content)
        self.reason = "stop" if self.stops.hit else drawn.reason
        self.reasoning += fresh.reasoning
        self.content += fresh.content
        return fresh

    def _cut(self, piece: Piece, *, last: bool = False) -> Piece:
        return Piece(piece.reasoning, self.stops.feed(piece.content, last=last))


@dataclass
class Reply:
    """All samples of one request. `pieces` runs the job; afterwards `choices` and `usage()` are whole."""

    job: Job
    chat: ChatFormat
    new_reader: Callable[[], Reader]
    stops: list[str]
    metrics: Metrics
    began: float = field(default_factory=time.monotonic)
    choices: list[Choice] = field(default_factory=list)
    _timed: bool = False

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.choices = [Choice(self.new_reader(), Stops(self.stops)) for _ in range(self.job.ask.n)]

    @property
    def done(self) -> bool:
        return all(choice.reason is not None for choice in self.choices)

    async def pieces(self, keep_alive: float | None = None) -> AsyncGenerator[tuple[int, Piece] | None, None]:
        """(number of the sample, new text) as it comes; None where nothing came for `keep_alive` seconds.

        The last piece of a sample comes when its choice has a reason, and may be empty. Between two pieces other requests get their turn.
        """
        try:
            while not self.done:
                event = await self.job.next(keep_alive)
                if event is None:
                    yield None
                elif isinstance(event, Drawn):
                    self._time()
                    choice = self.choices[event.sample]
                    over = choice.reason is not None
                    piece = choice.add(event)
                    if piece or (choice.reason is not None and not over):
                        yield event.sample, piece
                    await asyncio.sleep(0)
                else:
                    self._begin()
        finally:
            self.metrics.used(self.job.tenant, len(self.job.ask.prompt), self._drawn())
            self.metrics.cancelled += not self.done

    async def whole(self) -> None:
        """Run to the end."""
        async for _ in self.pieces():
            pass

    def usage(self) -> dict[str, Any]:
        """Tokens as OpenAI counts them, and the prompt's hits and misses as DeepSeek names them. There is no prefix cache yet."""
        prompt, completion = len(self.job.ask.prompt), self._drawn()
        hit = 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": hit},
            "completion_tokens_details": {"reasoning_tokens": sum(map(self._thought, self.choices))},
            "prompt_cache_hit_tokens": hit,
            "prompt_cache_miss_tokens": prompt - hit,
        }

    def _drawn(self) -> int:
        return sum(len(choice.reader.ids) for choice in self.choices)

    def _thought(self, choice: Choice) -> int:
        ids = choice.reader.ids
        stops = self.chat.stop_ids
        return self.chat.n_thought([id_ for id_ in ids if id_ not in stops]) if choice.reader.thought else 0

    def _time(self) -> None:
        if not self._timed:
            self._timed = True
            self.metrics.first_token(time.monotonic() - self.began)
