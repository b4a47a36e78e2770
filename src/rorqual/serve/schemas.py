"""What may be asked: every number and every size has a limit, and what is not known is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import BaseModel, Field, ValidationError

from rorqual.core import parts
from rorqual.core.config import with_fields
from rorqual.core.records import Thinking
from rorqual.core.sampling import (
    INT32,
    MAX_SERVED_N,
    MAX_TOP_LOGPROBS,
    PARAMS,
    SERVER_DEFAULTS,
    FloatRange,
    Grammar,
    IntRange,
    Param,
    SamplingParams,
    TextList,
    TokenBiases,
    TokenList,
)
from rorqual.serve import limits
from rorqual.serve.errors import refuse
from rorqual.serve.fields import IGNORED, OWN_NAMES, sift
from rorqual.serve.formats import Guided, JsonSchema, ResponseFormat, Schema, Text
from rorqual.serve.turns import (
    Call,
    CalledFunction,
    ChatMessage,
    Function,
    NamedFunction,
    NamedTool,
    Tools,
    ToolSpec,
)
from rorqual.serve.words import explain, shown

MAX_MESSAGES, MAX_NAME, MAX_IDS, MAX_PROMPTS, MAX_KEYS = 4096, 256, 1_000_000, 128, 4096
Id = Annotated[int, Field(ge=0, le=INT32)]
Top = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Schema):
    """`include_usage`: a last chunk with the usage and no choices. `include_obfuscation` changes nothing."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TemplateOptions(Schema):
    """Whether to think: either name, as the published templates have it. Neither: the model chooses."""

    thinking: bool | None = None
    enable_thinking: bool | None = None

    @property
    def mode(self) -> Thinking:
        given = self.thinking if self.enable_thinking is None else self.enable_thinking
        return "auto" if given is None else "on" if given else "off"


class ThinkingSwitch(Schema):
    """DeepSeek's: `enabled` or `disabled`."""

    type: Literal["enabled", "disabled"]


def _field(param: Param) -> tuple[Any, Any]:
    """A sampling parameter as a field of a request, which may leave it out."""
    kind, type_ = param.served, param.annotation
    limits: dict[str, Any] = {}
    match kind:
        case IntRange() | FloatRange():
            limits = kind.bounds
        case TextList(most, longest):
            text = Annotated[Text, Field(min_length=1, max_length=longest)]
            type_ = text | Annotated[list[text], Field(max_length=most, fail_fast=True)]
        case TokenList(most):
            type_, limits = list[Id], {"max_length": most, "fail_fast": True}
        case TokenBiases(most):
            token = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
            bias = Annotated[float, Field(**kind.bias.bounds)]
            type_, limits = dict[token, bias], {"max_length": most}
    return type_ | None, Field(None, description=param.doc, **limits)


@with_fields({name: _field(param) for name, param in PARAMS.items() if name not in OWN_NAMES})
class Sampling(Guided):
    """What both kinds of requests have: the sampling parameters, and what stands here. Without a `seed` one is drawn, and nobody learns it.

    `priority`: how far behind others it may wait (vLLM's order: the lowest number runs first); nobody gets before 0, or one tenant
    could push another's work aside.
    """

    model: Annotated[Text, Field(min_length=1, max_length=MAX_NAME)]
    priority: Annotated[int, Field(ge=0, le=1000)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def given(self) -> dict[str, Any]:
        """The sampling parameters that the request gives, as `SamplingParams` has them."""
        values = {name: getattr(self, name) for name in PARAMS if name not in OWN_NAMES}
        return {name: PARAMS[name].type.read(value) for name, value in values.items() if value is not None}

    def params(self, defaults: SamplingParams = SERVER_DEFAULTS) -> SamplingParams:
        """The parameters of all names, those of OpenAI's own (`OWN_NAMES`) left as `defaults` has them."""
        return replace(defaults, **self.given())

    @property
    def limit(self) -> int:
        """The most tokens of a reply: what is left of the context, where nothing is said."""
        return self.given().get("max_tokens") or INT32

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens come with each token; None where no log-probabilities were asked for."""
        raise NotImplementedError

    @property
    def scored(self) -> int | None:
        """The same of the prompt's tokens."""
        return self.params().prompt_logprobs

    def check(self) -> None:
        """Refuse what only goes together, and what does not."""
        self.grammar()
        if self.stream_options is not None and not self.stream:
            raise refuse("`stream_options` goes with stream: true. Set it, or leave this out.", "stream_options")
        if self.params().prompt_logprobs is not None and self.stream:
            raise refuse("`prompt_logprobs` does not come in a stream. Set stream: false.", "prompt_logprobs")


class ChatRequest(Sampling, Tools):
    """`POST /v1/chat/completions`

    `reasoning_effort`: `none` makes the model answer at once, any other makes it think, as long as it will. `thinking` (DeepSeek's API) and
    `chat_template_kwargs` (vLLM's) say the same. Where the model's family does not think, they change nothing.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = None
    switch: Annotated[ThinkingSwitch | None, Field(alias="thinking")] = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or super().limit

    @property
    def thinking(self) -> Thinking:
        """What all that was said of it agrees on."""
        return next(iter(self.modes().values()), "auto")

    def modes(self) -> dict[str, Thinking]:
        """By parameter, where it says something."""
        found: dict[str, Thinking] = {}
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.mode != "auto":
            found["chat_template_kwargs"] = self.chat_template_kwargs.mode
        if self.switch is not None:
            found["thinking"] = "on" if self.switch.type == "enabled" else "off"
        if self.reasoning_effort is not None:
            found["reasoning_effort"] = "off" if self.reasoning_effort == "none" else "on"
        return found

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def bound(self) -> str | None:
        """None where tools and `response_format` do together: the message says which."""
        if self.forced() is not None:
            return "tools"
        return None if self.offered() else super().bound

    def grammar(self) -> Grammar | None:
        """What the answer must match, or which calls it must be; calls, where these are left to the model, or JSON, where this is asked for."""
        answer = super().grammar()
        if answer is None or not self.offered():
            return answer or self.forced()
        if self.response_format is None or super().bound != "response_format":
            raise refuse(
                f"`tools` go with response_format, not with `{super().bound}`. Give tool_choice: none, or no tools.",
                "tools",
            )
        return self.forced() or self.called_or(self.response_format.schema_)

    def check(self) -> None:
        self.check_tools()
        super().check()
        for number, message in enumerate(self.messages):
            message.check(f"messages[{number}]")
        if self.top_logprobs and not self.logprobs:
            raise refuse("`top_logprobs` goes with logprobs: true. Set it, or leave this out.", "top_logprobs")
        modes = self.modes()
        if len(set(modes.values())) > 1:
            names = list(modes)
            what = f"`{names[0]}` and `{names[-1]}` contradict each other on whether to think"
            raise refuse(f"{what}. Give one of them.", names[-1])


class TextRequest(Sampling):
    """`POST /v1/completions`: one prompt or several, each a text or ids. `echo`: the prompt stands before each answer, and with `logprobs` its
    tokens before the answer's; `max_tokens: 0` then asks for the prompt alone."""

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
        """Each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        several: list[str | list[int]] = [item for item in self.prompt if not isinstance(item, int)]
        return several or [[item for item in self.prompt if isinstance(item, int)]]

    @property
    def limit(self) -> int:
        return 1 if self.mute else super().limit

    @property
    def mute(self) -> bool:
        """Whether the prompt alone is asked about."""
        return self.max_tokens == 0

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def scored(self) -> int | None:
        asked = (super().scored, self.logprobs if self.echo else None)
        return max((top for top in asked if top is not None), default=None)

    def check(self) -> None:
        super().check()
        if self.mute and not self.echo and self.scored is None:
            raise refuse("`max_tokens` is 0. Give 1 or more, or echo: true for the prompt alone.", "max_tokens")
        if len(self.prompts) * self.params().n > MAX_SERVED_N:
            asked = f"`n` is {self.params().n} for each of {len(self.prompts)} prompts"
            raise refuse(f"{asked}. Ask for {MAX_SERVED_N} answers at most.", "n")


S = TypeVar("S", bound=Sampling)


def read(cls: type[S], body: bytes) -> tuple[S, list[str]]:
    """A body as `cls`, and the names of what was ignored; anything else is an `ApiError` of status 400 that names the parameter."""
    kept, ignored = sift(_parsed(body), "chat" if issubclass(cls, ChatRequest) else "completions")
    try:
        found = cls.model_validate(kept)
    except ValidationError as error:
        fault = explain(error, kept, known_names(cls))
        raise refuse(fault.message, fault.path, "unknown_parameter" if fault.unknown else None) from None
    found.check()
    return found, sorted(ignored)


def _parsed(body: bytes) -> dict[str, Any]:
    limits.check_values(body)
    try:
        # A parser with a limit of depth, which takes neither NaN nor half of a surrogate pair.
        data = pydantic_core.from_json(body, allow_inf_nan=False)
        json.loads(
            body, object_pairs_hook=_unique
        )  # what it does not see: readers disagree on which of two keys counts
    except ValueError as error:
        raise refuse(f"The body is not JSON: {str(error)[:200]}. Send one JSON object.") from None
    if not isinstance(data, dict):
        raise refuse(f"The body is {shown(data)}. Send one JSON object.")
    limits.check_parts(data)
    return data


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > MAX_KEYS:  # each would be an error of its own
        what = f"an object has {len(pairs):,} keys, such as {pairs[0][0][:40]!r}"
        raise ValueError(f"{what}; at most {MAX_KEYS:,} are allowed. Give fewer")
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("an object has one key twice")


def known_names(cls: type[Sampling]) -> dict[str, set[str]]:
    """The fields of a request that are taken, by place: those of the request, and of what it holds."""
    inside: dict[str, type[Schema]] = {
        "messages[]": ChatMessage, "messages[].tool_calls[]": Call,
        "messages[].tool_calls[].function": CalledFunction, "tools[]": ToolSpec, "tools[].function": Function,
        "tool_choice": NamedTool, "tool_choice.function": NamedFunction, "stream_options": StreamOptions,
        "response_format": ResponseFormat, "response_format.json_schema": JsonSchema, "chat_template_kwargs": TemplateOptions,
        "thinking": ThinkingSwitch,
    }  # fmt: skip
    found = {place: _asked(schema) for place, schema in inside.items()}
    found["messages[].content[]"] = set().union(*map(_asked, parts.KINDS))
    return found | {"": _asked(cls) | IGNORED}


def _asked(schema: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in schema.model_fields.items()}
