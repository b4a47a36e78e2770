"""Tokenizers of other families: encoded as their own library does, read back, and their marks found by name."""

from __future__ import annotations

import ast
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from chat_families import GOLDEN, NOT_SPECIAL, SPECIALS, TEXT, tokenizer
from hypothesis import given, settings

import rorqual

EVERY = pytest.mark.parametrize("family", SPECIALS)


@EVERY
@settings(deadline=None, max_examples=25)
@given(text=TEXT)
def test_text_is_encoded_as_the_family_does_and_read_back(family: str, text: str) -> None:
    ours, theirs = tokenizer(family), tokenizers.Tokenizer.from_file(str(GOLDEN / f"tokenizer-{family}.json"))
    if not any(name in text for name in ours.special_names):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == (unicodedata.normalize("NFC", text) if family == "qwen" else text)


@EVERY
def test_every_added_token_is_a_mark_whether_or_not_the_file_calls_it_special(family: str) -> None:
    ours = tokenizer(family)
    for name in (*SPECIALS[family], *NOT_SPECIAL.get(family, ())):
        assert ours.is_special(ours.special(name)) and ours.encode_trusted(name) == [ours.special(name)]
        assert not any(ours.is_special(id_) for id_ in ours.encode(name))
        assert ours.decode(ours.encode(name)) == name


def test_nothing_is_put_before_a_text() -> None:
    """Llama's post-processor adds the beginning of text; here a chat format does, once."""
    ours = tokenizer("llama3")
    assert "TemplateProcessing" in ours.source
    for text in ("a", "a " * 4096):
        assert not any(ours.is_special(id_) for id_ in (*ours.encode(text), *ours.encode_trusted(text)))


ROLES = {"bos", "eos", "pad", "user", "assistant", "think", "end_think"}


def test_nobody_but_a_chat_format_knows_which_token_plays_which_role() -> None:
    """Another family's tokenizer has no `<｜end▁of▁sentence｜>`: whoever asks for it works with DeepSeek's alone."""
    source = Path(rorqual.__file__).parent
    found = [
        f"{file.relative_to(source)}:{node.lineno} {ast.unparse(node)}"
        for file in sorted(source.rglob("*.py"))
        if not file.is_relative_to(source / "data" / "chat")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ROLES and ast.unparse(node.value).endswith("tokenizer")
    ]
    assert found == []
