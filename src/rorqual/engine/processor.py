"""Validate requests, encode requests as sequences, and decode finished sequences into completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral

from rorqual.core.content_parts import TextPart
from rorqual.core.errors import DataError, RorqualError
from rorqual.core.records import Message, Thinking
from rorqual.core.sampling import check_params
from rorqual.data.chat import ChatFormat
from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.tokenizer import SpecialToken, Tokenizer
from rorqual.engine.core import FinishedSequence
from rorqual.engine.embeds import Embeds
from rorqual.engine.grammar.calculator import CalculatorConstraint
from rorqual.engine.grammar.calls import CallSyntax
from rorqual.engine.grammar.compiler import CompiledGrammar, GrammarCompiler
from rorqual.engine.grammar.constraint import Constraint, ConstraintAfterThinking, ReasoningFormat, Unconstrained
from rorqual.engine.prompt_scores import PromptScores
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.engine.seeds import sample_key
from rorqual.engine.sequence import Sequence as Sample
from rorqual.engine.stop_string_test import StopStringTest

Prompt = str | Sequence[int] | Sequence[Message]
"""A prompt in one of three forms: the text of a user message, token ids, or a conversation."""


def request_of(prompt: Request | Prompt, params: SamplingParams, number: int) -> Request:
    """Convert the prompt with the index `number` to a request with the seed `params.seed + number`.

    If `prompt` is a `Request`, `request_of` returns `prompt` unchanged.
    """
    if isinstance(prompt, Request):
        return prompt
    params = replace(params, seed=params.seed + number)
    if isinstance(prompt, str):
        return Request((Message("user", prompt),), params)
    if not isinstance(prompt, tuple | list):
        raise DataError(
            f"prompt {number} is a {type(prompt).__name__}",
            where="engine.generate",
            remedy="Pass a list of prompts: each a string, a list of Message, a list of token ids, or a Request.",
        )
    if all(isinstance(part, Integral) for part in prompt):
        return Request(params=params, prompt_ids=tuple(prompt))  # type: ignore[arg-type]
    return Request(tuple(prompt), params)  # type: ignore[arg-type]


def _sample_error(finished: FinishedSequence) -> str:
    """Return the reason why a finished sample is invalid, or "" if the sample is valid."""
    sequence = finished.sequence
    if finished.has_non_finite:
        return f"the model computed a NaN or infinite logit, for a prompt of {len(sequence.prompt)} tokens"
    return "" if sequence.constraint is None else sequence.constraint.error


@dataclass
class ValidatedRequest:
    """A validated request with its prompt ids and its compiled grammar."""

    request: Request
    prompt: tuple[int, ...]
    thinking: Thinking
    compiled: CompiledGrammar | None = None
    plain: bool = False
    """Whether the grammar applies to the whole reply, also if the chat format has thinking."""


def _non_text_part_names(messages: Sequence[Message]) -> str:
    """Return the plural names of the non-text parts in the messages, such as "images". Token ids cannot represent the non-text
    parts of messages."""
    parts = (part for message in messages if not isinstance(message.content, str) for part in message.content)
    return ", ".join(sorted({part.plural for part in parts if not isinstance(part, TextPart)}))


@dataclass
class RequestProcessor:
    """Converts requests to sequences, and finished sequences to completions."""

    vocab_size: int
    hidden_size: int
    max_len: int
    """Maximum number of tokens in a sequence, prompt and reply together."""
    room: int
    """Number of token positions that fit in the KV cache."""
    tokenizer: Tokenizer
    chat: ChatFormat
    reuse: bool
    """Whether the engine has a prefix cache."""
    adapters: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each loaded adapter by name."""

    def validate_request(
        self, request: Request, where: str, compiled: CompiledGrammar | None = None
    ) -> ValidatedRequest:
        """Validate a request, encode its prompt and compile its grammar, if `compiled` is not its compiled grammar.

        Raises a RorqualError if the request cannot run. The `where` of the RorqualError starts with the argument `where`.
        """
        try:
            return self._validate_request(request, where, compiled)
        except RorqualError as error:
            if error.where.startswith(where):
                raise
            place = f"{where}, {error.where}" if error.where else where
            raise type(error)(error.what, where=place, remedy=error.remedy) from None

    def _validate_request(self, request: Request, where: str, compiled: CompiledGrammar | None) -> ValidatedRequest:
        params, vocab = request.params, self.vocab_size
        check_params(params, vocab_size=vocab, where=where)
        prompt_ids = request.prompt_ids
        prompt = (
            tuple(self.chat.prompt(request.messages, request.thinking)) if prompt_ids is None else tuple(prompt_ids)
        )
        if not prompt or not all(
            isinstance(token, Integral) and type(token) is not bool and 0 <= token < vocab for token in prompt
        ):
            what = "the prompt has a token id outside the vocabulary" if prompt else "the prompt is empty"
            raise DataError(what, where=where, remedy=f"Give token ids from 0 to {vocab - 1}.")
        if prompt_ids is None and request.embeds is None and (non_text := _non_text_part_names(request.messages)):
            raise DataError(
                f"the messages contain {non_text}, but the request has no embeddings for these parts",
                where=where,
                remedy="Set `embeds`, or remove the non-text parts. Without embeddings, the model sees only placeholder "
                "tokens.",
            )
        if request.adapter and request.adapter not in self.adapters:
            raise DataError(
                f"adapter '{request.adapter}' is not loaded",
                where=f"{where}, adapter",
                remedy="Load it with `Engine.load_adapter`.",  # no names: another tenant may own them
            )
        if request.embeds is not None:
            self._check_embeds(request.embeds, len(prompt), where)
        if len(prompt) >= self.max_len:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, but prompt and reply must fit the context of {self.max_len} tokens",
                where=where,
                remedy=f"Shorten the prompt to {self.max_len - 1} tokens or fewer, or use a model with a longer context.",
            )
        longest = min(len(prompt) + params.max_tokens, self.max_len)
        if longest > self.room:
            raise DataError(
                f"prompt and reply may need {longest} tokens, but the KV cache holds {self.room}",
                where=where,
                remedy="Lower max_tokens, or raise the engine's cache_bytes.",
            )
        thinking = request.thinking if prompt_ids is None else self.chat.thinking_mode_of(prompt)
        self._check_thinking_budget(params, thinking, longest - len(prompt), where)
        if params.grammar is not None and compiled is None:
            compiled = self.grammar_compiler.compile(params.grammar, where=f"{where}, grammar", tenant=request.tenant)
        return ValidatedRequest(request, prompt, thinking, compiled)

    def _check_embeds(self, embeds: Embeds, length: int, where: str) -> None:
        width, last = embeds.rows.shape[1], embeds.positions[-1]
        if width != self.hidden_size:
            what = f"the rows have {width} numbers, but the model's embeddings have {self.hidden_size}"
            remedy = f"Give rows of {self.hidden_size} numbers."
        elif last >= length:
            what = f"position {last} is outside the prompt of {length} tokens"
            remedy = f"Give positions from 0 to {length - 1}."
        else:
            return
        raise DataError(what, where=f"{where}, embeds", remedy=remedy)

    def create_sequences(self, request_id: int, job: ValidatedRequest) -> list[Sample]:
        """Return one sequence for each of the request's `n` samples."""
        request, params = job.request, job.request.params
        limit = min(len(job.prompt) + params.max_tokens, self.max_len)
        return [
            Sample(
                request_id, sample, job.prompt, params, sample_key(params.seed, sample), limit,
                tenant=request.tenant, priority=request.priority, reuse=request.reuse and self.reuse,
                is_stopped=StopStringTest(self.chat, params, job.thinking, len(job.prompt)) if params.stop else None,
                constraint=self._constraint_with_calculator(job),
                barred=self._stop_ids_before_min_tokens(params),
                embeds=request.embeds, adapter=self.adapters[request.adapter] if request.adapter else "",
                scores=None if params.prompt_logprobs is None else PromptScores(len(job.prompt), params.prompt_logprobs),
            )
            for sample in range(params.n)
        ]  # fmt: skip

    @cached_property
    def grammar_compiler(self) -> GrammarCompiler:
        """The grammar compiler for this tokenizer."""
        return GrammarCompiler(self.tokenizer, self.vocab_size, self.chat.stop_ids, CallSyntax(self.chat))

    def _constraint_with_calculator(self, job: ValidatedRequest) -> Constraint | None:
        """Return the constraint of one sample. If the request sets `calculator`, the constraint also writes the results of
        calculations."""
        constraint = self._base_constraint(job)
        if not job.request.params.calculator:
            return constraint
        return CalculatorConstraint(
            constraint or Unconstrained(), self.tokenizer, self.grammar_compiler.vocabulary_masks
        )

    def _base_constraint(self, job: ValidatedRequest) -> Constraint | None:
        """Return the constraint that the request's grammar and thinking budget impose on one sample.

        The grammar applies only to the answer, except with `job.plain`. The thinking budget applies only to the reasoning before
        the answer.
        """
        compiled, form = job.compiled, self.chat.reply_rules(job.thinking)
        budget = None if job.thinking == "off" else job.request.params.think_budget
        if compiled is None and budget is None:
            return None
        if compiled is not None and (job.plain or form.begins in ("answer", "mark")):
            return compiled.new_constraint()
        separator = self.tokenizer.encode("\n\n") if "\n" in form.answer.lead else []
        thought = ReasoningFormat(
            gap_ids=separator, budget=budget, closing_ids=self.chat.end_think_ids, may_stop=compiled is None
        )
        thought_ids = self.chat.think_tag_ids
        if thought_ids is None or self.chat.tags_as_text:
            thought = replace(thought, end_text=SpecialToken.END_THINK)
        if thought_ids is not None:
            opens = [] if form.begins == "thought" else [thought_ids[0]]
            thought = replace(thought, end_ids=self.chat.end_think_ids, open_ids=opens)
        if compiled is None:
            return ConstraintAfterThinking(Unconstrained(), thought, self.grammar_compiler.vocabulary_masks)
        return compiled.new_constraint(thought=thought)

    def _check_thinking_budget(self, params: SamplingParams, thinking: Thinking, longest: int, where: str) -> None:
        """Raise DataError if `think_budget` has no effect, or leaves no token for the answer in a reply of `longest` tokens."""
        budget = params.think_budget
        if budget is None:
            return
        where = f"{where}, think_budget"
        if not self.chat.thinks:
            raise DataError(
                f"chat format '{self.chat.name}' has no thinking",
                where=where,
                remedy="Remove think_budget, or use a model that thinks.",
            )
        if thinking == "off":
            return
        if not self.chat.can_limit_thinking(thinking):
            raise DataError(
                "the tokenizer has no token for `<think>`, so the engine cannot see whether a reply thinks",
                where=where,
                remedy="Set thinking to on, or remove think_budget.",
            )
        needed = budget + len(self.chat.end_think_ids) + 1
        if needed > longest:
            raise DataError(
                f"{budget} tokens of thinking, `</think>` and an answer take at least {needed} tokens, but the reply has at most {longest}",
                where=where,
                remedy="Lower think_budget, raise max_tokens if the context has room, or set thinking to off.",
            )

    def _stop_ids_before_min_tokens(self, params: SamplingParams) -> tuple[int, ...]:
        """Return the stop tokens that cannot be sampled until the reply has `min_tokens` tokens."""
        chat_stop_ids = () if params.ignore_eos else self.chat.stop_ids
        return tuple({*chat_stop_ids, *params.stop_token_ids}) if params.min_tokens else ()

    def _ignored_text_length(self, reply: list[int], job: ValidatedRequest) -> int:
        """Return the number of answer characters in the first `min_tokens` tokens of the reply. A stop string that ends within
        the returned number of characters is ignored."""
        least = job.request.params.min_tokens if job.request.params.stop else 0
        return len(self.chat.parse(reply[:least], job.thinking).text) if least else 0

    def completion(self, job: ValidatedRequest, finished: FinishedSequence) -> Completion:
        """Decode a finished sequence into a completion."""
        sampled, sequence = finished.sampled, finished.sequence
        message = self.chat.parse(sampled.token_ids, job.thinking)
        hit, scores = max(sequence.hit, 0), sequence.scores
        stop_filter = StopStringMatcher(job.request.params.stop, self._ignored_text_length(sampled.token_ids, job))
        return Completion(
            prompt_ids=job.prompt,
            token_ids=sampled.token_ids,
            logprobs=sampled.logprobs,
            finish_reason="stop" if finished.stopped else "length",
            text=stop_filter.feed(message.text, last=True),
            reasoning=message.reasoning,
            experts=sampled.experts,
            kept=sampled.kept,
            top_logprobs=sampled.top,
            prompt_logprobs=None if scores is None else scores.logprobs_by_token(),
            prompt_top_logprobs=scores.likeliest_by_position() if scores and scores.top else None,
            error=_sample_error(finished),
            usage={
                "prompt_tokens": len(job.prompt),
                "completion_tokens": len(sampled.token_ids),
                "prompt_cache_hit_tokens": hit,
                "prompt_cache_miss_tokens": len(job.prompt) - hit,
                **self._reasoning_usage(sampled.token_ids, message),
            },
        )

    def _reasoning_usage(self, reply: Sequence[int], message: Message) -> dict[str, int]:
        """Return {"reasoning_tokens": number of tokens between the reasoning tags}, or {} if the tokenizer has no reasoning
        tags or the reply has no reasoning."""
        if self.chat.think_tag_ids is None or message.reasoning is None:
            return {}
        start, end = self.chat.think_tag_ids
        length = reply.index(end) if end in reply else len(reply)
        return {"reasoning_tokens": length - (reply[0] == start)}
