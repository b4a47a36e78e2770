"""The families' tokenizers in small, their formats, and the conversations of the golden files.

`golden/FORMAT.json` holds what `PreTrainedTokenizerFast.apply_chat_template` of transformers writes of `CASES` with the format's published
template: text and ids, with a generation prompt if the last turn is the user's, and with `enable_thinking` (Qwen3) or `thinking` (DeepSeek) as
in each case. R1's and V3.1's templates do not write a last turn as a model writes it, so only prompts are there. Our formats had no part in it.
Each `golden/tokenizer-FAMILY.json` has the family's own splitting, normaliser, marks and post-processor, and a hundred merges.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer

HERE = Path(__file__).parent
GOLDEN, TEMPLATES = HERE / "golden", HERE / "templates"

FAMILY = {
    "chatml": "qwen",
    "chatml-plain": "qwen",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "smollm2": "smollm2",
    "llama3": "llama3",
    "llama3.1": "llama3",
    "deepseek": "deepseek",
    "deepseek-v3": "deepseek",
    "deepseek-r1": "deepseek",
    "deepseek-v3.2": "deepseek",
}
"""The tokenizer of each format."""
NO_TEMPLATE = ("chatml-plain", "deepseek-v3.2")
"""Formats without a published template. Of V3.2, code was published: see `v32_golden.py`."""

SPECIALS: dict[str, tuple[str, ...]] = {
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "smollm2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>",
               "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
}  # fmt: skip
NOT_SPECIAL: dict[str, tuple[str, ...]] = {
    "qwen": ("<tool_call>", "</tool_call>", "<think>", "</think>"),
    "deepseek": ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
}
"""Added tokens that the files do not mark as special."""


@cache
def tokenizer(family: str) -> Tokenizer:
    return Tokenizer.load(GOLDEN / f"tokenizer-{family}.json")


@cache
def made(name: str) -> ChatFormat:
    return chat_format(tokenizer(FAMILY[name]), name)


TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["a\n", "\n\nb", " c ", "a.\n\n", "<think>", "</think>", "\n</think>", "<thi", "</", "<|im_end|>", "<|eot_id|>"]),
    st.sampled_from(["<｜User｜>", "<｜end▁of▁sentence｜>", "<|im_start|>system\n", "assistant", "x" * 40, "é", "🐋"]),
)  # fmt: skip
ASSISTANT = st.builds(Message, st.just("assistant"), TEXT, st.none() | TEXT)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Turns that end with the user's."""
    system = draw(st.lists(st.builds(Message, st.just("system"), TEXT), max_size=1))
    user = st.builds(Message, st.just("user"), TEXT)
    turns = draw(st.lists(st.tuples(user, ASSISTANT), max_size=2))
    return [*system, *(message for turn in turns for message in turn), draw(user)]


# ---- what the golden files hold

SYSTEM = {"role": "system", "content": "You are brief.\n\nAlways."}
ASKED = {"role": "user", "content": "What is 17 + 4?"}
SAID = {"role": "assistant", "content": "It is 21.\n\nSo 1234."}
AGAIN = {"role": "user", "content": "  Why?\nTell me, é 🐋.\n"}
THOUGHT = {"role": "assistant", "content": "Because.", "reasoning_content": "17 and 4.\n\nThat is 21."}
CASES: dict[str, list[dict[str, str]]] = {
    "a question": [ASKED],
    "with a system turn": [SYSTEM, ASKED],
    "three turns": [ASKED, SAID, AGAIN],
    "three turns after a system turn": [SYSTEM, ASKED, SAID, AGAIN],
    "an earlier turn that thought": [ASKED, THOUGHT, AGAIN],
    "answered": [ASKED, SAID],
    "answered with thought": [SYSTEM, ASKED, SAID, AGAIN, THOUGHT],
}
PUBLISHED = {"chatml": "qwen2.5", "deepseek": "deepseek-v3.1"}
"""The template's file, where it has another name than the format."""
