"""What the routes answer, as schemas: `/openapi.json` is made from them, and tests hold every answer against it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

REASONS = Literal["stop", "length", "tool_calls"]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(_Object):
    """What went wrong: `param` is the parameter at fault, `code` a word for programs."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Error(_Object):
    """Every answer that is no success. `request_id` stands in the header `x-request-id` and in the server's log, too."""

    error: ErrorBody
    request_id: str


class PromptDetails(_Object):
    """OpenAI's name for the hits."""

    cached_tokens: int = Field(ge=0)


class CompletionDetails(_Object):
    """Tokens up to the mark that ends the thinking."""

    reasoning_tokens: int = Field(ge=0)


class Usage(_Object):
    """Hits and misses add up to `prompt_tokens`."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    prompt_cache_hit_tokens: int = Field(ge=0)
    prompt_cache_miss_tokens: int = Field(ge=0)


class TopToken(_Object):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class ToldToken(TopToken):
    """A token that was drawn."""

    top_logprobs: list[TopToken]


class ChatLogprobs(_Object):
    """One entry for each token that was drawn."""

    content: list[ToldToken]
    refusal: None


class WrittenFunction(_Object):
    """`arguments`: the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(_Object):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: WrittenFunction


class AnswerMessage(_Object):
    """The reply. `reasoning_content` where it thought, `tool_calls` where it calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(_Object):
    """One of the `n` replies."""

    index: int = Field(ge=0)
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: REASONS


class PromptToken(_Object):
    """A token at a place of the prompt. `rank` from 1; null where it is not among the likeliest that were asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]
"""vLLM's: for each token of the prompt its own entry and the likeliest, by id; null for the first. There where it was asked for."""


class ChatCompletion(_Object):
    """The answer to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage
    prompt_logprobs: PromptLogprobs = []


class TextLogprobs(_Object):
    """Parallel lists, one entry for each token: with `echo` those of the prompt, of which the first has none, then those that were drawn."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Object):
    """One of the replies; those to one prompt stand together."""

    index: int = Field(ge=0)
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: PromptLogprobs = []


class TextCompletion(_Object):
    """The answer to a text request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice] = Field(min_length=1)
    usage: Usage


class Card(_Object):
    """A model. `max_model_len`: ids of prompt and reply together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int = Field(ge=0)


class Cards(_Object):
    """The one model, as a list."""

    object: Literal["list"]
    data: list[Card] = Field(min_length=1, max_length=1)


class Health(_Object):
    """`ok` comes with 200, `loading` with 503."""

    status: Literal["ok", "loading"]
