"""The families' tokenizers in small, their formats, and the golden files, written by transformers from the published templates.

`python tests/data/chat/chat_families.py FOLDER` writes `golden/` anew; FOLDER holds the templates that may not be kept here
(`qwen2.jinja`, `deepseek-v3.jinja`, `llama3.jinja`, `llama3.1.jinja`).
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

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

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, tuple[str, ...]] = {
    "qwen": (WORDS % "",),
    "llama3": (WORDS % "{1,3}",),
    "deepseek": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", LETTERS),
}
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
CORPUS = [
    "system\nYou are a helpful assistant.\n\nuser\nWhat is the answer?\nassistant\nThe answer is 42.\n\nIt is so.\n",
    "the thing that they think there\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
] * 8


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
SWITCHES: dict[str, dict[str, dict[str, bool]]] = {
    "qwen3": {"auto": {}, "off": {"enable_thinking": False}},
    "deepseek": {"on": {"thinking": True}, "off": {"thinking": False}},
    "deepseek-r1": {"auto": {}, "on": {}},
}
"""What a template is told for each way of thinking, where it is told anything."""
PUBLISHED = {"chatml": "qwen2.5", "deepseek": "deepseek-v3.1"}
"""The template's file, where it has another name than the format."""
HISTORY_ONLY = {"deepseek-r1", "deepseek"}
"""Templates that do not write a last turn as a model writes it: only prompts are compared. Reasoning in it only Qwen3's writes."""


def write(elsewhere: Path) -> None:
    """The tokenizers and the golden files; transformers and the published templates make them, our formats have no part in it."""
    from transformers import PreTrainedTokenizerFast

    for family in SPECIALS:
        (GOLDEN / f"tokenizer-{family}.json").write_text(build(family), encoding="utf-8")
    for name, family in FAMILY.items():
        if name in NO_TEMPLATE:
            continue
        file = TEMPLATES / f"{PUBLISHED.get(name, name)}.jinja"
        template = (file if file.is_file() else elsewhere / file.name).read_text(encoding="utf-8")
        bos = SPECIALS[family][0] if family in ("llama3", "deepseek") else None
        peer = PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / f"tokenizer-{family}.json"), bos_token=bos)
        cases = []
        for case, messages in CASES.items():
            prompt = messages[-1]["role"] == "user"
            if not prompt and (name in HISTORY_ONLY or ("reasoning_content" in messages[-1] and name != "qwen3")):
                continue
            for thinking, told in SWITCHES.get(name, {"auto": {}}).items():
                if not prompt and thinking != "auto":
                    continue
                wanted: dict[str, Any] = {"chat_template": template, "add_generation_prompt": prompt, **told}
                text = peer.apply_chat_template(messages, tokenize=False, **wanted)
                ids = peer.apply_chat_template(messages, tokenize=True, return_dict=False, **wanted)
                cases.append({"case": case, "thinking": thinking, "text": text, "ids": ids})
        lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in cases)
        (GOLDEN / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def build(family: str) -> str:
    """A tokenizer.json with the family's own splitting, normaliser, marks and post-processor, and a hundred merges."""
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

    built = tokenizers.Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "smollm2")
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in SPLITS.get(family, ())]
    first = [pre_tokenizers.Digits(individual_digits=True)] if family == "smollm2" else splits
    built.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_])
    built.decoder = decoders.ByteLevel()
    if family == "qwen":
        built.normalizer = normalizers.NFC()
    inside = SPECIALS[family] if family in ("smollm2", "deepseek") else ()  # ids below the vocabulary, as in theirs
    trainer = trainers.BpeTrainer(
        vocab_size=len(inside) + 256 + 120,
        show_progress=False,
        special_tokens=list(inside),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    built.train_from_iterator(CORPUS, trainer)
    built.add_special_tokens([name for name in SPECIALS[family] if name not in inside])
    built.add_tokens(list(NOT_SPECIAL.get(family, ())))
    if family == "llama3":
        bos = SPECIALS["llama3"][0]
        built.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, built.token_to_id(bos))]
        )
    return built.to_str() + "\n"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
