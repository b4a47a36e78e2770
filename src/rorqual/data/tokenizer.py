"""Text to ids and back: byte-level BPE over the `tokenizers` library, ours or a checkpoint's.

What a user types can never become a special token: text is encoded by a copy of the tokenizer that knows none.
Special tokens enter a sequence only by id, from a chat format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rorqual.core.errors import DataError, nearest
from rorqual.core.records import write_atomic


class Special(StrEnum):
    """Special tokens, by DeepSeek's own names."""

    BOS = "<｜begin▁of▁sentence｜>"
    EOS = "<｜end▁of▁sentence｜>"
    PAD = "<｜▁pad▁｜>"
    USER = "<｜User｜>"
    ASSISTANT = "<｜Assistant｜>"
    THINK = "<think>"
    END_THINK = "</think>"


N_BYTES = 256
BASE_VOCAB = len(Special) + N_BYTES
"""Vocabulary without a merge: the special tokens are ids 0 to 6, then one token for each byte."""

REPLACEMENT = "\ufffd"
LONG = 4096
"""Characters from which on a text is encoded without the interpreter's lock, which takes a moment longer."""

_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(N_BYTES) if byte not in set(_SHOWN)]
_BYTE_OF: Mapping[str, int] = {chr(byte): byte for byte in _SHOWN} | {
    chr(N_BYTES + place): byte for place, byte in enumerate(_HIDDEN)
}
"""Byte-level BPE's letters (Radford et al. 2019): a byte that can be seen is itself, the others follow from 256 on."""


class Tokenizer:
    """A byte-level BPE tokenizer.

    `source` is the text of a `tokenizer.json`, kept as it came, so that `save` writes the very bytes that `load` read.
    Equality is that of the `fingerprint`, which does not see layout. `where` names the file in errors.
    """

    def __init__(self, source: str, *, where: str = "tokenizer") -> None:
        self.source, self.where = source, where
        data = _parse(source, where)
        self._marked = _build(data, where)
        self._special_text: dict[int, str] = {
            int(token["id"]): str(token["content"]) for token in data.get("added_tokens") or ()
        }
        self._special_id: dict[str, int] = {text: id_ for id_, text in self._special_text.items()}
        self._plain = _build(_without_specials(data, self._special_text), where)
        ids = self._marked.get_vocab(with_added_tokens=True).values()
        self._vocab_size = max(ids, default=-1) + 1
        self._ordinary = frozenset(self._plain.get_vocab().values())

    @classmethod
    def byte_level(cls, merges_from: Iterable[str] = (), vocab_size: int = BASE_VOCAB) -> Tokenizer:
        """Our own: seven special tokens, 256 bytes, and merges learned from `merges_from` up to `vocab_size`.

        Each digit is a token of its own, so that numbers have one spelling. The pre-tokenizer (single digits, then
        GPT-2's byte-level words) is the one that GGUF calls `smollm`. The text may hold fewer merges.
        """
        if vocab_size < BASE_VOCAB:
            raise DataError(
                f"vocab_size={vocab_size} has no room for {len(Special)} special tokens and {N_BYTES} bytes",
                where="tokenizer",
                remedy=f"Set it to {BASE_VOCAB} or more.",
            )
        built = tokenizers.Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        built.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=[tokenizers.AddedToken(name.value, special=True, normalized=False) for name in Special],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        built.train_from_iterator(merges_from, trainer)
        return cls(built.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`; what is missing, not UTF-8, not JSON or not byte-level BPE is a `DataError`."""
        try:
            return cls(path.read_bytes().decode("utf-8"), where=str(path))
        except OSError as error:
            raise DataError(
                f"cannot read the tokenizer: {error.strerror}", where=str(path), remedy="Name a tokenizer.json."
            ) from None
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at byte {error.start}", where=str(path), remedy="Restore the file.") from None

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, atomically; `load` of it is equal, and its `save` gives the same bytes."""
        write_atomic(path, self.source.encode())

    def renamed(self, names: Mapping[str, str]) -> Tokenizer:
        """A tokenizer in which special tokens carry other names, old to new, at the ids they had.

        DeepSeek-V3's file keeps placeholders where R1 has its marks:
        `renamed({"<｜place▁holder▁no▁798｜>": "<think>", "<｜place▁holder▁no▁799｜>": "</think>"})`.
        """
        data = _parse(self.source, self.where)
        known = {str(token["content"]): token for token in data["added_tokens"]}
        for old, new in names.items():
            if old not in known or (new in self._special_id and new != old):
                what = f"no special token {old!r}" if old not in known else f"{new!r} exists already"
                raise DataError(f"cannot rename: {what}", where=self.where, remedy=_hint(old, known))
            known[old]["content"] = new
            vocab = data["model"]["vocab"]
            if old in vocab:
                vocab[new] = vocab.pop(old)
        return Tokenizer(json.dumps(data, ensure_ascii=False, indent=1), where=self.where)

    # ---- text and ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: no special token ever comes out, whatever the text says."""
        return _encode(self._plain, text, self.where)

    def count(self, text: str) -> int:
        """How many tokens `encode` gives; it makes no list of them."""
        return len(_encoding(self._plain, text))

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of text that a template wrote: names of special tokens become their ids. Never for what a user typed."""
        return _encode(self._marked, text, self.where)

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Text of `ids`: bytes that are not UTF-8, and ids that mean nothing, become U+FFFD.

        Special tokens are left out, or shown by name with `specials=True`. Bytes on the two sides of one never join.
        """
        parts: list[str] = []
        run: list[int] = []
        for id_ in ids:
            if id_ in self._ordinary:
                run.append(id_)
                continue
            parts.append(self._plain.decode(run) if run else "")
            run = []
            text = self._special_text.get(id_)
            if text is None:
                parts.append(REPLACEMENT)
            elif specials:
                parts.append(text)
        parts.append(self._plain.decode(run) if run else "")
        return "".join(parts)

    def token(self, id_: int) -> str:
        """One token for a person to read: a special token's name, else its text."""
        return self.decode((id_,), specials=True)

    def token_bytes(self, id_: int) -> bytes:
        """The bytes that one token writes, which may be half a character; of a special token, those of its name.

        An entry of the vocabulary with a letter that stands for no byte writes itself, as `decode` has it.
        """
        if id_ not in self._ordinary:
            return self._special_text.get(id_, "").encode()
        text = self._plain.id_to_token(id_) or ""
        return bytes(map(_BYTE_OF.__getitem__, text)) if _BYTE_OF.keys() >= set(text) else text.encode()

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token that plain text can give, so that n bytes are n / longest tokens or more. A normalizer may shorten
        a text before it is cut, NFC to a third: then it is four times as much."""
        most = max((len(text) for text in self._plain.get_vocab()), default=1)  # a letter for a byte
        return most * (1 if self._plain.normalizer is None else 4)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one: rows that an embedding must have."""
        return self._vocab_size

    @property
    def special_names(self) -> frozenset[str]:
        return frozenset(self._special_id)

    def is_special(self, id_: int) -> bool:
        return id_ in self._special_text

    # ---- named ids

    def special(self, name: str) -> int:
        """Id of the special token called `name`; a `DataError` says what the tokenizer has instead."""
        try:
            return self._special_id[name]
        except KeyError:
            raise DataError(
                f"the tokenizer has no special token {str(name)!r}",
                where=self.where,
                remedy=_hint(name, self._special_id),
            ) from None

    @property
    def bos(self) -> int:
        return self.special(Special.BOS)

    @property
    def eos(self) -> int:
        return self.special(Special.EOS)

    @property
    def pad(self) -> int:
        return self.special(Special.PAD)

    @property
    def user(self) -> int:
        return self.special(Special.USER)

    @property
    def assistant(self) -> int:
        return self.special(Special.ASSISTANT)

    @property
    def think(self) -> int:
        return self.special(Special.THINK)

    @property
    def end_think(self) -> int:
        return self.special(Special.END_THINK)

    # ---- identity

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the tokenizer does, as hexadecimal digits; layout of the file does not count."""
        return hashlib.sha256(self._marked.to_str().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _hint(name: str, known: Iterable[str]) -> str:
    # DeepSeek's file has 800 placeholders: a list of them helps nobody.
    named = [text for text in known if "place▁holder" not in text]
    return f"{nearest(name, named)} `Tokenizer.renamed` gives a placeholder this name."


def _encode(built: tokenizers.Tokenizer, text: str, where: str) -> list[int]:
    try:
        text.encode()  # the library answers a lone surrogate with a TypeError that says nothing
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds half of a surrogate pair at character {error.start}, which no UTF-8 can carry",
            where=where,
            remedy="Remove it: it often comes from a cut emoji in JSON.",
        ) from None
    return list(_encoding(built, text).ids)


def _encoding(built: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    # `encode` keeps the interpreter's lock all the while, so that no other thread runs; a batch lets go of it.
    if len(text) < LONG:
        return built.encode(text, add_special_tokens=False)
    return built.encode_batch_fast([text], add_special_tokens=False)[0]


def _parse(source: str, where: str) -> dict[str, Any]:
    """The JSON of a byte-level BPE tokenizer, or a `DataError`."""
    remedy = "Name a tokenizer.json of the `tokenizers` library."
    try:
        data = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, remedy=remedy) from None
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise DataError("not a tokenizer: it has no key 'model.vocab'", where=where, remedy=remedy)
    if model.get("type") != "BPE" or "ByteLevel" not in _types(data.get("decoder")):
        raise DataError(
            f"not byte-level BPE: model {model.get('type')!r}, decoder {_types(data.get('decoder'))}",
            where=where,
            remedy="Only byte-level BPE is read: any text goes in, and the same text comes out.",
        )
    added = data.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(t, dict) and {"id", "content"} <= t.keys() for t in added):
        raise DataError("key 'added_tokens' is not a list of 'id' and 'content'", where=where, remedy=remedy)
    return data


def _types(part: Any) -> list[str]:
    """Types of a decoder and, where it is a sequence, of its parts."""
    if not isinstance(part, dict):
        return []
    inner: Sequence[Any] = part.get("decoders") or ()
    return [str(part.get("type")), *(kind for item in inner for kind in _types(item))]


def _without_specials(data: dict[str, Any], specials: Mapping[int, str]) -> dict[str, Any]:
    # Added tokens that are not marked `special` (DeepSeek's <｜User｜>) would be found in text even with the library's
    # `encode_special_tokens`; without them in the file, nothing can be found.
    vocab = {text: id_ for text, id_ in data["model"]["vocab"].items() if id_ not in specials}
    return data | {"added_tokens": [], "post_processor": None, "model": data["model"] | {"vocab": vocab}}


def _build(data: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    # `from_buffer` because it raises ValueError; `from_str` raises a bare Exception.
    whole = data | {"truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_buffer(json.dumps(whole, ensure_ascii=False).encode())
    except (ValueError, UnicodeEncodeError) as error:
        raise DataError(f"not a tokenizer: {error}", where=where, remedy="Restore the file.") from None
