"""Special tokens of chat formats, represented as single characters while text is rendered or parsed.

In a *marked text*, each special token (`<think>`, `<tool_call>`, ...) is one lone surrogate character. User text and decoded
text cannot contain lone surrogates, so text that spells a special token is never confused with the token. Ordinary string
functions work on marked text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence

from rorqual.data.tokenizer import REPLACEMENT, Tokenizer

NAMES = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|python_tag|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "｜DSML｜",
)
"""Names of the special tokens that marked text represents. `IncrementalDecoder` buffers text that may be the beginning of a
name."""
CHARS: Mapping[str, str] = {name: chr(0xD800 + place) for place, name in enumerate(NAMES)}
NAME_OF: Mapping[str, str] = {char: name for name, char in CHARS.items()}
THINK, END_THINK = CHARS["<think>"], CHARS["</think>"]
_MARK = re.compile(f"[{CHARS[NAMES[0]]}-{CHARS[NAMES[-1]]}]")


def restore_token_names(text: str) -> str:
    """Replace each special-token character of a marked text by the name of the token, as `decode` writes it."""
    return _MARK.sub(lambda match: NAME_OF[match.group()], text)


class ReplySpecialTokens:
    """The special tokens that the parser recognises in the replies of one tokenizer.

    If the tokenizer has a token in `names`, the parser recognises the token, but not text that spells the token's name. If the
    tokenizer lacks the token, the parser recognises text that spells the name. A name in `spoken` is recognised as a token and
    as text.
    """

    def __init__(self, tokenizer: Tokenizer, names: Iterable[str], *, spoken: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        known, as_text = tokenizer.special_names, frozenset(spoken)
        names = [*dict.fromkeys([*names, *as_text])]
        self.by_id: Mapping[int, str] = {
            tokenizer.special_id(name): CHARS[name] for name in names if name in known and name not in as_text
        }
        self.by_text: Sequence[str] = [name for name in names if name not in known or name in as_text]
        self._texts = re.compile("|".join(map(re.escape, self.by_text))) if self.by_text else None

    def mark_special_tokens(self, text: str) -> str:
        """Return `text` with the names in `by_text` replaced by their marked-text characters."""
        return self._texts.sub(lambda match: CHARS[match.group()], text) if self._texts else text

    def unfinished_name_length(self, text: str) -> int:
        """Return the length of the incomplete special-token name at the end of `text`, or 0.

        An incomplete name begins with `<` or `｜` and does not repeat its first character. Therefore
        an incomplete name can only begin at the last `<` or the last `｜`.
        """
        tails = [text[at:] for at in (text.rfind("<"), text.rfind("｜")) if at >= 0]
        return max((len(tail) for tail in tails if any(name.startswith(tail) for name in self.by_text)), default=0)


class IncrementalDecoder:
    """A streaming decoder from token ids to marked text. The decoder buffers incomplete characters and incomplete special-token
    names."""

    def __init__(self, marks: ReplySpecialTokens) -> None:
        self._marks = marks
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""

    def feed(self, id_: int) -> str:
        """Read the next token id and return the text that is now complete."""
        marks, tokenizer = self._marks, self._marks.tokenizer
        if id_ in marks.by_id:
            return self.finish() + marks.by_id[id_]
        if tokenizer.is_special(id_):
            return self._append(self._flush_bytes() + tokenizer.token(id_))
        token_bytes = tokenizer.token_bytes(id_)
        return self._append(self._bytes.decode(token_bytes) if token_bytes else self._flush_bytes() + REPLACEMENT)

    def finish(self) -> str:
        """Return the buffered text, after the last token id was read."""
        text = self._append(self._flush_bytes()) + self._pending
        self._pending = ""
        return text

    def buffered_text(self) -> str:
        """Return the text that `finish` would return, and keep it buffered."""
        incomplete = self._bytes.getstate()
        text = self._pending + self._bytes.decode(b"", final=True)
        self._bytes.setstate(incomplete)
        return text

    def _flush_bytes(self) -> str:
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return text

    def _append(self, text: str) -> str:
        if not text:
            return ""
        text = self._marks.mark_special_tokens(self._pending + text)
        incomplete = self._marks.unfinished_name_length(text)
        self._pending = text[len(text) - incomplete :]
        return text[: len(text) - incomplete]
