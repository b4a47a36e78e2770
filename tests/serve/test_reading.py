"""A reply that is read while it is written is the reply: at every token, for every format, whatever the model wrote."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.records import Thinking
from rorqual.data.chat import ChatFormat, TemplateChat, chat_format
from rorqual.data.chat.stops import StopStringMatcher
from rorqual.data.chat.stream import ReplyDelta, ReplyReader
from rorqual.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.byte_level()
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking %}<think>{% endif %}"
CHATS: dict[str, ChatFormat] = {
    name: chat_format(TOKENIZER, name) for name in ("deepseek", "deepseek-r1", "deepseek-v3", "deepseek-v3.2", "none")
}
CHATS["template"] = TemplateChat(TOKENIZER, TEMPLATE)
MODES: tuple[Thinking, ...] = ("auto", "on", "off")
THINK, END, EOS, USER = (
    TOKENIZER.special_id(name) for name in ("<think>", "</think>", "<｜end▁of▁sentence｜>", "<｜User｜>")
)


def said(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def fed(reader: ReplyReader, ids: Sequence[int]) -> list[ReplyDelta]:
    return [*(reader.feed(id_) for id_ in ids), reader.finish()]


def joined(pieces: list[ReplyDelta]) -> tuple[str, str]:
    return "".join(p.reasoning for p in pieces), "".join(p.content for p in pieces)


FIXTURES: dict[str, list[int]] = {
    "a whole thought": [THINK, *said("Let me see.\n"), END, *said("\n\nIt is 7. "), EOS],
    "opened in the prompt": [*said("Let me see. "), END, *said("It is 7."), EOS],
    "no end of the thought": [THINK, *said("Let me see. And then")],
    "nothing but a thought": [THINK, *said("Hm."), END, EOS],
    "an empty block": [THINK, *said("\n\n"), END, *said("\n\nSeven."), EOS],
    "no thought": [END, *said("Seven."), EOS],
    "marks as text": [*said("<think>\nSo </thin </think>\n\n <thi it"), EOS],
    "half a mark at the end": said("<think>So it is</thi"),
    "a second end": [THINK, *said("a"), END, *said("b"), END, *said("c"), EOS],
    "a second thought": [THINK, *said("a"), END, *said(" b "), THINK, *said(" c"), END, *said(" "), EOS],
    "a repeated opening": [*said("<think>a</think>b"), EOS],
    "characters of four bytes": [THINK, *said("🐋 ∑"), END, *said(" 鲸🐋"), EOS],
    "half a character": [THINK, *said("🐋")[:2], END, *said("鲸")[:1]],
    "a foreign special": [*said("a"), USER, *said("b"), EOS],
    "white space": [*said("  \n "), THINK, *said(" \n"), END, *said(" \n\u2003 "), EOS],
    "wide white space": [THINK, *said("a\u2003"), END, *said("b \u2003"), EOS],
    "nothing": [EOS],
    "no token": [],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CHATS)
def test_each_fixture_cut_off_anywhere_reads_as_the_format_says(name: str, mode: Thinking) -> None:
    chat = CHATS[name]
    for ids in FIXTURES.values():
        for cut in range(len(ids) + 1):
            message = chat.parse(ids[:cut], mode)
            assert joined(fed(chat.reader(mode), ids[:cut])) == (message.reasoning or "", message.content)


ANY = st.one_of(st.sampled_from([THINK, END, EOS, USER, *said(" \n<>"), 0]), st.integers(0, TOKENIZER.vocab_size - 1))
REPLIES = st.lists(
    st.one_of(ANY.map(lambda id_: [id_]), st.sampled_from(["<think>", "</think>", "🐋", "\n\n", "a b"]).map(said))
)


@settings(max_examples=150, deadline=None)
@given(REPLIES, st.sampled_from(sorted(CHATS)), st.sampled_from(MODES), st.lists(st.integers(0, 20), max_size=4))
def test_any_stream_reads_as_the_format_says(
    parts: list[list[int]], name: str, mode: Thinking, cuts: list[int]
) -> None:
    ids = [id_ for part in parts for id_ in part]
    chat, message = CHATS[name], CHATS[name].parse(ids, mode)
    assert joined(fed(chat.reader(mode), ids)) == (message.reasoning or "", message.content)
    reader, pieces = chat.reader(mode), list[ReplyDelta]()
    for start, end in pairwise([0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]):
        pieces.append(reader.feed(*ids[start:end]))
    assert joined([*pieces, reader.finish()]) == (message.reasoning or "", message.content)
    assert reader.message() == message


def test_a_long_reply_takes_time_in_proportion_to_its_length() -> None:
    chat = CHATS["deepseek"]
    rng = random.Random(0)
    ids = [END, *(rng.choice(said("abc de")) for _ in range(20_000))]
    spent = []
    gc.collect()
    gc.disable()  # a collection takes its time in proportion to all that the other tests hold
    try:
        for length in (2_500, 20_000):
            times = []
            for _ in range(5):
                began = time.thread_time()
                pieces = fed(chat.reader("auto"), ids[:length])
                times.append(time.thread_time() - began)
            spent.append(min(times))
            assert joined(pieces)[1] == chat.parse(ids[:length]).content
    finally:
        gc.enable()
    # Eight times as many tokens; sixty-four times the time if each read all before it.
    assert spent[1] < 24 * spent[0]


def test_plain_text_has_no_parts_and_ends_at_the_end() -> None:
    ids = [*said("a "), THINK, *said("b 🐋"), EOS, *said("c")]
    assert joined(fed(CHATS["deepseek"].reader("auto", plain=True), ids)) == ("", "a <think>b 🐋")


# ---- stop strings


def cut_by(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    cutter = StopStringMatcher(stops)
    shown = [cutter.feed(piece) for piece in pieces]
    return "".join([*shown, cutter.feed("", last=True)]), cutter.hit


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(0, 2**12))
def test_a_stop_string_cuts_at_the_same_place_however_the_text_came(text: str, stops: list[str], cuts: int) -> None:
    """Against the definition: the shortest beginning of the text that ends with a stop string, without the longest of these."""
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected = text
    if ends:
        head = text[: ends[0]]
        expected = head[: -max(len(stop) for stop in stops if head.endswith(stop))]
    pieces = [""]
    for place, letter in enumerate(text):
        pieces = [*pieces, letter] if cuts >> place & 1 else [*pieces[:-1], pieces[-1] + letter]
    for way in ([text], list(text), pieces):
        assert cut_by(stops, way) == (expected, bool(ends))


def test_text_that_cannot_become_a_stop_is_not_held_back() -> None:
    cutter = StopStringMatcher(["\n\n", "END"])
    assert [cutter.feed(piece) for piece in ("a", "b\n", "c EN", "D", "more")] == ["a", "b", "\nc ", "", ""]
    assert cutter.hit
