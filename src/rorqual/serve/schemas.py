"""What may be asked: every number and every size has a limit, and what is not known is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rorqual.core.errors import nearest
from rorqual.core.records import Message, Thinking
from rorqual.serve.errors import ApiError, refuse

MAX_MESSAGES, MAX_PARTS, MAX_N, MAX_STOPS, MAX_STOP, MAX_NAME = 4096, 256, 128, 16, 256, 256
MAX_IDS = 1_000_000
INT32, INT64 = 2**31 - 1, 2**63 - 1

IGNORED = frozenset({"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"})
"""Parameters that change no answer: accepted, and listed in the header `x-rorqual-ignored`."""
NOT_YET: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "reasoning_effort": (),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
}
"""Known parameters that do nothing yet, with the values that ask for nothing; null always does."""


def _writable(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    return text


Text = Annotated[str, AfterValidator(_writable)]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Schema):
    """A part of a message. Pictures and sound are not taken."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Schema):
    """One turn. `name` changes nothing."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_PARTS)] | None = None
    reasoning_content: Text | None = None
    name: Annotated[Text, Field(max_length=MAX_NAME)] | None = None

    def message(self) -> Message:
        """As the chat formats take it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        if self.role == "assistant":
            return Message("assistant", content, self.reasoning_content or None)
        return Message("user" if self.role == "user" else "system", content)


class StreamOptions(_Schema):
    """`include_usage`: a last chunk with the usage and no choices. `include_obfuscation` changes nothing."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TemplateOptions(_Schema):
    """Whether to think: either name, as the published templates have it. Neither: the model chooses."""

    thinking: bool | None = None
    enable_thinking: bool | None = None

    @property
    def mode(self) -> Thinking:
        given = self.thinking if self.enable_thinking is None else self.enable_thinking
        return "auto" if given is None else "on" if given else "off"


class Sampling(_Schema):
    """What both kinds of requests have. Without a `seed` one is drawn, and nobody learns it."""

    model: Annotated[Text, Field(min_length=1, max_length=MAX_NAME)]
    max_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def limit(self) -> int:
        """The most tokens of a reply: what is left of the context, where nothing is said."""
        return self.max_tokens or INT32


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`"""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or super().limit

    @property
    def thinking(self) -> Thinking:
        return "auto" if self.chat_template_kwargs is None else self.chat_template_kwargs.mode


class TextRequest(Sampling):
    """`POST /v1/completions`, one prompt: text or ids."""

    prompt: Text | Annotated[list[Annotated[int, Field(ge=0, le=INT32)]], Field(min_length=1, max_length=MAX_IDS)]


S = TypeVar("S", bound=Sampling)


def read(cls: type[S], body: bytes) -> tuple[S, list[str]]:
    """A body as `cls`, and the names of what was ignored; anything else is an `ApiError` of status 400 that names the parameter."""
    try:
        # A parser with a limit of depth, which takes neither NaN nor half of a surrogate pair.
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise refuse(f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise refuse("the body is not a JSON object")
    ignored = sorted(IGNORED & data.keys())
    for name, neutral in NOT_YET.items():
        if name in data and data[name] is not None and not _is_one_of(data[name], neutral):
            raise refuse(f"'{name}' is not supported yet", name, "unsupported_parameter")
    kept = {name: value for name, value in data.items() if name not in IGNORED and name not in NOT_YET}
    try:
        return cls.model_validate(kept), ignored
    except ValidationError as error:
        raise _explained(cls, error) from None


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    # True == 1 in Python: types count, but 0 and 0.0 ask for the same.
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral)


def _explained(cls: type[Sampling], error: ValidationError) -> ApiError:
    # Of the ways in which none of a union's types fits, the one that got furthest is the one that was meant.
    item = max(error.errors(include_url=False, include_input=False), key=lambda found: len(found["loc"]))
    path = [part for part in item["loc"] if isinstance(part, int) or part in _names(cls)]
    param = ".".join(map(str, path)) or str(item["loc"][0])[:MAX_NAME]
    if item["type"] == "extra_forbidden":
        name = str(item["loc"][-1])[:MAX_NAME]
        hint = nearest(name, cls.model_fields) if len(item["loc"]) == 1 else ""
        return refuse(f"unknown parameter {name!r}. {hint}".strip(), name, "unknown_parameter")
    return refuse(f"'{param}': {item['msg'].removeprefix('Value error, ')}", param)


def _names(cls: type[Sampling]) -> set[str]:
    """Names of parameters; the rest of an error's place are names of types, which mean nothing to a client."""
    schemas = (cls, ChatMessage, TextPart, StreamOptions, TemplateOptions)
    return {name for schema in schemas for name in schema.model_fields}
