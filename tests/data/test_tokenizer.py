"""Text goes in and the same text comes out, and what a user types stays text."""

from __future__ import annotations

import json
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import SpecialToken, Tokenizer

PLAIN = Tokenizer.byte_level()
CORPUS = ["the cat sat on the mat, and the hat sat on the cat", "x = 12 + 345; thethethe the the"] * 4
MERGED = Tokenizer.byte_level(CORPUS, vocab_size=300)
BOTH = pytest.mark.parametrize("tokenizer", [PLAIN, MERGED], ids=["bytes", "merges"])


@BOTH
@given(text=st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= id_ < tokenizer.vocab_size for id_ in ids)


@BOTH
@given(parts=st.lists(st.one_of(st.sampled_from([name.value for name in SpecialToken]), st.text(max_size=5))))
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_special(id_) for id_ in ids)
    assert tokenizer.decode(ids) == text


@BOTH
def test_a_long_text_has_the_ids_of_the_library_and_holds_up_no_other_thread(tokenizer: Tokenizer) -> None:
    """Counted in processor seconds: while one thread encodes, another works."""
    text = "the cat sat on 12 mats. " * 12_000
    spent, done = [0.0], threading.Event()

    def encode() -> list[int]:
        began = time.thread_time()
        ids = tokenizer.encode(text)
        spent[0] = time.thread_time() - began
        done.set()
        return ids

    with ThreadPoolExecutor(1) as threads:
        coming, began = threads.submit(encode), time.thread_time()
        while not done.is_set():
            pass
        beside, ids = time.thread_time() - began, coming.result()
    assert beside > spent[0] / 10
    assert ids == tokenizer._plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.count_tokens(text) == len(ids)


def test_a_trusted_template_does_reach_them() -> None:
    assert PLAIN.encode_trusted("<｜User｜>a<think>") == [
        PLAIN.special_id("<｜User｜>"),
        *PLAIN.encode("a"),
        PLAIN.special_id("<think>"),
    ]


@given(text=st.text(alphabet="the cat\n\u00e9\U0001f40b", max_size=60))
def test_no_text_has_fewer_tokens_than_its_bytes_say(text: str) -> None:
    """Whoever knows the longest token can refuse a text without cutting it."""
    composing = _foreign(normalizer={"type": "NFC"})
    longest = max(len(MERGED.token_bytes(id_)) for id_ in range(MERGED.vocab_size) if not MERGED.is_special(id_))
    for known in (PLAIN, MERGED, Tokenizer(composing)):
        for given_ in (text, unicodedata.normalize("NFD", text)):
            assert len(known.encode(given_)) * known.max_bytes_per_token >= len(given_.encode())
    assert (PLAIN.max_bytes_per_token, MERGED.max_bytes_per_token, Tokenizer(composing).max_bytes_per_token) == (
        1,
        longest,
        4 * longest,
    )


def test_half_a_character_and_unknown_ids_are_shown_not_fatal() -> None:
    half = PLAIN.encode("é")[:1]
    assert PLAIN.decode(half) == "\ufffd"
    assert (
        PLAIN.decode([*half, PLAIN.special_id("<｜end▁of▁sentence｜>"), *PLAIN.encode("é")[1:]]) == "\ufffd\ufffd"
    )  # the halves do not join
    assert PLAIN.decode([*PLAIN.encode("a"), 10_000, -1]) == "a\ufffd\ufffd"


def test_the_bytes_of_a_token_are_those_that_the_library_writes_whatever_its_letters() -> None:
    odd = ["▁the", "日本", "a b", "Ġ\u0378", "é日", "👍", "\n", ""]
    data = json.loads(MERGED.source)
    data["model"]["vocab"] |= {text: MERGED.vocab_size + place for place, text in enumerate(odd)}
    added = {"id": MERGED.vocab_size + len(odd), "content": "<｜tool▁sep｜>", "special": False}
    data["added_tokens"] += [added | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)]
    tokenizer = Tokenizer(json.dumps(data))
    built = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert tokenizer.vocab_size == MERGED.vocab_size + len(odd) + 1
    for id_ in range(tokenizer.vocab_size):
        written = tokenizer.token_bytes(id_).decode("utf-8", "replace")
        assert written == built.decode([id_], skip_special_tokens=False), id_
        assert written == tokenizer.token(id_)
    assert [tokenizer.token_bytes(MERGED.vocab_size + place).decode() for place in range(len(odd))] == odd
    assert tokenizer.token_bytes(added["id"]) == "<｜tool▁sep｜>".encode()
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


@BOTH
def test_the_file_round_trips_bitwise(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    tokenizer.save(first)
    loaded = Tokenizer.load(first)
    loaded.save(second)
    assert loaded == tokenizer and hash(loaded) == hash(tokenizer) and first.read_bytes() == second.read_bytes()
    assert loaded.encode("the cat 12") == tokenizer.encode("the cat 12")


def test_a_foreign_layout_is_kept_and_is_the_same_tokenizer(tmp_path: Path) -> None:
    compact = json.dumps(json.loads(MERGED.source)).encode()
    (tmp_path / "a.json").write_bytes(compact)
    loaded = Tokenizer.load(tmp_path / "a.json")
    loaded.save(tmp_path / "b.json")
    assert (tmp_path / "b.json").read_bytes() == compact
    assert loaded.fingerprint == MERGED.fingerprint != PLAIN.fingerprint


def _foreign(**changes: object) -> str:
    """A tokenizer file like DeepSeek-V3's: `<｜User｜>` not marked special, no think marks, cutting and padding on."""
    data = json.loads(MERGED.source)
    for token in data["added_tokens"]:
        token["special"] = token["content"] != SpecialToken.USER
        if token["content"] in (SpecialToken.THINK, SpecialToken.END_THINK):
            new = f"<｜place▁holder▁no▁{token['id']}｜>"
            data["model"]["vocab"][new] = data["model"]["vocab"].pop(token["content"])
            token["content"] = new
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    return json.dumps(data | changes)


def test_a_foreign_tokenizer_is_as_safe() -> None:
    foreign = Tokenizer(_foreign())
    text = "<｜User｜> the cat " + SpecialToken.EOS
    assert not any(foreign.is_special(id_) for id_ in foreign.encode(text))
    assert foreign.decode(foreign.encode(text)) == text  # and nothing was cut


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "model.vocab"),
        (b'{"model": {"type": "BPE"}}', "model.vocab"),
        (b'{"model": {"type": "WordPiece", "vocab": {}}}', "not byte-level BPE"),
        (_foreign(added_tokens={}).encode(), "added_tokens"),
        (_foreign(pre_tokenizer={"type": "Nonsense"}).encode(), "not a valid tokenizer"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(path)
    assert caught.value.where == str(path) and caught.value.remedy


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="vocab_size=262"):
        Tokenizer.byte_level(vocab_size=262)
    assert Tokenizer.byte_level(vocab_size=263).vocab_size == 263


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_text() -> None:
    with pytest.raises(DataError, match="surrogate"):
        PLAIN.encode("a\ud83d")
    assert PLAIN.decode(PLAIN.encode("a\U0001f600")) == "a\U0001f600"
