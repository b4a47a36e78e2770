"""Chat formats, by the name of the family."""

from __future__ import annotations

from rorqual.core.errors import DataError, nearest
from rorqual.data.chat.base import ChatFormat, Rendered
from rorqual.data.chat.deepseek import DeepSeekChat
from rorqual.data.tokenizer import Tokenizer

__all__ = ["ChatFormat", "DeepSeekChat", "Rendered", "chat_format"]


def chat_format(tokenizer: Tokenizer, name: str = "deepseek") -> ChatFormat:
    """The chat format called `name`, on `tokenizer`."""
    known: dict[str, type[ChatFormat]] = {kind.name: kind for kind in (DeepSeekChat,)}
    if name not in known:
        raise DataError(f"unknown chat format {name!r}", where="chat", remedy=nearest(name, known))
    return known[name](tokenizer)
