"""Byte-level BPE on the `tokenizers` library: train a new tokenizer, or load a checkpoint's.

Text that a user types can never become a special token: it is encoded by a copy of the tokenizer without special tokens.
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
    """The special tokens of our tokenizer, with DeepSeek's names."""

    BOS = "<｜begin▁of▁sentence｜>"
    EOS = "<｜end▁of▁sentence｜>"
    PAD = "<｜▁pad▁｜>"
    USER = "<｜User｜>"
    ASSISTANT = "<｜Assistant｜>"
    THINK = "<think>"
    END_THINK = "</think>"


N_BYTES = 256
BASE_VOCAB = len(Special) + N_BYTES
"""Vocabulary size without merges: special tokens have ids 0 to 6, followed by one token for each byte."""

REPLACEMENT = "\ufffd"
LONG = 4096
"""Texts of this many characters or more are encoded without holding the GIL, which has a small fixed cost."""

_SHOWN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(N_BYTES) if byte not in set(_SHOWN)]
_BYTE_OF: Mapping[str, int] = {chr(byte): byte for byte in _SHOWN} | {
    chr(N_BYTES + place): byte for place, byte in enumerate(_HIDDEN)
}
"""The letters of byte-level BPE (Radford et al. 2019): a printable byte is itself, the others are numbered from 256."""


class Tokenizer:
    """A byte-level BPE tokenizer.

    `source` is the text of a `tokenizer.json`, kept unchanged, so that `save` writes exactly the bytes that `load` read.
    Tokenizers are equal if their fingerprints are; the layout of the file does not matter. `where` names the file in errors.
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
        """Train a tokenizer: seven special tokens, 256 bytes, and merges learned from `merges_from` up to `vocab_size`.

        Each digit is a token of its own, so that a number has only one tokenization. The pre-tokenizer (single digits, then
        GPT-2's byte-level words) is the one that GGUF calls `smollm`. A short text may give fewer merges.
        """
        if vocab_size < BASE_VOCAB:
            raise DataError(
                f"vocab_size={vocab_size} is too small for {len(Special)} special tokens and {N_BYTES} bytes",
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
        """Read a `tokenizer.json`. Raises DataError if it is missing or not a byte-level BPE tokenizer in UTF-8 JSON."""
        try:
            return cls(path.read_bytes().decode("utf-8"), where=str(path))
        except OSError as error:
            raise DataError(
                f"cannot read the tokenizer: {error.strerror}", where=str(path), remedy="Give a tokenizer.json."
            ) from None
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at byte {error.start}", where=str(path), remedy="Restore the file.") from None

    def save(self, path: Path) -> None:
        """Write `tokenizer.json` atomically. Loading it gives an equal tokenizer and the same bytes."""
        write_atomic(path, self.source.encode())

    def renamed(self, names: Mapping[str, str]) -> Tokenizer:
        """Return a tokenizer with special tokens renamed, old name to new, at the same ids.

        DeepSeek-V3's file has placeholders where R1 has its thinking tokens:
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
        """Encode plain text. The result never contains a special token, whatever the text says."""
        return _encode(self._plain, text, self.where)

    def count(self, text: str) -> int:
        """Return the number of tokens of `encode(text)`, without making the list."""
        return len(_encoding(self._plain, text))

    def encode_trusted(self, text: str) -> list[int]:
        """Encode the output of a template: names of special tokens become their ids. Never use it on text from a user."""
        return _encode(self._marked, text, self.where)

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Decode `ids`. Invalid UTF-8 and unknown ids become U+FFFD.

        Special tokens are left out, or shown by name if `specials` is true. Bytes on either side of one are never joined.
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
        """Return one token for display: a special token's name, or the text."""
        return self.decode((id_,), specials=True)

    def token_bytes(self, id_: int) -> bytes:
        """Return the bytes that one token writes, possibly a part of a character. A special token gives its name.

        A vocabulary entry with a character outside byte-level BPE's alphabet gives its own UTF-8 text, as `decode` does.
        """
        if id_ not in self._ordinary:
            return self._special_text.get(id_, "").encode()
        text = self._plain.id_to_token(id_) or ""
        return bytes(map(_BYTE_OF.__getitem__, text)) if _BYTE_OF.keys() >= set(text) else text.encode()

    @cached_property
    def longest(self) -> int:
        """Bytes in the longest ordinary token: n bytes are at least n / longest tokens.

        A normalizer may shorten text before it is split, NFC to a third. The value is then multiplied by four.
        """
        most = max((len(text) for text in self._plain.get_vocab()), default=1)  # each byte is one character
        return most * (1 if self._plain.normalizer is None else 4)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, which is the number of rows an embedding needs."""
        return self._vocab_size

    @property
    def special_names(self) -> frozenset[str]:
        return frozenset(self._special_id)

    def is_special(self, id_: int) -> bool:
        return id_ in self._special_text

    # ---- named ids

    def special(self, name: str) -> int:
        """Return the id of the special token `name`. Raises DataError with the closest name if it does not exist."""
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
        """SHA-256 of the tokenizer's behaviour in hexadecimal. The layout of its file does not count."""
        return hashlib.sha256(self._marked.to_str().encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _hint(name: str, known: Iterable[str]) -> str:
    # Leave out DeepSeek's 800 placeholders: a list of them would be useless.
    named = [text for text in known if "place▁holder" not in text]
    return f"{nearest(name, named)} `Tokenizer.renamed` can give a placeholder this name."


def _encode(built: tokenizers.Tokenizer, text: str, where: str) -> list[int]:
    try:
        text.encode()  # the library's TypeError for a lone surrogate is not helpful
    except UnicodeEncodeError as error:
        raise DataError(
            f"half of a surrogate pair at character {error.start} cannot be encoded as UTF-8",
            where=where,
            remedy="Remove it. It often comes from an emoji cut in JSON.",
        ) from None
    return list(_encoding(built, text).ids)


def _encoding(built: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    # `encode` holds the GIL throughout and blocks other threads; a batch releases it.
    if len(text) < LONG:
        return built.encode(text, add_special_tokens=False)
    return built.encode_batch_fast([text], add_special_tokens=False)[0]


def _parse(source: str, where: str) -> dict[str, Any]:
    """Parse the JSON of a byte-level BPE tokenizer. Raises DataError if it is not one."""
    remedy = "Give a tokenizer.json of the `tokenizers` library."
    try:
        data = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, remedy=remedy) from None
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise DataError("not a tokenizer: key 'model.vocab' is missing", where=where, remedy=remedy)
    if model.get("type") != "BPE" or "ByteLevel" not in _types(data.get("decoder")):
        raise DataError(
            f"not byte-level BPE: model {model.get('type')!r}, decoder {_types(data.get('decoder'))}",
            where=where,
            remedy="Use a byte-level BPE tokenizer: only it encodes and decodes any text without loss.",
        )
    added = data.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(t, dict) and {"id", "content"} <= t.keys() for t in added):
        raise DataError("key 'added_tokens' is not a list of 'id' and 'content'", where=where, remedy=remedy)
    return data


def _types(part: Any) -> list[str]:
    """Return the type of a decoder and, if it is a sequence, the types of its parts."""
    if not isinstance(part, dict):
        return []
    inner: Sequence[Any] = part.get("decoders") or ()
    return [str(part.get("type")), *(kind for item in inner for kind in _types(item))]


def _without_specials(data: dict[str, Any], specials: Mapping[int, str]) -> dict[str, Any]:
    # The library's `encode_special_tokens` still finds added tokens not marked `special` (DeepSeek's <｜User｜>) in text.
    # Removing them from the file prevents that.
    vocab = {text: id_ for text, id_ in data["model"]["vocab"].items() if id_ not in specials}
    return data | {"added_tokens": [], "post_processor": None, "model": data["model"] | {"vocab": vocab}}


def _build(data: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    # `from_buffer` because it raises ValueError; `from_str` raises a bare Exception.
    whole = data | {"truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_buffer(json.dumps(whole, ensure_ascii=False).encode())
    except (ValueError, UnicodeEncodeError) as error:
        raise DataError(f"not a valid tokenizer: {error}", where=where, remedy="Restore the file.") from None
