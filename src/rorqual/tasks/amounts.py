r"""Decide which number a sentence states as its answer.

These numbers of a segment are not its answer:

- an operand (`5 * 12`), the left side of an equation, a multiple ("3x = 18"), an ordinal
- a denied number ("not 18")
- a bound ("more than 18", "18, maybe more") or a range ("18 to 20", but not "rises from 18 to 20")
- two open alternatives ("18 or 19", but not "18 in all, or 6 each")
- a number in brackets or in a clause that gives a reason

A sentence that guesses, lists cases ("if ..., 18; if ..., 19") or retracts its number has no answer.
A quantity in two units ("1 hour and 30 minutes") is one number.
A number after a preposition or article ("for 3 people", "the 5 days") counts only if no other number remains.
After a mark the first number counts. In a sentence the last one counts, because sentences end with their answer.
If the sentence joins two clauses ("9 remain, and 6 are gone"), the number of the first clause is its rival.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

from rorqual.tasks.clauses import (
    ASIDE,
    RESTATED,
    STEP,
    denied,
    governed,
    leads_on,
    main_part,
    plain_text,
    without_dashes,
)
from rorqual.tasks.numbers import Number, numbers, plain, spelled
from rorqual.tasks.remarks import closes
from rorqual.tasks.reply import BESIDE, NOTHING, Reading, Said, settle
from rorqual.tasks.sentences import SENTENCE, with_options
from rorqual.tasks.units import unit_of

_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_OPERATOR = r"(?:[+*×·÷/]|\\times|\\cdot|\\div|\bx\b|\bplus\b|\bminus\b|\btimes\b(?! (?:a|as|per|the)\b)|divided by|multiplied by)"
_JOINED_BEFORE = re.compile(rf"(?:{_OPERATOR}|(?<=[\s0-9)])-)\s*(?:the )?[$£€(]*$", re.IGNORECASE)
_JOINED_AFTER = re.compile(rf"^[\s),]*(?:[A-Za-z]+\s)?\s*(?:{_OPERATOR}|-)\s*(?:the )?[$£€(]*$", re.IGNORECASE)
_EQUATED_AFTER = re.compile(r"^[\s)]*(?:[A-Za-z$%/]+\s?){0,3}(?:=|≈|→|⇒|\\approx|\bequals\b)", re.IGNORECASE)
_EQUATED_BEFORE = re.compile(r"(?:=|≈|→|⇒|\\approx|\bequals)\s*[$£€(]*$", re.IGNORECASE)
_BOUND = re.compile(
    r"(?:\b(?:(?:makes?|is|are|was|were|earns?|costs?|has|have|pays?) (?:over|under|above|below|beyond|upwards of)"
    r"|(?:more|less|fewer|greater|larger|smaller|higher|lower|bigger) than|at least|at most"
    r"|(?<!round )(?<!rounds )(?<!rounding )(?<!rounded )up to|as (?:many"
    r"|much) as|no (?:more|less|fewer) than"
    r"|nearly|almost|probably|just (?:under|over|below|above)|maybe|perhaps|possibly|(?:might|may|could) (?:well )?be"
    r"|somewhere|something like|close to|(?:a (?:bit|little)|slightly|well|just) (?:under|over|below|above|short of)"
    r"|(?:possibility|option|candidate) (?:is|would be)|at the very least(?: it(?:'s| is))?|minimum of|maximum of|exceeds?"
    r"|not sure (?:if|whether) it is)|<|(?<![-=])>|[≤≥]|\\leq?|\\geq?)\s*[$£€(]*$",
    re.IGNORECASE,
)
_MULTIPLE = re.compile(r"(?<![\w.])[0-9]+ ?[abknxyz]\b[^=,;.]*=\s*[$£€]?$")
_OR = re.compile(
    r"^[^.;]{0,25}?(?:\bor\b|\band/or\b)(?:\W+(?:maybe|perhaps|possibly|even|about|else|rather|is it|it is|it's"
    r"|it could be|it might be|could it be))*\W*$",
    re.I,
)
_OR_SO = re.compile(
    r"^(?: \w+)?,? (?:or so|or (?:maybe|perhaps|possibly)|give or take|plus or minus|more or less|(?:plus|minus"
    r"|times) [a-z]\b(?! [a-z])|(?:plus|minus) (?:the|an?|his|her|their|tax|tip)\b|is (?:one"
    r"|among)(?: of)? the (?:options|possibilities|candidates)|(?:or |and )?(?:maybe|perhaps"
    r"|possibly) (?:even )?(?:more|less|fewer|a (?:bit|few)))\b",
    re.IGNORECASE,
)
_RANGE = re.compile(
    r"^(?:\s?[A-Za-z%]{1,10})?(?:-| -|\s+(?:to|through|until|up to)\s|\s?\.\.\.?\s?|\\(?:sim|ldots|dots)\s?)\s*[$£€]?$"
)
_LIST = re.compile(r"^\s?[$%]?\s?(?:,|;|&|,? and|\\&)\s?(?:[a-z]\s?=\s?)?[$£€]?\s*$", re.IGNORECASE)
_ADVERBIAL = re.compile(
    r"^ (?:times? (?:a|per|each|every|as)\b|(?:days?|weeks?|months?|years?|hours?|minutes?) (?:later|ago|a|per|each|earlier|from now)\b)",
    re.I,
)
_OR_LIST = re.compile(rf"{_LIST.pattern}|^,? or [$£€]?$", re.IGNORECASE)
_PARTS_FOLLOW = re.compile(r":|\b(?:namely|i\.e\.)")
"""The text between a count and the counted items: "3 roots: 1, 4, 9"."""
_COMPARED = re.compile(
    r"^(?: [A-Za-z]+)? (?:(?:more|less|fewer|\w+er) than|(?:below|above|under|short of|ahead of|in excess of)(?! zero)"
    r"|more than|too (?:much|many|few|little))\b",
    re.IGNORECASE,
)
_COORDINATED = re.compile(r"^(?: [A-Za-z-]+){1,3},? (?:and|&) $")
_RELATIVE = re.compile(
    r"\bwhich (?!leaves|makes|gives|means|equals|results|comes|adds|totals|brings|amounts|yields|we round|rounds?\b|is rounded)[^,;]{0,40}$",
    re.IGNORECASE,
)
_OF_THE_QUESTION = re.compile(r"\b(?:the|these|those|all|both|each|every) $", re.IGNORECASE)
_CLOSING = re.compile(
    r"(?:; |, (?:so|thus|hence|making|leaving|which (?:makes|leaves|gives|means))|\b(?:so|making|leaving))\b[^,;0-9]*$",
    re.I,
)
_INFERS = re.compile(
    r"=|\b(?:so|thus|hence|therefore|total|altogether|in all|makes?|giv(?:es|ing)|equals)\b", re.IGNORECASE
)
_JOINS = re.compile(r"[a-z],? (?:and|while|whereas|but)\b|^,? (?:and|while|whereas|but) [a-z]|; ", re.IGNORECASE)
ATTRIBUTE, GOVERNED, RELATIVE, FREE = range(4)
_CLAUSE = re.compile(
    r"[;:,]|\b(?:and|so|but|which|leaving|hence|thus|therefore|then|meaning|giving|making|that is|i\.e\.|namely)\b| - ",
    re.I,
)
_REFUSES = re.compile(
    r"\b(?:i|we|one)(?: \w+)? (?:cannot|can't|can not|am not able|am unable|are unable|could not|couldn't"
    r"|do not know|don't know|am not sure"
    r"|have no idea|was not able)\b"
    r"|\bi'm (?:not sure|unable|not able|afraid|sorry)\b|\b(?:not enough|insufficient|missing) (?:information"
    r"|data)\b|\bnobody (?:can|knows)\b"
    r"|\b(?:impossible|hard|difficult|cannot|can't|can not|unable) (?:to|be) (?:\w+ )?(?:say|tell|determine|answer|calculate"
    r"|compute|solve|know)\w*"
    r"|\b(?:unknown|unclear|undetermined|no (?:unique )?(?:solution|answer))\b",
    re.IGNORECASE,
)
_GUESSES = re.compile(
    r"\bbut\b[^0-9]*\b(?:(?:do|does|is|are|was|were|did|can) not|\w+n't)\W*$|"
    r"\bi doubt\b|\b(?:that|this|it) (?:can't|cannot|isn't|is not|doesn't|does not) (?:be |make )?(?:right|correct"
    r"|true|possible|sense|work)\b[^0-9]*$|"
    r"\bi guess\b|\blet me guess\b|\btempt\w+ to\b[^,;]*$"
    r"|\bi (?:could|might|may) (?:well )?be (?:off|wrong)\b|\bjust a guess\b|\b(?:wild|rough|best) guess\b|\bif\b.*\bif\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^\W*[0-9]{1,2}[.)] (?=\W*[A-Za-z])")
_NONE_LEFT = re.compile(
    r"(?:^|\b(?:so|leaving|and|has|have|had|with|there (?:is|are|will be))\W+(?:there (?:is|are|will be) )?)"
    r"(?:no (?:\w+ ){1,2}(?:(?:is |are )?(?:left(?: over)?|remaining)|remains?)"
    r"|none(?: of \w+(?: \w+)?)? (?:(?:is|are|was|were) (?:left(?: over)?|remaining)|remains?|left))\W*$",
    re.IGNORECASE,
)
_CHANGES = re.compile(
    r"\b(?:ris|rose|increas|decreas|drop|fall|fell|grow|grew|go(?:es)?\b|went|chang|reduc|lower|rais|climb|declin)\w*\b[^.;]{0,40}"
    r"\b(?:from|by)\s+[$£€]*$",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"^(?: [a-z-]+){0,2} (?:each|apiece|every|per|an? (?:hour|day|week|month|year|person|piece))\b", re.IGNORECASE
)
_OR_RATE = re.compile(r"^ [a-z][^0-9]{0,40}, (?:or )?[$£€]?$", re.IGNORECASE)
_AND_OTHERS = re.compile(r"[^,;]{0,40}, [A-Z][a-z]+ [a-z]+ [$£€]?")
"""The text between the numbers of two people: "Tom gets 6 apples, Ann gets 4"."""
_APPOSED = re.compile(r"^[^0-9]{0,40}?, (?:(?:for )?an? (?:\w+ ){1,3}of|i\.e\.,?|that is,?) [$£€]?$", re.IGNORECASE)
_A_SAVING = re.compile(r"[^0-9,]{0,40}, an? (?!total|sum)(?:\w+ ){1,3}of [$£€]?", re.IGNORECASE)
_IS = re.compile(r"\b(?:is|are|was|were)\b", re.IGNORECASE)
_NONE = re.compile(
    r"^\W*there (?:is|are) no (?:such )?(?:\w+ )?\w+\W*$"
    r"|^\W*(?:there(?:'s| is| are) )?(?:none|nothing|nil|no \w+)\b(?: (?:is|are) left(?: over)?| remains?| left(?: over)?)\W*$",
    re.I,
)
_UNIT = re.compile(r"[\s-]*([A-Za-z]+)")
_WITH_UNIT = re.compile(r"\s?([A-Za-z]+)[\s,(]+or $")
_TWO_UNITS = re.compile(r"\s([A-Za-z]+)(?:,|,? and)?\s$")


@dataclass(frozen=True)
class Amount:
    """A final number of a reply. `others` holds the same quantity in other units if the reply states them."""

    value: Fraction
    percent: bool = False
    others: frozenset[Fraction] = field(default=frozenset(), compare=False)

    def equals(self, gold: Fraction) -> bool:
        """Return whether the amount equals `gold`. 50% equals both 1/2 and 50, but 0.5% does not equal 1/2."""
        if not self.percent:
            return gold == self.value or gold in self.others
        return self.value == 100 * gold or (self.value == gold and not 0 < abs(gold) < 1)


def final_amount(reply: str, *, strict: bool = False) -> Amount | None:
    """Return the final number of `reply`, or None if it has none or two. With `strict`, only marked answers count."""
    found = said_amounts(reply, strict=strict).final
    return found[0] if len(found) == 1 else None


def said_amounts(reply: str, *, strict: bool = False) -> Said:
    """Return the final numbers of `reply`, and the other numbers that its last sentence states."""
    return settle(with_options(reply), read_amount, strict=strict)


def read_amount(segment: str, marked: bool) -> Reading:
    """Return the number that the segment states, by the rules in the module docstring."""
    text = segment[-SENTENCE:] if not marked else segment[:SENTENCE]
    bold = [found for found in _BOLD.findall(text) if numbers(plain(found))]
    if bold and not marked:
        text, marked = bold[-1], True
    text = STEP.sub("", plain_text(without_dashes(text) if "=" not in text else text))
    if _REFUSES.search(text) and not re.search(r"\b(?:but|so|hence)\b.*[0-9]", text):
        return Reading(refused=True)
    if _ITEM.match(text) and not numbers(_ITEM.sub("", text)):
        return NOTHING
    if _GUESSES.search(text):
        return Reading(refused=True)
    if _NONE.match(text):
        return Reading(Amount(Fraction(0)))
    if (none := _NONE_LEFT.search(text)) and (none[0].lower().startswith(("so", "leaving")) or not numbers(text)):
        return Reading(Amount(Fraction(0)))
    asides = ASIDE.findall(text)
    text = main_part(text, marked)
    found = _compounds(numbers(text), text)
    marked = marked or not re.search("[A-Za-z]", text)
    if not marked and (words := _in_words(text, found)):
        found = words
    return _choose(text, found, marked, asides) if found else NOTHING


def _compounds(found: list[Number], text: str) -> list[Number]:
    """Merge each quantity in two units into one number in the smaller unit: `1 hour and 30 minutes` becomes 90."""
    whole: list[Number] = []
    for number in found:
        joined = _compound(whole[-1], number, text) if whole else None
        if joined is not None:
            whole.pop()
        whole.append(joined or number)
    return whole


def _compound(one: Number, other: Number, text: str) -> Number | None:
    """Return two numbers as one quantity (`5 feet 3 inches`, `3 dozen and 5`), or None if they are separate."""
    gap = text[one.end : other.start]
    if one.value is None or other.value is None:
        return None
    if one.scaled == "dozen" and gap == " and ":
        return replace(other, start=one.start, value=one.value + other.value)
    words = _TWO_UNITS.match(gap), _UNIT.match(text[other.end : other.end + 20])
    larger, smaller = (unit_of(word[1]) if word else None for word in words)
    if larger is None or smaller is None or larger[0] != smaller[0]:
        return None
    ratio = Fraction(larger[1]) / smaller[1]
    if ratio <= 1 or other.value >= ratio:
        return None
    value = one.value * ratio + other.value
    return replace(other, start=one.start, value=value, also=value / ratio)


def _in_words(text: str, found: list[Number]) -> list[Number]:
    """Return the numbers in words that count.

    These are the numbers of a closing clause without digits ("making it twenty-one in total"). If every number in digits
    is an operand or follows a preposition ("four boxes at $5"), they are the numbers in words without a preposition.
    """
    closing = _CLOSING.search(text)
    if closing and (words := [one for one in spelled(text) if one.start >= closing.start()]):
        return words
    gaps = [text[a.end : b.start] for a, b in pairwise(found)]
    before = [text[max(0, one.start - 80) : one.start] for one in found]
    after = [*gaps, text[found[-1].end : found[-1].end + 80]] if found else []
    free = any(
        not (_JOINED_BEFORE.search(b) or _JOINED_AFTER.search(a) or governed(b) or number.ordinal)
        for number, b, a in zip(found, before, after)
    )
    if free or not found or found[0].spelled:
        return []
    words = [
        one
        for one in spelled(text)
        if one.value is not None and (one.value != 1 or text[: one.start].endswith("exactly "))
    ]
    return [one for one in words if not governed(text[max(0, one.start - 80) : one.start])]


def _choose(text: str, found: list[Number], marked: bool, asides: list[str]) -> Reading:
    gaps = [text[a.end : b.start] for a, b in pairwise(found)]
    before = [text[max(0, found[0].start - 80) : found[0].start], *gaps]
    after = [*gaps, text[found[-1].end : found[-1].end + 80]]
    out, open_ = _excluded(text, found, before, after)
    struck = {i for i in range(len(found)) if denied(before[i], after[i])}
    left = [i for i in range(len(found)) if i not in out and i not in struck]
    said = frozenset(Amount(value, found[i].percent) for i in struck if (value := found[i].value) is not None)
    if not left:
        return Reading(denied=said, refused=bool(open_))
    ranks = _ranks(text, found, before, after)
    best = max(ranks[i] for i in left)
    pool = [i for i in left if ranks[i] == best]
    place = _first(text, found, pool) if marked or best <= GOVERNED else _last(text, found, before, pool)
    value = found[place].value
    if value is None:  # "twice nine" and 3:30 have no value
        return Reading(denied=said, refused=not found[place].spelled)
    weak = not marked and _OF_THE_QUESTION.search(before[place]) is not None
    amount = Amount(value, found[place].percent, _others(found, place, after, asides))
    rival = (
        None
        if marked
        else _rival(text, found, pool, place) or _apposed(found, place, left, after) or _price(found, place, after)
    )
    others = [i for i in pool if i != place and not (marked or leads_on(text, found[i].end, found[place].start))]
    beside = {Amount(value, found[i].percent) for i in others[-BESIDE:] if (value := found[i].value) is not None}
    return Reading(amount, said, weak=weak, rival=rival, beside=frozenset(beside - {amount} - said))


def _apposed(found: list[Number], place: int, left: list[int], after: list[str]) -> Amount | None:
    """Return the number in an apposition after the chosen one: "to $48, a saving of $12", "350, i.e. 50 more than planned"."""
    i = place + 1
    value = found[i].value if i in left and _APPOSED.match(after[place]) else None
    return None if value is None else Amount(value, found[i].percent)


def _price(found: list[Number], place: int, after: list[str]) -> Amount | None:
    """Return the price after a count ("She sells 18 eggs for $36"), since the question may ask for either."""
    i = place + 1
    if (
        i >= len(found)
        or found[place].money
        or not found[i].money
        or not re.fullmatch(r"(?: [a-z]+){1,3} for \$?", after[place])
    ):
        return None
    value = found[i].value
    return None if value is None or _RATE.match(after[i]) else Amount(value)


def _rival(text: str, found: list[Number], pool: list[int], place: int) -> Amount | None:
    """Return the previous number if it looks equally final: "9 remain, and 6 are gone", "20%, i.e. $16 off", "24, or 8 each"."""
    at = pool.index(place)
    one, other = found[pool[at - 1]], found[place]
    if at == 0 or one.value is None:
        return None
    gap = text[one.end : other.start]
    joined = _JOINS.search(gap)
    shared = RESTATED.search(gap) and one.percent != other.percent and (other if one.percent else one).money
    if _COORDINATED.fullmatch(gap):
        shared = not _INFERS.search(text[one.end :])
    elif joined:
        clause = one.end + joined.start()
        alike = one.percent == other.percent and "but" not in joined[0]
        parallel = alike and _IS.search(gap, joined.start()) and _IS.search(text[: one.start])
        shared = (closes(text[:clause]) or parallel) and not _INFERS.search(text[clause:])
    elif _AND_OTHERS.fullmatch(gap) or _A_SAVING.fullmatch(gap):
        shared = True
    elif _OR_RATE.match(gap) or RESTATED.search(gap):
        shared = shared or _RATE.match(text[other.end :]) is not None
    return Amount(one.value, one.percent) if shared else None


def _excluded(text: str, found: list[Number], before: list[str], after: list[str]) -> tuple[set[int], set[int]]:
    """Return the indices of excluded numbers, and of those among them that leave the answer open."""
    out: set[int] = set()
    open_: set[int] = set()
    for i, number in enumerate(found):
        last = i + 1 == len(found)
        joined = i > 0 and (
            _JOINED_BEFORE.search(before[i]) or (number.value is not None and _signed(before[i], number))
        )
        if joined or (not last and _JOINED_AFTER.search(after[i]) and not _is_range(found, i, before, after)):
            out.add(i)
        if not last and _EQUATED_AFTER.search(after[i]):
            out.add(i)
        if (
            _BOUND.search(before[i])
            or _OR_SO.match(after[i])
            or _MULTIPLE.search(text[max(0, number.start - 40) : number.start])
        ):
            open_.add(i)
        if last or _same_quantity(found, i, after):
            continue
        if (
            _is_range(found, i, before, after)
            or (_OR.search(after[i]) and not joined and not _is_rate(i, after))
            or (re.search(r"\bbetween\b[^,;]{0,12}$", before[i], re.IGNORECASE) and re.search(r"\band\b", after[i]))
            or (
                _LIST.search(after[i])
                and number.value != found[i + 1].value
                and not _COMPARED.search(after[i + 1])
                and not governed(before[i])
            )
        ):
            open_ |= {i, i + 1}
    return out | open_, open_


def _signed(before: str, number: Number) -> bool:
    return before.strip() == "" and number.value is not None and number.value < 0


def _is_rate(i: int, after: list[str]) -> bool:
    """Return whether number i + 1 restates number i: `24 slices in total, or 8 slices each`, `500 kg or 1,102 pounds`."""
    if _OR_RATE.match(after[i]) and _RATE.match(after[i + 1]):
        return True
    one, other = _WITH_UNIT.match(after[i]), _UNIT.match(after[i + 1])
    units = [unit_of(word[1]) if word else None for word in (one, other)]
    return None not in units and one is not None and other is not None and one[1].lower() != other[1].lower()


def _is_range(found: list[Number], i: int, before: list[str], after: list[str]) -> bool:
    """Return whether numbers i and i + 1 are a range (`18-20`, `18 to 20`). "Rises from 18 to 20" states the second number."""
    if i + 1 >= len(found) or not _RANGE.search(after[i]):
        return False
    if _CHANGES.search(before[i]) and not RESTATED.search(after[i + 1]):
        return False
    one, other = found[i].value, found[i + 1].value
    return one is None or other is None or one < other


def _ranks(text: str, found: list[Number], before: list[str], after: list[str]) -> list[int]:
    """Rank each number by its grammatical place: ATTRIBUTE ("the 100-gallon tank"), GOVERNED, RELATIVE or FREE, the likeliest."""
    ranks: list[int] = []
    listed = _breakdown(text, found)
    for i, number in enumerate(found):
        aside = number.ordinal or _ADVERBIAL.search(after[i]) or _COMPARED.search(after[i]) or number.start > listed
        again = i > 0 and ranks[-1] == GOVERNED and _COORDINATED.search(before[i])
        relative = _RELATIVE.search(before[i]) is not None and not _same_kind(found, i, after)
        attribute = re.match(r"-[a-z]", after[i]) is not None
        rank = GOVERNED if aside or again or governed(before[i]) else RELATIVE if relative else FREE
        ranks.append(ATTRIBUTE if attribute else rank)
    return ranks


def _same_kind(found: list[Number], i: int, after: list[str]) -> bool:
    """Return whether number i and the previous one measure the same kind: `1 hour and 30 minutes, which is 90 minutes`."""
    words = [_UNIT.match(after[j]) for j in (i - 1, i) if j >= 0]
    units = [unit_of(word[1]) if word else None for word in words]
    return len(units) == 2 and None not in units and len({unit[0] for unit in units if unit}) == 1


def number_list(text: str, *, counted: bool) -> list[str]:
    """Return the last numbers of `text` if only commas, `and` or `or` separate several of them.

    Return none if the previous number counts them ("2 roots: 3, 4"), unless `counted`.
    """
    found = numbers(text)
    begin = len(found) - 1
    while begin > 0 and _OR_LIST.search(text[found[begin - 1].end : found[begin].start]):
        begin -= 1
    if not 0 <= begin < len(found) - 1:
        return []
    says_how_many = (
        begin > 0
        and _PARTS_FOLLOW.search(text, found[begin - 1].end, found[begin].start)
        and found[begin - 1].value == len(found) - begin
    )
    return [] if says_how_many and not counted else [text[number.start : number.end] for number in found[begin:]]


def _breakdown(text: str, found: list[Number]) -> int:
    """Return where the parts of a sum begin (`8 apples: 2 red and 6 green`), else the end of the text."""
    colon = _PARTS_FOLLOW.search(text, found[0].end)
    if colon is None or (colon[0] != ":" and not number_list(text, counted=True)):
        return len(text)
    parts = [number for number in found if number.start > colon.start()]
    return colon.start() if len(parts) > 1 and "=" not in text[colon.start() :] else len(text)


def _first(text: str, found: list[Number], pool: list[int]) -> int:
    """Return the number that counts after a mark: the first, or the one after `that is` if the first has no value."""
    restated = [m.end() for m in RESTATED.finditer(text) if m.start() > found[pool[0]].end]
    later = [i for i in pool if restated and found[i].start >= restated[-1]]
    return later[0] if later and found[pool[0]].value is None else pool[0]


def _last(text: str, found: list[Number], before: list[str], pool: list[int]) -> int:
    """Return the number that counts in prose: the last right side of an equation in the last clause, else the last number."""
    breaks = [m.end() for m in _CLAUSE.finditer(text) if m.end() <= found[pool[-1]].start]
    begin = breaks[-1] if breaks else 0
    clause = [i for i in pool if found[i].start >= begin]
    equated = [i for i in clause if _EQUATED_BEFORE.search(before[i])]
    return (equated or clause)[-1]


def _others(found: list[Number], place: int, after: list[str], asides: list[str]) -> frozenset[Fraction]:
    """Return the numbers that restate the quantity in another unit: `90 minutes (1.5 hours)`, `90 minutes or 1.5 hours`."""
    values = {found[place].also}
    for i in (place - 1, place):
        if 0 <= i < len(found) - 1 and _same_quantity(found, i, after):
            values |= {found[i].value, found[i + 1].value}
    here = _base(found[place], after[place])
    for aside in asides:
        values |= {n.value for n in numbers(aside) if here is not None and _base(n, aside[n.end : n.end + 20]) == here}
    return frozenset(value for value in values if value is not None)


def _same_quantity(found: list[Number], i: int, after: list[str]) -> bool:
    """Return whether numbers i and i + 1 are the same quantity: `90 minutes or 1.5 hours`, `5 or 5.0`."""
    if found[i].value is None or not re.search(
        r"\bor\b|\bi\.\s?e\.|\bthat is\b|\bwhich is\b|=|\bequals\b|\(", after[i]
    ):
        return False
    one, other = _base(found[i], after[i]), _base(found[i + 1], after[i + 1])
    return one is not None and (one == other or found[i].value == found[i + 1].value)


def _base(number: Number, after: str) -> tuple[str, Fraction] | None:
    """Return the kind and the value in its base unit. A number without a unit has the kind ""."""
    if number.value is None:
        return None
    word = _UNIT.match(after)
    unit = (
        "$" if number.money and not (word and word[1].lower().startswith("cent")) else word[1].lower() if word else ""
    )
    kind, factor = unit_of(unit) or ("", Fraction(1))
    return kind, number.value * factor
