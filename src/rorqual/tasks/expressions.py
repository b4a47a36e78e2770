r"""Find the final expression of a reply: an equation, list, set, tuple, interval, number in a base, or words.

In a sentence, the last formula or number that follows no preposition counts. In a marked answer, the first formula or number counts.
In a chain `a = b = c` the last side counts. In `a \approx 0.3` the left side counts. `rorqual.tasks.answer` compares
the final expression with the gold answer.
"""

from __future__ import annotations

import re
from itertools import pairwise

from rorqual.tasks.amounts import Amount, number_list, read_amount
from rorqual.tasks.bases import base_of, in_base
from rorqual.tasks.clauses import denied, governed, leads_on, main_part, plain_text
from rorqual.tasks.intervals import inequality
from rorqual.tasks.numbers import numbers, plain, spelled
from rorqual.tasks.parts import parts, split
from rorqual.tasks.reply import BESIDE, NOTHING, FinalAnswer, Reading, resolve_answer
from rorqual.tasks.sentences import SENTENCE
from rorqual.tasks.units import unit_of

_FORMULA = re.compile(
    r"\$\$(?P<a>[^$]{1,1000}?)\$\$|(?<!\\)\$(?P<b>[^$]{1,1000}?)(?<!\\)\$(?![0-9])|\\\((?P<c>.{1,1000}?)\\\)|\\\[(?P<d>.{1,1000}?)\\\]"
    r"|(?<![\w\\])(?P<f>[(\[][-−]?(?:∞|[0-9.]{1,20}), ?[-−+]?∞\)|\([-−]∞, ?[-−]?[0-9.]{1,20}[)\]])"
    r"|(?<![\w\\)])(?P<g>[(\[]-?[0-9.]{1,20}(?:/[0-9]{1,9})?(?:, ?-?[0-9.]{1,20}(?:/[0-9]{1,9})?){1,9}[)\]])(?!\w)"
    r"|(?<![\w\\{])(?P<e>[0-9A-F]{1,60}_(?:\{[0-9]{1,2}\}|[0-9]{1,2}))(?!\w)",
    re.DOTALL,
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?![A-Za-z]*\{)")
_FUNCTIONS = {
    "pi",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "log",
    "ln",
    "or",
    "and",
    "mod",
    "theta",
    "infinity",
    "inf",
    *("cm", "km"),
    "kg",
    "mm",
    "ft",
}
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm|mbox|textit|operatorname)\s?\{([^{}]{0,200})\}")
_BOLD = re.compile(r"\\(?:mathbf|boldsymbol|bm)\s?\{([^{}]{0,200})\}")
_LED = re.compile(r"^\\text\s?\{[^{}]{0,100}(?:\b(?:is|are|equals)|[=:])\s*\}(?=.)")
_SPACING = re.compile(
    r"\\(?:left|right|displaystyle|limits|big|Big|bigl|bigr|Bigl|Bigr|quad|qquad)(?![A-Za-z])|(?<!\\)\\[!;: ]|~"
    r"|\\,(?![0-9]{3})|(?<![0-9])\\,"
)
_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "∪": r"\cup ", "∈": r"\in ",
    "±": r"\pm ", "°": r"^\circ ", "θ": r"\theta ", "∅": r"\emptyset ", "√": r"\sqrt", "≈": r"\approx ", "≠": r"\ne ", "⋅": r"\cdot ",
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\langle": "(", "\\rangle": ")",
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lbrack": "[", "\\rbrack": "]",
    "\\approxeq": "\\approx", "\\simeq": "\\approx", "\\iff": "\\implies", "\\Rightarrow": "\\implies", "\\Longrightarrow": "\\implies",
    "\\rightarrow": "\\implies", "\\cdotp": "\\cdot",
}  # fmt: skip
_SYMBOL = re.compile("|".join(re.escape(old) + r"(?![A-Za-z])" * (old[0] == "\\") for old in _SYMBOLS))
_UNIT = re.compile(
    r"(?<=[0-9})\]a-zA-Z!π])(?:\s|~|\\ |\\,)*(?:\\(?:text|mathrm|textrm|mbox)\s?\{[^{}]{0,80}\}"
    r"|(?<=\s)(?:[A-Za-z]{3,}|cm|mm|km|m|ft|in|kg|g|lb|mph|hr|min)\b\.?)"
    r"(?:\s?\^\{?[0-9]\}?)?\s*$"
)
_DEGREES = re.compile(r"\s?\^\s?\{?\s?\\circ\s?\}?|\s*\\degrees?\b|\\circ\b")
_COPULA = re.compile(
    r"(?:\b(?:is|are|be|equals?|to|get|gives?|obtain|becomes?|leaves?|have|makes?|at|was|were)\b|:|=(?!.*=))", re.I
)
_CLAUSE = re.compile(
    r"[,;:]\s|\b(?:but|so|hence|thus|therefore|which means|because|since|and therefore)\b|\. ", re.IGNORECASE
)
_FAILS = re.compile(r"\b(?:fails?|violates?|(?:does|do)(?: not|n't))\b")
_UNLIKE = re.compile(
    r"\b(?:than|unlike|from|for|neither|nor|either|or|like|looks?|seems?|except|before|after|instead of|rather than"
    r"|if|whether|whereas|while|possibly|maybe"
    r"|perhaps|might be|may be|could be)\s+(?:an? |the |like )?$",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"(?<=\S)(?: ?\((?:about|approx\w*\.?|roughly|around|≈|~|\$?\\approx)[^()]{0,60}\)"
    r"|, (?:or|which is|that is|i\.e\.,?)? ?(?:about|approximately|roughly|around|≈|nearly|almost|close to"
    r"|(?:(?:just|slightly|a (?:bit|little|touch|shade)) )?(?:under|over|below|above|less than|more than))\s\$?[0-9][^,;]{0,40}$)",
    re.IGNORECASE,
)
_OUT_OF = re.compile(r"(?<![\w$.,/])([0-9]{1,9}) out of ([0-9]{1,9})(?=[.,;]?(?:\s(?:i\.e|that is|or)\b|$))")
_ONE_IN = re.compile(r"(?<=(?:ance|lity) (?:is|of) )([0-9]{1,9}) in ([0-9]{1,9})(?![\w/]|[.,][0-9])")
_RATIO = re.compile(r"(?<=ratio (?:is|of) )([0-9]{1,9}) ?(?::|to) ?([0-9]{1,9})(?![\w/:]|[.,][0-9])")
_ROOT = re.compile(
    r"(?:\b([0-9]{1,9}) (?:times )?)?\b(?:the )?square root of ([0-9]{1,9})(?![\w/]|[.,][0-9])", re.IGNORECASE
)
_LINE = re.compile(
    r"^[ \t>*•-]*(?:\\[(\[]|\$\$?)?[ \t]*([a-z](?:_\{?[0-9]\}?)?[ ]?=[^=,\n$]{1,60}?)(?:\\[)\]]|\$\$?)?[.,]?[ \t]*$",
    re.MULTILINE,
)
_LINES = re.compile(rf"(?:(?:{_LINE.pattern})\s*){{2,9}}\Z", re.MULTILINE)
"""Matches equations such as `x = 2` at the end of a reply, one per line."""
_CHOICES = re.compile(r"\W*[A-F](?:\W{0,3}(?:,|and|or|&|/)\W{0,3}[A-F]\b)+\W*")
_OR_ELSE = re.compile(r"(?<=[0-9}]\$) \((?:or|i\.e\.,?) \$?([^()$]{1,40})\$?\)")
_AS_DESIRED = r",? as (?:desired|required|claimed|needed|expected|wanted)"
_DONE = re.compile(
    rf"(?:{_AS_DESIRED})?[\s.]{{0,5}}(?:\\q?quad){{0,2}}\s{{0,5}}\$?(?:∎|■|□|\\blacksquare|\\square|\\Box)\$?(?=\W{{0,9}}$)"
    rf"|{_AS_DESIRED}(?=\W{{0,9}}$)"
)
_POWER = re.compile(r"(?<=[\w)])\*\*(?=\(?[0-9])(?!.*\*\*\W*$)")
_REALS = re.compile(
    r"\ball real (?:numbers|values)(?: of \$?[a-z]\$?)?[. ]*$|^\$?\\mathbb\s?\{?R\}?\$?[. ]*$", re.IGNORECASE
)
_PI = re.compile(r"(?<![A-Za-z])pi(?![A-Za-z])")
_AND_THE = re.compile(
    r"[^$.;]{0,40}?,? (?:and|while|whereas|but) (?:the|its|their) [^,;.$]{1,40}? (?:(?:is|are|equals)(?: at)? )?",
    re.IGNORECASE,
)
_ORDER = re.compile(r"[<>]|\\[lg](?:e|eq|eqslant|t)?(?![A-Za-z])")
_COMPUTED = re.compile(r"(?:[^A-Za-z=]|\\[a-z]+)+=")
_STEP = re.compile(r"[^=({_]*(?:[0-9][a-z]|[-+*/^])[^=]*=")
"""Matches an equation whose left side is not a name: `2x = 9`."""
Found = tuple[int, int, str]


def read_final_expressions(reply: str, gold: str) -> FinalAnswer:
    """Return the final LaTeX expression or words of `reply`, and the other values in its last sentence.

    The form of `gold` decides whether the function looks for words, for a number in a base, or for several parts.
    """
    words = gold_words(gold)
    base = base_of(gold.strip().strip("$")) is not None
    several = parts(tidy(gold)) is not None
    reply = (
        reply[:-SENTENCE]
        + _LINES.sub(
            lambda match: ", ".join(f"${equation}$" for equation in _LINE.findall(match[0])), reply[-SENTENCE:]
        )
        if several
        else reply
    )
    return resolve_answer(_BOLD.sub(r"\1", reply), lambda segment, marked: _read(segment, marked, words, base, several))


def gold_words(gold: str) -> str | None:
    r"""Return the bare words of a gold answer that consists of words (`\text{Evelyn}`, `\text{(C)}`), else None."""
    bare = gold.strip().strip("$").strip()
    inner = _TEXT.sub(r" \1 ", bare)
    if "\\" in inner or not re.search("[A-Za-z]", inner):
        return None
    if inner == bare and not re.fullmatch(r"(?:[A-Za-z]{2,}[ .-]?)+|\([A-Z]\)|[A-Z]", bare):
        return None
    if inner != bare and re.match(r"[\s\d.,+-]*[0-9]", inner) and not re.search(r"[0-9]:[0-9]|[ap]\.?m\b", inner):
        return None  # `inner` is a number with its unit
    return bare_words(inner)


def bare_words(text: str) -> str:
    """Return the letters, digits and `:/+-` of `text` in lower case: `3:30pm` for `\\text{3:30 p.m.}`."""
    return re.sub(r"[^0-9a-z:/+-]", "", _TEXT.sub(r" \1 ", text).lower())


def _read(segment: str, marked: bool, words: str | None, base: bool, several: bool) -> Reading:
    text = segment[:SENTENCE] if marked else segment[-SENTENCE:]
    text = _ABOUT.sub("", in_base(text) if base else text)
    if several and _REALS.search(text):
        return Reading(r"(-\infty, \infty)")
    text = _DONE.sub("", text)
    text = _OR_ELSE.sub(r", $\1$", _POWER.sub("^", text))
    for pattern in (_OUT_OF, _ONE_IN, _RATIO):
        text = pattern.sub(lambda match: rf"$\frac{{{match[1]}}}{{{match[2]}}}$", text)
    text = _ROOT.sub(lambda match: rf"${match[1] or ''}\sqrt{{{match[2]}}}$", text)
    return _read_words(text, marked, words) if words is not None else _read_formula(text, marked, several)


def _read_words(text: str, marked: bool, words: str) -> Reading:
    """Find the clause that states the answer. Return `words` if the clause asserts them, else the clause's own words."""
    bold = re.findall(r"\*\*([^*\n]{1,80})\*\*", text)
    if bold and not marked:
        text, marked = bold[-1], True
    text = _TEXT.sub(r" \1 ", text).replace("$", " ").replace("*", "")
    if _CHOICES.fullmatch(text):
        return Reading(bare_words(text))
    if bare_words(text) == words or (words in ("yes", "no") and re.match(rf"\W*{words}\b", text, re.IGNORECASE)):
        return Reading(words)
    clauses = [piece for piece in _CLAUSE.split(text) if piece.strip(" .")]
    if not clauses:
        return NOTHING
    asserted = [
        clause
        for clause in clauses
        if not re.match(r"^\W*(?:not|isn't|unlike|rather than|instead of)\b", clause) and not _FAILS.search(clause)
    ]
    clause = (asserted or clauses)[0 if marked else -1]
    if re.search(r"\bnot\b.*\bbut\b", text):
        clause = text[text.rfind(" but ") + 5 :]
    pattern = re.compile(
        r"(?<![\w-])" + r"\W{0,2}".join(map(re.escape, re.findall(r"[ap](?=m$)|[a-z]+|[0-9]+", words))) + r"(?!['\w-])",
        re.I,
    )
    if _asserts(clause, pattern):
        return Reading(words)
    listed = re.split(r"[,;] (?!but\b|so\b|hence\b|thus\b|therefore\b)", text)
    rival = words if not marked and any(_asserts(part, pattern) for part in listed if part in asserted) else None
    return Reading(bare_words(clause) or None, rival=rival)


def _asserts(clause: str, pattern: re.Pattern[str]) -> bool:
    """Return whether a clause asserts the words of `pattern`, and neither denies them nor offers an alternative
    ("or")."""
    for match in pattern.finditer(clause):
        before, after = clause[: match.start()].rstrip("( "), clause[match.end() : match.end() + 20]
        if (
            not denied(before + " ", after)
            and not _UNLIKE.search(before + " ")
            and not re.match(r"\W*(?:or|nor)\b", after)
        ):
            return True
    return False


def _read_formula(text: str, marked: bool, several: bool) -> Reading:
    bold = re.findall(r"\*\*([^*\n]{1,200})\*\*", text)
    if bold and not marked and (_FORMULA.search(bold[-1]) or numbers(plain(bold[-1]))):
        text, marked = bold[-1], True
    text = _LED.sub("", plain(text) if "\\begin" not in text else text).replace("**", "").strip()
    bare = _TEXT.sub(r"\1", text).strip("$ .")
    if (
        len(words := spelled(bare)) == 1
        and (words[0].start, words[0].end) == (0, len(bare))
        and words[0].value is not None
    ):
        return Reading(_formula(Amount(words[0].value, words[0].percent)))
    if not _prose(text):
        bare = text.rstrip(".").strip()
        if (match := _FORMULA.fullmatch(bare)) is not None and (inner := match["c"] or match["d"]):
            bare = inner.strip()
        chat = not marked and re.fullmatch(r"[A-Za-z]{3,}!?", bare)  # a chat phrase such as "Done."
        return Reading(bare) if re.search(r"[\w\\]", bare) and not chat else NOTHING
    formulas = [(m.start(), m.end(), next(g for g in m.groups() if g).strip()) for m in _FORMULA.finditer(text)]
    if not formulas:
        return _read_prose(text, marked, several)
    cut = _without_reasons(text, [a for a, _, _ in formulas])
    return _choose_formula(
        text, [formula for formula in formulas if formula[0] < cut] or formulas, marked, cut, several
    )


def _prose(text: str) -> bool:
    """Return whether `text` contains prose outside its formulas."""
    outside = _TEXT.sub(" ", _FORMULA.sub(" ", text)).replace("i.e.", "that is")
    words = [word for word in _WORD.findall(outside) if word.lower() not in _FUNCTIONS]
    if not words or "\\begin" in outside:
        return False
    return (
        len(words) > 2
        or _FORMULA.search(text) is not None
        or (len(words) > 1 and not re.match(r"^[^A-Za-z]*[0-9]", outside))
    )


def _without_reasons(text: str, starts: list[int]) -> int:
    """Return the position where the first reason or aside after a formula begins, or the length of `text`."""
    for match in re.finditer(
        r",? \b(?:because|since|attained|achieved|reached|where|whereas|whose|as (?:the|we|it|each)|rather than|instead of)\b| \(",
        text,
    ):
        if match.end() - 1 in starts:
            continue
        if any(start < match.start() for start in starts) and not re.search(
            r"\b(?:so|hence|i\.e\.|(?:we|one) (?:take|choose|keep|discard|reject|must (?:have|take)|have))(?!\w)",
            text[match.start() :],
        ):
            return match.start()
    return len(text)


def _choose_formula(text: str, formulas: list[tuple[int, int, str]], marked: bool, cut: int, several: bool) -> Reading:
    """Return the formula that the sentence states. Formulas joined by `and`, `or` or a comma form one list."""
    outside = _FORMULA.sub(lambda match: "#" * len(match[0]), text)[:cut]
    loose = [(n.start, n.end, outside[n.start : n.end]) for n in numbers(outside) if not n.ordinal and not n.spelled]
    formulas = [item for item in formulas if not re.fullmatch("[a-zA-Z]", item[2])] or formulas
    every = sorted([*formulas, *loose])
    remaining, denied_values = [], set()
    for start, end, formula in every:
        if denied(text[max(0, start - 60) : start], text[end : end + 40]):
            denied_values.add(formula)
        else:
            remaining.append((start, end, formula))
    if not remaining:
        return Reading(denied=frozenset(denied_values))
    ends = {
        end
        for item, following in pairwise(remaining)
        if _ends_of_range(text, item, following)
        for end in (item, following)
    }
    remaining = [item for item in remaining if item not in ends]
    if not remaining:
        return Reading(refused=True)
    restated = [m.end() for m in re.finditer(r"\b(?:i\.\s?e\.|that is|namely|in other words),?\s", text)]
    free = [item for item in remaining if _is_free(text, item, restated)]
    free = (free if several else _before_parts(text, free)) or _spelled(outside) or remaining
    if marked:
        place = 0
    else:
        after = [i for i, item in enumerate(free) if restated and item[0] >= restated[-1]]
        place = after[0] if after else len(free) - 1
    value = _list_around(text, free, remaining, place)
    before = [item[2] for item in formulas if restated and item[1] <= restated[-1]]
    rival = None
    if not marked and before and free[place] in loose:  # in "$12.5\%$ of them, namely 5" both numbers may be the answer
        rival = before[-1]
    elif not marked and place and _AND_THE.fullmatch(text[free[place - 1][1] : free[place][0]]):
        rival = free[place - 1][2]
    others = [] if marked else [item[2] for item in free if not leads_on(text, item[1], free[place][0])][-BESIDE:]
    return Reading(value, frozenset(denied_values), rival=rival, beside=frozenset(others) - {value} - denied_values)


def _is_free(text: str, formula: Found, restated: list[int]) -> bool:
    """Return whether a formula may be the answer: it follows no preposition, is an inequality, or follows `that is`."""
    again = any(0 <= formula[0] - end <= len("in the ") for end in restated)
    return again or _ORDER.search(formula[2]) is not None or not governed(text[max(0, formula[0] - 60) : formula[0]])


def _before_parts(text: str, free: list[Found]) -> list[Found]:
    """Return the formulas of `free` before a colon that introduces a list (`there are $3$ such numbers: $1, 4, 9$`)."""
    colon = text.find(":", free[0][1]) if free else -1
    listed = [part for formula in free if formula[0] > colon for part in split(formula[2], ",")]
    head = [formula for formula in free if formula[1] <= colon and not re.fullmatch("[A-Za-z]", formula[2])]
    states = re.search(r"=|\\in\b", text[colon:]) or _ORDER.search(text[colon:])
    return head if head and len(listed) > 1 and not states else free


def _list_around(text: str, free: list[Found], remaining: list[Found], place: int) -> str:
    """Join the formula at index `place` with its neighbours in the same list. `$x < 2$ or $x > 3$` is one list."""
    if free[place] in remaining and _ORDER.search(free[place][2]):
        free, place = remaining, remaining.index(free[place])
    first = last = place
    while last + 1 < len(free) and _joined(text, free[last], free[last + 1]):
        last += 1
    while first and _joined(text, free[first - 1], free[first]):
        first -= 1
    return ", ".join(formula for _, _, formula in free[first : last + 1])


def _ends_of_range(text: str, first: tuple[int, int, str], second: tuple[int, int, str]) -> bool:
    """Return whether two formulas are the ends of a range: `between $6$ and $7$`, `$6$ to $7$`."""
    gap, before = text[first[1] : second[0]].strip(), text[max(0, first[0] - 20) : first[0]].strip().lower()
    return (gap == "and" and before.endswith("between")) or (
        gap in ("to", "-", "through") and not before.endswith("to")
    )


def _spelled(text: str) -> list[tuple[int, int, str]]:
    """Return the spelled-out numbers that follow a copula (`the minimum is negative three, attained at $x = 2$`)."""
    spelled_numbers = [
        n for n in spelled(text) if n.value is not None and _COPULA.search(text[: n.start].rstrip()[-8:])
    ]
    return [(n.start, n.end, _formula(Amount(n.value, n.percent))) for n in spelled_numbers if n.value is not None]


def _joined(text: str, first: Found, second: Found) -> bool:
    r"""Return whether two formulas belong to one list.

    Two steps of a computation (`$3 + 6 = 9$, and $\frac{9}{21} = \frac{3}{7}$`) do not form a list.
    """
    if (_COMPUTED.match(first[2]) and _COMPUTED.match(second[2])) or _STEP.match(first[2]):
        return False
    gap = text[first[1] : second[0]]
    return re.fullmatch(r"[\s,]*(?:(?:and|or|,)(?: at)?)?[\s,]*", gap) is not None and gap.strip() != ""


def _read_prose(text: str, marked: bool, several: bool) -> Reading:
    """Return a formula in plain text (`2√3`, `p - q`), else the number that the sentence states."""
    text = _PI.sub("π", text)
    copulas = [match.end() for match in _COPULA.finditer(text)]
    tail = text[copulas[0 if marked else -1] if copulas and not marked else 0 :].strip().rstrip(".").strip()
    tail = _UNIT.sub("", tail) if "π" in tail or "√" in tail else tail
    if re.fullmatch(r"[^A-Za-z]*(?:[a-z](?![a-z])|pi|sqrt|[^A-Za-z])+", tail) and re.search(
        r"[√π^()\[\]/]|[a-z] ?[-+*/] ?[a-z0-9]|[0-9] ?[-+] ?[0-9]*[a-z]|[0-9] ?pi\b", tail
    ):
        return Reading(tail)
    if (plain_inequality := inequality(text)) is not None:
        return Reading(plain_inequality)
    if listed := number_list(main_part(plain_text(text), marked), counted=several):
        return Reading(", ".join(listed))
    reading = read_amount(text, marked)
    if not isinstance(reading.value, Amount):
        return Reading(refused=reading.refused, denied=frozenset(map(_formula, reading.denied)))
    denials, beside = (frozenset(map(_formula, values)) for values in (reading.denied, reading.beside))
    return Reading(_formula(reading.value), denials, weak=reading.weak, beside=beside)


def _formula(amount: Amount) -> str:
    value = amount.value
    text = str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    return text + "\\%" * amount.percent


def tidy(text: str) -> str:
    """Normalise LaTeX: remove spacing, units and degree signs, and write each symbol with one command."""
    text = _BOLD.sub(r"\1", text.strip().strip("$").strip().removesuffix(".").strip())
    text = plain(text) if "\\begin" not in text else text
    text = re.sub(
        r"\$\s{0,5}(?:,|,?\s{0,5}(?:and|or)\b)\s{0,5}\$", ", ", _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    )
    text = re.sub(r"\\sqrt\s?(?:\(([^()]{1,100})\)|([0-9]+|[a-z]))(?!\{)", lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub(r"\\text\s?\{\s*,?\s*(?:and|or)\s*\}|\s(?:and|or)\s", ",", text)
    text = re.sub(r"(?<=[0-9])(?:\{,\}|\\,\\!|,\\!|\\,|\\!)(?=[0-9]{3})", "", text)
    text = re.sub(r"\s*\(?\\p?mod\s?\{[^{}]{1,20}\}\)?$", "", text).replace("\\equiv", "=")
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(?<=[0-9])_\{?(?:10|\\text\{ten\})\}?(?![0-9])", "", text)
    if outward := re.fullmatch(r"([\[\]])([^\[\](){}]+,[^\[\](){}]+)([\[\]])", text):
        text = f"{'(' if outward[1] == ']' else '['}{outward[2]}{')' if outward[3] == '[' else ']'}"
    text = _DEGREES.sub(" ", _SPACING.sub(" ", text)).replace("\\$", "").strip()
    text = re.sub(r"(?<=[0-9])\s*(?:percent|\\%|%)", "\\%", text)
    for _ in range(3):
        text = _UNIT.sub("", text).strip()
    return text


def same_unit(gold: str, answer: str) -> bool:
    """Return whether the units of two answers agree. 5 km and 5 cm differ. A missing or unknown unit agrees with any unit."""
    units = [
        re.search(r"(?:\\(?:text|mathrm|textrm|mbox)\s?\{\s*|(?<=[0-9\s~]))([A-Za-z]{1,11})\}?\.?\$?$", text.strip())
        for text in (gold, answer)
    ]
    kinds = [None if match is None else unit_of(match[1]) for match in units]
    return None in kinds or kinds[0] == kinds[1]
