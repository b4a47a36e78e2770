"""Tokenizers through GGUF: the same ids and special tokens afterwards, and a name of the pre-tokenizer or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from gguf_models import ascii_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from rorqual.convert.gguf_tokenizer import PRE_TOKENIZERS, pre_tokenizer_name, tokenizer_from_keys, tokenizer_keys
from rorqual.core.errors import DataError
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer

TEXT = ["To be, or not to be: that is the 1st of 22 questions. it's its, don't\n\n  déjà vu 你好 12345 x=3.14;"] * 3
LEARNED = Tokenizer.byte_level(TEXT, 400)


def changed(change: Callable[[dict[str, Any]], None], tokenizer: Tokenizer = LEARNED) -> Tokenizer:
    data = json.loads(tokenizer.source)
    change(data)
    return Tokenizer(json.dumps(data))


def with_pre(name: str) -> Tokenizer:
    """Our tokenizer with another pre-tokenizer, written as checkpoints write it."""

    def change(data: dict[str, Any]) -> None:
        parts = list(PRE_TOKENIZERS[name])
        data["pre_tokenizer"] = parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}
        data["normalizer"] = {"type": "NFC"} if name == "qwen2" else None
        data["model"]["ignore_merges"] = name == "llama-bpe"

    return changed(change)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@given(
    text=st.text() | st.sampled_from([*TEXT, "  \n\t a1b22c333 — „Ünï“ 's 'LL I'LL", "١٢٣ ４５ 五六 \r\n\r\n  end  "])
)
@settings(max_examples=30, deadline=None)
def test_ids_are_the_same_after_a_trip(name: str, text: str) -> None:
    tokenizer = with_pre(name)
    assert pre_tokenizer_name(tokenizer) == name
    back = tokenizer_from_keys(tokenizer_keys(tokenizer, tokenizer.vocab_size), "test")
    assert back.encode(text) == tokenizer.encode(text)
    assert back.special_names == tokenizer.special_names
    assert back.encode_trusted("<think>" + text) == tokenizer.encode_trusted("<think>" + text)


def test_our_own_comes_back_equal_and_without_a_merge_too() -> None:
    for tokenizer in (LEARNED, Tokenizer.byte_level(), ascii_tokenizer(100)):
        keys = tokenizer_keys(tokenizer, tokenizer.vocab_size)
        assert tokenizer_from_keys(keys, "test") == tokenizer
        assert keys["tokenizer.ggml.pre"] == "smollm"
    assert tokenizer_keys(Tokenizer.byte_level(), BASE_VOCAB)["tokenizer.ggml.merges"] == []


def test_rows_without_a_token_are_unused_and_stay_so() -> None:
    keys = tokenizer_keys(LEARNED, LEARNED.vocab_size + 3)
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{LEARNED.vocab_size + 2}]"
    assert keys["tokenizer.ggml.token_type"][-3:] == [5, 5, 5] and set(keys["tokenizer.ggml.token_type"][:7]) == {3}
    assert tokenizer_from_keys(keys, "test") == LEARNED
    with pytest.raises(DataError, match="vocabulary has 100"):
        tokenizer_keys(LEARNED, 100)


def test_tokens_that_only_look_special_are_control_tokens_and_words_are_not() -> None:
    def change(data: dict[str, Any]) -> None:
        for token in data["added_tokens"]:
            token["special"] = False

    types = tokenizer_keys(changed(change), LEARNED.vocab_size)["tokenizer.ggml.token_type"]
    # <｜begin▁of▁sentence｜> ... <｜Assistant｜> would end a turn if a user's text could name them; <think> is a word.
    assert types[:7] == [3, 3, 3, 3, 3, 4, 4]


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "digits in runs": (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False), "Digits"),
    "a space in front": (lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "ByteLevel"),
    "none": (lambda d: d.update(pre_tokenizer=None), "pre-tokenizer none"),
    "lower case": (lambda d: d.update(normalizer={"type": "Lowercase"}), "normalizer Lowercase before"),
    "NFC where no model has it": (lambda d: d.update(normalizer={"type": "NFC"}), "normalizer NFC"),
    "whole words first": (lambda d: d["model"].update(ignore_merges=True), "ignore_merges"),
    "suffixes": (lambda d: d["model"].update(end_of_word_suffix="</w>"), "suffixes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_gguf_cannot_say_is_refused(name: str) -> None:
    change, match = REFUSED[name]
    with pytest.raises(DataError, match=match):
        pre_tokenizer_name(changed(change))


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("model", "llama", "sentencepiece, called 'llama'"),
        ("model", None, "the tokenizer is None"),
        ("pre", "viking", "pre-tokenizer 'viking'"),
        ("tokens", None, "'tokenizer.ggml.tokens' is not a list"),
        ("tokens", ["a"], "1 tokens, but 400 token types"),
        ("merges", ["a b c"], "is not a pair"),
        ("merges", ["zzz qqq"], "not a valid tokenizer"),
    ],
)
def test_keys_that_are_no_tokenizer_are_refused(key: str, value: object, match: str) -> None:
    keys = tokenizer_keys(LEARNED, 400) | {f"tokenizer.ggml.{key}": value}
    with pytest.raises(DataError, match=match):
        tokenizer_from_keys(keys, "a.gguf")


def test_two_tokens_of_one_text_are_refused() -> None:
    keys = tokenizer_keys(LEARNED, LEARNED.vocab_size)
    keys["tokenizer.ggml.tokens"][50] = keys["tokenizer.ggml.tokens"][51]
    with pytest.raises(DataError, match="twice"):
        tokenizer_from_keys(keys, "a.gguf")
