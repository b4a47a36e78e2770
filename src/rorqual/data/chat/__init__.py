"""Chat formats, one per model family."""

from __future__ import annotations

from rorqual.data.chat.chat_format import ChatFormat, RenderedConversation
from rorqual.data.chat.deepseek import DeepSeekChat
from rorqual.data.chat.find import KINDS, TEMPLATE_FILE, chat_format, guess_chat_name, load_chat, read_chat_name
from rorqual.data.chat.template import TemplateChat

__all__ = [
    "KINDS",
    "TEMPLATE_FILE",
    "ChatFormat",
    "DeepSeekChat",
    "RenderedConversation",
    "TemplateChat",
    "chat_format",
    "guess_chat_name",
    "load_chat",
    "read_chat_name",
]
