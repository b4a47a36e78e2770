"""Content of parts: text parts are the text that they join to, wherever a text goes; a picture is kept, and refused by who cannot read it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.core.content_parts import ContentPart, ImagePart, ImageURL, TextPart, content_json, read_content
from rorqual.core.errors import DataError
from rorqual.core.records import Message, is_blank_message
from rorqual.data.chat import DeepSeekChat, TemplateChat
from rorqual.data.chat.find import KINDS
from rorqual.data.chat.turns import TEMPLATES
from rorqual.data.distilled import TeacherSample, read_distilled, read_kept_messages, write_distilled
from rorqual.data.source.conversations import read_conversations
from rorqual.data.tokenizer import Tokenizer
from rorqual.generate.schema import RowParser, RowRequest, RowSampling

sys.path.append(str(Path(__file__).parent.parent / "data" / "chat"))
from chat_families import FAMILY, made

PICTURE = ImagePart(image_url=ImageURL(url="https://example.com/a.png", detail="low"))
OTHER = ImagePart(image_url=ImageURL(url="data:image/png;base64,AAAA"))
SHOWN = Message("user", [TextPart(text="What is "), PICTURE, TextPart(text="?")])
PIECES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4)
PARTS = st.one_of(
    st.builds(TextPart, text=st.text(st.characters(exclude_categories=["Cs"]))), st.sampled_from([PICTURE, OTHER])
)


def parts(*texts: str) -> tuple[TextPart, ...]:
    return tuple(TextPart(text=text) for text in texts)


# ---- the records


@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(PARTS).map(tuple)))
def test_what_is_written_as_json_is_read_back(content: Any) -> None:
    assert read_content(json.loads(json.dumps(content_json(content))), "x") == content


def test_the_json_is_openais() -> None:
    assert content_json(SHOWN.content) == [
        {"type": "text", "text": "What is "},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "text", "text": "?"},
    ]
    assert content_json([OTHER]) == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


POISONS: dict[str, tuple[Any, str]] = {
    "a number": (5, r"^x: a int, not text"),
    "a part that is a text": (["a"], r"^x\[0\]: not a content part"),
    "another type": (
        [{"type": "text", "text": "a"}, {"type": "poem"}],
        r"^x\[1\]: not a content part.*'text', 'image_url'",
    ),
    "no text": ([{"type": "text"}], r"^x\[0\]: not a content part: text"),
    "a text of a number": ([{"type": "text", "text": 5}], r"^x\[0\]: not a content part: text"),
    "no address": ([{"type": "image_url", "image_url": {}}], r"^x\[0\]: not a content part: image_url\.url"),
    "an empty address": ([{"type": "image_url", "image_url": {"url": ""}}], r"^x\[0\]: .*image_url\.url"),
    "a mistyped key": ([{"type": "text", "text": "a", "txt": "b"}], r"^x\[0\]: not a content part: txt"),
    "half a surrogate pair": ([{"type": "text", "text": "\ud83d"}], r"^x\[0\]: not a content part: text"),
}


@pytest.mark.parametrize("name", POISONS)
def test_what_is_no_content_is_named(name: str) -> None:
    poison, message = POISONS[name]
    with pytest.raises(DataError, match=message):
        read_content(poison, "x")


def test_a_list_of_parts_is_as_good_as_a_tuple() -> None:
    assert Message("user", list(parts("a", "b"))) == Message("user", parts("a", "b"))
    assert len({Message("user", list(parts("a"))), Message("user", parts("a"))}) == 1


def test_the_text_is_that_of_the_parts_in_order_and_a_picture_has_none() -> None:
    assert Message("user", parts("b", "a ", " c")).text == "ba  c"
    assert Message("user", "b").text == "b" and Message("user", []).text == ""
    with pytest.raises(DataError, match=r"content\[1\]: a part of type 'image_url'"):
        _ = SHOWN.text


def test_a_label_tells_pictures_apart() -> None:
    one, same, other = (Message("user", [part]).label for part in (PICTURE, PICTURE.model_copy(), OTHER))
    assert one == same != other and "image_url" in one
    assert SHOWN.label == f"What is {one}?"


def test_a_picture_says_something_and_blank_texts_do_not() -> None:
    assert is_blank_message(Message("user", parts(" ", "\n"))) and is_blank_message(Message("user", []))
    assert not is_blank_message(Message("user", [PICTURE])) and not is_blank_message(Message("user", parts("", "a")))


# ---- chat formats


def cut(message: Message, pieces: Sequence[str]) -> tuple[Message, Message]:
    """A message of text, and of parts that join to it."""
    return (
        Message(message.role, "".join(pieces), message.reasoning),
        Message(message.role, parts(*pieces), message.reasoning),
    )


@pytest.mark.parametrize("name", FAMILY)
@settings(deadline=None, max_examples=12)
@given(system=PIECES, asked=PIECES, said=PIECES, again=PIECES)
def test_text_parts_give_the_ids_of_their_text(
    name: str, system: list[str], asked: list[str], said: list[str], again: list[str]
) -> None:
    chat = made(name)
    pairs = [
        cut(Message("system", ""), system),
        cut(Message("user", ""), asked),
        cut(Message("assistant", ""), said),
        cut(Message("user", ""), again),
    ]
    texts, cuts = [text for text, _ in pairs], [parts for _, parts in pairs]
    assert chat.prompt(cuts) == chat.prompt(texts)
    assert chat.render(cuts[:3]) == chat.render(texts[:3])
    assert chat.training_renderings(cuts[:3]) == chat.training_renderings(texts[:3])


@pytest.mark.parametrize("name", [*FAMILY, "template"])
def test_a_format_of_text_refuses_a_picture_by_name_and_place(name: str) -> None:
    template = TemplateChat(Tokenizer.byte_level(), "{{ messages }}")
    chat = template if name == "template" else made(name)
    before = [Message("system", "Be brief.")]
    for write in (chat.prompt, chat.render) if name != "template" else (chat.prompt,):
        with pytest.raises(
            DataError, match=rf"message 2, content\[1\]: .*'image_url': chat format '{name}'.*images"
        ) as caught:
            write([*before, SHOWN])
        assert "Send parts of type text" in caught.value.remedy
    chat.prompt([*before, Message("user", parts("What is ", "?"))])


class Seeing(DeepSeekChat):
    """Its template writes a placeholder where a picture stands."""

    parts: ClassVar[tuple[type[ContentPart], ...]] = (TextPart, ImagePart)


def test_a_format_that_takes_pictures_gets_them_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (TEMPLATES / DeepSeekChat.template_file).read_text(encoding="utf-8")
    pieces = (
        "{%- for part in message.content -%}{{- part.text if part.type == 'text' else '<｜▁pad▁｜>' -}}{%- endfor -%}"
    )
    (tmp_path / "seeing.jinja").write_text(
        code.replace("{{- '<｜User｜>' + message.content -}}", "{{- '<｜User｜>' -}}" + pieces), encoding="utf-8"
    )
    monkeypatch.setattr(Seeing, "template_file", str(tmp_path / "seeing.jinja"), raising=False)
    chat = Seeing(Tokenizer.byte_level())
    blind = DeepSeekChat(Tokenizer.byte_level())
    ids = chat.prompt([SHOWN])
    at = ids.index(chat.pad)
    assert [*ids[:at], *ids[at + 1 :]] == blind.prompt([Message("user", "What is ?")])
    assert chat.tokenizer.decode(ids[at + 1 : at + 2]) == "?"
    assert Seeing not in KINDS


# ---- files

USER, SAID = Message("user", parts("2", "+2?")), Message("assistant", parts("It is ", "4"))
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": m.role, "content": content_json(m.content)} for m in (USER, SAID)]},
    {"messages": [{"role": m.role, "content": content_json(m.content)} for m in (SHOWN, SAID)]},
]


def lines(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


@pytest.mark.parametrize("kind", [lines, parquet])
def test_a_file_of_conversations_holds_parts(tmp_path: Path, kind: Any) -> None:
    assert read_conversations(kind(tmp_path, ROWS)).conversations == [(USER, SAID), (SHOWN, SAID)]


def test_a_fault_in_a_part_is_named_by_line_message_and_part(tmp_path: Path) -> None:
    broken = {"messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": [{"type": "text", "txt": "a"}]}]}
    with pytest.raises(DataError, match=r"data\.jsonl:2: message 2: content\[0\]: not a content part"):
        read_conversations(lines(tmp_path, [ROWS[0], broken]))


def distilled(*messages: Message) -> TeacherSample:
    return TeacherSample("k", "f", "1", "2+2?", messages, "right", "t", "{}", 0, 0)


def test_a_teachers_samples_hold_parts(tmp_path: Path) -> None:
    """In format 2; a file of texts stays what it was."""
    path, texts = tmp_path / "data.parquet", (Message("user", "a"), Message("assistant", "b", "c"))
    asked = [(SHOWN, SAID), texts, (Message("user", []), SAID)]
    write_distilled(path, [distilled(*messages) for messages in asked])
    assert [row.messages for row in read_distilled(path).rows] == asked
    assert list(read_kept_messages(path)[0].values()) == asked
    with pytest.raises(DataError, match=r"row 3: message 1: an empty prompt|an empty prompt"):
        read_conversations(path)
    assert pyarrow.parquet.read_schema(path).metadata[b"rorqual.format"] == b"2"
    write_distilled(path, [distilled(*texts)])
    assert pyarrow.parquet.read_schema(path).metadata[b"rorqual.format"] == b"1"
    assert "parts" not in str(pyarrow.parquet.read_schema(path).field("messages").type)


def test_a_row_to_be_answered_holds_parts() -> None:
    def of(content: Any) -> Any:
        return RowParser(RowSampling()).parse_row(1, {"messages": [{"role": "user", "content": content}]})

    found = of(content_json(SHOWN.content))
    assert isinstance(found, RowRequest) and found.request.messages == (SHOWN,)
    refused = of([{"type": "text", "text": "a"}, {"type": "poem"}])
    assert refused.key == "messages" and "message 1: content[1]: not a content part" in refused.what
    assert "NUL" in of([{"type": "text", "text": "a\0"}]).what
    assert "empty" in of([{"type": "text", "text": ""}]).what
