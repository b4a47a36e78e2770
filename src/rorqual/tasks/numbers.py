r"""Read numbers in running text as exact fractions.

Numbers in English words are supported, and so are these forms:

- `1,234`, `1{,}234`, `1\,234`, `1 234`, `.5`, `5.`, `1e3`, `4.5 \times 10^3`, `2^3`, `3/4`, `\frac{3}{4}`, `3 1/2`, `2\frac14`, `½`
- `$5`, `-2`, `minus 2`, `10%`, `70k`, `2.5 million`, `3 dozen`

The `value` of a time (`3:30`), a date (`3/4/2020`) or a number with a base (`101_2`) is None.
Arabic, Persian, Hindi, Bengali, Thai and full-width digits are also read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

LONGEST = 200
"""Maximum number of digits. The `value` of a number with more digits is None, because parsing it would take too long."""
GREATEST_EXPONENT = 60
SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9,
}  # fmt: skip
VULGAR = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", (
    "1/2", "1/3", "2/3", "1/4", "3/4", "1/5", "2/5", "3/5", "4/5", "1/6", "5/6", "1/8", "3/8", "5/8", "7/8",
), strict=True))  # fmt: skip
UNICODE = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": " - ",
        "\u00a0": " ",
        "\u202f": " ",
        "\u2009": " ",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
    }
    | {chr(zero + digit): str(digit) for zero in (0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10) for digit in range(10)}
    | {"⁰": "^0", "¹": "^1", "²": "^2", "³": "^3", "⁴": "^4", "⁵": "^5", "⁶": "^6", "⁷": "^7", "⁸": "^8", "⁹": "^9"}
)

_EUROPEAN = re.compile(r"(?<![\w.,])([0-9]{1,3}(?:\.[0-9]{3})+),([0-9]{2})(?![\w,]|\.[0-9])")
"""Matches an amount with dots as thousands separators and a decimal comma: 1.200,00."""
_GROUP = r"(?:,|\{,\}|\\,|\\!|,\\!|\\[ ]|[ '])"
_DIGITS = rf"(?:[0-9]{{1,3}}(?:{_GROUP}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_ARM = r"(?:\{[ ]?-?[0-9][0-9,]{0,40}[ ]?\}|[0-9])"
NUMBER = re.compile(
    rf"""
    (?<![\w^_]) (?<!\^\{{) (?<!_\{{) (?<![0-9][.:]) (?<!\\)
    (?P<sign>(?:(?<![\w)\]}}%$.])[-+](?=[\\$£€¥₹.0-9])|(?:minus|negative)[ ](?:\\?[$])?)?)
    (?P<money>(?:(?:US|CA|AU)?\\?[$][ ]?|[£€¥₹][ ]?|Rs\.?[ ]?|(?:USD|EUR|GBP)[ ])?)
    (?P<late>-?)
    (?:
      (?P<time>[0-9]{{1,9}}(?::[0-9]{{1,9}}){{1,2}}(?![0-9]))
    | (?P<date>[0-9]{{1,4}}(?P<between>[/-])[0-9]{{1,2}}(?P=between)[0-9]{{2,4}}(?![0-9]))
    | (?:(?P<whole>[0-9]{{1,9}})(?:[ ]?\\[ ,;!]|[ ]and[ ]|[ ]|-)?)?\\[dtc]?frac[ ]?(?P<over>{_ARM})[ ]?(?P<under>{_ARM})
    | (?P<plus>[0-9]{{1,9}})(?:[ ]|[ ]and[ ]|-)(?P<top>[0-9]{{1,9}})/(?P<bottom>[0-9]{{1,9}})(?![0-9./])
    | (?P<digits>{_DIGITS})
      (?: (?P<e>[eE][-+]?[0-9]{{1,3}}(?!\w))
        | [ ]?(?:\\times|\\cdot|×|·|x|\*)[ ]?10[ ]?(?:\^|\*\*)[ ]?\{{?(?P<ten>[-+]?[0-9]{{1,3}})\}}?
        | (?:\^|\*\*)\{{?(?P<power>[0-9]{{1,3}})\}}?(?![0-9])
        | \.?\\(?:overline|bar)[ ]?\{{?(?P<repeat>[0-9]{{1,40}})\}}?
        | [ ]?/[ ]?(?P<below>[0-9]{{1,{LONGEST}}})(?![0-9]|\.[0-9]|/)
      )?
    )
    (?P<base>(?:_\{{?[ ]?(?:\\text\{{)?\w{{1,9}}\}}{{0,2}})?)
    (?P<ordinal>(?:\^?\{{?(?:\\text\{{)?(?:st|nd|rd|th)\b\}}{{0,2}})?)
    (?P<percent>(?:[ ]?\\?%|[ ](?:percent|per[ ]cent|pct)\b)?)
    (?P<scale>(?:[kK]\b|(?:[MB]|mn|bn)\b|(?:[ ]|-|\\[ ])(?:hundred|thousand|million|billion|trillion|dozen)s?\b)?)
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
ONES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fourty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
    "hundredth": 100,
}  # fmt: skip
_WORD = "|".join([*ONES, *TENS, "hundred", "thousand", "million", "billion", "dozen"])
_AFTER_SCALE = r"(?:(?<=hundred)|(?<=thousand)|(?<=million)|(?<=billion))"
SPELLED = re.compile(
    rf"\b(?P<minus>(?:minus |negative )?)(?:(?P<count>(?:an? )?(?:{_WORD})(?:(?: |-|{_AFTER_SCALE}(?: and |, ))(?:{_WORD})){{0,20}})"
    rf"(?:(?: |-| and an? | and )(?P<part>half|halves|(?:{'|'.join(PARTS)})s?))?|(?P<dozen>half(?: a |-a-| )dozen)"
    rf"|(?P<alone>(?:an? |one-)?half)(?! as\b| an? hours?\b)"
    rf"|(?P<hour>(?P<long>(?:an|one) hour and a half)|(?:an? )?half an hour|(?:an? )?half-hour))\b"
    r"(?P<percent>(?: percent\b)?)",
    re.IGNORECASE,
)
PRONOUN = re.compile(
    r"(?:this|that|each|every|which|no|the|any|some|another|last|first|correct|right|other|wrong|by) $", re.I
)
BELOW_ZERO = re.compile(r"(?: ?°)? ?[CF]?(?: degrees?)?(?: (?:celsius|fahrenheit))? below (?:zero|0)\b", re.IGNORECASE)
MULTIPLIED = re.compile(r"(?:twice|thrice|half|double|triple|times) $", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    """A number found at `text[start:end]`.

    `value` is None for a time, a date, a number with a base (`101_2`), or a division by zero.
    `also` is the value in another unit: 1.5 for `1 hour and 30 minutes`, whose `value` is 90.
    """

    start: int
    end: int
    value: Fraction | None
    percent: bool = False
    money: bool = False
    ordinal: bool = False
    spelled: bool = False
    scaled: str = ""
    also: Fraction | None = None


def plain(text: str) -> str:
    """Return `text` with uniform minus signs, spaces and quotation marks. `½` becomes `1/2`, and `²` becomes `^2`."""
    text = _EUROPEAN.sub(lambda match: f"{match[1].replace('.', '')}.{match[2]}", text.translate(UNICODE))
    for sign, fraction in VULGAR.items():
        if sign in text:
            text = re.sub(rf"(?<=[0-9]) ?{sign}", f" {fraction}", text).replace(sign, fraction)
    return text


def numbers(text: str) -> list[Number]:
    """Return the numbers of `text`, in order. `text` must come from `plain`. Spelled-out numbers count only if `text` has no digits."""
    result = [_digits(match) for match in NUMBER.finditer(text)] or spelled(text)
    return [_below_zero(number, text[number.end : number.end + 40]) for number in result]


def _below_zero(number: Number, after: str) -> Number:
    """Negate the number in a phrase like `8 degrees below zero`."""
    if number.value is None or number.value < 0 or not BELOW_ZERO.match(after):
        return number
    return replace(number, value=-number.value)


def spelled(text: str) -> list[Number]:
    """Return the numbers of `text` that are written in words."""
    return [number for match in SPELLED.finditer(text) if (number := _spelled(match, text)) is not None]


def single(text: str) -> Number | None:
    """Return `text` as a number, or None if `text` is not a single number. Math delimiters are ignored."""
    bare = plain(text).strip().strip("$").strip()
    match = NUMBER.fullmatch(bare) or NUMBER.fullmatch(bare.removesuffix("."))
    return None if match is None or match["ordinal"] else _digits(match)


def whole_number(text: str) -> Fraction | None:
    """Return the value of `text` if it is a single number. Return None for a percentage or other text."""
    number = single(text)
    return None if number is None or number.percent else number.value


def _digits(match: re.Match[str]) -> Number:
    value = _value(match)
    scale = match["scale"].strip(" -\\").lower()
    scale = scale if len(scale) <= 2 else scale.removesuffix("s")
    if scale in ("m", "b") and not match["money"]:
        value = None  # 5M may be metres, a model's size or five million
    elif scale and value is not None:
        value *= SCALES[scale]
    if value is not None and (match["sign"].strip()[:1] in tuple("-mMnN") or match["late"]):
        value = -value
    return Number(
        match.start(), match.end(), value,
        percent=bool(match["percent"]), money=bool(match["money"]), ordinal=bool(match["ordinal"]), scaled=scale,
    )  # fmt: skip


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the value of the match, without its sign and its scale word."""
    if match["time"] or match["date"] or match["base"] or match.end() - match.start() > 2 * LONGEST:
        return None
    if match["over"]:
        return _mixed(match["whole"], _arm(match["over"]), _arm(match["under"]))
    if match["plus"]:
        return _mixed(match["plus"], match["top"], match["bottom"])
    value = Fraction(re.sub(r"[^0-9.]", "", match["digits"]))
    if match["repeat"]:
        places = len(match["digits"].partition(".")[2])
        return value + Fraction(int(match["repeat"]), (10 ** len(match["repeat"]) - 1) * 10**places)
    if match["below"]:
        return value / int(match["below"]) if int(match["below"]) else None
    exponent = int(match["power"] or match["ten"] or (match["e"] or "0").lstrip("eE"))
    if abs(exponent) > GREATEST_EXPONENT:
        return None
    return value**exponent if match["power"] else value * Fraction(10) ** exponent


def _arm(text: str) -> str:
    return text.strip("{} ").replace(",", "")


def _mixed(whole: str | None, top: str, bottom: str) -> Fraction | None:
    return None if int(bottom) == 0 else int(whole or 0) + Fraction(int(top), int(bottom))


def _spelled(match: re.Match[str], text: str) -> Number | None:
    """Return a spelled-out number, or None if `one` is a pronoun. The `value` of a multiplied number (`twice nine`) is None."""
    before, after = text[max(0, match.start() - 12) : match.start()], text[match.end() : match.end() + 12]
    word = match[0].lower()
    if word == "one" and (PRONOUN.search(before) or re.match(r" (?:of|another|can|must|could|who|that|by)\b", after)):
        return None
    if match["dozen"]:
        value = Fraction(6)
    elif match["alone"] or match["hour"]:
        value = Fraction(3 if match["long"] else 1, 2)
    else:
        value = Fraction(_count(match["count"]))
        if match["part"]:
            part = Fraction(
                1, PARTS["half" if match["part"].lower() == "halves" else match["part"].lower().rstrip("s")]
            )
            value = value + part if " and " in match[0][match.end("count") - match.start() :] else value * part
    if match["minus"]:
        value = -value
    if match["alone"] and re.search(r"\b(?:that|this|it)(?:'s| is) $", before, re.IGNORECASE):
        return None  # "That's half a ton!" restates an amount and is not a new number
    also = 60 * value if match["hour"] else None
    number = Number(match.start(), match.end(), value, percent=bool(match["percent"]), spelled=True, also=also)
    return replace(number, value=None) if MULTIPLIED.search(before) else number


def _count(words: str) -> int:
    total = group = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word in ONES or word in TENS:
            group += ONES.get(word, 0) or TENS.get(word, 0)
        elif word in ("hundred", "dozen"):
            group = max(group, 1) * SCALES[word]
        elif word in SCALES and word not in ("m", "b", "k"):
            total, group = total + max(group, 1) * SCALES[word], 0
    return total + group
