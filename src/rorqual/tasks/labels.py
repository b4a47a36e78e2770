"""Decide which of a few labels (True, False, Uncertain) a reply commits to.

A label does not count where it is denied ("not false"), left open ("true or false"), said of a premise or of an assumption ("premise 2 is
false", "true that"), or supposed ("would be true", "whether it is true"). After a mark the first label counts, in a sentence the last.
Reasons after the label ("true, since it is false that ...") are not read, and a guess is no answer. "Cannot be determined", "neither true
nor false" and the like say Uncertain. Where a sentence has no label, "follows from the premises" says True and "contradicts the premises"
False. Sentences that only say when each label would hold ("If ..., it is true; otherwise false") are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import pairwise

from rorqual.tasks.clauses import plain_text
from rorqual.tasks.reply import NOTHING, Reading, settle
from rorqual.tasks.sentences import SENTENCE, sentences, spoken, with_options

_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_UNDECIDED = re.compile(
    r"\b(?:(?:can(?:no|')?t|can not|could not|couldn't|is not|isn't|not) (?:be )?(?:\w+ly )?(?:be )?(?:determin\w+"
    r"|inferred|decided|concluded"
    r"|known|established|settled|deduced|derived|verified|proven or disproven|proved or disproved)"
    r"|neither (?:\w+ly )?(?:true nor (?:\w+ly )?false|false nor (?:\w+ly )?true|proven nor disproven"
    r"|proved nor disproved"
    r"|entailed nor contradicted|proved nor refuted|confirmed nor (?:denied|refuted)|provable nor refutable|(?:prove"
    r"|confirm|derive|show) nor (?:refute|disprove|deny|exclude))"
    r"|(?:undetermined|indeterminate|undecided|undecidable|inconclusive)"
    r"|(?:not enough|insufficient|no) (?:information|data|evidence)|no way (?:to|of) (?:tell|know|determin"
    r"|decid)\w*"
    r"|(?:not|never) possible to (?:\w+ )?(?:tell|know|determine|say|decide)"
    r"|(?:can )?neither (?:be )?(?:\w+ )?(?:proven|proved|shown|inferred|concluded)(?: to be)? (?:true|false)? ?nor (?:be )?(?:\w+ )?(?:to be )?"
    r"(?:(?:proven|proved|shown|inferred|concluded|disproven|disproved|refuted)(?: to be)?)? ?(?:true|false)?"
    r"|impossible to (?:tell|know|determine|say|decide)|(?:do not|don't|does not|doesn't) (?:\w+ )?(?:say|tell us"
    r"|determine|decide|settle) (?:whether|if))\b",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(
    r"\b(?:(?<!not )(?<!n't )(?:follows? (?:\w+ly )?from|(?:is|are) (?:\w+ly )?(?:entailed|implied|supported|proven"
    r"|proved) by) (?:the |these |all )?"
    r"(?:given )?premises?)\b",
    re.IGNORECASE,
)
_CONTRADICTS = re.compile(
    r"\b(?:conclusion|statement|claim|it|this|that|hypothesis)\b[^.;]{0,60}?\b(?<!not )(?:(?:directly "
    r"|clearly )?contradicts|(?:is|are) (?:\w+ly )?"
    r"(?:contradicted|refuted|ruled out|disproved|disproven) by|conflicts with|(?:is|are) (?:in"
    r"|a) contradiction (?:with|to|of)) (?:the |these |all )?"
    r"(?:given |\w+ )?premises?\b",
    re.IGNORECASE,
)
_WHETHER = re.compile(
    r"\b(?:whether|if|suppose|assume|assuming|(?:assumption|supposition) that|unless)\b[^,;.:]{0,300}", re.I
)
_OPEN_AFTER = re.compile(
    r"^[\s\"'*]*(?:,? (?:or|and|nor|vs\.?)|/|,)[\s\"'*]*(?:(?:is|it|maybe|perhaps|even|possibly) )*$", re.I
)
_DENIES = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|no|rather than|instead of|far from)|n't)(?:\s+(?:be|been|\w+ly|just|a|an"
    r"|the|so|labell?ed|called|answer(?:ed)?"
    r"|as|considered|either|think|believe|it|it's|that|is|said to be|shown to be|proved|proven|logically|enough to be)\b){0,4}[\s\"'*]{0,4}$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"^[\s\"'*]*(?:is|was|would be|seems|looks)(?: not|n't)? (?:wrong|incorrect|out\b|excluded|ruled out|impossible"
    r"|(?:the )?(?:right|correct)\b"
    r"(?<=n't right)|not\b)",
    re.I,
)
_NOT_OF_THE_CONCLUSION = re.compile(
    r"\b(?:premises?(?: \w+)?|assumption|antecedent|consequent|half|part|halves|disjuncts?|conjuncts?|negation"
    r"|converse|contrapositive|inverse|first sentence"
    r"|fact|rule|clause|side|disjunction|conjunction|implication|conditional)\b"
    r"(?:(?!\b(?:conclusion|statement|claim|it|proposition|answer)\b)[^,;:]){0,40}\b(?:is|are|was|were|be|being|holds?)\b[^,;:]{0,20}$"
    r"|\b(?:(?:would|might|may|could|can(?! only))(?: \w+){0,2} (?:be|have been|make|seem)|were|had|seems?|looks?|appears?"
    r"|tempt\w*|first (?:guess|thought)|at first|thought|initially|maybe|perhaps|possibly)\b"
    r"[^,;:]{0,40}$",
    re.IGNORECASE,
)
_NOT_OF_IT = re.compile(
    r"^\s+(?:that\b|(?:assumption|premise|supposition|antecedent|hypothes|dichotomy|start|lead|positive|negative"
    r"|fact|belief)\w*|in some|in one|if\b"
    r"|when\b|for (?:some|every|any)\b|unless\b|means\b)",
    re.IGNORECASE,
)
_CONDITIONAL = re.compile(
    r"^\W*(?:[0-9]+[.)]\s+)?(?:and |but )?(?:if|otherwise|else|in the (?:mixed|other) case)\b", re.IGNORECASE
)
_CONCLUDED = re.compile(r"\b(?:so|hence|thus|therefore)\b", re.IGNORECASE)
_REASON = re.compile(
    r",? \b(?:because|since|given that)\b(?:(?!, (?:so|hence|thus|therefore|it|the)\b)[^;])*$", re.IGNORECASE
)
_MAY_BE = re.compile(r"\b(?:might|may|could)(?: \w+)? be[\s\"'*]*$", re.IGNORECASE)
_REFUSES = re.compile(
    r"\bI (?:cannot|can't|could not|couldn't) (?:decide|choose|answer|assist|help)\b|\bI (?:do not|don't) know\b"
    r"|\b(?:if i (?:had|have) to|forced to|my best) (?:guess|choose|pick|bet)\b",
    re.I,
)
_GUESSES = re.compile(r"\bI(?: am|'m) not (?:\w+ )?sure\b|\blean(?:ing)? to|\bI guess\b", re.IGNORECASE)
_SUBJECT = re.compile(
    r"\b(?:conclusion|statement|claim|answer|it|this|that|label|verdict|truth|value|option|hence|so|therefore|thus"
    r"|proposition|hypothesis|i|result|must)\b|→|⇒|[-=]>",
    re.I,
)


def label(text: str, labels: Collection[str]) -> str | None:
    """The label of `labels` that `text` commits to, by its spelling there; None where it commits to none or does not decide."""
    found = final_labels(text, labels)
    return found[0] if len(found) == 1 else None


def final_labels(text: str, labels: Collection[str]) -> tuple[str, ...]:
    """The labels that look final: none, one, or two between which `text` does not decide."""
    known = {name.lower(): name for name in labels}
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, known))})(?![\w-])", re.IGNORECASE)

    def read(segment: str, marked: bool) -> Reading:
        return _read(segment, marked, pattern)

    return tuple(known[found] for found in settle(_without_conditions(with_options(text), pattern), read))


def _without_conditions(text: str, pattern: re.Pattern[str]) -> str:
    """`text` without the sentences that only say when each label would hold; they count where all they name is one label."""
    every = sentences(spoken(text))
    conditional = {
        one for one in every if _CONDITIONAL.search(one) and not _CONCLUDED.search(one) and pattern.search(one)
    }
    if len({name.lower() for one in conditional for name in pattern.findall(one)}) < 2:
        return text
    return "\n".join(one for one in every if one not in conditional)


def _read(segment: str, marked: bool, pattern: re.Pattern[str]) -> Reading:
    text = plain_text(segment[:SENTENCE] if marked else segment[-SENTENCE:]) if "*" not in segment else segment
    bold = [inner for inner in _BOLD.findall(text) if len(pattern.findall(inner)) == 1 and len(inner) < 40]
    if bold and not marked:
        text, marked = bold[-1], True
    text = _undecided(plain_text(text), pattern)
    if _REFUSES.search(text) or ((guess := _GUESSES.search(text)) and len(pattern.split(text[guess.start() :])) < 3):
        return Reading(refused=True)
    shorter = _REASON.sub("", text)
    text = shorter if pattern.search(shorter) else text
    first = pattern.match(text.lstrip("*_\"' ([-"))
    if not marked and len(text.split()) > 4 and first is None and not _SUBJECT.search(text):
        return NOTHING
    marked = marked or first is not None
    whole, text = text, _WHETHER.sub(lambda match: " " * len(match[0]), text)
    found = list(pattern.finditer(text))
    if not found:
        return _implied(whole) if not pattern.search(whole) else NOTHING
    return _choose(text, found, marked)


def _choose(text: str, found: list[re.Match[str]], marked: bool) -> Reading:
    names = [match[0].lower() for match in found]
    gaps = [text[one.end() : other.start()] for one, other in pairwise(found)]
    open_ = {j for i, gap in enumerate(gaps) if names[i] != names[i + 1] and _OPEN_AFTER.match(gap) for j in (i, i + 1)}
    denied: set[str] = set()
    left: list[int] = []
    for i, match in enumerate(found):
        before = text[max(0, match.start() - 100) : match.start()]
        before = before[max(before.rfind(stop) + 1 for stop in ",;:") :]
        after = text[match.end() : match.end() + 40]
        if (
            left
            and i not in open_
            and names[i] != names[left[-1]]
            and _MAY_BE.search(before)
            and not after.startswith("   ")
        ):
            return Reading(refused=True)
        if _DENIES.search(before) or _DENIED_AFTER.match(after):
            denied.add(names[i])
        elif i not in open_ and not _NOT_OF_THE_CONCLUSION.search(before) and not _NOT_OF_IT.match(after):
            left.append(i)
    if left:
        return Reading(names[left[0 if marked else -1]], frozenset(denied))
    return Reading(denied=frozenset(denied), refused=bool(open_) and marked)


def _undecided(text: str, pattern: re.Pattern[str]) -> str:
    """`text` with what says that nothing can be decided as the label Uncertain, where there is such a label."""
    return _UNDECIDED.sub("uncertain ", text) if pattern.fullmatch("uncertain") else text


def _implied(text: str) -> Reading:
    """What a sentence without a label says of the conclusion."""
    if _CONTRADICTS.search(text):
        return Reading("false")
    return Reading("true") if _FOLLOWS.search(text) else NOTHING
