"""Grammars of answers, instructions, and worked solutions from numbers."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.teach.answer_format import (
    answer_format_instruction,
    answer_grammar,
    derive_worked_solution,
    infer_json_schema,
    needs_calculator,
    sort_keys_by_schema,
)
from rorqual.teach.examples import Example

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-5, 5), st.text("ab é", max_size=3))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
)


def answers(*texts: str) -> list[Example]:
    return [Example(n, f"prompt {n}", text) for n, text in enumerate(texts, 1)]


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_every_value_matches_its_schema(values: list[Any]) -> None:
    schema = infer_json_schema(values)
    jsonschema.Draft202012Validator.check_schema(schema)
    for value in values:
        jsonschema.validate(value, schema)


def test_a_schema_refuses_what_no_answer_has() -> None:
    schema = infer_json_schema(
        [{"kind": "a", "n": 1, "list": list("xyz")}, {"kind": "b", "n": 2.5}] * 5
        + [{"kind": "a", "n": 1, "list": list("abcdef")}]
    )
    jsonschema.validate({"kind": "b", "n": 7, "list": ["anything"]}, schema)
    bad: list[dict[str, Any]] = [
        {"n": 1},
        {"kind": "c", "n": 1},
        {"kind": "a", "n": "1"},
        {"kind": "a", "n": 1, "more": 1},
    ]
    for value in (*bad, {"kind": "a", "n": 1, "list": [1]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, schema)
    rare = infer_json_schema([f"name {n}" for n in range(10)] * 2)
    assert rare == {"type": "string"}, "names that are seen twice are no enumeration"
    assert infer_json_schema(["always"] * 50) == {"type": "string"}, "another value may come"
    assert (
        infer_json_schema([*["a"] * 90, *["b"] * 4])
        == {"type": "string"}
        != infer_json_schema([*["a"] * 90, *["b"] * 5])
    )


def test_answers_are_written_in_the_order_of_the_schemas_keys() -> None:
    """A grammar accepts keys in the order of the schema alone."""
    values = [{"a": 1, "b": {"y": 1}}, {"c": 3, "b": {"x": 1, "y": 2}, "a": [{"y": 1}]}]
    ordered = [sort_keys_by_schema(value, infer_json_schema(values)) for value in values]
    assert ordered == values and [[*value] for value in ordered] == [["a", "b"], ["a", "b", "c"]]
    assert [*ordered[1]["b"]] == ["y", "x"]


def test_labels_become_a_choice_in_their_most_frequent_spelling() -> None:
    train = answers("Card", "card", "card", "PIN", "fee", "fee", "fee", "fee")
    grammar = answer_grammar(train, "label")
    assert grammar is not None and grammar.kind == "choice" and json.loads(grammar.source) == ["fee", "card", "PIN"]
    assert answer_format_instruction(train, "label") == "Answer with one of: fee, card, PIN."
    many = answers(*(f"label {n}" for n in range(1001)))
    assert answer_grammar(many, "label") is None and answer_format_instruction(many, "label") == ""
    assert answer_grammar(many[:1000], "label") is not None


def test_json_answers_have_a_schema_and_numbers_and_texts_have_none() -> None:
    train = answers('{"a": {"b": 1}, "c": "x"}', '{"a": {}}')
    grammar = answer_grammar(train, "JSON")
    assert grammar is not None and grammar.kind == "json_schema"
    assert json.loads(grammar.source) == infer_json_schema([json.loads(one.answer) for one in train])
    assert answer_format_instruction(train, "JSON") == "Answer with JSON that has these keys: a (b), c."
    assert answer_grammar(train, "number") is None and answer_grammar(train, "text") is None
    assert answer_format_instruction(train, "number") and not answer_format_instruction(train, "text")


@pytest.mark.parametrize(
    ("prompt", "answer", "steps"),
    [
        ("8 birds, 3 fly away.", "5", "8 - 3 = 5"),
        ("3 fly away of 8 birds.", "5", "8 - 3 = 5"),
        ("3 bags of 8", "24", "3 * 8 = 24"),
        ("1,200 shared by 8", "#### 150", "1,200 / 8 = 150"),
        ("$2.50 and $0.25", "2.75", "2.50 + 0.25 = 2.75"),
        ("2 and 2 more", "4", ""),  # a sum or a product
        ("8 birds, 3 fly away, 5 come", "5", "8 - 3 = 5"),
        ("8 birds, 5 stay", "13 birds", "8 + 5 = 13"),
        ("7 birds", "7", ""),
        ("8 birds, 3 fly away", "100", ""),
        ("no numbers", "none", ""),
        ("abc3 4th", "7", ""),
        ("6 of 0", "6", ""),  # a sum or a difference
    ],
)
def test_a_worked_solution_is_derived_if_exactly_one_calculation_fits(prompt: str, answer: str, steps: str) -> None:
    assert derive_worked_solution(Example(1, prompt, answer)) == steps


@pytest.mark.parametrize(
    ("solutions", "expected"),
    [
        (["8 - 3 = 5", "31 * 6 = 186"], True),
        (["He sold <<48/2=24>>24 clips.", "They have 3 + 4 = 7, and 7 * 2 = 14 dollars."], True),
        (["He sold 48/2 = <<48/2=24>>24 clips."] * 3, False),  # the engine would write 24 before `<<`
        (["8 - 3 = 5", "", ""], True),  # those without a solution do not count
        (["8 - 3 = 5", "so 5", "I count 5"], False),  # few of the solutions calculate
        (["8 - 3 = 5", "so 5"], True),
        (["8 - 3 = 6", "31 * 6 = 186"], False),  # results that the engine would not write
        (["8 - 3 = 51"], False),
        (["8 - 3 = 5.5"], False),
        (["8 - 3 = 5. So 5."], True),
        (["10 / 3 = 3.33", "2 + 2 = 4"], True),  # no result is written after the first
        (["8 - 3 =5"], False),
        (["so 5", "it is 6"], False),
        (["", ""], False),
        ([], False),
    ],
)
def test_the_engine_calculates_if_worked_solutions_do(solutions: list[str], expected: bool) -> None:
    assert needs_calculator([Example(n, "q", "5", text) for n, text in enumerate(solutions, 1)]) is expected
