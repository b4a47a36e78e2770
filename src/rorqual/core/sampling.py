"""The sampling parameters.

Each field of `SamplingParams` defines the name, type, range, default and description of one sampling parameter.

`PARAMS` collects the definitions of all sampling parameters. The following code is derived from `PARAMS`:

- the engine's checks (`check_params`)
- the keys of prompt files (`generate/schema.py`)
- the server's request fields (`serve/schemas.py`)
- the messages to the engine's process (`serve/wire.py`)
- requests to a remote endpoint (`engine/remote/engine.py`)

To add a sampling parameter, add a field to `SamplingParams` and implement its effect in the sampler.
"""

from __future__ import annotations

import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
)

from rorqual.core.config import with_fields
from rorqual.core.errors import DataError

INT32, INT64 = 2**31 - 1, 2**63 - 1
SAFE = 2**53 - 1
"""The largest integer that all JSON parsers read exactly; many parsers read numbers as float64."""
LARGEST = sys.float_info.max
MAX_TOP_LOGPROBS = 20
MAX_SERVED_N = 128
GrammarKind = Literal["json_schema", "regex", "choice", "json", "calls"]
TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")
_SHOWN = 60


@dataclass(frozen=True)
class Grammar:
    """A grammar that constrains the reply. `kind` determines the content of `source`:

    - "json_schema": a JSON schema.
    - "regex": a regular expression that the whole reply must match.
    - "choice": a JSON list of strings; the reply must be one of these strings.
    - "json": empty; any JSON object matches.
    - "calls": `{"tools": [{"name": ..., "parameters": schema}], "many": bool}`. The reply must contain exactly one call of
      the listed tools, or at least one call if `many` is true, in the syntax of the chat format. With `"answer": schema`, the
      reply may also be JSON that matches the schema `answer`, instead of a call.
    """

    kind: GrammarKind
    source: str = ""


# ---- the types of parameters


class ParamType(ABC):
    """Base class of the types of sampling parameters. A type states the valid range of a parameter, and converts the
    parameter's values from and to JSON."""

    @property
    @abstractmethod
    def pydantic_type(self) -> Any:
        """The pydantic type of the parameter in `SamplingParams`, with the parameter's range. If the validation context has
        `vocab_size` (the model's number of token ids), token ids and the bounds `IntRange.within` are also checked."""

    @property
    @abstractmethod
    def range_text(self) -> str:
        """The parameter's valid range as text that completes the remedy "Give ...", for example "a number from 0 to 1"."""

    @property
    def json_pydantic_type(self) -> Any:
        """The pydantic type that parses the parameter's value in JSON to a valid value in `SamplingParams`."""
        parse = BeforeValidator(self.parse_json_value, json_schema_input_type=self.json_input)
        return Annotated[self.pydantic_type, parse]

    @property
    def json_input(self) -> Any:
        """The type of the JSON value, for the schema of requests."""
        return self.pydantic_type

    def parse_json_value(self, value: Any) -> Any:
        """Convert a JSON value to the parameter's type in `SamplingParams`. A JSON value of another type is returned unchanged. Raises
        ValueError for an object with invalid keys or values."""
        return tuple(value) if isinstance(value, list) else value

    def to_json_value(self, value: Any) -> Any:
        """Convert a parameter's value to the JSON form of OpenAI's API or of vLLM's extensions of that API."""
        return value


@dataclass(frozen=True)
class IntRange(ParamType):
    """An integer from `low` to `high`, inclusive, or any integer if `low` and `high` are None.

    `within` names a number that the integer must also not exceed: `vocab_size` of the validation context, or the field
    `max_tokens`.
    """

    low: int | None = None
    high: int | None = None
    within: Literal["", "vocab_size", "max_tokens"] = ""

    @property
    def pydantic_type(self) -> Any:
        return Annotated[
            int, Field(strict=True, ge=self.low, le=self.high), AfterValidator(self._check_context_maximum)
        ]

    @property
    def range_text(self) -> str:
        return "a whole number" if self.low is None else f"a whole number from {self.low} to {self.high}"

    def _check_context_maximum(self, value: int, info: ValidationInfo) -> int:
        if not info.context:
            return value
        high = (info.context | info.data).get(self.within, value)
        if value > high:
            raise ValueError(f"at most {high}, the value of {self.within}")
        return value


@dataclass(frozen=True)
class FloatRange(ParamType):
    """A number from `low` to `high`. If `above` is set, `low` itself is invalid; if `below` is set, `high` itself is
    invalid."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    @property
    def pydantic_type(self) -> Any:
        low, high = "gt" if self.above else "ge", "lt" if self.below else "le"
        bounds: dict[str, Any] = {low: self.low, high: self.high}
        return Annotated[float, Field(strict=True, allow_inf_nan=False, **bounds)]

    @property
    def range_text(self) -> str:
        if self.high == LARGEST:
            return f"a finite number from {self.low:g}"
        if self.above:
            return f"a number above {self.low:g}, at most {self.high:g}"
        return (
            f"a number from {self.low:g}, below {self.high:g}"
            if self.below
            else f"a number from {self.low:g} to {self.high:g}"
        )


@dataclass(frozen=True)
class Flag(ParamType):
    """A parameter that is true or false."""

    pydantic_type = Annotated[bool, Field(strict=True)]
    range_text = "true or false"


@dataclass(frozen=True)
class TextList(ParamType):
    """A list of up to `most` strings of 1 to `longest` characters. In JSON, a single string is also valid."""

    most: int
    longest: int

    @property
    def pydantic_type(self) -> Any:
        bounds = Field(strict=True, min_length=1, max_length=self.longest)
        text: Any = Annotated[str, bounds, AfterValidator(_refuse_nul)]
        return Annotated[
            tuple[text, ...], Field(strict=True, max_length=self.most, fail_fast=True), BeforeValidator(_list_to_tuple)
        ]

    @property
    def json_input(self) -> Any:
        return str | list[str]

    @property
    def range_text(self) -> str:
        return f"a list of up to {self.most} strings, each of 1 to {self.longest} characters"

    def parse_json_value(self, value: Any) -> Any:
        return (value,) if isinstance(value, str) else super().parse_json_value(value)


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refuse_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("strings without a NUL character")
    return text


def _check_token_id(value: int, info: ValidationInfo) -> int:
    if info.context and value >= (vocab_size := info.context["vocab_size"]):
        raise ValueError(f"a token id below {vocab_size}, the model's vocab_size")
    return value


TokenId = Annotated[int, Field(strict=True, ge=0, le=INT32), AfterValidator(_check_token_id)]


@dataclass(frozen=True)
class TokenList(ParamType):
    """A list of token ids, with at most `most` entries if `most` is set."""

    most: int | None = None
    range_text = "a list of token ids"

    @property
    def pydantic_type(self) -> Any:
        return Annotated[
            tuple[TokenId, ...],
            Field(strict=True, max_length=self.most, fail_fast=True),
            BeforeValidator(_list_to_tuple),
        ]


@dataclass(frozen=True)
class TokenBiases(ParamType):
    """Up to `most` pairs of a token id and a bias from `-bound` to `bound`.

    In JSON, the pairs are one object `{token id: bias}`.
    """

    most: int
    bound: float

    @property
    def pydantic_type(self) -> Any:
        bias: Any = Annotated[float, Field(strict=True, ge=-self.bound, le=self.bound)]
        pair: Any = tuple[TokenId, bias]
        size = Field(strict=True, max_length=self.most, fail_fast=True)
        pairs: Any = tuple[pair, ...]
        return Annotated[pairs, size, BeforeValidator(_list_to_tuple), AfterValidator(_check_distinct)]

    @property
    def json_input(self) -> Any:
        return dict[str, float]

    @property
    def range_text(self) -> str:
        return f"up to {self.most} token ids, each with a number from {-self.bound:g} to {self.bound:g}"

    def parse_json_value(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value)
        if not isinstance(value, Mapping):
            return value
        for token, bias in value.items():
            if not TOKEN_ID.fullmatch(str(token)):
                raise ValueError("all keys must be token ids")
            if type(bias) not in (int, float):
                raise ValueError(f"the bias of token {token} is not a number")
        return tuple((int(token), bias) for token, bias in value.items())

    def to_json_value(self, value: Any) -> Any:
        return {str(token): bias for token, bias in value}


def _check_distinct(pairs: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("each token one bias")
    return pairs


@dataclass(frozen=True)
class GrammarType(ParamType):
    """A `Grammar`. In JSON, a grammar is an object with the keys `kind` and `source`."""

    kinds: tuple[GrammarKind, ...] = get_args(GrammarKind)

    @property
    def pydantic_type(self) -> Any:
        return Annotated[Any, AfterValidator(self._check_grammar)]

    @property
    def range_text(self) -> str:
        return f"a grammar with kind ({', '.join(self.kinds)}) and source"

    def parse_json_value(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if "kind" not in value or value.keys() - {"kind", "source"}:
            raise ValueError(self.range_text)
        source = value.get("source", "")
        return Grammar(value["kind"], source if isinstance(source, str) else json.dumps(source))

    def _check_grammar(self, value: Any) -> Any:
        if not isinstance(value, Grammar) or value.kind not in self.kinds or not isinstance(value.source, str):
            raise ValueError(self.range_text)
        return value


# ---- the parameters


@dataclass(frozen=True)
class FileOverride:
    """A range or default that a sampling parameter has in prompt files and on the command line, but not in the engine."""

    type: ParamType | None = None
    default: Any = ...


@dataclass(frozen=True)
class ServerOverride:
    """A range or default that a sampling parameter has in requests to the server, but not in the engine."""

    type: ParamType | None = None
    default: Any = ...


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of a request. If a request is repeated with the same `seed`, the reply is the same.

    The annotation of each parameter holds its type, its range in the engine, and its description. `FileOverride` and
    `ServerOverride` give other ranges or defaults for prompt files and for the server. The sampling filters apply in the
    order `top_k`, `top_p`, `min_p`, as in transformers.
    """

    max_tokens: Annotated[
        int,
        IntRange(1, INT32),
        FileOverride(default=1024),
        "Maximum number of tokens in the reply, including the thinking.",
    ] = 64
    temperature: Annotated[
        float,
        FloatRange(0, LARGEST),
        FileOverride(FloatRange(0, 100)),
        ServerOverride(FloatRange(0, 2), default=1.0),
        "Divides the logits; 0 means greedy decoding.",
    ] = 0.0
    top_p: Annotated[
        float,
        FloatRange(0, 1, above=True),
        "Sample from the most likely tokens whose probabilities add up to this share; 1 disables the filter.",
    ] = 1.0
    top_k: Annotated[
        int,
        IntRange(0, INT32),
        ServerOverride(IntRange(-1, INT32)),
        "Sample from this many of the most likely tokens; 0 disables the filter.",
    ] = 0
    seed: Annotated[
        int,
        IntRange(),
        FileOverride(IntRange(0, SAFE)),
        ServerOverride(IntRange(-INT64 - 1, INT64)),
        "Random seed. The random numbers depend only on the seed, the sample index and the token position. Give requests "
        "that should be independent different seeds.",
    ] = 0
    n: Annotated[int, IntRange(1, 4096), ServerOverride(IntRange(1, MAX_SERVED_N)), "Number of samples."] = 1
    ignore_eos: Annotated[
        bool, Flag(), "Do not stop at end-of-sequence tokens, so that a benchmark generates `max_tokens` tokens."
    ] = False
    min_p: Annotated[
        float,
        FloatRange(0, 1, below=True),
        "Sample from tokens whose probability is at least this share of the highest probability; 0 disables the filter.",
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        # A logit that is divided by a penalty below 0.01 can overflow.
        FloatRange(0.01, 100),
        ServerOverride(FloatRange(0.01, 10)),
        "Divides the positive logits, and multiplies the negative logits, of tokens that occur in the prompt or the reply "
        "(CTRL, Keskar et al. 2019, section 4.1).",
    ] = 1.0
    presence_penalty: Annotated[
        float,
        FloatRange(-100, 100),
        ServerOverride(FloatRange(-2, 2)),
        "Subtracted from the logit of each token that occurs in the reply (OpenAI's API).",
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        FloatRange(-100, 100),
        ServerOverride(FloatRange(-2, 2)),
        "Subtracted from the logit of a token for each occurrence of the token in the reply (OpenAI's API).",
    ] = 0.0
    logit_bias: Annotated[
        tuple[tuple[int, float], ...],
        TokenBiases(1024, 100),
        "Pairs (token, bias): the bias is added to the logit of the token.",
    ] = ()
    stop: Annotated[
        tuple[str, ...],
        TextList(16, 256),
        "Stop strings. The text of the reply ends before the first stop string; its tokens remain in `token_ids`.",
    ] = ()
    stop_token_ids: Annotated[
        tuple[int, ...],
        TokenList(),
        FileOverride(TokenList(1024)),
        ServerOverride(TokenList(16)),
        "Additional tokens that end the reply. The stop token remains in `token_ids`.",
    ] = ()
    top_logprobs: Annotated[
        int,
        IntRange(0, MAX_TOP_LOGPROBS, within="vocab_size"),
        "Number of most likely tokens whose log-probabilities are returned at each position.",
    ] = 0
    grammar: Annotated[
        Grammar | None,
        GrammarType(),
        FileOverride(GrammarType(("json_schema", "regex", "choice", "json"))),
        "Grammar that constrains the reply. If the model thinks, the grammar applies after `</think>`.",
    ] = None
    min_tokens: Annotated[
        int,
        IntRange(0, INT32, within="max_tokens"),
        "Minimum number of tokens, including thinking. Earlier end-of-sequence tokens, stop tokens and stop strings do not end "
        "the reply. A grammar takes precedence: if it allows only the end, the reply ends.",
    ] = 0
    min_p_first: Annotated[
        bool,
        Flag(),
        "Apply the filters in the order min_p, top_k, top_p, as vLLM does. `top_p` is then a share of the probability that remains "
        "after min_p and top_k.",
    ] = False
    prompt_logprobs: Annotated[
        int | None,
        IntRange(0, MAX_TOP_LOGPROBS, within="vocab_size"),
        "Return the log-probability of each prompt token and of this many most likely alternatives; None disables it. Penalties "
        "and temperature do not apply to them. The prefix cache is not used, because it stores no logits.",
    ] = None
    think_budget: Annotated[
        int | None,
        IntRange(1, INT32, within="max_tokens"),
        "Maximum number of thinking tokens. After this many, the engine writes `</think>`, so that the reply has an answer; "
        "None disables the limit.",
    ] = None
    calculator: Annotated[
        bool,
        Flag(),
        "Whether the engine writes the result after each calculation, such as `12 * 3 =`.",
    ] = False


@dataclass(frozen=True)
class SamplingParam:
    """The definition of one sampling parameter.

    `type` holds the parameter's range in the engine, `in_file` its range in prompt files, and `served` its range in requests
    to the server.
    """

    name: str
    doc: str
    type: ParamType
    default: Any
    in_file: ParamType
    file_default: Any
    served: ParamType
    served_default: Any

    @property
    def file_field_definition(self) -> tuple[Any, Any]:
        """The pydantic type and field of the parameter in prompt files and on the command line."""
        type_ = _allow_none_default(self.in_file.json_pydantic_type, self.file_default)
        return type_, Field(self.file_default, description=self.in_file.range_text)

    @property
    def request_field_definition(self) -> tuple[Any, Any]:
        """The pydantic type and field of the optional parameter in requests to the server."""
        return self.served.json_pydantic_type | None, Field(None, description=self.doc)


def _param(name: str, annotation: Any, default: Any) -> SamplingParam:
    engine_type, *metadata = annotation.__metadata__
    places = {type(item): item for item in metadata if not isinstance(item, str)}
    file, served = places.get(FileOverride, FileOverride()), places.get(ServerOverride, ServerOverride())
    return SamplingParam(
        name,
        metadata[-1],
        engine_type,
        default,
        file.type or engine_type,
        default if file.default is ... else file.default,
        served.type or engine_type,
        default if served.default is ... else served.default,
    )


def _allow_none_default(annotation: Any, default: Any) -> Any:
    return annotation | None if default is None else annotation


def _build_params() -> dict[str, SamplingParam]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    return {field.name: _param(field.name, hints[field.name], field.default) for field in fields(SamplingParams)}


PARAMS: Mapping[str, SamplingParam] = _build_params()
SERVER_DEFAULTS = SamplingParams(**{name: param.served_default for name, param in PARAMS.items()})


@with_fields(
    {name: (_allow_none_default(param.type.pydantic_type, param.default), ...) for name, param in PARAMS.items()}
)
class _CheckedParams(BaseModel):
    """The sampling parameters, with the ranges that the engine accepts."""


def check_params(params: SamplingParams, *, vocab_size: int, where: str) -> None:
    """Check all sampling parameters. `vocab_size` is the number of token ids of the model; `where` names the request in error
    messages.

    Raises a DataError that names the first invalid parameter, the parameter's value and the valid range. NaN and values of a
    wrong type, such as a bool for a number, are invalid.
    """
    try:
        _CheckedParams.model_validate(vars(params), context={"vocab_size": vocab_size})
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        name, *rest = item["loc"]
        place = str(name) + "".join(f"[{part}]" for part in rest)
        cause = item.get("ctx", {}).get("error")
        remedy = f"Give {cause or PARAMS[str(name)].type.range_text}."
        raise DataError(f"{place} is {_shorten(item['input'])}", where=where, remedy=remedy) from None


def params_from_json(data: Mapping[str, Any]) -> SamplingParams:
    """Build the sampling parameters from the dict that `dataclasses.asdict` returned, even if the dict was sent as JSON. Lists
    in the dict become tuples."""
    return SamplingParams(**{name: PARAMS[name].type.parse_json_value(value) for name, value in data.items()})


def _shorten(value: Any) -> str:
    """Format a value for an error message, and shorten a long value."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | int | float | None):
        # A message with a lone surrogate could not be printed.
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
