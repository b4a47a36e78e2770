"""Random JSON schemas, and what holds of an answer under one.

Two sources:

- `written`: a generator of our own, of what people write: types, enum, const, properties, required, additionalProperties, items,
  prefixItems, bounds, patterns, formats, anyOf, oneOf, allOf, `$ref` into `$defs` (to themselves too), nested to `DEPTH`; one part in
  twenty holds a keyword that few servers enforce;
- `mixture`: keywords beside each other that hypothesis and hypothesis-jsonschema draw, whether they make sense or not. (The latter
  draws no objects with hypothesis of today, and its own generator of schemas is not part of the package: so it draws the values.)

An answer is judged by jsonschema, draft 2020-12, with numbers as they are written (decimals, not floats).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextvars import ContextVar
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jsonschema
from hypothesis_jsonschema import from_schema

Json = Any
DEPTH = 4
NAMES = ["name", "age", "id", "tags", "a b", "é", 'q"', "next", "n/a", "x~y", ""]
WORDS = ["red", "whale", "naïve", "a b", 'say "hi"', "back\\slash", "🐋", "", "0", "null", "line\nbreak"]
PATTERNS = [
    "^[a-c]+$", "^[A-Z]{2}[0-9]{2,4}$", "^(yes|no)$", "^\\d{3}-\\d{4}$", "^[^\"]{1,6}$", "ab", "^x", "y$", "^$", "^\\w{1,8}$", "^a?b*c{1,3}$",
    "^(a|b(c|d)){1,3}$", "^[é-ü]{2}$", "^\\S+@\\S+$", "^.{3}$", "^\\u0041[\\u0030-\\u0039]$", "^[\\]\\-\\\\]{1,4}$",
    "^(?:0|[1-9]\\d{0,2})(?:\\.\\d{1,2})?$", "^(?=a)ab$", "^(a)\\1$", "(?i)^abc$", "^\\bword\\b$", "^[0-9a-f]{8}$",
]  # fmt: skip
FORMATS = [
    "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "uri-reference", "regex", "json-pointer",
    "idn-email", "iri", "binary", "color",
]  # fmt: skip
RARE: dict[str, Json] = {
    "not": {"type": "null"}, "if": {"type": "string"}, "uniqueItems": True, "contains": {"type": "integer"}, "minContains": 1,
    "propertyNames": {"pattern": "^a"}, "dependentRequired": {"name": ["age"]}, "dependentSchemas": {"name": {"required": ["age"]}},
    "unevaluatedProperties": False, "unevaluatedItems": False, "contentEncoding": "base64", "contentMediaType": "application/json",
    "minProperties": 1, "maxProperties": 3, "$comment": "for readers", "readOnly": True, "deprecated": True, "title": "A part",
    "description": "What it is.", "default": 3, "examples": [1], "$anchor": "here", "x-mine": 1, "nullable": True,
}  # fmt: skip


class Written:
    """Schemas as people write them; one random generator, one set of `$defs`."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.defs = [f"d{i}" for i in range(self.draw.choice([0, 0, 1, 2]))]

    def whole(self) -> dict[str, Json]:
        schema = self.part(DEPTH)
        while not isinstance(schema, dict) or (self.defs and "$defs" in schema):
            schema = self.part(DEPTH)
        if self.defs:
            schema["$defs"] = {name: self.part(2) for name in self.defs}
        return schema

    def part(self, depth: int) -> Json:
        draw = self.draw
        kinds = [self.scalar] * 5 + [self.chosen] * 2 + [self.text] * 3 + [lambda _: {}] * (draw.random() < 0.1)
        if self.defs:
            kinds += [lambda _: {"$ref": f"#/$defs/{draw.choice(self.defs)}"}] * 2
        if depth > 1:
            kinds += [self.record] * 6 + [self.row] * 4 + [self.branches] * 3
        schema = (self.record if depth == DEPTH and draw.random() < 0.6 else draw.choice(kinds))(depth)
        if draw.random() < 0.05:
            name = draw.choice(list(RARE))
            schema |= {name: RARE[name]}
        return schema

    def scalar(self, _: int) -> dict[str, Json]:
        draw = self.draw
        kind = draw.choice(["integer", "number", "boolean", "null", "integer", "number"])
        schema: dict[str, Json] = {"type": [kind, "null"] if kind != "null" and draw.random() < 0.15 else kind}
        if kind in ("boolean", "null"):
            return schema
        low = draw.choice([-1000, -7, 0, 1, 12])
        if draw.random() < 0.5:
            schema[draw.choice(["minimum", "exclusiveMinimum"])] = low + (
                draw.choice([0, 0.5]) if kind == "number" else 0
            )
        if draw.random() < 0.5:
            schema[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.choice([0, 2, 30, 10**6])
        if draw.random() < 0.2:
            schema["multipleOf"] = draw.choice([1, 2, 5, 10] if kind == "integer" else [0.5, 0.1, 0.01, 3])
        return schema

    def chosen(self, _: int) -> dict[str, Json]:
        some = [*WORDS, 1, -2, 0.5, True, False, None, [1, "a"], {"k": 1}, 1e3, []]
        if self.draw.random() < 0.3:
            return {"const": self.draw.choice(some)}
        return {"enum": self.draw.sample(some, self.draw.randint(1, 5))}

    def text(self, _: int) -> dict[str, Json]:
        draw, schema = self.draw, dict[str, Json](type="string")
        match draw.choice(["free", "bounded", "bounded", "pattern", "pattern", "format", "format"]):
            case "bounded":
                low = draw.choice([0, 0, 1, 3])
                schema |= {"minLength": low} if low else {}
                schema["maxLength"] = low + draw.choice([0, 1, 5, 20, 60])
            case "pattern":
                schema["pattern"] = draw.choice(PATTERNS)
                if draw.random() < 0.15:
                    schema["maxLength"] = draw.choice([4, 12])
            case "format":
                schema["format"] = draw.choice(FORMATS)
        return schema

    def row(self, depth: int) -> dict[str, Json]:
        draw, schema = self.draw, dict[str, Json](type="array")
        if draw.random() < 0.3:
            schema["prefixItems"] = [self.part(depth - 1) for _ in range(draw.randint(1, 3))]
            schema["items"] = draw.choice([False, self.part(depth - 1)])
        elif draw.random() < 0.95:
            schema["items"] = self.part(depth - 1)
        if draw.random() < 0.4:
            schema["minItems"] = draw.randint(0, 3)
        if draw.random() < 0.7:
            schema["maxItems"] = schema.get("minItems", 0) + draw.randint(0, 3)
        return schema

    def record(self, depth: int) -> dict[str, Json]:
        draw = self.draw
        names = draw.sample(NAMES, draw.choice([0, 1, 2, 2, 3, 3, 4, 5]))
        schema: dict[str, Json] = {"type": "object", "properties": {name: self.part(depth - 1) for name in names}}
        if draw.random() < 0.8:
            schema["required"] = [name for name in names if draw.random() < 0.7]
            if draw.random() < 0.05:
                schema["required"].append("elsewhere")
        match draw.choice(["closed"] * 7 + ["open", "some", "patterned"]):
            case "closed":
                schema["additionalProperties"] = False
            case "some":
                schema["additionalProperties"] = self.part(1)
            case "patterned":
                schema["patternProperties"] = {draw.choice(["^x-", "^[a-z]$", "_id$"]): self.part(1)}
                schema["additionalProperties"] = False
        return schema

    def branches(self, depth: int) -> dict[str, Json]:
        key = self.draw.choice(["anyOf"] * 4 + ["oneOf", "allOf"])
        return {key: [self.part(depth - 1) for _ in range(self.draw.randint(1, 3))]}


def written(seed: int) -> dict[str, Json]:
    """One schema, as people write them."""
    return Written(seed).whole()


def any_schema(depth: int) -> st.SearchStrategy[dict[str, Json]]:
    """One to four keywords of draft 2020-12 beside each other, each with a value that it takes."""
    fine = from_schema({"type": "number", "minimum": -100, "maximum": 100})
    number = (
        fine | fine.map(lambda value: round(value, 3)) | from_schema({"type": "integer", "minimum": -9, "maximum": 9})
    )
    count = from_schema({"type": "integer", "minimum": 0, "maximum": 5})
    types = from_schema({"enum": ["array", "boolean", "integer", "null", "number", "object", "string"]})
    value = from_schema({"enum": [None, True, 0, 1.5, -3, "", "red", "é", [], [1], {}, {"a": 1}]})
    keys: dict[str, st.SearchStrategy[Json]] = {
        "type": types | types | st.lists(types, min_size=1, max_size=3, unique=True), "enum": st.lists(value, min_size=1, max_size=4),
        "const": value, "default": value, "multipleOf": from_schema({"enum": [1, 2, 7, 0.5, 0.1, 1e-3]}), "minimum": number,
        "maximum": number, "exclusiveMinimum": number, "exclusiveMaximum": number, "minLength": count, "maxLength": count,
        "pattern": st.sampled_from(PATTERNS), "format": st.sampled_from(FORMATS), "minItems": count, "maxItems": count,
        "uniqueItems": st.booleans(), "minProperties": count, "maxProperties": count,
        "required": st.lists(st.sampled_from(NAMES), unique=True, max_size=3),
    }  # fmt: skip
    if depth:
        below = any_schema(depth - 1)
        some, named = (
            st.lists(below, min_size=1, max_size=3),
            st.dictionaries(st.sampled_from(NAMES), below, max_size=3),
        )
        keys |= dict.fromkeys(
            ["items", "contains", "not", "additionalProperties", "propertyNames", "if", "then", "else"], below
        )
        keys |= {"allOf": some, "anyOf": some, "oneOf": some, "prefixItems": some, "properties": named, "$defs": named}
    chosen = st.lists(st.sampled_from(sorted(keys)), min_size=1, max_size=4, unique=True)
    typed = st.sampled_from([["type"], ["type"], []])
    names = st.builds(lambda some, more: sorted({*some, *more}), chosen, typed)
    return names.flatmap(lambda found: st.fixed_dictionaries({name: keys[name] for name in found}))


def keyword_mixtures(count: int, seed: int, depth: int = 2) -> list[dict[str, Json]]:
    """`count` different ones of `any_schema`."""
    found: dict[str, dict[str, Json]] = {}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=4 * count + 40, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(any_schema(depth))
    def collect(schema: dict[str, Json]) -> None:
        if len(found) < count:
            found.setdefault(json.dumps(schema), schema)

    collect()
    assert len(found) == count, f"{len(found)} of {count} schemas"
    return list(found.values())


def schemas(count: int, seed: int) -> list[tuple[str, dict[str, Json]]]:
    """`count` valid schemas with their source, one in four a `mixture`; the same for the same seed and versions."""
    mixtures = keyword_mixtures((count + 2) // 4, seed)
    found = [
        ("mixture", mixtures[i // 4]) if i % 4 == 1 else ("written", written(seed * 1_000_003 + i))
        for i in range(count)
    ]
    for _, schema in found:
        jsonschema.Draft202012Validator.check_schema(schema)
    return found


def keywords(schema: Json) -> Iterator[str]:
    """Every keyword that stands in a schema, again and again; names of properties and values are none."""
    if isinstance(schema, list):
        for part in schema:
            yield from keywords(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            if key in ("properties", "patternProperties", "$defs", "dependentSchemas"):
                yield from keywords(list(value.values()))
            elif key not in ("const", "enum", "default", "examples", "required"):
                yield from keywords(value)


def endless(schema: Json) -> bool:
    """Whether a part of it sets no end to what an answer may hold: a text without maxLength or a form, a list without maxItems, an object
    with any properties, or a part that refers to another (it may hold itself)."""
    if isinstance(schema, list):
        return any(map(endless, schema))
    if not isinstance(schema, dict):
        return schema is True
    if "enum" in schema or "const" in schema:
        return False
    below = [value for key, value in schema.items() if key in ("anyOf", "oneOf", "allOf", "prefixItems")]
    if "$ref" in schema or (below and endless(below)):
        return True
    kinds = schema.get("type", [] if below else ["string", "array", "object"])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "string" in kinds and not {"maxLength", "format"} & set(schema) and schema.get("pattern", "^x") in OPEN_PATTERNS:
        return True
    if "array" in kinds and (
        (schema.get("items") is not False and "maxItems" not in schema) or endless(schema.get("items", True))
    ):
        return True
    return "object" in kinds and (
        schema.get("additionalProperties", True) is not False
        or "patternProperties" in schema
        or endless(list(schema.get("properties", {}).values()))
    )


OPEN_PATTERNS = ["^[a-c]+$", "ab", "^x", "y$", "^a?b*c{1,3}$", "^\\S+@\\S+$"]


def twice(text: str) -> bool:
    """Whether an object of an answer has a name twice (the last counts), which no grammar without a memory can rule out."""
    found = list[bool]()
    json.loads(text, object_pairs_hook=lambda pairs: found.append(len(dict(pairs)) < len(pairs)))
    return any(found)


def wrong_with(text: str, schema: dict[str, Json]) -> str:
    """Why an answer does not match a schema; empty where it does."""
    try:
        answer = json.loads(text, parse_float=_decimal, parse_constant=_no_json)
    except ValueError as error:
        return f"not JSON: {error}"
    exact = json.loads(json.dumps(schema), parse_float=_decimal)
    for error in Exact(exact).iter_errors(answer):
        return f"{'/'.join(map(str, error.absolute_schema_path))}: {error.message[:200]}"
    return ""


def _no_json(name: str) -> Json:
    raise ValueError(f"{name} is no JSON")


def _decimal(text: str) -> Decimal | float:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        return float(text)


def _multiple(_: Any, step: Json, answer: Json, __: Json) -> Iterator[jsonschema.ValidationError]:
    if isinstance(answer, bool) or not isinstance(answer, int | Decimal):
        return
    if isinstance(answer, Decimal) and abs(answer.adjusted()) > 10_000:
        yield jsonschema.ValidationError(f"{answer} is too far out to be divided by {step}")
    elif (Fraction(answer) / Fraction(step)).denominator != 1:
        yield jsonschema.ValidationError(f"{answer} is not a multiple of {step}")


def _whole(_: Any, answer: Json) -> bool:
    if isinstance(answer, Decimal):
        return answer == answer.to_integral_value()
    return isinstance(answer, int) and not isinstance(answer, bool)


_INSIDE: ContextVar[frozenset[tuple[str, int]]] = ContextVar("_INSIDE", default=frozenset())


def _reference(validator: Any, to: str, answer: Json, part: Json) -> Iterator[jsonschema.ValidationError]:
    """A reference that comes back to itself at one value matches nothing by it; jsonschema would follow it for ever."""
    here = (to, id(answer))
    if here in _INSIDE.get():
        yield jsonschema.ValidationError(f"{to} needs itself")
        return
    before = _INSIDE.set(_INSIDE.get() | {here})
    try:
        found = list(jsonschema.Draft202012Validator.VALIDATORS["$ref"](validator, to, answer, part))
    finally:
        _INSIDE.reset(before)
    yield from found


Exact = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    validators={"multipleOf": _multiple, "$ref": _reference},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", _whole),
)
