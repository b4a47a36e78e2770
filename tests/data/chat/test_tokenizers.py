"""Tokenizers of other families: encoded as their own library does, read back, and their marks found by name."""

from __future__ import annotations

import unicodedata

import pytest
import tokenizers
from chat_families import GOLDEN, NOT_SPECIAL, SPECIALS, TEXT, tokenizer
from hypothesis import given, settings

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
        assert ours.is_special(ours.special_id(name)) and ours.encode_trusted(name) == [ours.special_id(name)]
        assert not any(ours.is_special(id_) for id_ in ours.encode(name))
        assert ours.decode(ours.encode(name)) == name


def test_nothing_is_put_before_a_text() -> None:
    """Llama's post-processor adds the beginning of text; here a chat format does, once."""
    ours = tokenizer("llama3")
    assert "TemplateProcessing" in ours.source
    for text in ("a", "a " * 4096):
        assert not any(ours.is_special(id_) for id_ in (*ours.encode(text), *ours.encode_trusted(text)))
