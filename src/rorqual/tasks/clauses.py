r"""Reduce a sentence to the clause that states its answer. Detect values that the text denies, and values after a
preposition.

`main_part` and `without_dashes` apply each step below only if a number remains afterwards:

- Remove an item label ("a) ") and text in brackets.
- Remove an introductory clause ("After 3 days, ...").
- Remove a clause that gives a reason ("..., because 3 of them ...") or a supposition ("...; it would have been 5").
- Remove an addition after a dash ("56 seats — 7 rows of 8").
"""

from __future__ import annotations

import re

from rorqual.tasks.numbers import numbers, plain

_MARKUP = (
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|boldsymbol|operatorname|mbox|fbox)\s?\{([^{}]{0,200})\}"), r" \1"),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad|big|Big)\b|\\[\[\]()]|~|`"), " "),
    (re.compile(r"(?<![0-9])\*\*|\*\*(?![0-9])|__"), ""),
    (re.compile(r"<<[^<>]{0,200}>>|</?[a-z]{1,6}>|(?<=\w )\[[0-9]{1,2}\]"), ""),
)
_DASH = re.compile(r"(?<=\w) ?— ?(?=\S)")
_VERB = re.compile(
    r"\b(?:is|are|was|were|makes?|gives?|pays?|gets?|has|have|he|she|they|we|it|so|which|total|altogether|in all)\b",
    re.IGNORECASE,
)
ASIDE = re.compile(r"\([^()]{0,300}\)")
STEP = re.compile(r"^\W*(?:step|case|part|day|question|problem) [0-9]{1,3}\s?[:.)-]\s", re.IGNORECASE)
_LABEL = re.compile(
    r"^\W*(?:\(?[0-9]{1,3}[.)]\s|[a-z]\)\s)",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"^\W*(?:(?:so|and|but|then|now|thus|hence|therefore)\b,? )?(?!in (?:total|all) [a-z])(?:after|when|if|since|as|because|while|given|with"
    r"|from|out of|of|on|in|at|for|during"
    r"|(?:every|each) (?:day|week|month|year|hour|time)|before|until|starting|by|although|though|whether"
    r"|to)\b[^,;:]{0,300}, ?",
    re.IGNORECASE,
)
_PARALLEL = re.compile(r"\b(after|before|on|in|at) the \w+\b[^;]{0,100}, \1 the ", re.IGNORECASE)
_QUANTITY = (
    "amount|average|balance|bill|cost|difference|distance|gain|income|loss|maximum|minimum|number|price|profit|salary"
    "|savings?|score|sum|total|value"
)
_REASON = re.compile(
    r"(?:,? \b(?:because|since|whereas|although|even though|compared (?:to|with)|in contrast to|unlike|assuming|given that|not counting"
    r"|not including|excluding|except|without counting|so that|if|when|where|whenever|as long as)\b|, (?:as|while"
    rf"|for(?! an? (?:\w+ ){{0,2}}(?:{_QUANTITY}) of\b)|after"
    r"|before|with|(?:which is |that's )?enough (?:for|to)\b|(?:[\w\\$]+ )?of (?:which|whom)|whose|who)\b"
    r"| as (?:each|every|there|he|she|it|they|the|we|one)\b| while\b|(?<=[a-z]) (?:after|before|by|from|despite) \w+ing\b)"
    r".*?(?=(?:,|;|:) (?:so|but|hence|thus|therefore|we (?:get|round|need|must)|(?:he|she|they) must|this (?:gives|makes))\b|;|$)",
    re.IGNORECASE,
)
_REASON_FIRST = re.compile(r"(?<=, )(?:and|but|so) (?:because|since|as)\b[^,;]{0,200}, ", re.IGNORECASE)
_SUPPOSES = re.compile(r"(?:;|,? (?:but|while|whereas|though|and)\b)[^;]{0,200}\bwould\b.*$", re.IGNORECASE)
_LIGHT = (
    r"(?:be|been|equal|equals|to|exactly|just|simply|merely|only|actually|the|a|an|as|really|of|get|gets|give|gives"
    r"|make|makes|have|has|cost|costs|earn"
    r"|earns|answer|result|total|value|sum|number|is|was|are|were|possibly|either|think|believe|that|it|he|she|they|we)"
)
_DENIES = re.compile(
    rf"(?:\b(?:not|never|neither|nor|cannot|rather than|instead of|no longer|nowhere near|far from)\b|n't\b|\\neq?\b"
    rf"|≠)(?:\s+{_LIGHT}\b){{0,5}}\W{{0,4}}$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"^(?:\s[A-Za-z]+){0,2}\s(?:(?:is|are|was|were|would be|seems?|looks?)(?: not|n't)? (?:wrong|incorrect|mistaken|impossible|too \w+)\b"
    r"|(?:is|are|was|were)(?: not|n't)\b\s*(?:$|[.,;]|(?:the|right|correct|an?|my|our|it|true|possible|what|exact"
    r"|enough)\b)|cannot be (?:right|correct|true)"
    r"|can't be (?:right|correct|true)|would (?:exceed|be too|not)|(?:fails?|violates?)\b"
    r"|(?:does|do)(?: not|n't) (?:work|fit|satisfy|hold|apply|count|match|add up)\b|(?:seems?|looks?|appears?) (?:right|correct"
    r"|plausible))",
    re.IGNORECASE,
)
_GOVERNED = re.compile(
    r"(?:\b|(?=@))(?:for|of|in|on|at|after|from|per|every|each|within|during|over|than|close to|near|the|these|those|all|his|her|their|its"
    r"|our|your|my|both|by|into|across|among"
    r"|between|until|before|when|with|without|if|since|first|last|next|other|remaining|whole|using|step|case|part"
    r"|day|week|month|year|premise|question"
    r"|\w's|than (?:\w+(?:'s)? ){0,2}\w+|problem|example|method|option|page|room|number|no\.|degree|day|age|route|line"
    r"|equation"
    r"|(?<!has )(?<!have )(?<!had )(?<!need )(?<!needs )(?<!wants )(?<!want )(?<!going )(?<!able )(?<!used )(?<!is "
    r")"
    r"(?<!are )to [a-z]{3,}|@)\s+(?:(?:of|the|each|every|all|a|just|only|these|those|his|her|their"
    r"|first|last|other|next|about|around|approximately)\s+)*[$£€(]*$",
    re.IGNORECASE,
)
_NOT_GOVERNED = re.compile(
    r"\b(?:in (?:all|total|sum)|after all|(?:left|ends?|ended|ending|up|remains?|home|him|her|them|us) (?:up )?with"
    r"|sold for|sells? (?:\w+ ){1,4}for"
    rf"|sold (?:\w+ ){{1,4}}for|(?:{_QUANTITY}|answer|result) of"
    r"|(?:is|lies|located) at|(?:travel|mov|driv|go|rid|fly|work|sell)(?:e|es|s|ing)? at|round(?:s|ed|ing)? (?:up|down"
    r"|off)? ?to|(?:speed|rate) of|age of"
    r"|(?:tak|giv|g[ao]ve|cost|leav|left|mak|pay|ow|earn|need|sav|bring|get)(?:e|es|s|ing)? (?:him|her|them|us|me"
    r"|you)|took (?:him|her|them|us|me|you))"
    r"\s+[$£€(]*$",
    re.IGNORECASE,
)
_REFERRED = re.compile(
    r"\b(?:at|off|out of|from|than|over|below|above|under) (?:the|its|an?|his|her|their) (?:\w+ ){0,2}of\s+[$£€(]*$",
    re.IGNORECASE,
)
_COMPARED_WITH = re.compile(r"\bthan\b[^,;:.=]{0,60}$", re.IGNORECASE)
_LEADS_ON = re.compile(
    r"[=:]|\b(?:so|thus|hence|therefore|but|yet|however|then|namely|that is|i\.e\.|which|it is|would|could|might)\b",
    re.IGNORECASE,
)
RESTATED = re.compile(
    r"(?:\bthat is(?: to say)?|\bi\.\s?e\.|\bnamely|\bin other words|\bwhich (?:is|equals|means|makes|gives))\W",
    re.IGNORECASE,
)


def plain_text(text: str) -> str:
    """Return `text` without the Markdown and LaTeX markup that does not affect numbers."""
    for pattern, new in _MARKUP:
        text = pattern.sub(new, text)
    return plain(text).replace("\\$", "$").replace("\\%", "%")


def without_dashes(text: str) -> str:
    """Replace dashes by commas. Remove an addition after a dash ("56 seats — 7 rows of 8"), unless the addition is a
    clause."""
    dash = _DASH.search(text)
    if dash and numbers(plain(text[: dash.start()])) and not _VERB.search(text, dash.end()):
        return text[: dash.start()]
    return _DASH.sub(", ", text)


def main_part(text: str, marked: bool) -> str:
    """Return `text` without its label, brackets, introductory clause and reasons. Each part is removed only if a number remains."""
    label = _LABEL.match(text)
    shorter = [text[label.end() :]] if label and label.end() < len(text.rstrip()) else []
    if _PARALLEL.search(text):
        return text
    cuts = [(ASIDE, " ")] + ([] if marked else [(_LEADING, ""), (_REASON_FIRST, "")]) + [(_REASON, ""), (_SUPPOSES, "")]
    text = shorter[0] if shorter and numbers(shorter[0]) else text
    for pattern, new in cuts:
        if pattern is ASIDE and re.match(r"\s*\(or\b", text[text.find("(") - 1 :]):
            continue
        cut = pattern.sub(new, text)
        if pattern is _LEADING and RESTATED.match(cut):
            continue
        text = cut if numbers(cut) else text
    return text


def leads_on(text: str, end: int, start: int) -> bool:
    """Return whether `text[end:start]`, between two values, has a word of conclusion, correction or supposition ("so", "but", "would")."""
    return _LEADS_ON.search(text, end, start) is not None


def denied(before: str, after: str) -> bool:
    """Return whether the text before or after a value denies that the value is the answer."""
    return bool(_DENIES.search(before) or _DENIED_AFTER.search(after))


def governed(before: str) -> bool:
    """Return whether `before` ends with a preposition or article that governs the value after it."""
    free = _NOT_GOVERNED.search(before) is not None and _REFERRED.search(before) is None
    return (_GOVERNED.search(before) is not None and not free) or _COMPARED_WITH.search(before) is not None
