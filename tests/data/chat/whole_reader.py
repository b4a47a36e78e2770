"""A second reading of replies, of all of it at once: what the reader of streams must give however a reply is cut.

The text is split into items by looking back and forth in it, and the thought is found from its end. Nothing waits, and nothing is held.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rorqual.core.records import Message, Thinking, Tool, ToolCall
from rorqual.data.chat import ChatFormat
from rorqual.data.chat.calls import MAX_HEAD, WHITE, CallForm, Item, JsonForm, ending, kind_of
from rorqual.data.chat.dsml import DsmlForm
from rorqual.data.chat.reply import LATE, Answer, Part, ReplyForm, Trim, half
from rorqual.data.chat.special_tokens import CHARS, END_THINK, NAME_OF, THINK, SpecialTokenText, raw

_JSON = json.JSONDecoder(parse_constant=lambda name: float("no JSON: " + name))
_SOMETHING = re.compile("[<{\ud800-\udfff]")
_D, _PLAIN = CHARS["｜DSML｜"], "[^\ud800-\udfff]"
_PARAMETER = f'(<{_D}parameter name="({_PLAIN}*?)" string="(true|false)">)({_PLAIN}*)</{_D}parameter>'
_INVOKE = re.compile(f'(<{_D}invoke name="({_PLAIN}*?)">)((?:\\s*{_PARAMETER})*)\\s*</{_D}invoke>')
_AROUND = re.compile(f"<(/?){_D}function_calls>")


@dataclass(frozen=True)
class Whole:
    """A reply, read."""

    parts: tuple[Part, ...]
    reasoning: str | None
    calls: tuple[Item, ...]

    def message(self) -> Message:
        calls = tuple(ToolCall(f"call_{n}", call.name, call.arguments) for n, call in enumerate(self.calls))
        content = "".join(part.text for part in self.parts if part.kind == "content")
        return Message("assistant", content, self.reasoning, calls)


def read_whole(chat: ChatFormat, ids: Iterable[int], thinking: Thinking, tools: Sequence[Tool] = ()) -> Whole:
    """What is in a reply to `chat.prompt(..., thinking, tools)`."""
    stops, reply, ended = frozenset(chat.stop_ids), list[int](), False
    for id_ in ids:
        if ended := id_ in stops:
            break
        reply.append(id_)
    calls = chat.call_form if tools else None
    text = marked(chat.reply_marks(calls), reply)
    return read(lex(text, calls, tools), chat.reply_form(thinking), calls, ended=ended)


def marked(marks: SpecialTokenText, ids: Iterable[int]) -> str:
    """The marked text of a reply: what stands between marks is decoded as a whole."""
    parts: list[str] = []
    run: list[int] = []
    for id_ in [*ids, -1]:
        if id_ < 0 or id_ in marks.by_id:
            parts.append(marks.found(marks.tokenizer.decode(run, specials=True)))
            parts.append(marks.by_id.get(id_, ""))
            run = []
        else:
            run.append(id_)
    return "".join(parts)


def lex(text: str, form: CallForm | None, tools: Sequence[Tool]) -> list[Item]:
    """Items of a whole marked text. `form` None: there are no calls."""
    names = {tool.name for tool in tools}
    items: list[Item] = []
    at = start = 0
    fresh = True
    while found := _SOMETHING.search(text, at):
        fresh = fresh and form is not None and not text[at : found.start()].strip(form.gap)
        at, char = found.start(), found.group()
        item: Item | None = None
        if isinstance(form, DsmlForm):
            item = _dsml(text, at, names)
        elif isinstance(form, JsonForm) and (char == form.begin or (form.bare and fresh and char == "{")):
            item = _match(text, at, form, names)
        if item is None and (kind := kind_of(char, form)) != "text":
            item = Item(kind, char)
        if item is None:
            fresh = False
            at += 1
            continue
        fresh = item.kind in ("think", "end", "call")
        items += [Item("text", text[start:at])] if start < at else []
        items.append(item)
        at = start = at + len(item.text)
    return [*items, *([Item("text", text[start:])] if start < len(text) else [])]


def _dsml(text: str, at: int, names: Collection[str]) -> Item | None:
    """The DSML tag around calls, or the DSML call, that begins at a place of a text."""
    if around := _AROUND.match(text, at):
        return Item("close" if around.group(1) else "open", around.group())
    call = _INVOKE.match(text, at)
    if call is None or call.group(2) not in names:
        return None
    parameters = re.findall(_PARAMETER, call.group(3))
    tags = [call.group(1), *(tag for tag, *_ in parameters)]
    if len({key for _, key, *_ in parameters}) < len(parameters) or max(map(len, tags)) > MAX_HEAD + 18:
        return None
    try:
        for _, _, string, value in parameters:
            if string == "false":
                _JSON.decode(value)
    except (ValueError, RecursionError):
        return None
    members = [
        f"{_quoted(key)}: {_quoted(value) if string == 'true' else value}" for _, key, string, value in parameters
    ]
    arguments = "{" + ", ".join(members) + "}"
    return None if _depth(json.loads(arguments)) > 100 else Item("call", call.group(), call.group(2), arguments)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _depth(value: object) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if below is None else 1 + max(map(_depth, below), default=0)


def _match(text: str, at: int, form: JsonForm, names: Collection[str]) -> Item | None:
    """The call that begins at a place of a text."""
    begin = at + (text[at] == form.begin)
    brace = text.find("{", begin, begin + MAX_HEAD + 1)
    if brace < 0 or form.named(text[begin:brace]) is None:
        return None
    try:
        end = _JSON.raw_decode(text, brace)[1]
    except (ValueError, RecursionError):
        return None
    read = form.read(text[begin:brace], text[brace:end], names)
    tail = ending(text[end:], form) if read else None
    return None if read is None or tail is None else Item("call", text[at : end + tail], *read)


def read(items: Sequence[Item], form: ReplyForm, calls: CallForm | None, *, ended: bool) -> Whole:
    """A whole reply from its items. `ended`: a stop token ended it, so that no half of a mark is waiting for its other half."""
    parts: list[Part] = []
    rest = list(items)
    opened = form.begins == "thought"
    if (skipped := _leading_think(rest, form)) and form.begins != "answer":
        parts.append(Part("mark", raw("".join(item.text for item in rest[:skipped]))))
        rest, opened = rest[skipped:], True
    ends = [place for place, item in enumerate(rest) if item.kind == "end"]
    if not opened and not (form.begins == "late" and ends):
        if form.halves and not ended and form.begins == "mark" and _is_half(rest):
            return Whole((Part("mark", rest[0].text),) if rest else (), None, ())
        return _answered(parts, rest, form.plain, calls, None)
    place = ends[0] if ends else len(rest)
    thought, answer = rest[:place], rest[place + 1 :]
    tail = 0 if _says_anything(answer, calls) else _calls_at_end(thought, calls)
    closed = bool(ends or tail)
    own, moved = thought[: len(thought) - tail], thought[len(thought) - tail :]
    text = raw("".join(item.text for item in own))
    dropped = half(text, END_THINK) if form.halves and not ended and not closed else 0
    kept = text[: len(text) - dropped].strip(form.trim)
    lead = len(text) - len(text.lstrip(form.trim)) if kept else 0
    parts += [Part("mark", text[:lead]), Part("reasoning", kept), Part("mark", text[lead + len(kept) :])]
    empty = form.empty == "none" or (form.empty == "marked" and not opened)
    reasoning = None if closed and not kept and empty else kept
    if ends and not tail:
        parts.append(Part("mark", NAME_OF[END_THINK]))
    # A thought that ends with calls and is followed by nothing: its `</think>` is one more mark behind them.
    late_end = [Item("end", END_THINK, LATE)] if ends and tail else []
    return _answered(parts, [*moved, *late_end, *answer], form.answer, calls, reasoning)


def _leading_think(items: Sequence[Item], form: ReplyForm) -> int:
    """How many items make up the `<think>` that a reply begins with."""
    if form.begins == "thought" and not form.indented:
        return 0
    place = int(form.indented and bool(items) and items[0].kind == "text" and not items[0].text.strip(WHITE))
    return place + 1 if items[place:] and items[place].kind == "think" else 0


def _is_half(items: Sequence[Item]) -> bool:
    return not items or (len(items) == 1 and half(items[0].text, THINK) == len(items[0].text) > 0)


def _says_anything(items: Sequence[Item], calls: CallForm | None) -> bool:
    return calls is None or any(item.kind != "text" or item.text.strip(calls.gap) for item in items)


def _calls_at_end(items: Sequence[Item], calls: CallForm | None) -> int:
    """How many items at the end of a thought are calls and what separates them."""
    if calls is None:
        return 0
    start = len(items)
    while start and (items[start - 1].kind in ("call", "open", "close") or _separates(items[start - 1], calls)):
        start -= 1
    first = next((place for place in range(start, len(items)) if items[place].kind == "call"), len(items))
    before = first - 1
    while before >= start and _separates(items[before], calls):
        before -= 1
    if first < len(items) and before >= start and items[before].kind == "open":
        first = before
    return len(items) - first


def _separates(item: Item, calls: CallForm) -> bool:
    return item.kind == "text" and not item.text.strip(calls.gap)


def _answered(
    parts: list[Part], items: Sequence[Item], trim: Trim, calls: CallForm | None, reasoning: str | None
) -> Whole:
    answer = Answer(trim, calls)
    for item in items:
        parts += answer.feed(item)
    parts += answer.finish()
    return Whole(tuple(part for part in parts if part.text), reasoning, tuple(answer.calls))
