"""Rungs that find the fields of JSON answers, and rungs that calculate with the numbers of a prompt."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.teach.examples import Example
from rorqual.teach.rungs.calculation import MOST_NUMBERS, RankedCalculations, calculations
from rorqual.teach.rungs.fields import COPIED, FEWEST, MOST_VALUES, Fields, flatten, objects, tag, unflatten
from rorqual.teach.rungs.rung import Rung, TrainingRows

PLACES, SONGS = ("Blue Door", "Rosa", "The Old Mill", "Kim's"), ("Red Rain", "Halo", "So What", "One More Time")


def orders(count: int, seed: int) -> list[Example]:
    """Bookings and songs: a field that is chosen, fields that are copied, and one that is there at times."""
    rng, rows = random.Random(seed), []
    for line in range(count):
        place, song, people = rng.choice(PLACES), rng.choice(SONGS), rng.choice(("two", "four", "6"))
        fields: dict[str, Any] = {}
        if rng.random() < 0.5:
            fields = {"place": place, "people": people}
            prompt = f"book a table for {people} at {place}"
            if rng.random() < 0.5:
                prompt, fields = f"{prompt} on monday", fields | {"day": "monday"}
            answer = {"intent": "Reserve", "slots": fields}
        else:
            prompt = rng.choice((f"play {song}", "play something"))
            answer = {"intent": "Music", "slots": {"song": song} if song in prompt else {}}
        rows.append(Example(line, prompt, json.dumps(answer)))
    return rows


def answers(rung: Rung, rows: list[Example], kind: Any, test: list[Example]) -> list[str]:
    rung.fit(TrainingRows(rows, kind))
    prompts = [one.prompt for one in test]
    guesses = rung.predict(prompts)
    assert guesses == [rung.predict([prompt])[0] for prompt in prompts], "no guess depends on another prompt"
    assert all(0 <= guess.probability <= 1 for guess in guesses)
    return [guess.answer for guess in guesses]


def test_fields_are_copied_chosen_and_left_out() -> None:
    test = orders(60, 1)
    rung = Fields()
    found = answers(rung, orders(150, 0), "JSON", test)
    right = [json.loads(answer) == json.loads(one.answer) for answer, one in zip(found, test, strict=True)]
    assert sum(right) >= 58
    assert rung.layout.leading == ("intent",) and {*rung.taggers} == {"", "Reserve", "Music"}
    assert {*rung.chosen} == {("intent",)}, "the others are copied"
    assert any(json.loads(answer) == {"intent": "Music", "slots": {}} for answer in found), "an empty object is kept"


def test_a_value_with_few_examples_has_no_tagger_of_its_own() -> None:
    rare = [
        Example(200 + n, "book a table for two at Rosa please", '{"intent": "rare", "slots": {}}')
        for n in range(FEWEST)
    ]
    for more, known in ((rare[1:], False), (rare, True)):
        rung = Fields()
        rung.fit(TrainingRows([*orders(80, 0), *more], "JSON"))
        assert ("rare" in rung.taggers) == known


def test_a_field_with_many_values_does_not_lead() -> None:
    for values, leads in ((MOST_VALUES, True), (MOST_VALUES + 1, False)):
        rows = [Example(n, f"word{n}", json.dumps({"a": f"v{n % values}"})) for n in range(2 * values)]
        rung = Fields()
        rung.fit(TrainingRows(rows, "JSON"))
        assert (rung.layout.leading == ("a",)) == leads


def test_a_field_is_copied_if_its_values_are_in_the_prompts() -> None:
    for inside, copied in ((round(20 * COPIED), True), (round(20 * COPIED) - 1, False)):
        rows = [Example(n, f"word{n} here", json.dumps({"a": f"word{n}" if n < inside else "none"})) for n in range(20)]
        rung = Fields()
        rung.fit(TrainingRows(rows, "JSON"))
        assert (("a",) not in rung.chosen) == copied
    assert json.loads(rung.predict([""])[0].answer)["a"]


JSON = st.recursive(
    st.one_of(st.text(max_size=3), st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=2)),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
)


@given(JSON)
def test_a_value_is_rebuilt_from_its_parts(value: Any) -> None:
    assert unflatten(flatten(value), objects(value)) == value or value == {} == unflatten({}, [()])


def test_tags_are_those_of_the_longest_values_first() -> None:
    words, tags = tag("Play Red Rain by Red!", {("artist",): "red", ("song",): "Red Rain", ("no",): "blue"})
    assert words == ["Play", "Red", "Rain", "by", "Red", "!"]
    assert tags == ["O", 'B ["song"]', 'I ["song"]', "O", 'B ["artist"]', "O"]
    assert tag("redder", {("a",): "red"})[1] == ["O"], "only whole words"


def sums(count: int, seed: int) -> list[Example]:
    rng, rows = random.Random(seed), []
    for line in range(count):
        a, b, other = rng.randrange(20, 99), rng.randrange(2, 20), rng.randrange(2, 99)
        kind = rng.choice(("more", "lost", "each", "shared"))
        story, value = {
            "more": (f"Ann has {a} pens. She gets {b} more. How many pens has she in all?", a + b),
            "lost": (f"Ann has {a} pens and {other} cups. She lost {b} pens. How many pens are left?", a - b),
            "each": (f"Ann has {a} boxes with {b} pens each. How many pens has she?", a * b),
            "shared": (f"Ann puts {a * b} pens into {b} boxes. How many pens are in each box?", a),
        }[kind]
        rows.append(Example(line, story, str(value)))
    return rows


def test_calculations_are_ranked_by_what_the_prompt_says() -> None:
    test = sums(80, 1)
    found = answers(RankedCalculations(), sums(200, 0), "number", test)
    assert sum(answer == one.answer for answer, one in zip(found, test, strict=True)) >= 76


def test_each_pair_of_numbers_has_its_four_results() -> None:
    values = sorted(made.value for made in calculations("from 6 to 4"))
    assert [float(value) for value in values] == pytest.approx([-2, 4 / 6, 1.5, 2, 10, 24])
    assert [*calculations("only 1,500")] == []
    three = Counter(int(made.value) for made in calculations("40 and 7 and 1") if made.value.denominator == 1)
    results = [48, 40 + 7 - 1, 40 + 1 - 7, 7 + 1 - 40, 40 - 7 - 1, 7 - 40 - 1, 1 - 40 - 7]
    results += [280 - 1, 40 - 7, 7 - 40, 280 + 1, 40 + 7, 7 + 40, 1 - 280, 7 - 40, 40 - 7]
    results += [33, -33, 39, -39, 6, -6, 47, 41, 8, 280, 40, 7, 40, 7]
    assert three == Counter(results), "with all three numbers, and with each two"
    many = " ".join(str(n) for n in range(2, 4 + MOST_NUMBERS))
    assert {made.value for made in calculations(many)} == {
        made.value for made in calculations(many[: 2 * MOST_NUMBERS])
    }
    assert all(
        len([*calculations(" ".join("23456"[:n]))]) == count for n, count in ((4, 12 * 3 + 5 * 12 + 4), (5, 20 * 3))
    )
    assert [made.value for made in calculations("0 and 5")].count(0) == 2, "0 * 5 and 0 / 5; nothing is divided by 0"


def test_without_numbers_or_calculations_there_is_no_answer() -> None:
    rung = RankedCalculations()
    assert answers(rung, sums(60, 0), "number", [Example(0, "how many?", "1"), Example(1, "1 or 2", "3")])[0] == ""
    nothing = [Example(n, "one and two", "3") for n in range(5)]
    assert answers(RankedCalculations(), nothing, "number", sums(2, 0)) == ["", ""]


def test_a_field_that_is_an_object_in_some_rows_and_none_in_others_is_put_together() -> None:
    for paths in ([("a",), ("a", "b")], [("a", "b"), ("a",)]):
        values = {path: None if path == ("a",) else 1 for path in paths}
        assert unflatten(values) == {"a": {"b": 1}}
