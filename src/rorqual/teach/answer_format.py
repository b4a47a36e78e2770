"""The format of answers: a grammar that replies must match, and an instruction for models that were not trained on the task.
This module also derives worked solutions of one-step word problems, and decides whether the engine writes the results of calculations.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

from rorqual.core.sampling import Grammar
from rorqual.engine.grammar.calculator import calculate
from rorqual.tasks.answer import final_answer, final_number
from rorqual.tasks.examples import AnswerKind
from rorqual.tasks.file_task import normalize_text
from rorqual.teach.examples import Example

MOST_LABELS = 1_000
"""Largest number of labels for which `answer_grammar` returns a grammar."""
ENUM_AT_MOST, ENUM_SEEN = 20, 5
"""A JSON string field is an enumeration if it has at most `ENUM_AT_MOST` values, and each value occurs at least `ENUM_SEEN` times."""
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
CALCULATES, AGREES = 0.5, 0.95
"""The engine writes the results of calculations if at least the share `CALCULATES` of the worked solutions has a calculation
with the result that the engine would write. A second condition is that at least the share `AGREES` of all results that the
engine would write equals the result in the worked solution."""
JSON_TYPES: Mapping[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
    type(None): "null",
}
"""The names of the types of JSON values in a schema."""
ANSWER_IS = {"number": "Answer with a number.", "text": ""}


def label_spellings(examples: Sequence[Example]) -> dict[str, str]:
    """Return a mapping from the normal form of each label to its most frequent spelling. The most frequent label comes first."""
    forms: dict[str, Counter[str]] = {}
    for one in examples:
        forms.setdefault(normalize_text(one.answer), Counter())[one.answer] += 1
    ordered = sorted(forms.values(), key=lambda counts: -counts.total())
    return {normalize_text(counts.most_common(1)[0][0]): counts.most_common(1)[0][0] for counts in ordered}


def answer_grammar(train: Sequence[Example], kind: AnswerKind) -> Grammar | None:
    """Return a grammar that the answers of `train` match: a choice of labels, or a JSON
    schema. Return None for numbers, texts and too many labels."""
    if kind == "label":
        labels = list(label_spellings(train).values())
        return Grammar("choice", json.dumps(labels, ensure_ascii=False)) if len(labels) <= MOST_LABELS else None
    if kind == "JSON":
        return Grammar("json_schema", json.dumps(infer_json_schema([json.loads(one.answer) for one in train])))
    return None


def infer_json_schema(values: Sequence[Any]) -> dict[str, Any]:
    """Return a JSON schema that all values match. Object keys that every value has are required. Object keys that no value has
    are forbidden.

    The keys of the schema are in the order in which the keys first appear in `values`.
    """
    if all(isinstance(value, dict) for value in values):
        names = list(dict.fromkeys(name for value in values for name in value))
        required = [name for name in names if all(name in value for value in values)]
        properties = {name: infer_json_schema([value[name] for value in values if name in value]) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if all(isinstance(value, list) for value in values):
        items = [item for value in values for item in value]
        return {"type": "array"} | ({"items": infer_json_schema(items)} if items else {})
    types = sorted({JSON_TYPES[type(value)] for value in values})
    if types == ["string"]:
        counts = Counter(values)
        if 2 <= len(counts) <= ENUM_AT_MOST and min(counts.values()) >= ENUM_SEEN:
            return {"type": "string", "enum": sorted(counts)}
    if types == ["integer", "number"]:
        types = ["number"]
    return {"type": types[0] if len(types) == 1 else types}


def sort_keys_by_schema(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a JSON value with the keys of all objects in the order of the schema, because a grammar accepts no other order."""
    if isinstance(value, dict) and "properties" in schema:
        properties = schema["properties"]
        return {name: sort_keys_by_schema(value[name], inner) for name, inner in properties.items() if name in value}
    if isinstance(value, list) and "items" in schema:
        return [sort_keys_by_schema(item, schema["items"]) for item in value]
    return value


def answer_format_instruction(train: Sequence[Example], kind: AnswerKind) -> str:
    """Return a system message that says in which format to answer, for a model that was not trained on the task.

    Return "" for free text, or if there are more than `MOST_LABELS` labels.
    """
    if kind == "label":
        labels = list(label_spellings(train).values())
        return f"Answer with one of: {', '.join(labels)}." if len(labels) <= MOST_LABELS else ""
    if kind == "JSON":
        schema = infer_json_schema([json.loads(one.answer) for one in train])
        return f"Answer with JSON that has these keys: {_describe_keys(schema)}."
    return ANSWER_IS[kind]


def _describe_keys(schema: Mapping[str, Any]) -> str:
    properties = schema.get("properties", {})
    return ", ".join(
        f"{name} ({_describe_keys(inner)})" if inner.get("properties") else name for name, inner in properties.items()
    )


# ---- worked solutions from numbers


def derive_worked_solution(example: Example) -> str:
    """Return a worked solution such as `8 - 3 = 5`, or "" unless exactly one calculation with two numbers of the prompt gives the answer.

    A sum or a product counts as one calculation, with the numbers in the order of the prompt.
    """
    gold = final_number(final_answer(example.answer))
    if gold is None:
        return ""
    written = str(gold.numerator) if gold.denominator == 1 else f"{float(gold):g}"
    found = set[str]()
    for (i, a), (j, b) in permutations(enumerate(NUMBER.findall(example.prompt)), 2):
        x, y = (Fraction(text.replace(",", "")) for text in (a, b))
        values = {"-": x - y} | ({"+": x + y, "*": x * y} if i < j else {}) | ({"/": x / y} if y else {})
        found |= {f"{a} {sign} {b} = {written}" for sign, value in values.items() if value == gold}
    return found.pop() if len(found) == 1 else ""


# ---- calculations


def needs_calculator(train: Sequence[Example]) -> bool:
    """Return whether the engine should write the results of calculations in replies, judged by the worked solutions (see `CALCULATES`)."""
    counts = [_count_calculations(one.reasoning) for one in train if one.reasoning]
    written, agree = sum(count for count, _ in counts), sum(agree for _, agree in counts)
    return (
        bool(counts) and sum(agree > 0 for _, agree in counts) >= CALCULATES * len(counts) and agree >= AGREES * written
    )


def _count_calculations(reasoning: str) -> tuple[int, int]:
    """Return the number of calculations in `reasoning` whose result the engine would write, and the number of these
    calculations with the same result in `reasoning`."""
    halves = ((reasoning[: match.end()], reasoning[match.end() :]) for match in re.finditer("=", reasoning))
    pairs = [(rest, written) for begun, rest in halves if (written := calculate(begun))]
    return len(pairs), sum(bool(re.match(rf"{re.escape(written)}(?![.,]?\d)", rest)) for rest, written in pairs)
