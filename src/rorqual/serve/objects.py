"""Schemas of the API responses, from which `/openapi.json` is generated. Tests validate every response against the
OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

REASONS = Literal["stop", "length", "tool_calls"]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(_Object):
    """The details of an error. `param`: name of the invalid parameter. `code`: a machine-readable code."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Error(_Object):
    """An error response. `request_id` is also in the header `x-request-id` and in the server's log."""

    error: ErrorBody
    request_id: str


class PromptDetails(_Object):
    """The number of prompt tokens that were read from the prefix cache, in OpenAI's format."""

    cached_tokens: int = Field(ge=0)


class CompletionDetails(_Object):
    """The number of tokens up to the special token that ends the reasoning, in OpenAI's format."""

    reasoning_tokens: int = Field(ge=0)


class ModelUsage(_Object):
    """The token counts of a request. Cache hits and misses add up to `prompt_tokens`."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    prompt_cache_hit_tokens: int = Field(ge=0)
    prompt_cache_miss_tokens: int = Field(ge=0)


class CascadeUsage(_Object):
    """Which model of a cascade answered, and the student's calibrated confidence. `student_usage`: the token counts of the student, if
    the teacher answered. The other token counts are then the teacher's."""

    answered_by: str
    confidence: float = Field(ge=0, le=1)
    student_usage: ModelUsage | None = None


class Usage(ModelUsage):
    """The token counts of a request, with `cascade` if the server runs a cascade of two models."""

    cascade: CascadeUsage | None = None


class TopToken(_Object):
    """A token, its log-probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ToldToken(TopToken):
    """A sampled token, with the likeliest tokens at its position."""

    top_logprobs: list[TopToken]


class ChatLogprobs(_Object):
    """Log-probabilities of a chat choice, one entry per sampled token."""

    content: list[ToldToken]
    refusal: None


class WrittenFunction(_Object):
    """The function in a tool call. `arguments`: a JSON object, serialized as a string."""

    name: str
    arguments: str


class ToolCall(_Object):
    """A tool call that the model made."""

    id: str
    type: Literal["function"]
    function: WrittenFunction


class AnswerMessage(_Object):
    """The assistant message of a reply, with `reasoning_content` if the model reasoned, and `tool_calls` if it called tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(_Object):
    """One of the `n` replies to a chat request."""

    index: int = Field(ge=0)
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: REASONS


class PromptToken(_Object):
    """A candidate token at a prompt position.

    `rank`: 1 for the likeliest token, or null if the token is not among the requested number of likeliest tokens.
    """

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]
"""vLLM's `prompt_logprobs`, present only if requested. Each prompt position has an object with the prompt's token and the
likeliest tokens, by token id. The first position is null, because the first token has no log-probability."""


class ChatCompletion(_Object):
    """The response to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage
    prompt_logprobs: PromptLogprobs = []


class TextLogprobs(_Object):
    """Log-probabilities of a text choice: parallel lists with one entry per token.

    With `echo`, the prompt's tokens come first. The first prompt token has no log-probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Object):
    """One reply to a text completion request. All replies to the same prompt are adjacent in `choices`."""

    index: int = Field(ge=0)
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: PromptLogprobs = []


class TextCompletion(_Object):
    """The response to a text completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice] = Field(min_length=1)
    usage: Usage


class Card(_Object):
    """An entry in the list of models. `max_model_len`: maximum number of tokens in prompt and reply together.

    `thinks`: whether a chat request can turn thinking on and off. `temperature`: the default of a chat request. `examples`:
    prompts like those that the model was trained on.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(ge=0)
    thinks: bool
    temperature: float = Field(ge=0)
    examples: list[str]


class Cards(_Object):
    """The list of models. A server has one model."""

    object: Literal["list"]
    data: list[Card] = Field(min_length=1, max_length=1)


class Health(_Object):
    """The engine's state: `ok` (status 200) or `loading` (status 503)."""

    status: Literal["ok", "loading"]
