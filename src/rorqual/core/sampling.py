"""The sampling parameters.

Each field of `SamplingParams` defines the name, type, range, default and description of one parameter.

`PARAMS` collects the definitions of all parameters. The following code is derived from `PARAMS`:

- the engine's checks (`check_params`)
- the keys of prompt files (`generate/schema.py`)
- the server's request fields (`serve/schemas.py`)
- the messages to the engine's process (`serve/wire.py`)
- requests to a remote endpoint (`engine/remote/engine.py`)

To add a parameter, add a field to `SamplingParams` and implement its effect in the sampler.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from rorqual.core.errors import DataError

INT32, INT64 = 2**31 - 1, 2**63 - 1
SAFE = 2**53 - 1
"""The largest integer that all JSON parsers read exactly; many parsers read numbers as float64."""
LARGEST = sys.float_info.max
MAX_TOP_LOGPROBS = 20
MAX_SERVED_N = 128
GrammarKind = Literal["json_schema", "regex", "choice", "json", "calls"]
_SHOWN = 60


@dataclass(frozen=True)
class Grammar:
    """A grammar that constrains the reply. `kind` determines the content of `source`:

    - "json_schema": a JSON schema.
    - "regex": a regular expression that the whole reply must match.
    - "choice": a JSON list of strings; the reply must be one of these strings.
    - "json": empty; any JSON object matches.
    - "calls": `{"tools": [{"name": ..., "parameters": schema}], "many": bool}`. The reply must contain
      exactly one call of the listed tools, or at least one call if `many` is true, in the syntax of the chat format. With
      `"answer": schema`, the reply may be JSON that matches this schema instead of a call.
    """

    kind: GrammarKind
    source: str = ""


# ---- the types of parameters


@dataclass(frozen=True)
class Limits:
    """Upper limits for some ranges: the number of token ids of the model, and `max_tokens` of the request."""

    vocab_size: int
    max_tokens: int


class ParamType(ABC):
    """Base class of parameter types. A type states the valid range, checks values, and converts values from and to JSON."""

    @property
    @abstractmethod
    def range_text(self) -> str:
        """The valid range as text that completes the remedy "Give ...", for example "a number from 0 to 1"."""

    @abstractmethod
    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        """Raise a DataError that names the value and the range if `value` is out of range."""

    def read(self, value: Any) -> Any:
        """Convert a JSON value to its type in `SamplingParams`. A value that cannot be converted is returned unchanged."""
        return value

    def write(self, value: Any) -> Any:
        """Convert a value to its JSON form in OpenAI's API or in vLLM's extensions of that API."""
        return value


@dataclass(frozen=True)
class IntRange(ParamType):
    """An integer from `low` to `high`, inclusive, or any integer if both bounds are None.

    `within` names a field of `Limits` that can lower the upper bound.
    """

    low: int | None = None
    high: int | None = None
    within: Literal["", "vocab_size", "max_tokens"] = ""

    @property
    def bounds(self) -> dict[str, Any]:
        """The range as arguments of pydantic's `Field`."""
        return {"ge": self.low, "le": self.high}

    @property
    def range_text(self) -> str:
        return "a whole number" if self.low is None else f"a whole number from {self.low} to {self.high}"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        low, high = self.low, self.high
        if self.within and high is not None:
            high = min(high, getattr(limits, self.within))
        # Compare the type, because isinstance(True, int) is true.
        inside = type(value) is int and (low is None or low <= value) and (high is None or value <= high)
        if not inside:
            raise _outside(where, name, value, IntRange(low, high).range_text)


@dataclass(frozen=True)
class FloatRange(ParamType):
    """A number from `low` to `high`. `above` excludes `low`, and `below` excludes `high`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    @property
    def bounds(self) -> dict[str, Any]:
        """The range as arguments of pydantic's `Field`."""
        low, high = "gt" if self.above else "ge", "lt" if self.below else "le"
        return {low: self.low, high: self.high, "allow_inf_nan": False}

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

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        # NaN fails every comparison. An int too large for a float still compares exactly.
        inside = type(value) in (int, float) and self.low <= value <= self.high
        if not inside or (self.above and value == self.low) or (self.below and value == self.high):
            raise _outside(where, name, value, self.range_text)


@dataclass(frozen=True)
class Flag(ParamType):
    """A boolean."""

    range_text = "true or false"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if type(value) is not bool:
            raise _outside(where, name, value, self.range_text)


@dataclass(frozen=True)
class TextList(ParamType):
    """A list of up to `most` strings of 1 to `longest` characters. In JSON, a single string is also valid."""

    most: int
    longest: int

    @property
    def range_text(self) -> str:
        return f"a string or a list of up to {self.most} strings, each of 1 to {self.longest} characters"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, tuple | list) or not all(isinstance(text, str) for text in value):
            raise _outside(where, name, value, "a list of strings")
        if len(value) > self.most:
            raise DataError(f"{name} has {len(value)} strings", where=where, remedy=f"Give at most {self.most}.")
        for text in value:
            if not 1 <= len(text) <= self.longest:
                raise DataError(
                    f"{name} has a string of {len(text)} characters",
                    where=where,
                    remedy=f"Give 1 to {self.longest} characters.",
                )
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise _outside(where, name, text, "a string without lone surrogates (no reply contains them)")

    def read(self, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    def write(self, value: Any) -> Any:
        return list(value)


@dataclass(frozen=True)
class TokenList(ParamType):
    """A list of token ids, with at most `most` entries if `most` is set."""

    most: int | None = None
    range_text = "a list of token ids"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, tuple | list):
            raise _outside(where, name, value, self.range_text)
        for id_ in value:
            IntRange(0, limits.vocab_size - 1).check(where, name, id_, limits)

    def read(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def write(self, value: Any) -> Any:
        return list(value)


@dataclass(frozen=True)
class TokenBiases(ParamType):
    """Up to `most` pairs of a token id and a bias from `-bound` to `bound`.

    In JSON, the pairs are an object {token id: bias}.
    """

    most: int
    bound: float

    @property
    def bias(self) -> FloatRange:
        """The type of a single bias."""
        return FloatRange(-self.bound, self.bound)

    @property
    def range_text(self) -> str:
        return f"token ids, each with {self.bias.range_text}"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, tuple | list) or not all(isinstance(b, tuple | list) and len(b) == 2 for b in value):
            raise _outside(where, name, value, "pairs of a token id and a number")
        if len(value) > self.most:
            what = f"{name} has {len(value)} entries"
            raise DataError(what, where=where, remedy=f"Give at most {self.most} tokens.")
        seen: set[int] = set()
        for token, bias in value:
            IntRange(0, limits.vocab_size - 1).check(where, f"{name}: token", token, limits)
            self.bias.check(where, f"{name}: bias of token {token}", bias, limits)
            if token in seen:
                raise DataError(f"{name} names token {token} twice", where=where, remedy="Give each token one bias.")
            seen.add(token)

    def read(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in value)
        if not isinstance(value, Mapping):
            return value
        try:
            return tuple((int(token), bias) for token, bias in value.items())
        except (TypeError, ValueError):
            raise ValueError("all keys must be token ids") from None

    def write(self, value: Any) -> Any:
        return {str(token): bias for token, bias in value}


@dataclass(frozen=True)
class GrammarType(ParamType):
    """A `Grammar`. In JSON, a grammar is an object with the keys `kind` and `source`."""

    range_text = 'such as {"kind": "regex", "source": "[0-9]+"}'

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, Grammar) or not isinstance(value.source, str):
            raise _outside(where, name, value, "a Grammar whose source is a string")
        kinds = get_args(GrammarKind)
        if value.kind not in kinds:
            raise _outside(where, f"{name}: kind", value.kind, "one of " + ", ".join(kinds))

    def read(self, value: Any) -> Any:
        return Grammar(**value) if isinstance(value, Mapping) else value


# ---- the parameters


@dataclass(frozen=True)
class InFile:
    """A range or default that a parameter has in prompt files and on the command line, but not in the engine."""

    type: ParamType | None = None
    default: Any = ...


@dataclass(frozen=True)
class OnServer:
    """A range or default that a parameter has in requests to the server, but not in the engine."""

    type: ParamType | None = None
    default: Any = ...


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of a request. Repeating a request with the same `seed` gives the same reply.

    Each annotation holds the type, the range in the engine, and the description. `InFile` and `OnServer` give other ranges or
    defaults for prompt files and for the server. The filters apply in the order top_k, top_p, min_p, as in transformers.
    """

    max_tokens: Annotated[
        int,
        IntRange(1, INT32),
        InFile(default=1024),
        "Maximum number of tokens in the reply, including the thinking.",
    ] = 64
    temperature: Annotated[
        float,
        FloatRange(0, LARGEST),
        InFile(FloatRange(0, 100)),
        OnServer(FloatRange(0, 2), default=1.0),
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
        OnServer(IntRange(-1, INT32)),
        "Sample from this many of the most likely tokens; 0 disables the filter.",
    ] = 0
    seed: Annotated[
        int,
        IntRange(),
        InFile(IntRange(0, SAFE)),
        OnServer(IntRange(-INT64 - 1, INT64)),
        "Random seed. The random numbers depend only on the seed, the sample index and the token position. Give requests "
        "that should be independent different seeds.",
    ] = 0
    n: Annotated[int, IntRange(1, 4096), OnServer(IntRange(1, MAX_SERVED_N)), "Number of samples."] = 1
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
        OnServer(FloatRange(0.01, 10)),
        "Divides the positive logits, and multiplies the negative logits, of tokens that occur in the prompt or the reply "
        "(CTRL, Keskar et al. 2019, section 4.1).",
    ] = 1.0
    presence_penalty: Annotated[
        float,
        FloatRange(-100, 100),
        OnServer(FloatRange(-2, 2)),
        "Subtracted from the logit of each token that occurs in the reply (OpenAI's API).",
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        FloatRange(-100, 100),
        OnServer(FloatRange(-2, 2)),
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
        InFile(TokenList(1024)),
        OnServer(TokenList(16)),
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
class Param:
    """The definition of one sampling parameter.

    `type` is the range in the engine, `in_file` is the range in prompt files, and `served` is the range in requests to the
    server.
    """

    name: str
    annotation: Any
    doc: str
    type: ParamType
    default: Any
    in_file: ParamType
    file_default: Any
    served: ParamType
    served_default: Any


def _param(name: str, annotation: Any, default: Any) -> Param:
    engine_type, *metadata = annotation.__metadata__
    places = {type(item): item for item in metadata if not isinstance(item, str)}
    file, served = places.get(InFile, InFile()), places.get(OnServer, OnServer())
    return Param(
        name,
        annotation.__origin__,
        metadata[-1],
        engine_type,
        default,
        file.type or engine_type,
        default if file.default is ... else file.default,
        served.type or engine_type,
        default if served.default is ... else served.default,
    )


def _params() -> dict[str, Param]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    return {field.name: _param(field.name, hints[field.name], field.default) for field in fields(SamplingParams)}


PARAMS: Mapping[str, Param] = _params()
SERVER_DEFAULTS = SamplingParams(**{name: param.served_default for name, param in PARAMS.items()})


def check_params(params: SamplingParams, *, vocab_size: int, where: str) -> None:
    """Check all parameters. `vocab_size` is the number of token ids of the model; `where` names the request in errors.

    Raises a DataError that names the first invalid parameter, its value and its range. NaN and values of a wrong type, such as
    a bool for a number, are invalid.
    """
    limits = Limits(vocab_size, params.max_tokens)
    for name, param in PARAMS.items():
        value = getattr(params, name)
        if value is not None or param.default is not None:
            param.type.check(where, name, value, limits)


def to_json(params: SamplingParams) -> dict[str, Any]:
    """Return the parameters as a dict, keyed by name. `from_json` restores equal parameters, even if the dict was sent as JSON."""
    return asdict(params)


def from_json(data: Mapping[str, Any]) -> SamplingParams:
    """Build the parameters from the dict that `to_json` returned. JSON lists become tuples."""
    return SamplingParams(**{name: PARAMS[name].type.read(value) for name, value in data.items()})


def _outside(where: str, name: str, value: Any, text: str) -> DataError:
    return DataError(f"{name} is {_shorten(value)}", where=where, remedy=f"Give {text}.")


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
