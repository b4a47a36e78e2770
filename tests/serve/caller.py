"""A tiny model that knows one conversation by heart: asked for a sum, it calls a tool, and then says what the tool said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.core.records import Message, Tool, ToolCall
from rorqual.data.chat.find import chat_format
from rorqual.data.tokenizer import Tokenizer
from served import learn, save_run, small_model

QUESTION, NAME, ARGUMENTS, RESULT, ANSWER = "1+2", "add", '{"a":1,"b":2}', "3", "It is 3."
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
SPEC: dict[str, Any] = {"type": "function", "function": {"name": NAME, "description": "a + b", "parameters": SCHEMA}}


def write_caller(path: Path) -> Path:
    """A run directory of it; some seconds on a CPU."""
    plain = chat_format(Tokenizer.byte_level(), "deepseek")
    tools = [Tool(NAME, "a + b", SCHEMA)]
    first = [Message("user", QUESTION)]
    call = Message("assistant", "", tool_calls=(ToolCall("c", NAME, ARGUMENTS),))
    second = [*first, call, Message("tool", RESULT, tool_call_id="c")]
    text = plain.tokenizer.decode(plain.prompt(second, "off", tools))
    tokenizer = Tokenizer.byte_level([text] * 4, 560)
    chat = chat_format(tokenizer, "deepseek")
    before, after = chat.prompt(first, "off", tools), chat.prompt(second, "off", tools)
    end = after.index(chat.stop_ids[0], len(before)) + 1
    ids = [*after, *tokenizer.encode(ANSWER), chat.stop_ids[0]]
    learnt = [*range(len(before), end), *range(len(after), len(ids))]  # what the model writes, in both rounds
    model = small_model(tokenizer.vocab_size, 1024)
    row, places = torch.tensor([ids]), torch.tensor(learnt)

    def loss() -> Tensor:
        logits = model.lm_head(model(row[:, :-1]).hidden[0][places - 1])
        return torch.nn.functional.cross_entropy(logits, row[0][places])

    learn(model, loss, steps=400, bar=0.01)
    return save_run(path, model, tokenizer)
