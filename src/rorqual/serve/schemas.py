"""What may be asked: every number and every size has a limit, and what is not known is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic_core
from pydantic import Field, ValidationError

from rorqual.core.errors import nearest
from rorqual.core.records import Thinking
from rorqual.serve import limits
from rorqual.serve.errors import ApiError, refuse
from rorqual.serve.formats import Grammar, Guided, JsonSchema, ResponseFormat, Schema, Text
from rorqual.serve.turns import (
    Call,
    CalledFunction,
    ChatMessage,
    Function,
    NamedFunction,
    NamedTool,
    TextPart,
    Tools,
    ToolSpec,
)

MAX_MESSAGES, MAX_N, MAX_STOPS, MAX_STOP, MAX_NAME = 4096, 128, 16, 256, 256
MAX_IDS, MAX_PROMPTS, MAX_BIAS, MAX_TOP, MAX_KEYS = 1_000_000, 128, 1024, 20, 4096
INT32, INT64 = 2**31 - 1, 2**63 - 1

IGNORED = frozenset(
    {"user", "metadata", "store", "safety_identifier", "service_tier"}
    | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
)
"""Parameters that change no answer: accepted, and listed in the header `x-rorqual-ignored`."""
NOT_HERE: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "suffix": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "logprob_token_ids": (),
    "verbosity": ("medium",),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
}
"""Known parameters that do nothing here, with the values that ask for nothing; null always does."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP)]
Ids = Annotated[list[Annotated[int, Field(ge=0, le=INT32)]], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
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


class Sampling(Guided):
    """What both kinds of requests have. Without a `seed` one is drawn, and nobody learns it.

    `priority`: how far behind others it may wait (vLLM's order: the lowest number runs first); nobody gets before 0, or one tenant
    could push another's work aside. `ignore_eos`: draw `max_tokens`
    tokens, to measure speed; the text still ends where the model ended it.
    """

    model: Annotated[Text, Field(min_length=1, max_length=MAX_NAME)]
    max_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")], Bias],
            Field(max_length=MAX_BIAS),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, le=INT32)]], Field(max_length=MAX_STOPS, fail_fast=True)] | None
    ) = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Field(ge=0, le=1000)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def limit(self) -> int:
        """The most tokens of a reply: what is left of the context, where nothing is said."""
        return self.max_tokens or INT32

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens come with each token; None where no log-probabilities were asked for."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse what only goes together, and what does not."""
        self.grammar()
        if self.stream_options is not None and not self.stream:
            raise refuse("'stream_options' goes with stream: true", "stream_options")


class ChatRequest(Sampling, Tools):
    """`POST /v1/chat/completions`

    `reasoning_effort`: `none` makes the model answer at once, any other makes it think, as long as it will. `thinking` (DeepSeek's API) and
    `chat_template_kwargs` (vLLM's) say the same.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = None
    switch: Annotated[ThinkingSwitch | None, Field(alias="thinking")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None

    @property
    def limit(self) -> int:
        return self.max_completion_tokens or super().limit

    @property
    def thinking(self) -> Thinking:
        """What all that was said of it agrees on."""
        return next(iter(self._modes().values()), "auto")

    def _modes(self) -> dict[str, Thinking]:
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
                f"tools go with a response_format, not with {super().bound}: tool_choice none, or no tools", "tools"
            )
        return self.forced() or self.called_or(self.response_format.schema_)

    def check(self) -> None:
        self.check_tools()
        super().check()
        for number, message in enumerate(self.messages):
            message.check(f"messages.{number}")
        if self.top_logprobs and not self.logprobs:
            raise refuse("'top_logprobs' goes with logprobs: true", "top_logprobs")
        modes = self._modes()
        if len(set(modes.values())) > 1:
            names = list(modes)
            raise refuse(f"{' and '.join(map(repr, names))} contradict each other", names[-1])


class TextRequest(Sampling):
    """`POST /v1/completions`: one prompt or several, each a text or ids. `echo`: the prompt stands before each answer."""

    prompt: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        several: list[str | list[int]] = [item for item in self.prompt if not isinstance(item, int)]
        return several or [[item for item in self.prompt if isinstance(item, int)]]

    @property
    def top(self) -> int | None:
        return self.logprobs

    def check(self) -> None:
        super().check()
        if self.echo and self.logprobs is not None:
            raise refuse("log-probabilities of a prompt are not given: 'echo' or 'logprobs'", "echo")
        if len(self.prompts) * (self.n or 1) > MAX_N:
            raise refuse(f"{len(self.prompts)} prompts with n={self.n}: more than {MAX_N} answers", "n")


S = TypeVar("S", bound=Sampling)


def read(cls: type[S], body: bytes) -> tuple[S, list[str]]:
    """A body as `cls`, and the names of what was ignored; anything else is an `ApiError` of status 400 that names the parameter."""
    data = _parsed(body)
    ignored = sorted(IGNORED & data.keys())
    for name, neutral in NOT_HERE.items():
        if name in data and data[name] is not None and not _is_one_of(data[name], neutral):
            raise refuse(f"'{name}' is not supported", name, "unsupported_parameter")
    kept = {name: value for name, value in data.items() if name not in IGNORED and name not in NOT_HERE}
    try:
        found = cls.model_validate(kept)
    except ValidationError as error:
        raise _explained(cls, error) from None
    found.check()
    return found, ignored


def _parsed(body: bytes) -> dict[str, Any]:
    limits.check_values(body)
    try:
        # A parser with a limit of depth, which takes neither NaN nor half of a surrogate pair.
        data = pydantic_core.from_json(body, allow_inf_nan=False)
        json.loads(
            body, object_pairs_hook=_unique
        )  # what it does not see: readers disagree on which of two keys counts
    except ValueError as error:
        raise refuse(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(data, dict):
        raise refuse("the body is not a JSON object")
    limits.check_parts(data)
    return data


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > MAX_KEYS:  # each would be an error of its own
        what = f"an object has {len(pairs):,} keys, such as {pairs[0][0][:40]!r}"
        raise ValueError(f"{what}; at most {MAX_KEYS:,} are allowed. Give fewer")
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("an object has one key twice")


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    # True == 1 in Python: types count, but 0 and 0.0 ask for the same.
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral)


def _explained(cls: type[Sampling], error: ValidationError) -> ApiError:
    # Of the ways in which none of a union's types fits, the one that got furthest is the one that was meant, and one that was of the right
    # type before one that was not.
    found = error.errors(include_url=False, include_input=False)
    item = max(found, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    known, unknown = _names(cls), item["type"] == "extra_forbidden"
    path = [part for part in item["loc"][: -1 if unknown else None] if isinstance(part, int) or part in known]
    if unknown:
        name = str(item["loc"][-1])[:MAX_NAME]
        hint = nearest(name, _asked(cls)) if len(item["loc"]) == 1 else ""
        place = ".".join(map(str, (*path, name)))
        return refuse(f"unknown parameter {place!r}. {hint}".strip(), place, "unknown_parameter")
    param = ".".join(map(str, path)) or str(item["loc"][0])[:MAX_NAME]
    return refuse(f"'{param}': {_said(item)}", param)


def _said(item: Mapping[str, Any]) -> str:
    limits = item.get("ctx") or {}
    if (
        limits.get("field_type") == "Value"
    ):  # a text's length, which pydantic counts in items once a validator has seen it
        low, high = limits.get("min_length"), limits.get("max_length")
        return f"a text of {low} characters or more" if high is None else f"a text of {high} characters at most"
    return str(item["msg"]).removeprefix("Value error, ")


def _asked(schema: type[Schema]) -> set[str]:
    return {field.alias or name for name, field in schema.model_fields.items()}


def _names(cls: type[Sampling]) -> set[str]:
    """Names of parameters; the rest of an error's place are names of types, which mean nothing to a client."""
    schemas = (
        cls, ChatMessage, TextPart, StreamOptions, TemplateOptions, ThinkingSwitch, ResponseFormat, JsonSchema,
        Call, CalledFunction, Function, NamedFunction, NamedTool, ToolSpec,
    )  # fmt: skip
    return {name for schema in schemas for name in _asked(schema)}
