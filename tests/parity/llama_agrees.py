"""Whether llama.cpp says what our engine says, greedily. Apart from the server, whose process should not load torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llama_server import LlamaCpp

from rorqual.core.records import Message
from rorqual.engine import Engine, Request, SamplingParams

PROMPTS = (
    "What is the capital of France?",
    "What is 17 + 25?",
    "What is 8 * 7?",
    "Count to ten.",
    "Write a haiku about the sea.",
    "Name three colours.",
    "Who wrote Hamlet?",
    "Is 91 prime?",
    "Reverse the word 'stressed'.",
    "How many legs has a spider?",
    "Say hello in Spanish.",
    "What comes after Tuesday?",
    "Which is larger, 9.9 or 9.11?",
    "A coin is heads up. Flip it twice.",
    "Sort: pear, apple, fig.",
    "What is the opposite of cold?",
    "Why is the sky blue?",
    "def add(a, b):",
    "42",
    "你好！",
)
"""Short enough that a context of 128 bytes has room for 64 more."""


def parted(engine: Engine, server: LlamaCpp, prompts: Sequence[str], count: int = 64) -> tuple[list[str], float]:
    """Where `count` greedy tokens, past ends of turns, are not the engine's, with the margin there; and the smallest margin of all."""
    params = SamplingParams(count, ignore_eos=True)
    ours = engine.generate([Request((Message("user", text),), params) for text in prompts])
    found, least = [], math.inf
    for text, (completion,) in zip(prompts, ours):
        steps = server.greedy(completion.prompt_ids, count)
        least = min(least, *(step.margin for step in steps))
        pairs = zip(steps, completion.token_ids, strict=True)
        place = next((place for place, (step, token) in enumerate(pairs) if step.token != token), None)
        if place is not None:
            found.append(f"{text!r} at token {place}, where the margin is {steps[place].margin:.2g}")
    return found, least
