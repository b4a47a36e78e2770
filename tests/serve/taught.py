"""A tiny model that was trained: it knows some replies by heart, one that thinks first and has a formula and code, and one without an end."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rorqual.core.records import Message
from rorqual.data.chat.find import chat_format
from rorqual.data.tokenizer import Tokenizer
from served import ENDLESS, learn, save_run, small_model

QUESTION, THOUGHT = "area of a disc", "A disc of radius r: slices."
FORMULA = r"\pi r^2"
CODE = "def area(r): return 3.14 * r * r"
ANSWER = f"It is ${FORMULA}$.\n\n```python\n{CODE}\n```"
LONG_QUESTION = "count"
FOREIGN = "http://foreign.example/pixel.png"
PICTURE_QUESTION, PICTURE = "picture", f"![p]({FOREIGN})"


def write_taught(path: Path) -> Path:
    """A run directory of it; some seconds on a CPU."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.byte_level()
    chat = chat_format(tokenizer, "deepseek")
    replies = (
        (QUESTION, Message("assistant", ANSWER, THOUGHT)),
        (PICTURE_QUESTION, Message("assistant", PICTURE)),
        (LONG_QUESTION, Message("assistant", "la " * 80)),
    )
    rows = [chat.render([Message("user", question), reply]) for question, reply in replies]
    rows[-1].mask[-1] = False  # the long one is never told to end
    thought = [Message("user", LONG_QUESTION), Message("assistant", "", "la " * 80)]
    rows.append(chat.render(thought, thinking="on", continue_=True))  # nor where it is made to think
    model = small_model(264, ENDLESS)
    targets = [(torch.tensor([row.ids]), torch.tensor(row.mask[1:], dtype=torch.bool)) for row in rows]

    def loss() -> Tensor:
        losses = []
        for ids, kept in targets:
            logits = model.lm_head(model(ids[:, :-1]).hidden)
            losses.append(torch.nn.functional.cross_entropy(logits[0][kept], ids[0, 1:][kept]))
        return torch.stack(losses).sum()

    learn(model, loss, steps=300, bar=0.04)
    return save_run(path, model, tokenizer)
