"""Decide which of a few labels (True, False, Uncertain) is the answer of a reply.

- After an answer marker (`Answer: ...`), the first label counts. In a sentence without a marker, the last label counts.
- A label does not count if it is denied ("not false"), open ("true or false") or hypothetical ("would be true", "whether it is true").
  A label of a premise or an assumption ("premise 2 is false", "true that") does not count.
- A label also counts as denied in phrases such as "we cannot conclude that it is true" and "only partly true".
- A sentence that only denies True may mean False or Uncertain. A sentence that only denies False may mean True or Uncertain.
  A reply that leaves two labels possible is ungraded if one of them is the gold label.
- In a sentence, True or False counts as a clear label only directly after a copula ("is true") or a sign ("→ True").
  In any other place, the label is doubtful. It is also doubtful after words that may invert its meaning ("no premise",
  "likely", "we reject that"). A reply with a doubtful label is ungraded if the label is the gold label, and wrong
  otherwise.
- Reasons after the label ("true, since it is false that ...") are ignored. A guess is not an answer.
- "Cannot be determined", "neither true nor false" and the like mean Uncertain. "The negation of the conclusion is true" means False.
- Without a label, "follows from the premises" and "the conclusion holds" mean True, and "contradicts the premises" means False.
- Sentences that only state conditions for labels ("If ..., it is true; otherwise false") are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise

from rorqual.tasks.clauses import plain_text
from rorqual.tasks.reply import NOTHING, Reading, resolve_answer
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
    r"|(?:cannot|can't|can not|unable to|do not|don't) (?:(?!but\b|so\b)\w+ ){1,12}?(?:true or false|false or true)"
    r"|(?:we|one|you) (?:cannot|can't|can not|do not|don't) (?:\w+ly )?(?:know|tell|say|determine|decide|be (?:sure|certain)) (?:whether|if)"
    r"|(?:we|one|you) (?:cannot|can't|can not) (?:tell|say|know|decide|determine(?: it)?|be (?:sure|certain))(?=\W*$)|say nothing about whether"
    r"|lack(?:s|ing)? (?:\w+ ){0,2}(?:information|data|evidence)"
    r"|(?:could|might|may|can) (?:well )?be (?:either )?(?:true or false|false or true)"
    r"|neither (?:the|this|that) \w+ nor its (?:negation|opposite|denial)"
    r"|(?:not enough|(?:is|are)n't enough|insufficient|no) (?:information|data|evidence)|no way (?:to|of) (?:tell|know|determin"
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
_NOT_BEFORE = re.compile(r"\b(?:not|cannot|never)(?: \w+){0,3} $|n't(?: \w+){0,3} $", re.IGNORECASE)
_CONTRADICTS = re.compile(
    r"\b(?:conclusion|statement|claim|it|this|that|hypothesis)\b[^.;]{0,60}?\b(?<!not )(?:(?:directly "
    r"|clearly )?contradicts|(?:is|are) (?:\w+ly )?"
    r"(?:contradicted|refuted|ruled out|disproved|disproven) by|conflicts with|(?:is|are) (?:in"
    r"|a) contradiction (?:with|to|of)) (?:the |these |all )?"
    r"(?:given |\w+ )?premises?\b",
    re.IGNORECASE,
)
_THE = r"\b(?:conclusion|(?:the|this|given|final) (?:statement|claim|hypothesis))"
_HOLDS = re.compile(
    rf"{_THE}(?: (?:therefore|thus|hence|indeed|must|also))* (?P<not>(?:does not|doesn't) (?:\w+ly )?)?(?:holds?|stands)\b(?! (?:if|when|in)\b)"
    rf"|{_THE} (?:is|must be) (?:\w+ly )?(?P<no>not |in)?(?:\w+ly )?(?:correct|valid|proven|proved|established)\b",
    re.IGNORECASE,
)
_IMPOSSIBLE = re.compile(
    rf"{_THE} (?:is (?:\w+ly )?impossible|(?:cannot|can not|can't) (?:possibly )?(?:be true|hold))\b", re.IGNORECASE
)
_NEGATED = re.compile(
    r"\b(?:its|the) negation (?:\w+ly )?(?:follows|holds|is (?:true|entailed|implied|proven|proved))\b", re.IGNORECASE
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
_NOT_CONCLUDED = re.compile(
    r"\b(?:cannot|can not|can't|could not|couldn't|(?:do|does|did|would|should|may|must|will)(?: not|n't)|unable to|not able to|fails? to"
    r"|no (?:proof|evidence|reason|way|guarantee|indication|support)|nothing|never|impossible|absurd|not (?:possible|enough|sufficient)"
    r"|(?:is|are|was)(?: not|n't) (?:\w+ ){0,2}(?:\w+(?:ed|en|wn)|told|said))\b"
    r"(?:(?!\b(?:but|so|hence|thus|therefore|and)\b)[^,;:]){0,80}\b(?:that|to be)\b"
    r"(?:(?!\b(?:not|but|so|hence|thus|therefore)\b|n't)[^,;:]){0,60}$",
    re.IGNORECASE,
)
_DOUBTED = re.compile(
    r"\b(?:doubt|partly|partially|half|fails to be|hardly|barely|(?:mistake|wrong) to|unlikely|nothing|need more)\b[^,;:]*$",
    re.IGNORECASE,
)
_INVERTED = re.compile(r"\b(?:negation|opposite|false that)\b[^,;:]*$", re.IGNORECASE)
_TURNED = re.compile(
    r"\b(?:fail\w*|contrary|converse|mistake\w*|wrong|den(?:y|ies|ied)|reject\w*|only(?! (?:be|possible|consistent|remaining|valid"
    r"|\w+ (?:answer|option|label|conclusion|possibility)|answer|option|label|conclusion|possibility)\b))\b[^,;:]*$",
    re.IGNORECASE,
)
"""Matches words that may invert the meaning of the label after them.

The parser does not interpret such words, so a label after them is doubtful.
"""
_PLAIN_BEFORE = re.compile(
    r"(?:^|[^\w\s,;\"'*_`]|\bmakes? (?:it|this|(?:the|this) (?:conclusion|statement|claim))"
    r"|\b(?:is|be|are|was|remains?|stands?|holds?|as|it's|that's|answer|label(?:l?ed)?|verdict|option|value|status|choose|select|pick|say"
    r"|with|to|the))"
    r"(?: (?:also|in fact|indeed|then|thus|therefore|hence|simply|just|outright|considered|deemed|judged|found to be|\w+ly|the|an?|still"
    r"|both))*[\s\"'*_`]*$",
    re.IGNORECASE,
)
"""Matches the text directly before an asserted label: a copula, a sign or nothing."""
_QUANTIFIED = re.compile(
    r"\b(?:no|none|few|nobody|no one|nowhere|hardly|never|little|early|too|saying|being|can be|likely|probably|apparently|presumably"
    r"|supposedly)\b|^\W*to be\b",
    re.IGNORECASE,
)
_JUDGED_AFTER = re.compile(
    r"^[\s\"'*]*(?:of \w+|in (?:some|most)\b|(?:can|could|cannot|goes|leads|contradicts|would|fails|does|needs|requires)\b"
    r"|is (?!(?:the|my|our|a|an|what|also|therefore|thus|right|correct|clear|certain|here)\b)\w+)",
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
    r"^\s+(?:that\b|or not\b|only(?:\s{2}| (?:if|when|for)\b)"
    r"|(?:assumption|premise|supposition|antecedent|hypothes|dichotomy|start|lead|positive|negative"
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
_CLAUSE = re.compile(r"[,;:]|\b(?:and|so|but|hence|thus|therefore)\b", re.IGNORECASE)
_INVERSE = {"true": "false", "false": "true"}
_OTHER = "?"
"""A placeholder that equals no label. It is the `Reading.rival` of a doubtful label, so the reply is never graded right."""
_REFUSES = re.compile(
    r"\bI (?:cannot|can't|could not|couldn't) (?:decide|choose|answer|assist|help)\b|\bI (?:do not|don't) know\b"
    r"|\b(?:if i (?:had|have) to|forced to|my best) (?:guess|choose|pick|bet)\b",
    re.I,
)
_GUESSES = re.compile(
    r"\bif\b.*\bbut (?:it|that|this|they) (?:does|is|do|are)(?: not|n't)\W*$|\bI(?: am|'m) not (?:\w+ )?sure\b|\blean(?:ing)? to|\bI guess\b",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"\b(?:conclusion|statement|claim|answer|it|this|that|label|verdict|truth|value|option|hence|so|therefore|thus"
    r"|proposition|hypothesis|i|result|must)\b|→|⇒|[-=]>",
    re.I,
)


def label(text: str, labels: Collection[str]) -> str | None:
    """Return the final label of `text`, spelled as in `labels`. Return None if `text` has no final label or more than one."""
    labels_found = final_labels(text, labels)
    return labels_found[0] if len(labels_found) == 1 else None


def final_labels(text: str, labels: Collection[str]) -> tuple[str, ...]:
    """Return the final labels of `text`: none, one, or two labels that look equally final."""
    known = {name.lower(): name for name in labels}
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, known))})(?![\w-])", re.IGNORECASE)

    def read(segment: str, marked: bool) -> Reading:
        return _read(segment, marked, pattern)

    return tuple(
        known.get(name, name) for name in resolve_answer(_without_conditions(with_options(text), pattern), read).final
    )


def _without_conditions(text: str, pattern: re.Pattern[str]) -> str:
    """Remove the sentences that only state conditions for labels. If they name fewer than two labels in total, keep
    them."""
    every = sentences(spoken(text))
    conditional = {
        sentence
        for sentence in every
        if _CONDITIONAL.search(sentence) and not _CONCLUDED.search(sentence) and pattern.search(sentence)
    }
    if len({name.lower() for sentence in conditional for name in pattern.findall(sentence)}) < 2:
        return text
    return "\n".join(sentence for sentence in every if sentence not in conditional)


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
    sentence, text = text, _WHETHER.sub(lambda match: " " * len(match[0]), text)
    matches = list(pattern.finditer(text))
    if not matches:
        return _implied(sentence, text) if not pattern.search(sentence) else NOTHING
    reading = _choose(text, matches, marked)
    if reading.value is None and not reading.refused:
        implied = _implied(sentence, text)
        if implied.value is not None and implied.value not in reading.denied:
            return replace(implied, denied=reading.denied)
        if reading.denied >= {"true", "false"} and pattern.fullmatch("uncertain"):
            return replace(reading, value="uncertain")
        if len(reading.denied) == 1 and pattern.fullmatch("uncertain") and reading.denied <= {"true", "false"}:
            return replace(_one_of({"true", "false"} - reading.denied), denied=reading.denied)
    return reading


def _one_of(names: set[str]) -> Reading:
    """Return the two labels that a sentence leaves possible if it only denies a label ("It is not true.")."""
    return Reading(min(names), rival="uncertain", weak=True)


def _choose(text: str, matches: list[re.Match[str]], marked: bool) -> Reading:
    names = [match[0].lower() for match in matches]
    gaps = [text[first.end() : second.start()] for first, second in pairwise(matches)]
    undecided = {
        j for i, gap in enumerate(gaps) if names[i] != names[i + 1] and _OPEN_AFTER.match(gap) for j in (i, i + 1)
    }
    denied: set[str] = set()
    remaining: list[int] = []
    for i, match in enumerate(matches):
        before = text[max(0, match.start() - 100) : match.start()]
        before = before[max(before.rfind(stop) + 1 for stop in ",;:") :]
        after = text[match.end() : match.end() + 40]
        if (
            remaining
            and i not in undecided
            and names[i] != names[remaining[-1]]
            and _MAY_BE.search(before)
            and not after.startswith("   ")
        ):
            return Reading(refused=True)
        if (
            _DENIES.search(before)
            or _NOT_CONCLUDED.search(before)
            or _DOUBTED.search(_CLAUSE.split(before)[-1])
            or _DENIED_AFTER.match(after)
        ):
            denied.add(names[i])
        elif i not in undecided and not _NOT_OF_THE_CONCLUSION.search(before) and not _NOT_OF_IT.match(after):
            remaining.append(i)
    if remaining:
        place = remaining[0 if marked else -1]
        clause = _CLAUSE.split(text[: matches[place].start()])[-1]
        name = _INVERSE.get(names[place], names[place]) if _INVERTED.search(clause) else names[place]
        plain = marked or name not in _INVERSE or (_PLAIN_BEFORE.search(clause) and not _QUANTIFIED.search(clause))
        sure = plain and not _TURNED.search(clause) and not _JUDGED_AFTER.match(text[matches[place].end() :])
        return Reading(name, frozenset(denied), rival=None if sure else _OTHER)
    return Reading(denied=frozenset(denied), refused=bool(undecided) and marked)


def _undecided(text: str, pattern: re.Pattern[str]) -> str:
    """If `pattern` matches the label Uncertain, replace phrases such as "cannot be determined" by "uncertain"."""
    return _UNDECIDED.sub("uncertain ", text) if pattern.fullmatch("uncertain") else text


def _implied(sentence: str, text: str) -> Reading:
    """Return the label that a sentence implies without naming it. `text` is `sentence` without its suppositions."""
    if _CONTRADICTS.search(sentence) or _NEGATED.search(text) or _IMPOSSIBLE.search(text):
        return Reading("false")
    if follows := _FOLLOWS.search(sentence):
        return _one_of({"false"}) if _NOT_BEFORE.search(sentence[: follows.start()]) else Reading("true")
    if (holds := _HOLDS.search(text)) is None:
        return NOTHING
    return _one_of({"false"}) if holds["not"] or holds["no"] else Reading("true", weak=True)
