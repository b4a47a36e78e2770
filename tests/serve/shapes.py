"""Requests as the routes read them, over a service whose engine never starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.bridge import Bridge
from rorqual.serve.keys import Keys
from rorqual.serve.routes.chat import ChatShape
from rorqual.serve.routes.completions import TextShape
from rorqual.serve.schemas import ChatRequest, TextRequest, read
from rorqual.serve.service import Service
from rorqual.serve.wire import EngineArguments, Ready

MAX_LEN = 1000
CHAT = chat_format(Tokenizer.byte_level())
HELLO = {"role": "user", "content": "hello"}


def service_of(chat: ChatFormat = CHAT, max_len: int = MAX_LEN, **fields: Any) -> Service:
    """A service whose engine has said that it is ready."""
    bridge = Bridge(EngineArguments("nowhere"))
    bridge.info = Ready(max_len, chat.tokenizer.vocab_size)
    return Service("m", 0, chat, bridge, Keys(Path("none"), {}), 2**20, **fields)


def chat_of(service: Service | None = None, **fields: Any) -> ChatShape:
    body = {"model": "m", "messages": [HELLO], "seed": 1, **fields}
    return ChatShape(service or service_of(), read(ChatRequest, json.dumps(body).encode())[0])


def text_of(service: Service | None = None, **fields: Any) -> TextShape:
    body = {"model": "m", "prompt": "hello", "seed": 1, **fields}
    return TextShape(service or service_of(), read(TextRequest, json.dumps(body).encode())[0])
