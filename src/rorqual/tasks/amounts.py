r"""Decide which number a sentence states as its answer.

The following numbers are excluded:

- Operands (`5 * 12`), left sides of equations, multiples of an unknown ("3x = 18") and ordinals.
- Denied numbers ("not 18").
- Bounds ("more than 18", "18, maybe more") and ranges ("18 to 20"). "Rises from 18 to 20" is not a range and states 20.
- Open alternatives ("18 or 19"). "18 in all, or 6 each" is a total and its share, not an open alternative.
- Numbers in brackets, and numbers in a clause that gives a reason.

A sentence that guesses, lists cases ("if ..., 18; if ..., 19") or retracts its number has no answer. A quantity in two
units ("1 hour and 30 minutes") is one number. A number after a preposition or article ("for 3 people", "the 5 days")
counts only if no other number remains. In a marked answer (`\boxed{...}`) the first number counts. In a sentence the
last number counts, because a sentence usually ends with the answer. In two joined clauses ("9 remain, and 6 are gone")
both numbers may be the answer. In the `Reading` (see `rorqual.tasks.reply`), the second number is the `value` and the
first number is the `rival`.
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
from rorqual.tasks.reply import BESIDE, NOTHING, FinalAnswer, Reading, resolve_answer
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
"""Matches the text between a count and the counted items, such as the colon in "3 roots: 1, 4, 9"."""
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
"""Matches the text between the amounts of two people, as in "Tom gets 6 apples, Ann gets 4"."""
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
    """A number that a reply states as its answer. `others`: the same quantity in other units, if the reply states them."""

    value: Fraction
    percent: bool = False
    others: frozenset[Fraction] = field(default=frozenset(), compare=False)

    def equals(self, gold: Fraction) -> bool:
        """Return whether the amount equals `gold`. 50% equals both 1/2 and 50, but 0.5% does not equal 1/2."""
        if not self.percent:
            return gold == self.value or gold in self.others
        return self.value == 100 * gold or (self.value == gold and not 0 < abs(gold) < 1)


def final_amount(reply: str, *, strict: bool = False) -> Amount | None:
    """Return the final number of `reply`, or None if the reply does not state exactly one final number. With `strict`,
    only marked answers count."""
    candidates = read_final_amounts(reply, strict=strict).final
    return candidates[0] if len(candidates) == 1 else None


def read_final_amounts(reply: str, *, strict: bool = False) -> FinalAnswer:
    """Return the final numbers of `reply`, and the other numbers in its last sentence."""
    return resolve_answer(with_options(reply), read_amount, strict=strict)


def read_amount(segment: str, marked: bool) -> Reading:
    """Return the number that the segment states, by the rules in the module docstring."""
    text = segment[-SENTENCE:] if not marked else segment[:SENTENCE]
    bold = [candidates for candidates in _BOLD.findall(text) if numbers(plain(candidates))]
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
    candidates = _compounds(numbers(text), text)
    marked = marked or not re.search("[A-Za-z]", text)
    if not marked and (words := _in_words(text, candidates)):
        candidates = words
    return _choose(text, candidates, marked, asides) if candidates else NOTHING


def _compounds(candidates: list[Number], text: str) -> list[Number]:
    """Merge each quantity in two units into one number in the smaller unit: `1 hour and 30 minutes` becomes 90."""
    merged: list[Number] = []
    for number in candidates:
        joined = _compound(merged[-1], number, text) if merged else None
        if joined is not None:
            merged.pop()
        merged.append(joined or number)
    return merged


def _compound(first: Number, second: Number, text: str) -> Number | None:
    """Merge two numbers into one quantity (`5 feet 3 inches`, `3 dozen and 5`), or return None if they are separate."""
    gap = text[first.end : second.start]
    if first.value is None or second.value is None:
        return None
    if first.scaled == "dozen" and gap == " and ":
        return replace(second, start=first.start, value=first.value + second.value)
    words = _TWO_UNITS.match(gap), _UNIT.match(text[second.end : second.end + 20])
    larger, smaller = (unit_of(word[1]) if word else None for word in words)
    if larger is None or smaller is None or larger[0] != smaller[0]:
        return None
    ratio = Fraction(larger[1]) / smaller[1]
    if ratio <= 1 or second.value >= ratio:
        return None
    value = first.value * ratio + second.value
    return replace(second, start=first.start, value=value, also=value / ratio)


def _in_words(text: str, candidates: list[Number]) -> list[Number]:
    """Return the spelled-out numbers that may be the answer.

    If the text ends with a clause without digits ("making it twenty-one in total"), return the spelled-out numbers of
    this clause. Otherwise, a number in digits cannot be the answer if it is an operand or an ordinal, or if it follows
    a preposition ("four boxes at $5"). If no number in digits can be the answer, return the spelled-out numbers that
    follow no preposition.
    """
    closing = _CLOSING.search(text)
    if closing and (words := [item for item in spelled(text) if item.start >= closing.start()]):
        return words
    gaps = [text[a.end : b.start] for a, b in pairwise(candidates)]
    before = [text[max(0, item.start - 80) : item.start] for item in candidates]
    after = [*gaps, text[candidates[-1].end : candidates[-1].end + 80]] if candidates else []
    free = any(
        not (_JOINED_BEFORE.search(b) or _JOINED_AFTER.search(a) or governed(b) or number.ordinal)
        for number, b, a in zip(candidates, before, after)
    )
    if free or not candidates or candidates[0].spelled:
        return []
    words = [
        item
        for item in spelled(text)
        if item.value is not None and (item.value != 1 or text[: item.start].endswith("exactly "))
    ]
    return [item for item in words if not governed(text[max(0, item.start - 80) : item.start])]


def _choose(text: str, candidates: list[Number], marked: bool, asides: list[str]) -> Reading:
    gaps = [text[a.end : b.start] for a, b in pairwise(candidates)]
    before = [text[max(0, candidates[0].start - 80) : candidates[0].start], *gaps]
    after = [*gaps, text[candidates[-1].end : candidates[-1].end + 80]]
    excluded, undecided = _excluded(text, candidates, before, after)
    denied_at = {i for i in range(len(candidates)) if denied(before[i], after[i])}
    remaining = [i for i in range(len(candidates)) if i not in excluded and i not in denied_at]
    denied_values = frozenset(
        Amount(value, candidates[i].percent) for i in denied_at if (value := candidates[i].value) is not None
    )
    if not remaining:
        return Reading(denied=denied_values, refused=bool(undecided))
    ranks = _ranks(text, candidates, before, after)
    best = max(ranks[i] for i in remaining)
    pool = [i for i in remaining if ranks[i] == best]
    place = _first(text, candidates, pool) if marked or best <= GOVERNED else _last(text, candidates, before, pool)
    value = candidates[place].value
    if value is None:  # forms such as "twice nine" and 3:30 have no value
        return Reading(denied=denied_values, refused=not candidates[place].spelled)
    weak = not marked and _OF_THE_QUESTION.search(before[place]) is not None
    amount = Amount(value, candidates[place].percent, _others(candidates, place, after, asides))
    rival = (
        None
        if marked
        else _rival(text, candidates, pool, place)
        or _apposed(candidates, place, remaining, after)
        or _price(candidates, place, after)
    )
    others = [
        i for i in pool if i != place and not (marked or leads_on(text, candidates[i].end, candidates[place].start))
    ]
    beside = {
        Amount(value, candidates[i].percent) for i in others[-BESIDE:] if (value := candidates[i].value) is not None
    }
    return Reading(amount, denied_values, weak=weak, rival=rival, beside=frozenset(beside - {amount} - denied_values))


def _apposed(candidates: list[Number], place: int, remaining: list[int], after: list[str]) -> Amount | None:
    """Return the number in the apposition that follows the chosen number: "to $48, a saving of $12", "350, i.e. 50 more
    than planned"."""
    i = place + 1
    value = candidates[i].value if i in remaining and _APPOSED.match(after[place]) else None
    return None if value is None else Amount(value, candidates[i].percent)


def _price(candidates: list[Number], place: int, after: list[str]) -> Amount | None:
    """Return the price after a count ("She sells 18 eggs for $36"), because the question may ask for the count or the price."""
    i = place + 1
    if (
        i >= len(candidates)
        or candidates[place].money
        or not candidates[i].money
        or not re.fullmatch(r"(?: [a-z]+){1,3} for \$?", after[place])
    ):
        return None
    value = candidates[i].value
    return None if value is None or _RATE.match(after[i]) else Amount(value)


def _rival(text: str, candidates: list[Number], pool: list[int], place: int) -> Amount | None:
    """Return the number before the chosen number if both look final: "9 remain, and 6 are gone", "20%, i.e. $16 off",
    "24, or 8 each"."""
    at = pool.index(place)
    first, second = candidates[pool[at - 1]], candidates[place]
    if at == 0 or first.value is None:
        return None
    gap = text[first.end : second.start]
    joined = _JOINS.search(gap)
    shared = RESTATED.search(gap) and first.percent != second.percent and (second if first.percent else first).money
    if _COORDINATED.fullmatch(gap):
        shared = not _INFERS.search(text[first.end :])
    elif joined:
        clause = first.end + joined.start()
        alike = first.percent == second.percent and "but" not in joined[0]
        parallel = alike and _IS.search(gap, joined.start()) and _IS.search(text[: first.start])
        shared = (closes(text[:clause]) or parallel) and not _INFERS.search(text[clause:])
    elif _AND_OTHERS.fullmatch(gap) or _A_SAVING.fullmatch(gap):
        shared = True
    elif _OR_RATE.match(gap) or RESTATED.search(gap):
        shared = shared or _RATE.match(text[second.end :]) is not None
    return Amount(first.value, first.percent) if shared else None


def _excluded(text: str, candidates: list[Number], before: list[str], after: list[str]) -> tuple[set[int], set[int]]:
    """Return the indices of all excluded numbers, and the indices of the numbers that leave the answer open (bounds,
    ranges, alternatives)."""
    excluded: set[int] = set()
    undecided: set[int] = set()
    for i, number in enumerate(candidates):
        last = i + 1 == len(candidates)
        joined = i > 0 and (
            _JOINED_BEFORE.search(before[i]) or (number.value is not None and _signed(before[i], number))
        )
        if joined or (not last and _JOINED_AFTER.search(after[i]) and not _is_range(candidates, i, before, after)):
            excluded.add(i)
        if not last and _EQUATED_AFTER.search(after[i]):
            excluded.add(i)
        if (
            _BOUND.search(before[i])
            or _OR_SO.match(after[i])
            or _MULTIPLE.search(text[max(0, number.start - 40) : number.start])
        ):
            undecided.add(i)
        if last or _same_quantity(candidates, i, after):
            continue
        if (
            _is_range(candidates, i, before, after)
            or (_OR.search(after[i]) and not joined and not _is_rate(i, after))
            or (re.search(r"\bbetween\b[^,;]{0,12}$", before[i], re.IGNORECASE) and re.search(r"\band\b", after[i]))
            or (
                _LIST.search(after[i])
                and number.value != candidates[i + 1].value
                and not _COMPARED.search(after[i + 1])
                and not governed(before[i])
            )
        ):
            undecided |= {i, i + 1}
    return excluded | undecided, undecided


def _signed(before: str, number: Number) -> bool:
    return before.strip() == "" and number.value is not None and number.value < 0


def _is_rate(i: int, after: list[str]) -> bool:
    """Return whether number i + 1 restates number i: `24 slices in total, or 8 slices each`, `500 kg or 1,102 pounds`."""
    if _OR_RATE.match(after[i]) and _RATE.match(after[i + 1]):
        return True
    first, second = _WITH_UNIT.match(after[i]), _UNIT.match(after[i + 1])
    units = [unit_of(word[1]) if word else None for word in (first, second)]
    return None not in units and first is not None and second is not None and first[1].lower() != second[1].lower()


def _is_range(candidates: list[Number], i: int, before: list[str], after: list[str]) -> bool:
    """Return whether numbers i and i + 1 are a range (`18-20`, `18 to 20`). "Rises from 18 to 20" is not a range."""
    if i + 1 >= len(candidates) or not _RANGE.search(after[i]):
        return False
    if _CHANGES.search(before[i]) and not RESTATED.search(after[i + 1]):
        return False
    first, second = candidates[i].value, candidates[i + 1].value
    return first is None or second is None or first < second


def _ranks(text: str, candidates: list[Number], before: list[str], after: list[str]) -> list[int]:
    """Rank each number by its grammatical role, from the least to the most likely answer.

    The ranks are ATTRIBUTE ("the 100-gallon tank"), GOVERNED (after a preposition), RELATIVE (in a relative clause) and FREE
    (none of these).
    """
    ranks: list[int] = []
    listed = _breakdown(text, candidates)
    for i, number in enumerate(candidates):
        aside = number.ordinal or _ADVERBIAL.search(after[i]) or _COMPARED.search(after[i]) or number.start > listed
        again = i > 0 and ranks[-1] == GOVERNED and _COORDINATED.search(before[i])
        relative = _RELATIVE.search(before[i]) is not None and not _same_kind(candidates, i, after)
        attribute = re.match(r"-[a-z]", after[i]) is not None
        rank = GOVERNED if aside or again or governed(before[i]) else RELATIVE if relative else FREE
        ranks.append(ATTRIBUTE if attribute else rank)
    return ranks


def _same_kind(candidates: list[Number], i: int, after: list[str]) -> bool:
    """Return whether numbers i - 1 and i have units of one kind, such as time: `1 hour and 30 minutes, which is 90 minutes`."""
    words = [_UNIT.match(after[j]) for j in (i - 1, i) if j >= 0]
    units = [unit_of(word[1]) if word else None for word in words]
    return len(units) == 2 and None not in units and len({unit[0] for unit in units if unit}) == 1


def number_list(text: str, *, counted: bool) -> list[str]:
    """Return the list of numbers at the end of `text`, such as `1, 4 and 9`. Return an empty list if there are fewer
    than two numbers.

    Without `counted`, also return an empty list if the text before the list states the list's length ("2 roots: 3, 4").
    """
    candidates = numbers(text)
    begin = len(candidates) - 1
    while begin > 0 and _OR_LIST.search(text[candidates[begin - 1].end : candidates[begin].start]):
        begin -= 1
    if not 0 <= begin < len(candidates) - 1:
        return []
    says_how_many = (
        begin > 0
        and _PARTS_FOLLOW.search(text, candidates[begin - 1].end, candidates[begin].start)
        and candidates[begin - 1].value == len(candidates) - begin
    )
    return [] if says_how_many and not counted else [text[number.start : number.end] for number in candidates[begin:]]


def _breakdown(text: str, candidates: list[Number]) -> int:
    """Return the position where the parts of a sum begin (`8 apples: 2 red and 6 green`), or the length of `text`."""
    colon = _PARTS_FOLLOW.search(text, candidates[0].end)
    if colon is None or (colon[0] != ":" and not number_list(text, counted=True)):
        return len(text)
    parts = [number for number in candidates if number.start > colon.start()]
    return colon.start() if len(parts) > 1 and "=" not in text[colon.start() :] else len(text)


def _first(text: str, candidates: list[Number], pool: list[int]) -> int:
    """Return the index of the number that counts in a marked answer.

    The first number counts. If the first number has no value (a time such as `3:30`), the number after `that is` counts.
    """
    restated = [m.end() for m in RESTATED.finditer(text) if m.start() > candidates[pool[0]].end]
    later = [i for i in pool if restated and candidates[i].start >= restated[-1]]
    return later[0] if later and candidates[pool[0]].value is None else pool[0]


def _last(text: str, candidates: list[Number], before: list[str], pool: list[int]) -> int:
    """Return the index of the number that counts in prose.

    If the last clause has equations, the right-hand side of the last equation counts. Otherwise the last number of the
    clause counts.
    """
    breaks = [m.end() for m in _CLAUSE.finditer(text) if m.end() <= candidates[pool[-1]].start]
    begin = breaks[-1] if breaks else 0
    clause = [i for i in pool if candidates[i].start >= begin]
    equated = [i for i in clause if _EQUATED_BEFORE.search(before[i])]
    return (equated or clause)[-1]


def _others(candidates: list[Number], place: int, after: list[str], asides: list[str]) -> frozenset[Fraction]:
    """Return the values of the chosen quantity in other units: `90 minutes (1.5 hours)`, `90 minutes or 1.5 hours`."""
    values = {candidates[place].also}
    for i in (place - 1, place):
        if 0 <= i < len(candidates) - 1 and _same_quantity(candidates, i, after):
            values |= {candidates[i].value, candidates[i + 1].value}
    base = _base(candidates[place], after[place])
    for aside in asides:
        values |= {n.value for n in numbers(aside) if base is not None and _base(n, aside[n.end : n.end + 20]) == base}
    return frozenset(value for value in values if value is not None)


def _same_quantity(candidates: list[Number], i: int, after: list[str]) -> bool:
    """Return whether numbers i and i + 1 are the same quantity: `90 minutes or 1.5 hours`, `5 or 5.0`."""
    if candidates[i].value is None or not re.search(
        r"\bor\b|\bi\.\s?e\.|\bthat is\b|\bwhich is\b|=|\bequals\b|\(", after[i]
    ):
        return False
    first, second = _base(candidates[i], after[i]), _base(candidates[i + 1], after[i + 1])
    return first is not None and (first == second or candidates[i].value == candidates[i + 1].value)


def _base(number: Number, after: str) -> tuple[str, Fraction] | None:
    """Return the kind of quantity (length, money, ...) and the value in the base unit. Without a unit, the kind is ""."""
    if number.value is None:
        return None
    word = _UNIT.match(after)
    unit = (
        "$" if number.money and not (word and word[1].lower().startswith("cent")) else word[1].lower() if word else ""
    )
    kind, factor = unit_of(unit) or ("", Fraction(1))
    return kind, number.value * factor
