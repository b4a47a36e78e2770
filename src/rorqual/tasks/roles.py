"""Decide which people a reply calls knights and which knaves.

The supported forms are:

- Names with a role: "Zoey is a knight", "Zoey: knight", "Zoey (knight)", "Zoey and Ava are knights", "the knave is Oliver".
- Layouts: a table, JSON, a heading "Knights:" with names, or a name above its role.
- Indirect statements: "a knight and a knave, respectively", "is not a knave", "which makes her a knave", "Zoey is honest, so a knight".
- Short negations: "Zoey is a knight, and Ava is not", or "Ava is not." after "Zoey is a knight."
- Groups: "all are knaves", "everyone but Zoey is a knight", "the others are knights".
- Pronouns: "she is a knight", where "she" refers to the first person that the sentence names.

The parser skips questions, suppositions, doubts, ruled-out cases, and claims by people in the puzzle.
The parser also skips a statement if the same sentence calls it a contradiction.
The last statement about each person counts. If one paragraph gives a person both roles, without a conclusion or correction between
the two statements, the reply has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rorqual.tasks.answer_marks import marks
from rorqual.tasks.people import named_text
from rorqual.tasks.sentences import passed_over, sentences, spoken

ROLES = {"knight": True, "knights": True, "knave": False, "knaves": False}
_CLAIMED = re.compile(
    r"\b(?:says?|said|saying|claims?|claimed|claiming|states?|stated|stating|asserts?|asserted|tells? us|told us"
    r"|remarks?|remarked|replied|statement|claim"
    r"|assertion|accus\w+|denies|denied|insists?|calls?|called|calling|thought|guess(?:ed)?|seemed|the (?:assumption|hypothesis|possibility"
    r"|case)|whether)\b(?:,? (?:that|of))?[^,.;:\n]*",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"^\W*(?:\w+\W+){0,4}?(?:suppose|assume|imagine)\b|^\W*(?:\w+\W+){0,2}?(?:assuming|consider|imagine|case|option|scenario|possibility|say"
    r"|let's (?:say|suppose|assume|consider|try)|try)\b",
    re.I,
)
_IF = re.compile(
    r"\b(?:(?:rules? out|doubt|deny|wrong|untrue|false|impossible|neither is it so"
    r"|(?:can(?:no|')?t|can not|cannot|do not|don't) \w+(?: true)?) that"
    r"|if|unless|were|suppose|assuming|would|could|might|may)\b"
    r"[^.;\n]*?(?=, (?:so|hence|thus|therefore)\b|$|[.;\n])",
    re.I,
)
_SURVIVES = re.compile(
    r"\b(?:case|option|scenario|possibility)\b[^.,]{0,30}\b(?:remains|is left|works|holds|survives"
    r"|is (?:the only )?(?:consistent|possible|valid))\b",
    re.IGNORECASE,
)
_FOLLOWS = re.compile(r"^\W*(?:(?:but|and) )?(?:then|in (?:this|that) case)\b", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|contradict\w*|finally|conclusion|wait|actually|correction|correct|mistake"
    r"|impossible|consequently|must|answer|solution|then)\b",
    re.I,
)
_NAME = r"⟦(?:[0-9]+)⟧"
_LIST = rf"{_NAME}(?:(?:\s*[,/=]\s*|,? (?:and|&|as well as) ){_NAME})*"
_ROLE = r"(?P<role>knights?|knaves?)\b(?P<open>\s*(?:/|,? or (?:an? )?)\s*(?:knights?|knaves?))?"
_LINK = (
    r"(?:,? who\b)?(?: ?(?:role|type|identity|status|label)\b)?[\s\"']*(?:,? (?:too|also|again|finally|however|then|in turn"
    r"|as well|therefore|thus|hence),? ?)?(?P<link>(?:is|are|was|must be|has to be|have to be|must (?:both|all) be"
    r"|can only be|(?:, )?being|turns? out to be|to be|as|=|:|->|→|⇒|=>|-|\||\(|\[|,)"
    r"(?P<nt>n't)?[\s\"'*_]*)(?:(?:indeed|thus|therefore|then|also|hence|clearly|definitely|actually|both|all"
    r"|really|necessarily|certainly|either|now|in fact|identified as|found to be|determined to be|shown to be"
    r"|the|an?|only|one|is|are|true|false|our|role|type|of|two|three|four|truth-?tell(?:er|ing)|liar|lying|honest)[\s:,(]+)*?(?P<not>(?:not?"
    r"|never) )?(?P<only>(?:an? |the |only |sole |single |lone |type of )*)"
)
_SAID = re.compile(rf"(?P<names>(?:only |both )?{_LIST}){_LINK}{_ROLE}", re.IGNORECASE)
_ELLIPSIS = re.compile(rf"(?P<names>{_NAME}) (?:an? |the )(?:(?:truth-telling|lying|honest) )?{_ROLE}", re.IGNORECASE)
_PRONOUN = re.compile(
    rf"\b(?:he|she|they) (?:(?:is|are|must be|has to be|can only be)(?P<nt>n't)?)(?: \w+ly| also| then| thus"
    rf"| indeed| therefore)* (?P<not>not )?(?:an? |the )?{_ROLE}",
    re.I,
)
_ROLE_FIRST = re.compile(
    rf"(?P<only>\b(?:only |sole |single |lone |(?:exactly |just )?one )?)(?P<role>knights?|knaves?)(?: here| in (?:this|the) \w+)?[\s\"'*_]*"
    rf"(?:\bis\b|\bare\b|must be|:|=|->|→|-|\||\(|\[|\{{|(?<=one knight),|(?<=one knave),|(?<=two knights),|(?<=two knaves),)"
    rf"(?:[\s\"'*_\[{{]|only|both|and|namely)*(?P<names>{_LIST})(?!\s*(?:is|are|:|=|must|\())",
    re.IGNORECASE,
)
_ALL = re.compile(
    rf"\b(?<!not )(?P<who>all (?:two|three|four|five|six|seven|[2-7]) of (?:them|the \w+)"
    rf"|all(?! (?:the )?others?\b)(?: (?:of (?:them|the \w+)|\w+))?(?: \w+)?|both(?: of them| \w+)?|everyone|everybody"
    rf"|each (?:person|one|of them|of the \w+)|they(?: all| both)?)(?: here| there| (?:on|in) (?:this|the) \w+)?"
    rf" (?:(?:is|are|must be|have to be|must all be|must both be)(?P<nt>n't)?)(?: all| both| indeed| therefore"
    rf"| thus)? (?P<not>not )?(?:an? )?{_ROLE}",
    re.IGNORECASE,
)
_EXCEPT = re.compile(
    rf"\b(?:everyone|everybody|all|each)\b(?: of (?:them|the \w+))?(?: (?:is|are) (?:an? )?(?P<early>knights?|knaves?))?,?"
    rf" (?:except|but|besides|apart from|other than|save)(?: for)? (?:only )?(?P<names>{_LIST})(?(early)| (?:is|are) (?:an? )?{_ROLE})",
    re.IGNORECASE,
)
_NEITHER = re.compile(rf"\bneither ⟦([0-9]+)⟧ nor ⟦([0-9]+)⟧ (?:is|are) (?:an? )?{_ROLE}", re.IGNORECASE)
_NOBODY = re.compile(
    rf"\b(?:none(?: of (?:them|the \w+))?|nobody|no one|no-one|neither(?: of them)?) (?:is|are) (?:an? )?{_ROLE}"
    rf"|\b(?:no|0|zero) {_ROLE.replace('role', 'role2').replace('open', 'open2')}",
    re.I,
)
_OTHERS = re.compile(
    rf"\b(?:everyone else|everybody else|all (?:the )?others?|(?:the )?(?:(?:two|three|four|five) )?(?:others?|rest|remaining)(?: (?:one|two"
    rf"|three|four|five|six|person|people|inhabitants?))?)"
    rf"[\s:*]*(?:is|are|must be|have to be|:|=)(?: all| both)?\s*(?P<not>not )?(?:an? |the )?{_ROLE}",
    re.IGNORECASE,
)
_NOR = re.compile(r"\bnor ⟦$", re.IGNORECASE)
_SO_IS = re.compile(
    rf"\b(?:so|as) (?:is|are) (?P<names>{_LIST})|(?P<other>{_NAME}) (?:is|must be)(?: one)?,? (?:too|as well|also)\b(?! an?\b)",
    re.IGNORECASE,
)
_IS_NOT = re.compile(
    rf"(?P<names>{_LIST}) (?:is|are)(?:(?P<nt> not|n't)(?P<one> one)?|(?P<sole> one|(?<=but ⟦\d⟧ is)|(?<=while ⟦\d⟧ is)))(?=\s*(?:[.,;(]|$))",
    re.IGNORECASE,
)
_AND_IS = re.compile(
    rf"(?P<names>{_LIST}) (?!(?:is|are) (?:\w+ )?kn)[^.;:,⟦]{{1,60}}? and (?:is|are|must be|has to be|have to be)"
    rf"(?: \w+ly)?(?: therefore| thus| hence| so| then)?,?"
    rf" (?P<not>not )?(?:an? |the )?{_ROLE}",
    re.IGNORECASE,
)
_OF_PERSON = re.compile(rf"(?P<names>{_LIST}) [^.;:,()⟦⟧]{{1,60}}?(?::|\(|, so) ?(?:an? )?{_ROLE}", re.IGNORECASE)
_RESPECTIVELY = re.compile(
    rf"(?:(?P<names>{_LIST})|\bthey)(?: are,? (?P<early>respectively,? )?|\) = \()"
    r"(?P<roles>(?:an? )?kn(?:ight|ave)(?:(?:,| and|, and) (?:an? )?kn(?:ight|ave))+)(?(early)|(?:,? respectively|\)))",
    re.IGNORECASE,
)
_MAKES = re.compile(rf"\b(?:makes|making|made) (?:him|her|them) (?:an? )?{_ROLE}", re.IGNORECASE)
_CARD = re.compile(r"\W*(?:[0-9]+[.)]\W*)?⟦([0-9]+)⟧\W*")
_HEADING = re.compile(
    r"^\W*(?:the |(?:role|type|identity|status)\W+)?(?P<role>knights?|knaves?)\W*(?:,? (?:because|since|as) .*)?$",
    re.IGNORECASE,
)
_REFUTED = re.compile(
    r"^(?!.*\b(?:no|without|avoid|otherwise|because|since|so|hence|thus|therefore|must|else)\b).*\bcontradict\w*\W*$",
    re.IGNORECASE,
)
_EITHER_WAY = re.compile(
    r"\bor (?:maybe not|perhaps not|not\b|the other way|vice versa|conversely|the (?:reverse|opposite))\b",
    re.IGNORECASE,
)

Statement = tuple[int, int, dict[int, bool | None]]
"""A statement as (paragraph index, sentence index, role of each person). A role is True for a knight, False for a knave and None if open."""


def roles(reply: str, names: Sequence[str]) -> tuple[bool, ...] | None:
    """Return, for each person, whether the reply calls this person a knight. Return None if anyone has no role or two roles."""
    text = spoken(reply)
    for mark in reversed(marks(text)):
        if mark.phrase or mark.text.lower().count("kn") >= 1:
            result = _settled(text[mark.start :] if mark.phrase else mark.text, names)
            if result is not None or not mark.phrase:
                return result
    return _settled(text, names)


def by_pronoun(reply: str, names: Sequence[str]) -> bool:
    """Return whether a sentence gives roles to both `he` and `she`. The parser cannot tell whom `he` and `she` mean."""
    pronouns = (_PRONOUN.finditer(sentence) for sentence in sentences(named_text(spoken(reply), names)))
    return any({"he", "she"} <= {match[0].split()[0].lower() for match in matches} for matches in pronouns)


def _settled(text: str, names: Sequence[str]) -> tuple[bool, ...] | None:
    statements, sources = _statements(text, names)
    known: dict[int, bool | None] = {}
    place = len(statements)
    while place and len(known) < len(names):
        place -= 1
        for who, role in statements[place][2].items():
            if known.setdefault(who, role) != role:
                return None if _in_one_passage(statements, sources, place, who) else _finish(known, names)
    if len(known) < len(names) or _contradicted(statements, sources, place, known):
        return None
    return _finish(known, names)


def _finish(known: dict[int, bool | None], names: Sequence[str]) -> tuple[bool, ...] | None:
    ordered = [known.get(who) for who in range(len(names))]
    return tuple(role for role in ordered if role is not None) if None not in ordered else None


def _in_one_passage(statements: list[Statement], sources: list[str], place: int, who: int) -> bool:
    """Return whether the statement at index `place` and the next one about `who` are in one paragraph, with no
    conclusion between."""
    later = next(i for i in range(place + 1, len(statements)) if who in statements[i][2])
    between = " ".join(sources[statements[place][1] + 1 : statements[later][1] + 1])
    return statements[place][0] == statements[later][0] and not _CONCLUDES.search(between)


def _contradicted(statements: list[Statement], sources: list[str], place: int, known: dict[int, bool | None]) -> bool:
    """Return whether the roles `known` contradict an earlier statement in the paragraph of the statement at index
    `place`.

    Statements before a conclusion do not count.
    """
    for i in range(place - 1, -1, -1):
        between = " ".join(sources[statements[i][1] + 1 : statements[place][1] + 1])
        if statements[i][0] != statements[place][0] or _CONCLUDES.search(between):
            return False
        if any(known[who] != role for who, role in statements[i][2].items()):
            return True
    return False


def _statements(text: str, names: Sequence[str]) -> tuple[list[Statement], list[str]]:
    """Return the statements and the sentences of `text`, both in order. The sentences contain `⟦number⟧` instead of
    names."""
    statements: list[Statement] = []
    sources: list[str] = []
    heading: bool | None = None
    subject: int | None = None
    supposed, count_before = -1, 0
    for number, paragraph in enumerate(re.split(r"\n\s*\n", named_text(text, names))):
        for sentence in sentences(paragraph):
            sources.append(sentence)
            title = _HEADING.match(sentence)
            people = [int(who) for who in re.findall(r"[⟦⟨]([0-9]+)", sentence)]
            if title and heading is None and len(sources) > 1 and (card := _CARD.fullmatch(sources[-2])):
                statements.append((number, len(sources) - 1, {int(card[1]): ROLES[title["role"].lower()]}))
            elif title:
                heading = ROLES[title["role"].lower()]
            elif heading is not None and people and not re.search(r"knight|knave", sentence, re.IGNORECASE):
                statements += [(number, len(sources) - 1, {who: heading}) for who in people]
            elif _SUPPOSED.search(sentence) and not _SURVIVES.search(sentence):
                supposed, count_before = number, len(statements)
            elif supposed == number and _FOLLOWS.match(sentence) and _complete(statements[:count_before], len(names)):
                continue  # the answer came first, and this sentence only argues for it
            elif not passed_over(sentence) and not _REFUTED.search(sentence):
                subject = people[0] if people else subject
                before = {
                    who
                    for _, at, stated_roles in statements[-8:]
                    if statements and at == statements[-1][1]
                    for who in stated_roles
                }
                if _IS_NOT.fullmatch(sentence.rstrip(".! ")) and statements and statements[-1][1] == len(sources) - 2:
                    sentence = f"{sources[-2].rstrip('.! ')}, {sentence}"  # "Zoey is a knight. Ava is not."
                stated = _in_sentence(_IF.sub(" ", _CLAIMED.sub(" ", sentence)), len(names), subject, before)
                statements += [(number, len(sources) - 1, stated_roles) for stated_roles in stated]
    return statements, sources


def _complete(statements: list[Statement], count: int) -> bool:
    """Return whether the reply begins with its answer: its first `count` statements name all people in one paragraph."""
    first = [
        who
        for paragraph, _, stated_roles in statements[:count]
        if paragraph == statements[0][0]
        for who in stated_roles
    ]
    return len(set(first)) == count


def _in_sentence(sentence: str, count: int, subject: int | None, before: set[int]) -> Iterator[dict[int, bool | None]]:
    """Yield the roles that a sentence states, in order.

    "The others" means the people that the sentence does not name. `before` holds the people of the previous statement.
    In a sentence without names, "the others" means the people who are not in `before`.
    """
    stated: list[tuple[int, dict[int, bool | None]]] = []
    taken: set[int] = set()
    for match in _RESPECTIVELY.finditer(sentence):
        listed = match["names"] or " ".join(re.findall(_NAME, sentence[: match.start()]))
        people = list(dict.fromkeys(int(who) for who in re.findall(r"[0-9]+", listed)))
        each = [ROLES[role.lower()] for role in re.findall(r"knight|knave", match["roles"], re.IGNORECASE)]
        yield dict(zip(people, each)) if len(people) == len(each) else {}
    sentence = _RESPECTIVELY.sub(" ", sentence)
    for match in _EXCEPT.finditer(sentence):
        role = ROLES[(match["early"] or match["role"]).lower()]
        excepted = {int(who) for who in re.findall(r"[0-9]+", match["names"])}
        yield {who: role != (who in excepted) for who in range(count)}
    sentence = _EXCEPT.sub(" ", sentence)
    for pattern in (_SAID, _ROLE_FIRST, _ELLIPSIS, _AND_IS, _OF_PERSON):
        for match in pattern.finditer(sentence):
            if match.start("role") not in taken and not _NOR.search(sentence, 0, match.start() + 1):
                taken.add(match.start("role"))
                stated.append((match.start(), _named(match, count)))
    stated += _of_pronouns(sentence, subject)
    for match in _ALL.finditer(sentence):
        if not match["who"].lower().startswith("both") or count == 2 or sentence[: match.start()].count("⟦") == 2:
            they = (
                re.findall(r"⟦([0-9]+)⟧", sentence[: match.start()]) if match["who"].lower() in ("they", "both") else []
            )
            people = [int(who) for who in they] if len(they) > 1 else list(range(count))
            stated.append((match.start(), dict.fromkeys(people, _role(match))))
    for match in _NEITHER.finditer(sentence):
        stated.append((match.start(), dict.fromkeys((int(match[1]), int(match[2])), not ROLES[match["role"].lower()])))
    for match in _NOBODY.finditer(sentence):
        if match["role"]:
            stated.append((match.start(), dict.fromkeys(range(count), not ROLES[match["role"].lower()])))
    stated.sort(key=lambda item: item[0])
    for (at, stated_roles), (then, next_roles) in pairwise(stated):
        if re.search(r"\bor\b", sentence[at:then]) or _EITHER_WAY.search(sentence):
            stated_roles.update(dict.fromkeys(stated_roles))
            next_roles.update(dict.fromkeys(next_roles))
    for match in _IS_NOT.finditer(sentence):  # "Zoey is a knight, and Ava is not", "Zoey is no knave; Ava is one"
        earlier_roles = [role for at, stated_roles in stated if at < match.start() for role in stated_roles.values()]
        if match["one"] or match["sole"] is not None:
            earlier_roles = [
                ROLES[role.lower()] for role in re.findall(r"knight|knave", sentence[: match.start()], re.IGNORECASE)
            ]
        if earlier_roles and earlier_roles[-1] is not None:
            people = [int(who) for who in re.findall(r"[0-9]+", match["names"])]
            stated.append((match.start(), dict.fromkeys(people, earlier_roles[-1] != bool(match["nt"]))))
    for match in _SO_IS.finditer(sentence):
        like = [stated_roles for at, stated_roles in stated if at < match.start()]
        people = [int(who) for who in re.findall(r"[0-9]+", match["names"] or match["other"])]
        stated += [(match.start(), dict.fromkeys(people, next(iter(like[-1].values()))))] if like and like[-1] else []
    yield from (stated_roles for _, stated_roles in stated)
    named = {who for _, stated_roles in stated for who in stated_roles} or before
    for match in _OTHERS.finditer(sentence):
        yield {who: _role(match) for who in range(count) if who not in named}


def _of_pronouns(sentence: str, subject: int | None) -> Iterator[tuple[int, dict[int, bool | None]]]:
    """Yield the roles of pronouns.

    `he` and `she` mean the subject; `her` in "makes her a knave" means the person named last.
    """
    if subject is None:
        return
    for match in _PRONOUN.finditer(sentence):
        if match[0][:4].lower() != "they":
            clause = re.findall(r"⟦([0-9]+)⟧[^⟦()]{0,60}\((?:so |thus )?$", sentence[: match.start()])
            yield match.start(), {int(clause[-1]) if clause else subject: _role(match)}
    for match in _MAKES.finditer(sentence):
        names = [int(who) for who in re.findall(r"⟦([0-9]+)⟧", sentence[: match.start()])] or [subject]
        yield match.start(), dict.fromkeys(names if "them" in match[0].lower() else names[-1:], _role(match))


def _role(match: re.Match[str]) -> bool | None:
    groups = match.groupdict()
    if groups.get("open") and ROLES[match["role"].lower()] != ROLES[re.findall(r"\w+", groups["open"])[-1].lower()]:
        return None
    return ROLES[match["role"].lower()] != bool(groups.get("not") or groups.get("nt"))


def _named(match: re.Match[str], count: int) -> dict[int, bool | None]:
    """Return the roles of the people that a statement names.

    After a list, a singular verb refers to the person named last ("unlike Zoey, Oliver is a knave").
    """
    people = [int(who) for who in re.findall(r"[0-9]+", match["names"])]
    role = _role(match)
    groups = match.groupdict()
    link = (groups.get("link") or "").strip().lower()
    if link == "is" or ("=" not in match["names"] and link != "are" and not match["role"].lower().endswith("s")):
        people = people[-1:]
    stated_roles: dict[int, bool | None] = dict.fromkeys(people, role)
    only = (groups.get("only") or "") + match["names"].lower().partition("⟦")[0]
    if re.search(r"\b(?:only|sole|single|lone|(?:exactly|just) one)\b", only) and role is not None:
        stated_roles |= {who: not role for who in range(count) if who not in people}
    return stated_roles
