"""Split a reply into sentences and classify them by form: questions, checks, corrections, suppositions, unfinished work."""

from __future__ import annotations

import re
from collections.abc import Iterator

SENTENCE = 4000
"""Maximum number of characters of a sentence. Only the end of a longer sentence, or the start of a longer marked answer, is read.

The limit bounds the work on text without sentence breaks.
"""
_ABBREVIATION = re.compile(
    r"(?:\b(?:i\.e|e\.g|a\.m|p\.m|[ap]\.|rs|no|nr|vs|approx|mr|mrs|ms|dr|st|cf|resp|ca|fig|eq|ft|in|lb|oz|hr|min"
    r"|sec|\d)|^\W*\(?\w{1,2})\.$",
    re.IGNORECASE,
)
_BREAK = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?]['\")*\]$_])|(?<=[.!?]\*\*)|(?<=[.!?]\\[)\]]))[^\S\n]+(?![=<>+*/^-] ?[0-9\\$])(?!=)|\n\s*"
)
_ITEM = re.compile(r"\W{0,4}[0-9]{1,2}\.$")
_STOP = re.compile(r"[.,]\s*(\\\]|\$\$)$")
"""Matches the full stop inside a displayed formula at the end of a sentence."""
_OPENING = r"^[\s*_#>\"'(\[-]*(?:(?:so|but|and|oh|okay|ok|yes|well|now|then|finally|also)\b[, ]*)*"
_CORRECTION = re.compile(
    rf"{_OPENING}(?:wait|actually|correction|oops|h+m+|no[,.:;!]|sorry|hold on|on second thoughts?|scratch that"
    rf"|my mistake|i (?:apologi[sz]e|was wrong|mis\w+)"
    r"|let me (?:correct|rectify|revise|fix)|i (?:made|see) an? (?:\w+ )?(?:mistake|error)|i (?:must|need to"
    r"|have to|should) (?:correct|revise)"
    r"|rather\b,)"
    r"|\b(?:(?:that|this|it|which|answer|result)(?:'s| is| was| can(?:no|')t be)(?: not|n't)? (?:wrong|right"
    r"|incorrect|correct"
    r"|mistaken)"
    r"|(?:that|this|it|which) (?:does not|doesn't) (?:agree|match|add up|make sense|fit)"
    r"|(?:that|this|it) (?:isn't|wasn't) (?:right|correct)|correct(?:ing)? myself|take that back|(?:change|revise"
    r"|correct) (?:my|the) answer"
    r"|i (?:made|see) an? (?:\w+ )?(?:mistake|error)|i (?:misread|miscounted|miscalculated|forgot|overlooked))\b",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"\b(?:wrong|incorrect|mistake\w*|mistaken|error|oops|sorry|correction|scratch that|take that back|mis\w+ed|not right|not correct"
    r"|isn't right|isn't correct|(?:not|n't) (?:agree|match|add up|make sense|fit)|forgot|overlooked)\b",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"\b(?:that|this|it|which|answer|result)(?:'s| is| was) (?:right|correct)|\bno (?:mistakes?|errors?)\b|\bhope\b",
    re.IGNORECASE,
)
_META = re.compile(
    rf"{_OPENING}(?:(?:i |we )?hope|let (?:me|us) (?:know|explain|verify|check|double|re-?check|think|make sure"
    rf"|see)|let's (?:verify|check|double)|feel free|if you|please|thank|you can (?:check|verify|see|confirm)"
    rf"|check(?:ing)?\b"
    r"|verif|to (?:check|verify|confirm)|double[- ]check|sanity|(?:please )?note|remark|explanation|reasoning"
    r"|steps?\b(?! \d+[.:])|do you|would you"
    r"|is there|tips?\b|i (?:used|checked|verified|rounded|assumed|took|needed|am (?:happy|glad|(?:confident|sure)(?! that)))|we (?:used"
    r"|checked|verified)|here (?:we|i) used"
    r"|(?:that|this|it|the \w+) (?:took|takes|used|uses|required|requires|needed|needs) (?:\S+ ){0,3}(?:steps?"
    r"|facts?|lines?"
    r"|calculations?|computations?|operations?|premises?)|(?:in|after) (?:\w+ ){1,2}steps?\b|confidence|difficulty"
    r"|(?:good|best) (?:luck|wishes)|enjoy\b|congrat|(?:great|good|nice) (?:job|work)|well done"
    r"|have (?:fun|an? (?:great|nice|good|wonderful))\b"
    r"|(?:with|had|for) (?:\w+ ){0,4}(?:would|it would)|source|hint|for (?:comparison|reference|example|instance)|assumptions?\b"
    r"|in comparison|by the way|ps\b|the (?:problem|puzzle) (?:has|contains|involves)\b)"
    r"|\bby the way\W*$",
    re.IGNORECASE,
)
_INTRODUCES = re.compile(r"(?:\b(?:is|are|was|be|equals?|gives?|get|obtain)|=)[*_ ]{0,4}:[*_ ]{0,4}$", re.IGNORECASE)
_EMOJI = re.compile(r"^[\U0001f000-\U0001ffff\u2600-\u27bf\ufe0f\u200d ]+")
_SUPPOSED = re.compile(
    rf"{_OPENING}(?:(?:suppose|assume|imagine|say that|let's (?:say|try)|try|what if)\b|(?:if|with|had)\b.*(?:\bwould\b|\w'd\b)"
    r"|if (?:you|we|one) (?:change|drop|remove|add|replace|omit)\w*\b)"
    r"|\bwould (?:still |even )?(?:be|have been|cost|take|make|last|go) (?:\w+er|more|less|fewer)\b",
    re.IGNORECASE,
)
_OPTION = re.compile(r"^[ \t*-]*\(?([A-E])[).:][ \t]+([^\s=]+(?:[ \t][^\s=]+){0,2})[ \t]*$", re.MULTILINE)
_CHOSEN = re.compile(
    r"(\b(?:option|choice|answer|label)\b(?:\W+is)?(?:\W+(?:option|choice))?[\s*:$]*)\(?([A-E])\)?(?![\w])",
    re.IGNORECASE,
)
_TO_DO = re.compile(
    r"^\W*(?:now |then |next,? |finally,? )?(?:add|subtract|divide|multiply)\b|\bonly (?:a )?part of\b|\bso far\b"
    r"|\bat this point\b|\bstill (?!(?:has|have) [^.]*\bleft\b)(?:has|have|needs?|must|to) |\b(?:has|have|needs?) to be"
    r" (?:divided|multiplied|added|subtracted|split|shared)\b"
    r"|\b(?:we|i|you|one) (?:still |now |then )?(?:have|has|need|needs|must) (?:to )?(?:\w+ly )?"
    r"(?:add|divide|multiply|subtract|find|solve|compute"
    r"|calculate|work out|determine|convert)\b"
    r"|\b(?:half|third|quarter|twice|double)(?: of)? (?:that|it|this)\b"
    r"|\b(?:does not|doesn't|did not|didn't|ignor\w+) .{0,60}\b(?:yet|account)\b",
    re.IGNORECASE,
)
_DONE = re.compile(r"[=:]|\b(?:so|gives?|get|gets|makes?|which|is|are|equals)\b[^.]*[0-9]", re.IGNORECASE)
_ENDS = re.compile(r"(?:\\[)\]]|[*_`\"')$\s]){1,20}$")
_UNFINISHED = re.compile(
    r"(?:\b(?:is|are|was|were|be|the|of|by|a|an|and|or|to|that|which|equals|then|for|with|in|on|we|he|she|they|it"
    r"|there|has|have|from|so|get|gives"
    r"|where|if|as|at|this|these|his|her|their|its)|[=+*/,&(\[{\\]|\\(?:cdot|times|frac|boxed|text)\{?|-)\s*$",
)


_FURTHER = re.compile(r"\n[ \t]{0,9}\n[^\w\n]{0,9}(?:question|q|problem)(?: [0-9]{1,4})?:", re.IGNORECASE)
"""Matches the start of a further question. Models without chat training often generate one after their answer."""
_ITS_ANSWER = re.compile(r"\n[^\w\n]{0,9}(?:answer|a|solution):", re.IGNORECASE)
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~")
_MIDWAY = re.compile(
    r"[,;.–—-]+ ?(?:oh |no,? )?(?:no,? wait|wait|sorry|i mean|or rather|make that|scratch that|correction|no, sorry)\b[,:]?\s+",
    re.IGNORECASE,
)
_POINTED = re.compile(r"^[ \t]{0,9}>>[ \t]{0,9}([^<>\n]{1,80}?)[ \t]{0,9}<<[ \t]{0,9}$", re.MULTILINE)
_CONCLUSION = re.compile(
    r"(?:^|\n|[.!?] )[^\w\n]{0,9}(?:so|thus|hence|therefore|(?:the )?(?:final )?answer)\b[^\n]*$", re.IGNORECASE
)


def spans(text: str, opening: str, closing: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each `opening ... closing`, without overlap, in linear time."""
    at = 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        at = end + len(closing)
        yield start, at


def spoken(reply: str) -> str:
    """Return the reply without its thinking, and without a further question that the model made up and answered."""
    after = _POINTED.sub(r"**\1**", _STRUCK.sub("", reply).rpartition("</think>")[2].partition("<think>")[0])
    further = _FURTHER.search(after)
    if further is None or not _ITS_ANSWER.search(after, further.end()):
        return after
    before = after[: further.start()]
    return before if _CONCLUSION.search(before[-SENTENCE:]) else after


def sentences(text: str) -> list[str]:
    """Split `text` into sentences and lines, in order.

    The full stop of an abbreviation or a number does not end a sentence. A displayed formula is one line.
    """
    text = _formulas_on_a_line(text)
    result: list[str] = []
    begin = 0
    numbered = all(re.search(rf"^\W{{0,4}}{number}[.)] ", text, re.MULTILINE) for number in (1, 2))
    for match in _BREAK.finditer(text):
        piece = text[begin : match.start()]
        if numbered and _ITEM.match(piece) and "\n" not in match[0]:
            continue
        if "\n" not in match[0] and _ABBREVIATION.search(piece[-8:] if len(piece) > 8 else piece):
            following = text[match.end() : match.end() + 1]
            if not (following.isupper() and re.search(r"(?:[ap]\.m|\d)\.$", piece)):
                continue
        if piece.strip():
            result.append(piece.strip()[-SENTENCE:])
        begin = match.end()
    if text[begin:].strip():
        result.append(text[begin:].strip()[-SENTENCE:])
    return result


def _formulas_on_a_line(text: str) -> str:
    for opening, closing in (("\\[", "\\]"), ("$$", "$$"), ("\\begin{", "\\end{")):
        pieces, at = [], 0
        for start, end in spans(text, opening, closing):
            if "\n\n" not in text[start:end]:
                glue = " " if text[max(0, start - 1) : start] == "\n" and opening != "\\begin{" else ""
                shown = _STOP.sub(r" \1", text[start:end].replace("\n", " "))
                pieces += [text[at:start].rstrip("\n") + glue, shown]
                at = end
        text = "".join(pieces) + text[at:]
    return text


def passed_over(sentence: str) -> bool:
    """Return whether a sentence states no answer: a question, check, supposition, closing phrase or introduction ("The total is:")."""
    sentence = _EMOJI.sub("", sentence)
    asks = sentence.rstrip("*_ \"')").endswith("?")
    aside = (
        sentence.lstrip("✓✔✅\ufe0f ").startswith("(")
        and sentence.rstrip(".").endswith(")")
        and len(sentence.split()) > 3
        and ") = (" not in sentence
    )
    return (
        asks
        or aside
        or _INTRODUCES.search(sentence) is not None
        or bool(_META.search(sentence) or _SUPPOSED.search(sentence))
    )


def correction(tail: str) -> tuple[str, bool] | None:
    """Return the part of `tail` that begins with the last correction, and whether this part retracts the answer.

    Return None if there is no correction.
    """
    if not tail.strip():
        return None
    parts = sentences(tail)
    for place in range(len(parts) - 1, -1, -1):
        if _CORRECTION.search(parts[place]) and not _CONFIRMED.search(parts[place]):
            while place and _CORRECTION.search(parts[place - 1]) and not _CONFIRMED.search(parts[place - 1]):
                place -= 1
            correction_text = "\n".join(parts[place:])
            return correction_text, _RETRACTED.search(correction_text) is not None
    return None


def with_options(text: str) -> str:
    """Remove the lines that list options ("A) 40", "B) 44"), and replace "option B" by "option 44"."""
    options = {match[1]: match[2] for match in _OPTION.finditer(text)}
    if len(options) < 2:
        return text
    return _CHOSEN.sub(lambda match: match[1] + options.get(match[2], match[2]), _OPTION.sub("", text))


def corrected_midway(sentence: str) -> str | None:
    """Return the text after the last self-correction in a sentence ("18, no wait, 16"), or None."""
    matches = list(_MIDWAY.finditer(sentence))
    return sentence[matches[-1].end() :] if matches else None


def corrects(sentence: str) -> bool:
    """Return whether the sentence corrects an earlier one ("Wait, ...")."""
    return _CORRECTION.search(sentence) is not None and _CONFIRMED.search(sentence) is None


def retracts(sentence: str) -> bool:
    """Return whether the sentence retracts an earlier one ("That is wrong.")."""
    return _CORRECTION.search(sentence) is not None and _RETRACTED.search(sentence) is not None


def leaves_work(sentence: str) -> bool:
    """Return whether the sentence announces a computation ("Next, we have to add ...") without doing it."""
    announced = _TO_DO.search(sentence)
    return announced is not None and _DONE.search(sentence, announced.end()) is None


def unfinished(sentence: str) -> bool:
    """Return whether the sentence breaks off before its end."""
    return not _META.search(sentence) and _UNFINISHED.search(_ENDS.sub("", sentence)) is not None
