"""Conversion between a `tokenizer.json` and the tokenizer keys of a GGUF file.

GGUF stores the tokens, their types, the merges and the *name* of the pre-tokenizer, which llama.cpp implements in code. A
tokenizer can therefore be exported only if its pre-tokenizer equals a definition in `PRE_TOKENIZERS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rorqual.core.errors import DataError
from rorqual.data.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""GGUF's token types. Plain text never encodes to a control token. The text of a user-defined token in plain text encodes to
the user-defined token."""

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_SYMBOLS = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
_DEEPSEEK = _SYMBOLS + "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"


def _split_step(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _byte_level_step(*, words: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


PRE_TOKENIZERS: Mapping[str, tuple[dict[str, Any], ...]] = MappingProxyType(
    {
        "smollm": ({"type": "Digits", "individual_digits": True}, _byte_level_step(words=True)),
        "gpt-2": (_byte_level_step(words=True),),
        "qwen2": (_split_step(_CONTRACTIONS + _WORDS % r"\p{N}"), _byte_level_step(words=False)),
        "llama-bpe": (_split_step(_CONTRACTIONS + _WORDS % r"\p{N}{1,3}"), _byte_level_step(words=False)),
        "deepseek-v3": (
            _split_step(r"\p{N}{1,3}"),
            _split_step("[一-龥\u3040-ゟ゠-ヿ]+"),
            _split_step(_DEEPSEEK),
            _byte_level_step(words=False),
        ),
    }
)
"""The supported pre-tokenizers: GGUF's name of each pre-tokenizer, mapped to the pre-tokenizer's definition in
`tokenizer.json`."""

_ALIASES: Mapping[str, str] = MappingProxyType(
    {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "gpt2": "gpt-2", "deepseek-r1-qwen": "qwen2"}
)
_NFC = ("qwen2",)  # Qwen2's tokenizer.json normalises text to NFC; llama.cpp does not (docs/how-to/gguf.md)
_IGNORE_MERGES = ("llama-bpe",)  # llama.cpp encodes a word in the vocabulary as one token, without applying merges


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """Return GGUF's name for the pre-tokenizer of a tokenizer. Raises DataError if `PRE_TOKENIZERS` has no name for the
    pre-tokenizer."""
    data = json.loads(tokenizer.source)
    part = data.get("pre_tokenizer") or {}
    parts = _flatten(part, "pretokenizers")
    name = next((name for name, known in PRE_TOKENIZERS.items() if list(map(_without_defaults, known)) == parts), None)
    normalizers = [str(item.get("type")) for item in _flatten(data.get("normalizer") or {}, "normalizers")]
    affixes = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    problems = {
        f"pre-tokenizer {' + '.join(str(p.get('type')) for p in parts) or 'none'}": name is None,
        f"normalizer {' + '.join(normalizers)} before pre-tokenizer '{name}'": (
            normalizers and not (name in _NFC and normalizers == ["NFC"])
        ),
        f"pre-tokenizer '{name}' with ignore_merges": (
            data["model"].get("ignore_merges") and name not in _IGNORE_MERGES
        ),
        "BPE with prefixes, suffixes or byte_fallback": any(data["model"].get(key) for key in affixes),
    }
    for problem, holds in problems.items():
        if holds:
            raise DataError(
                f"GGUF has no name for this tokenizer's {problem}",
                where=tokenizer.where,
                remedy=f"Supported: {', '.join(PRE_TOKENIZERS)}. Export the run as a Hugging Face folder.",
            )
    return str(name)


def _flatten(part: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    if part.get("type") == "Sequence":
        return [item for element in part[key] for item in _flatten(element, key)]
    return [_without_defaults(part)] if part else []


def _without_defaults(part: Mapping[str, Any]) -> dict[str, Any]:
    # Leave out offset settings and default values, because they do not change token ids.
    defaults = {"behavior": "Isolated", "invert": False, "use_regex": True, "trim_offsets": True}
    return {key: value for key, value in part.items() if key != "trim_offsets" and value != defaults.get(key, part)}


def tokenizer_keys(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the header keys `tokenizer.ggml.*` of a tokenizer.

    Embedding rows without a token become unused tokens such as `[PAD7]`. Raises DataError if the tokenizer has more tokens than
    `vocab_size`.
    """
    name = pre_tokenizer_name(tokenizer)
    data = json.loads(tokenizer.source)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has {vocab_size}",
            where=tokenizer.where,
            remedy="Use the tokenizer that the model was trained with.",
        )
    tokens, types = [f"[PAD{id_}]" for id_ in range(vocab_size)], [UNUSED] * vocab_size
    for text, id_ in data["model"]["vocab"].items():
        tokens[id_], types[id_] = text, NORMAL
    for token in data["added_tokens"]:
        text = token["content"]
        tokens[token["id"]] = text
        types[token["id"]] = CONTROL if token.get("special") or _looks_special(text) else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


def _looks_special(text: str) -> bool:
    # DeepSeek's tokenizer.json does not mark <｜User｜> as special. User text that encodes to <｜User｜> would end the turn.
    return text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))


def tokenizer_from_keys(keys: Mapping[str, Any], where: str) -> Tokenizer:
    """Build a tokenizer from the keys of a GGUF header.

    The tokenizer encodes text to the same ids as llama.cpp, except that Qwen2's tokenizer normalises text to NFC.
    Raises DataError if the tokenizer is unsupported or damaged.
    """

    def wrong_tokenizer(what: str, remedy: str = "Download the file again.") -> DataError:
        return DataError(what, where=where, remedy=remedy)

    model, pre = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre")
    if model != "gpt2":
        kind = "sentencepiece, called 'llama'" if model == "llama" else repr(model)
        raise wrong_tokenizer(
            f"the tokenizer is {kind}, not byte-level BPE ('gpt2')", "Use a model with byte-level BPE."
        )
    pre = _ALIASES.get(str(pre), str(pre))
    if pre not in PRE_TOKENIZERS:
        raise wrong_tokenizer(f"the pre-tokenizer {pre!r} is not supported", f"Supported: {', '.join(PRE_TOKENIZERS)}.")
    tokens, merges = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.merges")
    if not isinstance(tokens, list) or not isinstance(merges, list) or not all(isinstance(t, str) for t in tokens):
        raise wrong_tokenizer(
            "'tokenizer.ggml.tokens' is not a list of strings, or 'tokenizer.ggml.merges' is not a list"
        )
    types = keys.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise wrong_tokenizer(
            f"{len(tokens)} tokens, but {len(types) if isinstance(types, list) else 'no'} token types"
        )
    pairs = [str(merge).split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise wrong_tokenizer("an item of 'tokenizer.ggml.merges' is not a pair")
    # Control tokens must also be in the vocabulary, because `tokenizers` gives new ids to added tokens outside the vocabulary.
    used = (NORMAL, CONTROL, USER_DEFINED)
    vocab = {text: id_ for id_, (text, kind) in enumerate(zip(tokens, types)) if kind in used}
    if len(vocab) < sum(kind in used for kind in types):
        twice = next(text for id_, (text, kind) in enumerate(zip(tokens, types)) if kind in used and vocab[text] != id_)
        raise wrong_tokenizer(f"token {twice!r} occurs twice in 'tokenizer.ggml.tokens'")
    added = [
        {"id": id_, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": kind == CONTROL}
        for id_, (text, kind) in enumerate(zip(tokens, types))
        if kind in (CONTROL, USER_DEFINED)
    ]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in _NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(PRE_TOKENIZERS[pre])},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _IGNORE_MERGES,
            "vocab": vocab,
            "merges": pairs,
        },
    }
    return Tokenizer(json.dumps(data, ensure_ascii=False, indent=1), where=where)
