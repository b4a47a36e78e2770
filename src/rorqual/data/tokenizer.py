"""A byte-level BPE tokenizer, based on the `tokenizers` library. `Tokenizer.byte_level` trains a tokenizer, and
`Tokenizer.load` reads a tokenizer from a checkpoint.

User text is encoded with a copy of the tokenizer that has no special tokens, so user text never becomes a special
token. A chat format inserts special tokens by id.
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

from rorqual.core.errors import DataError, suggest_name
from rorqual.core.records import write_atomic


class SpecialToken(StrEnum):
    """The special tokens of a tokenizer that `Tokenizer.byte_level`
    trains. The special tokens of DeepSeek's tokenizer have these names."""

    BOS = "<｜begin▁of▁sentence｜>"
    EOS = "<｜end▁of▁sentence｜>"
    PAD = "<｜▁pad▁｜>"
    USER = "<｜User｜>"
    ASSISTANT = "<｜Assistant｜>"
    THINK = "<think>"
    END_THINK = "</think>"


N_BYTES = 256
BASE_VOCAB = len(SpecialToken) + N_BYTES
"""Size of a vocabulary without merges: the special tokens with ids 0 to 6, then one token per byte value."""

REPLACEMENT = "\ufffd"
LONG = 4096
"""Minimum text length, in characters, for which encoding releases the GIL. Releasing the GIL costs a little time at each
encoding."""

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_UNPRINTABLE = [byte for byte in range(N_BYTES) if byte not in set(_PRINTABLE)]
_BYTE_OF: Mapping[str, int] = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(N_BYTES + place): byte for place, byte in enumerate(_UNPRINTABLE)
}
"""Dictionary from each character of byte-level BPE to its byte (GPT-2, Radford et al. 2019).

A printable byte is represented by the character with the same code. Non-printable bytes are represented by consecutive characters
from U+0100.
"""


class Tokenizer:
    """A byte-level BPE tokenizer.

    `source` is the content of a `tokenizer.json`. The content is stored unchanged, so `save` writes exactly the bytes that
    `load` read. Tokenizers with equal fingerprints are equal, even if the JSON of their files is formatted differently.
    `where` names the file in errors.
    """

    def __init__(self, source: str, *, where: str = "tokenizer") -> None:
        self.source, self.where = source, where
        data = _parse_tokenizer_json(source, where)
        self._with_specials = _build(data, where)
        self._special_text: dict[int, str] = {
            int(token["id"]): str(token["content"]) for token in data.get("added_tokens") or ()
        }
        self._special_id: dict[str, int] = {text: id_ for id_, text in self._special_text.items()}
        self._plain = _build(_without_specials(data, self._special_text), where)
        ids = self._with_specials.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1
        """The largest token id of the tokenizer plus one. The embedding matrix needs at least this number of rows."""
        self._ordinary = frozenset(self._plain.get_vocab().values())

    @classmethod
    def byte_level(cls, merges_from: Iterable[str] = (), vocab_size: int = BASE_VOCAB) -> Tokenizer:
        """Train a tokenizer on the texts in `merges_from`. The vocabulary has seven special tokens, 256 bytes and the
        learned merges.

        Each digit is a separate token, so that every number has only one tokenization. The pre-tokenizer splits off
        digits, then splits words as GPT-2 does. GGUF calls this pre-tokenizer `smollm`. Short texts may yield
        fewer than `vocab_size` tokens.
        """
        if vocab_size < BASE_VOCAB:
            raise DataError(
                f"vocab_size={vocab_size} is too small for {len(SpecialToken)} special tokens and {N_BYTES} bytes",
                where="tokenizer",
                remedy=f"Set vocab_size to {BASE_VOCAB} or more.",
            )
        built = tokenizers.Tokenizer(models.BPE())
        built.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        built.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=[tokenizers.AddedToken(name.value, special=True, normalized=False) for name in SpecialToken],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        built.train_from_iterator(merges_from, trainer)
        return cls(built.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`. Raises DataError if the file is missing or is not a byte-level BPE tokenizer in UTF-8."""
        try:
            return cls(path.read_bytes().decode("utf-8"), where=str(path))
        except OSError as error:
            raise DataError(
                f"cannot read the tokenizer: {error.strerror}", where=str(path), remedy="Give a tokenizer.json."
            ) from None
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at byte {error.start}", where=str(path), remedy="Restore the file.") from None

    def save(self, path: Path) -> None:
        """Write `source` to `path` atomically."""
        write_atomic(path, self.source.encode())

    # ---- text and ids

    def encode(self, text: str) -> list[int]:
        """Encode plain text. The name of a special token in `text` is encoded as ordinary characters."""
        return _encode(self._plain, text, self.where)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens that `encode(text)` returns, without building the list."""
        return len(_encoding(self._plain, text))

    def encode_trusted(self, text: str) -> list[int]:
        """Encode the output of a chat template. Names of special tokens become the ids of these tokens, so never pass user
        text."""
        return _encode(self._with_specials, text, self.where)

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Decode `ids`. Invalid UTF-8 and unknown ids become U+FFFD.

        If `specials` is true, special tokens are written by name. If `specials` is false, special tokens are omitted. Bytes
        before and after a special token are decoded separately, so these bytes never combine into one character.
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
        """Return the text of one token for display. A special token is shown by name."""
        return self.decode((id_,), specials=True)

    def token_bytes(self, id_: int) -> bytes:
        """Return the bytes of one token, which may be an incomplete UTF-8 character. For a special token, return its name.

        If a vocabulary entry has a character outside the alphabet of byte-level BPE, return the UTF-8 encoding of the
        entry. `decode` treats such an entry in the same way.
        """
        if id_ not in self._ordinary:
            return self._special_text.get(id_, "").encode()
        text = self._plain.id_to_token(id_) or ""
        return bytes(map(_BYTE_OF.__getitem__, text)) if _BYTE_OF.keys() >= set(text) else text.encode()

    @cached_property
    def max_bytes_per_token(self) -> int:
        """Upper bound on the number of text bytes that one token encodes. A text of n bytes has at least n /
        `max_bytes_per_token` tokens.

        The upper bound is the length of the longest ordinary token in bytes. If the tokenizer has a normalizer, this length is
        multiplied by four, because normalization can shorten the text. NFC can shorten a text to a third of its bytes.
        """
        # In byte-level BPE, each byte is one character of the vocabulary entry.
        longest = max((len(text) for text in self._plain.get_vocab()), default=1)
        return longest * (1 if self._plain.normalizer is None else 4)

    @property
    def special_names(self) -> frozenset[str]:
        """The names of all special tokens."""
        return frozenset(self._special_id)

    def is_special(self, id_: int) -> bool:
        """Return whether `id_` is the id of a special token."""
        return id_ in self._special_text

    def special_id(self, name: str) -> int:
        """Return the id of the special token `name`.

        If the token does not exist, raises a DataError that suggests the closest name.
        """
        try:
            return self._special_id[name]
        except KeyError:
            raise DataError(
                f"the tokenizer has no special token {str(name)!r}",
                where=self.where,
                remedy=_nearest_special_token(name, self._special_id),
            ) from None

    # ---- identity

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the tokenizer's definition. The fingerprint does not depend on the formatting of the
        JSON file."""
        return hashlib.sha256(self._with_specials.to_str().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _nearest_special_token(name: str, known: Iterable[str]) -> str:
    # Leave out DeepSeek's 800 placeholders, which would make the list unreadable.
    return suggest_name(name, [text for text in known if "place▁holder" not in text])


def _encode(built: tokenizers.Tokenizer, text: str, where: str) -> list[int]:
    try:
        text.encode()  # for a lone surrogate, the library raises a TypeError that does not name the cause
    except UnicodeEncodeError as error:
        raise DataError(
            f"the lone surrogate at character {error.start} cannot be encoded as UTF-8",
            where=where,
            remedy="Remove this character. A lone surrogate is often half of an emoji that was split in JSON.",
        ) from None
    return list(_encoding(built, text).ids)


def _encoding(built: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    # `encode` holds the GIL and blocks other threads; `encode_batch_fast` releases it.
    if len(text) < LONG:
        return built.encode(text, add_special_tokens=False)
    return built.encode_batch_fast([text], add_special_tokens=False)[0]


def _parse_tokenizer_json(source: str, where: str) -> dict[str, Any]:
    """Parse the `tokenizer.json` of a byte-level BPE tokenizer. Raises DataError if `source` is not the JSON of a
    byte-level BPE tokenizer."""
    remedy = "Give a tokenizer.json of the `tokenizers` library."
    try:
        data = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, remedy=remedy) from None
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise DataError("not a tokenizer: key 'model.vocab' is missing", where=where, remedy=remedy)
    if model.get("type") != "BPE" or "ByteLevel" not in _decoder_types(data.get("decoder")):
        raise DataError(
            f"not byte-level BPE: model {model.get('type')!r}, decoder {_decoder_types(data.get('decoder'))}",
            where=where,
            remedy="Use a byte-level BPE tokenizer, which encodes and decodes any text without loss.",
        )
    added = data.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(t, dict) and {"id", "content"} <= t.keys() for t in added):
        raise DataError(
            "key 'added_tokens' is not a list of objects with 'id' and 'content'", where=where, remedy=remedy
        )
    return data


def _decoder_types(part: Any) -> list[str]:
    """Return the type of a tokenizer's decoder. For a sequence of decoders, also return the types of the elements."""
    if not isinstance(part, dict):
        return []
    elements: Sequence[Any] = part.get("decoders") or ()
    return [str(part.get("type")), *(kind for element in elements for kind in _decoder_types(element))]


def _without_specials(data: dict[str, Any], specials: Mapping[int, str]) -> dict[str, Any]:
    # The library's option `encode_special_tokens` does not suffice: it covers only added tokens with `special: true`.
    # Text would still encode to other added tokens, such as DeepSeek's <｜User｜>. Therefore all added tokens are removed.
    vocab = {text: id_ for text, id_ in data["model"]["vocab"].items() if id_ not in specials}
    return data | {"added_tokens": [], "post_processor": None, "model": data["model"] | {"vocab": vocab}}


def _build(data: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    # `from_buffer` raises ValueError for an invalid file; `from_str` would raise a bare Exception.
    definition = data | {"truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_buffer(json.dumps(definition, ensure_ascii=False).encode())
    except (ValueError, UnicodeEncodeError) as error:
        raise DataError(f"not a valid tokenizer: {error}", where=where, remedy="Restore the file.") from None
