"""Schemas of the API requests. Every number and every length in a request has a limit, and unknown fields are errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import Field, ValidationError

from rorqual.core.config import with_fields
from rorqual.core.records import Thinking
from rorqual.core.sampling import (
    INT32,
    MAX_SERVED_N,
    MAX_TOP_LOGPROBS,
    PARAMS,
    SERVER_DEFAULTS,
    Grammar,
    SamplingParams,
)
from rorqual.serve import limits
from rorqual.serve.errors import bad_request
from rorqual.serve.message_schemas import ChatMessage, ToolFields
from rorqual.serve.structured_output import RequestSchema, StructuredOutputFields, Text
from rorqual.serve.unsupported_fields import OWN_NAMES, drop_ignored_fields
from rorqual.serve.validation_errors import api_error_from_pydantic, describe_value

MAX_MESSAGES, MAX_NAME, MAX_IDS, MAX_PROMPTS, MAX_KEYS = 4096, 256, 1_000_000, 128, 4096
Id = Annotated[int, Field(ge=0, le=INT32)]
Top = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORT: Mapping[str, float] = {"minimal": 0.25, "low": 0.25, "medium": 0.5}
"""Share of the thinking budget that a reply may use, by `reasoning_effort`. With any other `reasoning_effort`, a reply may
use the whole thinking budget."""


class StreamOptions(RequestSchema):
    """Options of a stream. `include_usage`: send a final chunk that contains the token usage and no choices.
    `include_obfuscation`: ignored."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TemplateOptions(RequestSchema):
    """Chat template options that turn reasoning on or off. In published chat templates, the option is called `thinking` or
    `enable_thinking`. If a request sets neither `thinking` nor `enable_thinking`, the model decides whether to reason."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class ThinkingSwitch(RequestSchema):
    """DeepSeek's `thinking` field: `enabled` or `disabled`."""

    type: Literal["enabled", "disabled"]


@with_fields({name: param.request_field_definition for name, param in PARAMS.items() if name not in OWN_NAMES})
class GenerationRequest(StructuredOutputFields):
    """Fields that chat and text requests share: the sampling parameters and the fields below.

    `seed`: a random seed if the request sets none. `priority`: as in vLLM, the lowest number runs first. Negative priorities
    are not allowed, because a tenant could use negative priorities to delay the requests of other tenants.
    """

    model: Annotated[Text, Field(min_length=1, max_length=MAX_NAME)]
    priority: Annotated[int, Field(ge=0, le=1000)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def given_sampling_params(self) -> dict[str, Any]:
        """Return the sampling parameters that the request sets, as values for `SamplingParams`."""
        values = {name: getattr(self, name) for name in PARAMS if name not in OWN_NAMES}
        return {name: value for name, value in values.items() if value is not None}

    def params(self, defaults: SamplingParams = SERVER_DEFAULTS) -> SamplingParams:
        """Return `defaults` updated by the parameters that the request sets. This method does not update the parameters in
        `OWN_NAMES`."""
        return replace(defaults, **self.given_sampling_params())

    @property
    def max_reply_tokens(self) -> int | None:
        """The maximum number of reply tokens, or None if the request sets no limit."""
        return self.given_sampling_params().get("max_tokens")

    @property
    def n_top_logprobs(self) -> int | None:
        """The number of top log-probabilities per reply token, or None if the request asks for no log-probabilities."""
        raise NotImplementedError

    @property
    def prompt_top_logprobs(self) -> list[int]:
        """For each list of prompt log-probabilities in a prompt's response: the number of top log-probabilities per token."""
        top = self.params().prompt_logprobs
        return [] if top is None else [top]

    @property
    def n_prompt_top_logprobs(self) -> int | None:
        """The number of top log-probabilities per prompt token, or None if the request does not ask for prompt log-probabilities."""
        return max(self.prompt_top_logprobs, default=None)

    @property
    def is_prompt_only(self) -> bool:
        """Whether the client wants only the prompt or the prompt's log-probabilities, and no generated tokens."""
        return self.given_sampling_params().get("max_tokens") == 0

    def check(self) -> None:
        """Raise ApiError if fields of the request contradict each other, or if a field that requires another field is set
        alone."""
        self.grammar()
        if self.stream_options is not None and not self.stream:
            raise bad_request(
                "`stream_options` needs stream: true. Set stream: true, or leave stream_options out.", "stream_options"
            )
        if self.params().prompt_logprobs is not None and self.stream:
            raise bad_request("`prompt_logprobs` cannot be streamed. Set stream: false.", "prompt_logprobs")


class ChatRequest(GenerationRequest, ToolFields):
    """Body of `POST /v1/chat/completions`.

    `reasoning_effort`: `none` turns reasoning off; any other value turns reasoning on. `minimal` and `low` limit the
    reasoning to 25 % of the server's `think_budget`, and `medium` to 50 %. If the server has no `think_budget`, the limits of
    the reasoning are 25 % and 50 % of the maximum reply length. A `think_budget` in the request takes precedence over
    `reasoning_effort`. `thinking` (DeepSeek's API) and `chat_template_kwargs` (vLLM's API) also turn reasoning on or off.
    `reasoning_effort`, `thinking` and `chat_template_kwargs` are ignored if the model's chat format has no reasoning.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = None
    switch: Annotated[ThinkingSwitch | None, Field(alias="thinking")] = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None

    @property
    def max_reply_tokens(self) -> int | None:
        return self.max_completion_tokens or super().max_reply_tokens

    @property
    def thinking(self) -> Thinking | None:
        """The reasoning mode that the request sets, or None."""
        return next(iter(self.reasoning_modes().values()), None)

    def reasoning_modes(self) -> dict[str, Thinking]:
        """Return the paths of the request fields that set a reasoning mode, each with the mode."""
        modes: dict[str, Thinking] = {}
        for name, enabled in self.chat_template_kwargs or ():
            if enabled is not None:
                modes[f"chat_template_kwargs.{name}"] = "on" if enabled else "off"
        if self.switch is not None:
            modes["thinking"] = "on" if self.switch.type == "enabled" else "off"
        if self.reasoning_effort is not None:
            modes["reasoning_effort"] = "off" if self.reasoning_effort == "none" else "on"
        return modes

    @property
    def thinking_budget_share(self) -> float:
        """The share of the thinking budget that the request may use."""
        return EFFORT.get(self.reasoning_effort or "high", 1.0)

    @property
    def n_top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def constraining_field(self) -> str | None:
        """The request field that constrains the reply, or None. Grammar errors report the constraining field as
        `param`.

        `constraining_field` is None if tools are optional, because the grammar may then combine tools and `response_format`.
        If tools are optional, the message of a grammar error names the invalid field.
        """
        if self.required_calls_grammar() is not None:
            return "tools"
        return None if self.offered_tools() else super().constraining_field

    @property
    def is_reply_unconstrained(self) -> bool:
        return super().is_reply_unconstrained and not self.tools

    def grammar(self) -> Grammar | None:
        """Return the grammar of the reply: a response format, required tool calls, or a choice between response format and
        tool calls."""
        answer = super().grammar()
        if answer is None or not self.offered_tools():
            return answer or self.required_calls_grammar()
        if self.response_format is None or super().constraining_field != "response_format":
            raise bad_request(
                f"`tools` cannot be combined with `{super().constraining_field}`. Use response_format, or set tool_choice: none.",
                "tools",
            )
        return self.required_calls_grammar() or self.calls_or_answer_grammar(self.response_format.schema_)

    def check(self) -> None:
        self.check_tools()
        super().check()
        for number, message in enumerate(self.messages):
            message.check_role_fields(f"messages[{number}]")
        if self.top_logprobs and not self.logprobs:
            raise bad_request(
                "`top_logprobs` needs logprobs: true. Set logprobs: true, or leave top_logprobs out.", "top_logprobs"
            )
        modes = self.reasoning_modes()
        if len(set(modes.values())) > 1:
            first, other = (
                next(name for name in modes if modes[name] == mode) for mode in dict.fromkeys(modes.values())
            )
            problem = f"`{first}` and `{other}` contradict each other: one turns reasoning on, the other off"
            raise bad_request(f"{problem}. Give one of them.", other)


class TextRequest(GenerationRequest):
    """Body of `POST /v1/completions`: one or more prompts, each a text or a list of token ids.

    `echo`: each reply starts with its prompt, and `logprobs` starts with the prompt's log-probabilities. With
    `max_tokens: 0`, only the prompt is returned.
    """

    max_tokens: Annotated[int, Field(ge=0, le=INT32)] | None = None
    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    echo: bool | None = None
    logprobs: Top | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts of the request as a list, even if the request has only one prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        prompts: list[str | list[int]] = [item for item in self.prompt if not isinstance(item, int)]
        return prompts or [[item for item in self.prompt if isinstance(item, int)]]

    @property
    def max_reply_tokens(self) -> int | None:
        return 1 if self.is_prompt_only else super().max_reply_tokens

    @property
    def n_top_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompt_top_logprobs(self) -> list[int]:
        echoed = [] if self.logprobs is None or not self.echo else [self.logprobs]
        return [*super().prompt_top_logprobs, *echoed] * self.params().n  # each choice repeats the lists

    def check(self) -> None:
        super().check()
        if self.is_prompt_only and not self.echo and self.n_prompt_top_logprobs is None:
            raise bad_request(
                "`max_tokens` is 0. Give 1 or more, or set echo: true to get only the prompt.", "max_tokens"
            )
        if len(self.prompts) * self.params().n > MAX_SERVED_N:
            problem = f"`n` is {self.params().n} for each of {len(self.prompts)} prompts"
            raise bad_request(f"{problem}. Request at most {MAX_SERVED_N} replies in total.", "n")


S = TypeVar("S", bound=GenerationRequest)


def parse_request(cls: type[S], body: bytes) -> tuple[S, list[str]]:
    """Parse a request body as a request of type `cls`. Return the request and the names of its ignored fields.

    Raises ApiError with status 400 if the request body is invalid. The error's `param` names the invalid field.
    """
    fields, ignored = drop_ignored_fields(parse_body(body), "chat" if issubclass(cls, ChatRequest) else "completions")
    try:
        request = cls.model_validate(fields)
    except ValidationError as error:
        names = {field.alias or name for name, field in cls.model_fields.items()}
        raise api_error_from_pydantic(error, fields, names) from None
    request.check()
    return request, sorted(ignored)


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a request body. Raises ApiError with status 400 if the body is not a JSON object."""
    limits.check_value_count(body)
    try:
        # pydantic's parser limits the nesting depth, and rejects NaN and lone surrogates.
        data = pydantic_core.from_json(body, allow_inf_nan=False)
        # pydantic's parser accepts duplicate keys. `json.loads` with `_check_unique_keys` refuses duplicate keys, because parsers
        # disagree on which value of a duplicate key to use.
        json.loads(body, object_pairs_hook=_check_unique_keys)
    except ValueError as error:
        raise bad_request(f"The body is not JSON: {str(error)[:200]}. Send one JSON object.") from None
    if not isinstance(data, dict):
        raise bad_request(f"The body is {describe_value(data)}. Send one JSON object.")
    return data


def _check_unique_keys(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > MAX_KEYS:  # pydantic would create one error for each unknown key
        problem = f"an object has {len(pairs):,} keys, such as {pairs[0][0][:40]!r}"
        raise ValueError(f"{problem}; at most {MAX_KEYS:,} are allowed. Use fewer keys")
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("an object has a duplicate key")
