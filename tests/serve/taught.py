"""A tiny model that was trained: it knows some replies by heart, one that thinks first and has a formula and code, and one without an end."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from served import ENDLESS

from rorqual.core.records import MANIFEST_FILE, Message, RunDir, write_json
from rorqual.data.chat.find import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig

QUESTION, THOUGHT = "area of a disc", "A disc of radius r: slices."
FORMULA = r"\pi r^2"
CODE = "def area(r): return 3.14 * r * r"
ANSWER = f"It is ${FORMULA}$.\n\n```python\n{CODE}\n```"
LONG_QUESTION = "count"
FOREIGN = "http://foreign.example/pixel.png"
PRICE_QUESTION = "price of $q$, $5 or $6"
PRICES = "From $5 to $6, or 7$: $x^2$, \\(y\\), $$z$$ and \\[w\\]."
PICTURE_QUESTION, PICTURE = "picture", f"![p]({FOREIGN})"
STEPS, RATE, BAR = 300, 4e-3, 0.02
"""The training ends where the loss of every reply is below `BAR` nats per token."""


def write_taught(path: Path) -> Path:
    """A run directory of it; some seconds on a CPU."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=264,
        hidden_size=64,
        stages=(
            Stage(
                layers=2,
                attention=GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16, qk_norm=True),
                ffn=DenseConfig(intermediate_size=128),
            ),
        ),
        max_position_embeddings=ENDLESS,
    )
    tokenizer = Tokenizer.byte_level()
    chat = chat_format(tokenizer, "deepseek")
    replies = (
        (QUESTION, Message("assistant", ANSWER, THOUGHT)),
        (PICTURE_QUESTION, Message("assistant", PICTURE)),
        (PRICE_QUESTION, Message("assistant", PRICES)),
        (LONG_QUESTION, Message("assistant", "la " * 80)),
    )
    rows = [chat.render([Message("user", question), reply]) for question, reply in replies]
    rows[-1].mask[-1] = False  # the long one is never told to end
    thought = [Message("user", LONG_QUESTION), Message("assistant", "", "la " * 80)]
    rows.append(chat.render(thought, thinking="on", continue_=True))  # nor where it is made to think
    model = build(config, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        losses = []
        for row in rows:
            ids = torch.tensor([row.ids])
            logits = model.lm_head(model(ids[:, :-1]).hidden)
            kept = torch.tensor(row.mask[1:], dtype=torch.bool)
            losses.append(torch.nn.functional.cross_entropy(logits[0][kept], ids[0, 1:][kept]))
        if max(loss.item() for loss in losses) < BAR:
            break
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
    step = RunDir(path).step_dir(0)
    step.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, step / "model.safetensors")
    write_json(step / MANIFEST_FILE, {"model.safetensors": (step / "model.safetensors").stat().st_size})
    tokenizer.save(RunDir(path).tokenizer_file)
    settings = {"recipe": "import", "chat": "deepseek", "model": config.model_dump(mode="json")}
    RunDir(path).config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
