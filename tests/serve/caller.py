"""A tiny model that knows one conversation by heart: asked for a sum, it calls a tool, and then says what the tool said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from rorqual.core.records import MANIFEST_FILE, Message, RunDir, Tool, ToolCall, write_json
from rorqual.data.chat.find import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig

QUESTION, NAME, ARGUMENTS, RESULT, ANSWER = "1+2", "add", '{"a":1,"b":2}', "3", "It is 3."
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
SPEC: dict[str, Any] = {"type": "function", "function": {"name": NAME, "description": "a + b", "parameters": SCHEMA}}
STEPS, RATE, BAR = 400, 4e-3, 0.01


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
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        stages=(
            Stage(
                layers=2,
                attention=GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16, qk_norm=True),
                ffn=DenseConfig(intermediate_size=128),
            ),
        ),
        max_position_embeddings=1024,
    )
    model = build(config, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    row, places = torch.tensor([ids]), torch.tensor(learnt)
    for _ in range(STEPS):
        logits = model.lm_head(model(row[:, :-1]).hidden[0][places - 1])
        loss = torch.nn.functional.cross_entropy(logits, row[0][places])
        if loss.item() < BAR:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    step = RunDir(path).step_dir(0)
    step.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, step / "model.safetensors")
    write_json(step / MANIFEST_FILE, {"model.safetensors": (step / "model.safetensors").stat().st_size})
    tokenizer.save(RunDir(path).tokenizer_file)
    settings = {"recipe": "import", "chat": "deepseek", "model": config.model_dump(mode="json")}
    RunDir(path).config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
