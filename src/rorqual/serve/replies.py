"""Conversion of generated tokens into replies: the choices of a request, complete or streamed, and the request's token
usage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rorqual.core.records import ToolCall
from rorqual.data.chat import ChatFormat
from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.chat.stream import ReplyDelta, ReplyReader, ToolDelta
from rorqual.serve.bridge import ServerJob
from rorqual.serve.errors import ApiError
from rorqual.serve.metrics import ServerMetrics
from rorqual.serve.wire import RolloutRecord, SampledToken, Score, ScoredPrompt

SILENT = 256
"""After `SILENT` tokens without new text, parsing may be slow, so the next token is parsed outside of the event loop."""


@dataclass
class Choice:
    """A sample that is being generated. Stop strings apply only to the answer, not to reasoning and tool calls.

    - `ends`: ids of stop tokens, whose text is left out of the reply.
    - `one_call`: end the sample before a second tool call.
    - `least`: minimum number of tokens before a stop string takes effect.
    - `mute`: the client wants only the prompt. With `mute`, the first generated token ends the sample and is neither
      returned nor billed.
    - `tell`: collect generated tokens in `pending_logprobs` until `take_pending_logprobs` returns the tokens.
    - `scores`: log-probabilities of the prompt's tokens, starting with the second token.
    - `recorded`: data that a rollout returns in addition to its tokens.
    - `n_sampled`: number of generated tokens, including the token that ended the sample.
    - `logprob`: sum of the log-probabilities of the generated tokens.
    - `hit`: number of prompt tokens from the prefix cache.
    """

    reader: ReplyReader
    stops: StopStringMatcher
    ends: frozenset[int] = frozenset()
    one_call: bool = False
    least: int = 0
    mute: bool = False
    tell: bool = False
    scores: list[Score] = field(default_factory=list)
    reason: str | None = None
    calls: list[ToolCall] = field(default_factory=list)
    pending_logprobs: list[SampledToken] = field(default_factory=list)
    recorded: RolloutRecord | None = None
    n_sampled: int = 0
    logprob: float = 0.0
    hit: int = 0
    _reasoning: list[str] = field(default_factory=list)
    _content: list[str] = field(default_factory=list)
    _n_without_text: int = 0

    @property
    def reasoning(self) -> str:
        """The reasoning text so far."""
        return "".join(self._reasoning)

    @property
    def content(self) -> str:
        """The answer text so far."""
        return "".join(self._content)

    @property
    def may_be_slow_to_parse(self) -> bool:
        """Whether the next token may be slow to parse, because many tokens are not decoded to text yet, as in a long tool call."""
        return self._n_without_text > SILENT

    def count_token(self, sampled: SampledToken) -> None:
        """Count a generated token for billing. Tokens after the sample's end are ignored."""
        if self.reason is None:
            self.hit = self.hit if self.n_sampled else sampled.hit
            self.n_sampled += 1
            self.logprob += sampled.logprob

    def add_token(self, sampled: SampledToken) -> ReplyDelta:
        """Add a generated token and return the new text. For a token after the sample's end, the returned text is empty."""
        if self.reason is not None:
            return ReplyDelta()
        self.count_token(sampled)
        if self.mute:
            self.reason = "length"
            return ReplyDelta()
        if self.tell:
            self.pending_logprobs.append(sampled)
        fresh = (
            ReplyDelta() if sampled.token in self.ends else self._cut_at_stop_string(self.reader.feed(sampled.token))
        )
        if sampled.reason is not None and not self.stops.hit:
            last = self._cut_at_stop_string(self.reader.finish(), last=True)
            fresh = ReplyDelta(
                fresh.reasoning + last.reasoning, fresh.content + last.content, (*fresh.tools, *last.tools)
            )
        self.reason = "stop" if self.stops.hit else sampled.reason
        if self.one_call and any(delta.index for delta in fresh.tools):
            fresh = replace(fresh, tools=tuple(delta for delta in fresh.tools if not delta.index))
            self.reason = "stop"
        for delta in fresh.tools:
            self._add_tool_call_delta(delta)
        if self.reason == "stop" and self.calls and not self.stops.hit:
            self.reason = "tool_calls"
        self._reasoning += [fresh.reasoning] if fresh.reasoning else []
        self._content += [fresh.content] if fresh.content else []
        self._n_without_text = 0 if fresh else self._n_without_text + 1
        return fresh

    def take_pending_logprobs(self) -> list[SampledToken]:
        """Return the tokens that were added since the last call of this method. Callers send the tokens'
        log-probabilities."""
        fresh, self.pending_logprobs = self.pending_logprobs, []
        return fresh

    def _cut_at_stop_string(self, piece: ReplyDelta, *, last: bool = False) -> ReplyDelta:
        shown = self.stops.feed(piece.content, last=last, heard=self.n_sampled > self.least)
        return ReplyDelta(piece.reasoning, shown, () if self.stops.hit else piece.tools)

    def _add_tool_call_delta(self, delta: ToolDelta) -> None:
        while len(self.calls) <= delta.index:
            self.calls.append(ToolCall("", "", ""))
        call = self.calls[delta.index]
        arguments = call.arguments + delta.arguments
        self.calls[delta.index] = ToolCall(delta.id or call.id, delta.name or call.name, arguments)


@dataclass
class Reply:
    """The samples of a request. After `stream_pieces` has ended, `choices` and `usage()` are complete.

    `run_in_thread`: a function that runs slow work outside of the event loop.
    """

    job: ServerJob
    chat: ChatFormat
    new_choice: Callable[[], Choice]
    metrics: ServerMetrics
    run_in_thread: Callable[[Callable[[], ReplyDelta]], Awaitable[ReplyDelta]] | None = None
    began: float = field(default_factory=time.monotonic)
    choices: list[Choice] = field(default_factory=list)
    _is_timed: bool = False

    def __post_init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.choices = [self.new_choice() for _ in range(self.job.n_samples)]
        self._scores: list[list[Score]] = [[] for _ in self.job.asks]
        owners = [scores for ask, scores in zip(self.job.asks, self._scores) for _ in range(ask.n)]
        for choice, scores in zip(self.choices, owners):
            choice.scores = scores

    @property
    def all_samples_done(self) -> bool:
        """Whether all samples are finished."""
        return all(choice.reason is not None for choice in self.choices)

    async def _add_token(self, choice: Choice, sampled: SampledToken) -> ReplyDelta:
        add = partial(choice.add_token, sampled)
        return (
            await self.run_in_thread(add) if self.run_in_thread is not None and choice.may_be_slow_to_parse else add()
        )

    async def stream_pieces(
        self, keep_alive: float | None = None
    ) -> AsyncGenerator[tuple[int, ReplyDelta] | None, None]:
        """Yield (sample number, new text) as tokens arrive.

        None is yielded after `keep_alive` seconds without new text. The choice's finish reason is set before the last piece
        of a sample is yielded. The last piece may be empty. The event loop can run other tasks after each token.
        """
        written = time.monotonic()
        try:
            while not self.all_samples_done:
                event = await self.job.next_event(keep_alive)
                if event is None:
                    yield None
                    written = time.monotonic()
                elif isinstance(event, SampledToken):
                    self._time_first_token()
                    choice = self.choices[event.sample]
                    was_done = choice.reason is not None
                    piece = await self._add_token(choice, event)
                    if piece or (choice.reason is not None and not was_done):
                        yield event.sample, piece
                        written = time.monotonic()
                    elif keep_alive is not None and time.monotonic() - written >= keep_alive:
                        yield None  # tokens arrive, but have no text yet
                        written = time.monotonic()
                    await asyncio.sleep(0)
                elif isinstance(event, RolloutRecord):
                    self.choices[event.sample].recorded = event
                elif isinstance(event, ScoredPrompt):
                    self._scores[event.prompt] += event.scores
                else:
                    self._reset()
        except ApiError as error:
            self.metrics.failed += error.status >= 500
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.cancelled += not self.all_samples_done
            raise
        finally:
            self._count_queued_tokens()
            # A prompt without a generated token is not billed, because its prefill may be incomplete.
            hit = self._n_cached_prompt_tokens()
            self.metrics.count_tokens(
                self.job.tenant, hit, self._n_prefilled_tokens() - hit, self._n_generated_tokens()
            )

    def _count_queued_tokens(self) -> None:
        """Count the tokens that are still in the queue, because all tokens that the engine generated are billed."""
        while not self.job.events.empty():
            if isinstance(event := self.job.events.get_nowait(), SampledToken):
                self.choices[event.sample].count_token(event)

    async def run_to_end(self) -> None:
        """Run the request until all samples are finished."""
        async for _ in self.stream_pieces():
            pass

    def usage(self) -> dict[str, Any]:
        """Return the request's token counts with OpenAI's field names, and its prefix-cache hits and misses with DeepSeek's
        field names."""
        prompt, completion, hit = self._n_prompt_tokens(), self._n_generated_tokens(), self._n_cached_prompt_tokens()
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": hit},
            "completion_tokens_details": {"reasoning_tokens": sum(map(self._n_reasoning_tokens, self.choices))},
            "prompt_cache_hit_tokens": hit,
            "prompt_cache_miss_tokens": prompt - hit,
        }

    def _n_prompt_tokens(self) -> int:
        return sum(ask.prompt_tokens for ask in self.job.asks)

    def _samples_by_prompt(self) -> Iterator[tuple[int, list[Choice]]]:
        """Yield (number of prompt tokens, samples with at least one generated token) for each prompt."""
        before = 0
        for ask in self.job.asks:
            yield ask.prompt_tokens, [choice for choice in self.choices[before : before + ask.n] if choice.n_sampled]
            before += ask.n

    def _n_prefilled_tokens(self) -> int:
        """Return the total number of tokens of the prompts for which a token was generated."""
        return sum(tokens for tokens, started in self._samples_by_prompt() if started)

    def _n_cached_prompt_tokens(self) -> int:
        """Return the number of prompt tokens from the prefix cache.

        Later samples of a prompt reuse the cached prompt of the first sample. Therefore the number of cached tokens of a
        prompt is the smallest number among the prompt's samples.
        """
        return sum(min((choice.hit for choice in started), default=0) for _, started in self._samples_by_prompt())

    def _n_generated_tokens(self) -> int:
        return sum(choice.n_sampled for choice in self.choices if not choice.mute)

    def _n_reasoning_tokens(self, choice: Choice) -> int:
        ids = choice.reader.ids
        stops = self.chat.stop_ids
        return (
            self.chat.n_thinking_tokens([id_ for id_ in ids if id_ not in stops]) if choice.reader.has_reasoning else 0
        )

    def _time_first_token(self) -> None:
        if not self._is_timed:
            self._is_timed = True
            self.metrics.record_first_token(time.monotonic() - self.began)
