"""The sampling parameters, each once: its name, type, range, default and meaning.

`SamplingParams` is what the engine takes. Its fields carry the rest, and `PARAMS` reads it from them. Five places are made from that: the
engine's checks (`check_params`), the keys of files of prompts (`generate/schema.py`), the fields of requests to the server
(`serve/schemas.py`), the messages to the engine's process (`serve/wire.py`) and the requests to a remote address
(`engine/remote/engine.py`). A new parameter is one field here, and its effect in the sampler.
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
"""The largest whole number that every reader of JSON gives back."""
LARGEST = sys.float_info.max
MAX_TOP_LOGPROBS = 20
MAX_SERVED_N = 128
GrammarKind = Literal["json_schema", "regex", "choice", "json", "calls"]
_SHOWN = 60


@dataclass(frozen=True)
class Grammar:
    """What a reply must match. `source` is a JSON schema, a regular expression (of the whole reply) or a JSON list of choices, by `kind`;
    of kind "json" any JSON object matches, and `source` is empty. Of kind "calls" it is `{"tools": [{"name": ..., "parameters": schema}],
    "many": bool}`: the reply calls one of these functions or, with `many`, one or more, as the chat format writes calls; with
    `"answer": schema` beside these it is calls, or a JSON text that this schema allows."""

    kind: GrammarKind
    source: str = ""


# ---- the types of parameters


@dataclass(frozen=True)
class Limits:
    """What a range depends on beside the parameter: the ids that the model can give, and the tokens of the reply."""

    vocab_size: int
    max_tokens: int


class ParamType(ABC):
    """The values that a parameter can have."""

    @property
    @abstractmethod
    def said(self) -> str:
        """The range in words, as they stand behind "Give ..."."""

    @abstractmethod
    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        """Raise a `DataError` that names the value and the range where the value lies outside."""

    def read(self, value: Any) -> Any:
        """The value in `SamplingParams` of one that JSON gave; what has no such form comes back as it is."""
        return value

    def write(self, value: Any) -> Any:
        """The value as OpenAI's API, or vLLM's beside it, writes it in JSON."""
        return value


@dataclass(frozen=True)
class IntRange(ParamType):
    """A whole number from `low` to `high`, both included; without these any. `within`: a limit that it cannot exceed either."""

    low: int | None = None
    high: int | None = None
    within: Literal["", "vocab_size", "max_tokens"] = ""

    @property
    def bounds(self) -> dict[str, Any]:
        """As arguments of pydantic's `Field`."""
        return {"ge": self.low, "le": self.high}

    @property
    def said(self) -> str:
        return "a whole number" if self.low is None else f"a whole number from {self.low} to {self.high}"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        low, high = self.low, self.high
        if self.within and high is not None:
            high = min(high, getattr(limits, self.within))
        # `type(...) is`, as True is an int to isinstance.
        inside = type(value) is int and (low is None or low <= value) and (high is None or value <= high)
        if not inside:
            raise _outside(where, name, value, IntRange(low, high).said)


@dataclass(frozen=True)
class FloatRange(ParamType):
    """A number from `low` to `high`. `above` and `below`: `low`, or `high`, itself is not one of them."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    @property
    def bounds(self) -> dict[str, Any]:
        """As arguments of pydantic's `Field`."""
        low, high = "gt" if self.above else "ge", "lt" if self.below else "le"
        return {low: self.low, high: self.high, "allow_inf_nan": False}

    @property
    def said(self) -> str:
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
        # NaN fails every comparison; a whole number too large for a float compares exactly.
        inside = type(value) in (int, float) and self.low <= value <= self.high
        if not inside or (self.above and value == self.low) or (self.below and value == self.high):
            raise _outside(where, name, value, self.said)


@dataclass(frozen=True)
class Flag(ParamType):
    """True or false."""

    said = "true or false"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if type(value) is not bool:
            raise _outside(where, name, value, self.said)


@dataclass(frozen=True)
class TextList(ParamType):
    """Up to `most` texts of 1 to `longest` characters; JSON may give a single one alone."""

    most: int
    longest: int

    @property
    def said(self) -> str:
        return f"a text or up to {self.most}, of 1 to {self.longest} characters"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, tuple | list) or not all(isinstance(text, str) for text in value):
            raise _outside(where, name, value, "a list of texts")
        if len(value) > self.most:
            raise DataError(f"{name} has {len(value)} texts", where=where, remedy=f"At most {self.most} can be given.")
        for text in value:
            if not 1 <= len(text) <= self.longest:
                raise DataError(
                    f"{name}: a text of {len(text)} characters", where=where, remedy=f"Give 1 to {self.longest}."
                )
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise _outside(where, name, text, "text without half of a surrogate pair, which no reply can hold")

    def read(self, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    def write(self, value: Any) -> Any:
        return list(value)


@dataclass(frozen=True)
class TokenList(ParamType):
    """Token ids, `most` at most where it is given."""

    most: int | None = None
    said = "a list of token ids"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, tuple | list):
            raise _outside(where, name, value, self.said)
        for id_ in value:
            IntRange(0, limits.vocab_size - 1).check(where, name, id_, limits)

    def read(self, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def write(self, value: Any) -> Any:
        return list(value)


@dataclass(frozen=True)
class TokenBiases(ParamType):
    """Up to `most` pairs of a token id and a number from `-bound` to `bound`. JSON has an object of them."""

    most: int
    bound: float

    @property
    def bias(self) -> FloatRange:
        """The range of one of the numbers."""
        return FloatRange(-self.bound, self.bound)

    @property
    def said(self) -> str:
        return f"token ids, each with {self.bias.said}"

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, tuple | list) or not all(isinstance(b, tuple | list) and len(b) == 2 for b in value):
            raise _outside(where, name, value, "pairs of a token id and a number")
        if len(value) > self.most:
            what = f"{name} has {len(value)} entries"
            raise DataError(what, where=where, remedy=f"At most {self.most} tokens can be biased.")
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
            raise ValueError("its keys are the ids of tokens") from None

    def write(self, value: Any) -> Any:
        return {str(token): bias for token, bias in value}


@dataclass(frozen=True)
class GrammarType(ParamType):
    """A `Grammar`; JSON has an object with its kind and its source."""

    said = 'such as {"kind": "regex", "source": "[0-9]+"}'

    def check(self, where: str, name: str, value: Any, limits: Limits) -> None:
        if not isinstance(value, Grammar) or not isinstance(value.source, str):
            raise _outside(where, name, value, "a Grammar with a text as its source")
        kinds = get_args(GrammarKind)
        if value.kind not in kinds:
            raise _outside(where, f"{name}: kind", value.kind, "one of " + ", ".join(kinds))

    def read(self, value: Any) -> Any:
        return Grammar(**value) if isinstance(value, Mapping) else value


# ---- the parameters


@dataclass(frozen=True)
class InFile:
    """The range, or the default, in a file of prompts and on its command line, where it is another than the engine's."""

    type: ParamType | None = None
    default: Any = ...


@dataclass(frozen=True)
class OnServer:
    """The same in a request to the server."""

    type: ParamType | None = None
    default: Any = ...


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. One `seed` gives one answer.

    Each field has its type, its range in the engine, where another place differs (`InFile`, `OnServer`), its meaning, and its default.
    Cuts are made in this order: top_k, top_p, min_p, as in transformers.
    """

    max_tokens: Annotated[
        int,
        IntRange(1, INT32),
        InFile(default=1024),
        "The most tokens of a reply, a thought's included.",
    ] = 64
    temperature: Annotated[
        float,
        FloatRange(0, LARGEST),
        InFile(FloatRange(0, 100)),
        OnServer(FloatRange(0, 2), default=1.0),
        "What logits are divided by; 0 is greedy.",
    ] = 0.0
    top_p: Annotated[
        float,
        FloatRange(0, 1, above=True),
        "Draw from the likeliest tokens that have this share of the probability; 1 is off.",
    ] = 1.0
    top_k: Annotated[
        int,
        IntRange(0, INT32),
        OnServer(IntRange(-1, INT32)),
        "Draw from so many of the likeliest tokens; 0 is off.",
    ] = 0
    seed: Annotated[
        int,
        IntRange(),
        InFile(IntRange(0, SAFE)),
        OnServer(IntRange(-INT64 - 1, INT64)),
        "Random numbers depend on the seed, the number of the sample and the position alone: requests that should be independent of each "
        "other need seeds of their own.",
    ] = 0
    n: Annotated[int, IntRange(1, 4096), OnServer(IntRange(1, MAX_SERVED_N)), "How many samples."] = 1
    ignore_eos: Annotated[bool, Flag(), "Go on to `max_tokens`, to measure speed."] = False
    min_p: Annotated[
        float,
        FloatRange(0, 1, below=True),
        "Draw from the tokens that are at least this share as likely as the likeliest; 0 is off.",
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        # Far below, a logit divided by it is no number any more.
        FloatRange(0.01, 100),
        OnServer(FloatRange(0.01, 10)),
        "Divides positive and multiplies negative logits of tokens that the prompt or the reply holds (CTRL, Keskar et al. 2019, section "
        "4.1).",
    ] = 1.0
    presence_penalty: Annotated[
        float,
        FloatRange(-100, 100),
        OnServer(FloatRange(-2, 2)),
        "Subtracted from the logit of each token that the reply holds (OpenAI's API).",
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        FloatRange(-100, 100),
        OnServer(FloatRange(-2, 2)),
        "Subtracted from the logit of a token once for each time that the reply holds it (OpenAI's API).",
    ] = 0.0
    logit_bias: Annotated[
        tuple[tuple[int, float], ...],
        TokenBiases(1024, 100),
        "Added to the logits of these tokens: (token, bias).",
    ] = ()
    stop: Annotated[
        tuple[str, ...],
        TextList(16, 256),
        "Texts before which the reply's text ends. What was drawn of one is kept in `token_ids`.",
    ] = ()
    stop_token_ids: Annotated[
        tuple[int, ...],
        TokenList(),
        InFile(TokenList(1024)),
        OnServer(TokenList(16)),
        "Further tokens that end a reply; the one drawn is kept in `token_ids`.",
    ] = ()
    top_logprobs: Annotated[
        int,
        IntRange(0, MAX_TOP_LOGPROBS, within="vocab_size"),
        "How many of the likeliest tokens, with their log-probabilities, come with each token.",
    ] = 0
    grammar: Annotated[
        Grammar | None,
        GrammarType(),
        "What the reply (what follows `</think>`, where it thinks) must match.",
    ] = None
    min_tokens: Annotated[
        int,
        IntRange(0, INT32, within="max_tokens"),
        "Neither the model's own end, nor a stop token, nor a stop string ends the reply before it has so many tokens, a thought's "
        "included. A grammar goes first: where it allows nothing but the end, the reply ends.",
    ] = 0
    min_p_first: Annotated[
        bool,
        Flag(),
        "Cut by min_p, top_k, top_p, as vLLM does, so that `top_p` is a share of what min_p left.",
    ] = False
    prompt_logprobs: Annotated[
        int | None,
        IntRange(0, MAX_TOP_LOGPROBS, within="vocab_size"),
        "The prompt's own tokens get log-probabilities, too, with so many likeliest ones; None: they get none. They are of the plain "
        "softmax, whatever else is asked for, and the prompt is then computed as a whole: what the prefix cache has of it has no logits.",
    ] = None


@dataclass(frozen=True)
class Param:
    """One field of `SamplingParams`. `type`: its range in the engine; `in_file` and `served`: elsewhere, with the defaults there."""

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
    kind, *rest = annotation.__metadata__
    places = {type(one): one for one in rest if not isinstance(one, str)}
    file, served = places.get(InFile, InFile()), places.get(OnServer, OnServer())
    return Param(
        name,
        annotation.__origin__,
        rest[-1],
        kind,
        default,
        file.type or kind,
        default if file.default is ... else file.default,
        served.type or kind,
        default if served.default is ... else served.default,
    )


def _params() -> dict[str, Param]:
    hints = get_type_hints(SamplingParams, include_extras=True)
    return {field.name: _param(field.name, hints[field.name], field.default) for field in fields(SamplingParams)}


PARAMS: Mapping[str, Param] = _params()
SERVER_DEFAULTS = SamplingParams(**{name: param.served_default for name, param in PARAMS.items()})


def check_params(params: SamplingParams, *, vocab_size: int, where: str) -> None:
    """Raise a `DataError` that names the first parameter outside its range, its value and the range; `where` names the request.

    A value of another type (a bool for a number, NaN) lies outside. `vocab_size`: ids that the model can give.
    """
    limits = Limits(vocab_size, params.max_tokens)
    for name, param in PARAMS.items():
        value = getattr(params, name)
        if value is not None or param.default is not None:
            param.type.check(where, name, value, limits)


def to_json(params: SamplingParams) -> dict[str, Any]:
    """All parameters by name, as values that JSON can hold; `from_json` gives back equal ones."""
    return asdict(params)


def from_json(data: Mapping[str, Any]) -> SamplingParams:
    """The parameters that `to_json` wrote, after JSON made lists of tuples."""
    return SamplingParams(**{name: PARAMS[name].type.read(value) for name, value in data.items()})


def _outside(where: str, name: str, value: Any, text: str) -> DataError:
    return DataError(f"{name} is {_shown(value)}", where=where, remedy=f"Give {text}.")


def _shown(value: Any) -> str:
    """A value as a person can read it, however large it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | int | float | None):
        # A lone surrogate would make the message itself impossible to print.
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
