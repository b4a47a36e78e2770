"""From tokens to an answer: the choices of one request, whole or in pieces, and what they used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rorqual.data.chat import ChatFormat
from rorqual.serve.bridge import Job
from rorqual.serve.errors import ApiError
from rorqual.serve.metrics import Metrics
from rorqual.serve.reading import Piece, Reader, Stops, ToolDelta
from rorqual.serve.wire import Drawn, Score, Scored


@dataclass
class Call:
    """A tool call on its way."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class Choice:
    """One sample on its way. Stop strings are looked for in the answer, not in the reasoning, and not in calls.

    `one_call`: a second call ends it, and is not shown.
    `ends`: tokens that end it and are not shown. `drawn`: its tokens, the one that ended it included; `take` gives those that
    nobody has taken yet. `least`: tokens before which no stop string ends it. `scores`: of its prompt's tokens, from the second one on.
    `mute`: it is over at once, and what is drawn is neither shown nor counted: the prompt alone was asked about.
    """

    reader: Reader
    stops: Stops
    ends: frozenset[int] = frozenset()
    one_call: bool = False
    least: int = 0
    mute: bool = False
    scores: list[Score] = field(default_factory=list)
    reasoning: str = ""
    content: str = ""
    reason: str | None = None
    calls: list[Call] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    _taken: int = 0

    def add(self, drawn: Drawn) -> Piece:
        """The text that one more token brings; after the end, nothing."""
        if self.reason is not None:
            return Piece()
        self.drawn.append(drawn)
        if self.mute:
            self.reason = "length"
            return Piece()
        fresh = Piece() if drawn.token in self.ends else self._cut(self.reader.feed(drawn.token))
        if drawn.reason is not None and not self.stops.hit:
            last = self._cut(self.reader.finish(), last=True)
            fresh = Piece(fresh.reasoning + last.reasoning, fresh.content + last.content, (*fresh.tools, *last.tools))
        self.reason = "stop" if self.stops.hit else drawn.reason
        if self.one_call and any(delta.index for delta in fresh.tools):
            fresh = replace(fresh, tools=tuple(delta for delta in fresh.tools if not delta.index))
            self.reason = "stop"
        for delta in fresh.tools:
            self._call(delta)
        if self.reason == "stop" and self.calls and not self.stops.hit:
            self.reason = "tool_calls"
        self.reasoning += fresh.reasoning
        self.content += fresh.content
        return fresh

    def take(self) -> list[Drawn]:
        """Tokens that came since the last call."""
        if self.mute:
            return []
        fresh, self._taken = self.drawn[self._taken :], len(self.drawn)
        return fresh

    def _cut(self, piece: Piece, *, last: bool = False) -> Piece:
        shown = self.stops.feed(piece.content, last=last, heard=len(self.drawn) > self.least)
        return Piece(piece.reasoning, shown, () if self.stops.hit else piece.tools)

    def _call(self, delta: ToolDelta) -> None:
        while len(self.calls) <= delta.index:
            self.calls.append(Call())
        call = self.calls[delta.index]
        call.id, call.name = delta.id or call.id, delta.name or call.name
        call.arguments += delta.arguments


@dataclass
class Reply:
    """All samples of one request. `pieces` runs the job; afterwards `choices` and `usage()` are whole."""

    job: Job
    chat: ChatFormat
    new_choice: Callable[[], Choice]
    metrics: Metrics
    began: float = field(default_factory=time.monotonic)
    choices: list[Choice] = field(default_factory=list)
    _timed: bool = False

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.choices = [self.new_choice() for _ in range(self.job.samples)]
        self._scores: list[list[Score]] = [[] for _ in self.job.asks]
        owners = [scores for ask, scores in zip(self.job.asks, self._scores) for _ in range(ask.n)]
        for choice, scores in zip(self.choices, owners):
            choice.scores = scores

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
                elif isinstance(event, Scored):
                    self._scores[event.prompt] += event.scores
                else:
                    self._begin()
        except ApiError:
            self.metrics.failed += 1
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.cancelled += not self.done
            raise
        finally:
            # A prompt of which nothing was drawn was not fed, or not to its end: nobody pays for it.
            hit = self._hit()
            self.metrics.used(self.job.tenant, hit, self._fed() - hit, self._drawn())

    async def whole(self) -> None:
        """Run to the end."""
        async for _ in self.pieces():
            pass

    def usage(self) -> dict[str, Any]:
        """Tokens as OpenAI counts them, and the prompt's hits and misses as DeepSeek names them."""
        prompt, completion, hit = self._prompt(), self._drawn(), self._hit()
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": hit},
            "completion_tokens_details": {"reasoning_tokens": sum(map(self._thought, self.choices))},
            "prompt_cache_hit_tokens": hit,
            "prompt_cache_miss_tokens": prompt - hit,
        }

    def _prompt(self) -> int:
        return sum(len(ask.prompt) for ask in self.job.asks)

    def _fed(self) -> int:
        """Tokens of the prompts of which something was drawn."""
        total, before = 0, 0
        for ask in self.job.asks:
            total += len(ask.prompt) * any(choice.drawn for choice in self.choices[before : before + ask.n])
            before += ask.n
        return total

    def _hit(self) -> int:
        """Tokens of the prompts that were not computed. Samples of one prompt share it: the first of them tells."""
        total, before = 0, 0
        for ask in self.job.asks:
            seen = [choice.drawn[0].hit for choice in self.choices[before : before + ask.n] if choice.drawn]
            total += min(seen, default=0)
            before += ask.n
        return total

    def _drawn(self) -> int:
        return sum(len(choice.drawn) for choice in self.choices if not choice.mute)

    def _thought(self, choice: Choice) -> int:
        ids = choice.reader.ids
        stops = self.chat.stop_ids
        return self.chat.n_thought([id_ for id_ in ids if id_ not in stops]) if choice.reader.thought else 0

    def _time(self) -> None:
        if not self._timed:
            self._timed = True
            self.metrics.first_token(time.monotonic() - self.began)
