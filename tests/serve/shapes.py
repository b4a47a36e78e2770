"""Requests as the routes read them, over a service whose engine never starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.serve.bridge import EngineBridge
from rorqual.serve.keys import ApiKeys
from rorqual.serve.routes.chat import ChatResponseBuilder
from rorqual.serve.routes.completions import TextResponseBuilder
from rorqual.serve.schemas import ChatRequest, TextRequest, parse_request
from rorqual.serve.service import ModelService
from rorqual.serve.wire import EngineArguments, EngineLimits

MAX_LEN = 1000
CHAT = chat_format(Tokenizer.byte_level())
HELLO = {"role": "user", "content": "hello"}


def service_of(chat: ChatFormat = CHAT, max_len: int = MAX_LEN, **fields: Any) -> ModelService:
    """A service whose engine has said that it is ready."""
    bridge = EngineBridge(EngineArguments("nowhere"))
    bridge.info = EngineLimits(max_len, chat.tokenizer.vocab_size)
    return ModelService("m", 0, ApiKeys(Path("none"), {}), 2**20, chat=chat, bridge=bridge, **fields)


def chat_of(service: ModelService | None = None, **fields: Any) -> ChatResponseBuilder:
    body = {"model": "m", "messages": [HELLO], "seed": 1, **fields}
    return ChatResponseBuilder(service or service_of(), parse_request(ChatRequest, json.dumps(body).encode())[0])


def text_of(service: ModelService | None = None, **fields: Any) -> TextResponseBuilder:
    body = {"model": "m", "prompt": "hello", "seed": 1, **fields}
    return TextResponseBuilder(service or service_of(), parse_request(TextRequest, json.dumps(body).encode())[0])
