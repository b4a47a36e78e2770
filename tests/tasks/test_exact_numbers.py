"""Numbers: exact values, units, and what is not one number."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rorqual.tasks.numbers import last_number, read_number, read_unitless_number

SAME: list[tuple[str, list[str]]] = [
    ("18", ["18.", "18.0", "+18", "$18", r"\$18", "18$", "= 18", "x = 18", "18 eggs", "18 eggs per day", r"18\text{ cm}^2", "36/2", "1.8e1",
            "18€", r"18 \text{ square units}", "18°", r"18^\circ", "1800%"]),
    ("-1234.5", ["−1,234.5", "-$1,234.50", "$-1234.5", "€-1234.5",
                 r"-1{,}234.5", r"-1\,234.5", "-1 234.5", "-2469/2", r"-\frac{2469}{2}", "-1234 1/2"]),
    ("9007199254740993", ["9,007,199,254,740,993", "9007199254740993.0"]),
    ("1/3", [r"\frac{1}{3}", r"\dfrac13", "1/3 cup", "2/6"]),
    ("7/2", ["3.5", "3 1/2", r"3\frac{1}{2}", "3-1/2"]),
    ("1/2", [".5", "50%", "50 percent", r"50\%"]),
    ("50%", ["50", "0.5"]),
    ("2500000", ["2.5 million", r"2.5 \times 10^6", "2.5 x 10^{6}", "2500k"]),
    ("5 km", ["5 kilometers", "5000 m", "5"]), ("2 m^2", ["20000 cm²", "2 square meters"]), ("2 hours", ["120 minutes", "2 h"]),
]  # fmt: skip
VALUES = {gold: read_number(gold) for gold, _ in SAME}


@pytest.mark.parametrize(("gold", "same"), SAME)
def test_forms_of_one_number_are_equal_and_of_another_are_not(gold: str, same: list[str]) -> None:
    value = read_number(gold)
    assert value is not None
    for text in same:
        number = read_number(text)
        assert number is not None and number.equals(value) and value.equals(number), text
        assert not any(other.equals(number) for text, other in VALUES.items() if text != gold and other and "50" not in text + gold
                       and "1/2" not in (text, gold))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("9007199254740993", "9007199254740992"), ("0.333333333333333333", "1/3"), ("18k", "18"), ("18 dozen", "18"), ("18 thousand", "18"),
        ("5 km", "5 cm"), ("15 cm^2", "15 m^2"), ("15 m^2", "15 m"), ("1/4%", "1/4"), ("-18", "18"),
    ],
)  # fmt: skip
def test_near_numbers_differ(text: str, other: str) -> None:
    number, twin = read_number(text), read_number(other)
    assert number is not None and twin is not None and not number.equals(twin) and not twin.equals(number)


@pytest.mark.parametrize(
    "text",
    ["18 or 19", "18, 19", "18 and a half", "not 18", "18 is wrong", "18 to 20", "18-20", "18 not", "18?", "about 18", "~18", "3:30", "3/4/2020",
     "1,23", "18x", "18 x", "2pi", "18M", "101_2", "18^2", "x^18", "5/0", "", "none", "twelve", "18 hundredths", "eggs 18", "18 minus 2", "< 18",
     "3 = 4", "18 eggs, 12 pears", "9" * 300],
)  # fmt: skip
def test_what_is_not_one_number_is_not_read(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("first 3, then 4 of them", 4), ("10-3", 3), ("it is 72.00.", 72), ("3 + 4 = 7 eggs", 7), (r"\$1{,}000.", 1000), ("none", None),
     ("so 1/2", Fraction(1, 2)), ("2 - 5 = -3", -3), ("5/0 or 6", 6)],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, number: Fraction | int | None) -> None:
    found = last_number(text)
    assert (None if found is None else found.value) == number


@pytest.mark.parametrize(
    ("text", "number"), [("1,234", 1234), (" $5 ", 5), ("5 apples", None), ("5%", None), ("", None)]
)
def test_whole_number_is_a_number_and_nothing_else(text: str, number: int | None) -> None:
    assert read_unitless_number(text) == number
