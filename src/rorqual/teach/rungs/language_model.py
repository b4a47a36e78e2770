"""A language model as a predictor: the taught model, or the base model with examples in its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rorqual.core.conversations import text_to_turns
from rorqual.core.records import Message, RunDir, Thinking
from rorqual.data.chat import load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Request, SamplingParams
from rorqual.teach.rungs.rung import Guess, Predictor

TAUGHT, ALONE = "language model", "language model without calculator"
"""The names of the taught model, and of the taught model whose calculations the engine does not do."""


class LanguageModel(Predictor):
    """The replies of a language model, whose prompts begin with the turns `opening`.

    The probability of a reply is the geometric mean of the probabilities of its tokens, under the grammar of the answers if there is one.
    Without an opening, a prompt of several turns is asked with its turns. A prompt that leaves no room in the context has no answer.
    """

    def __init__(
        self,
        name: str,
        run: RunDir,
        params: SamplingParams,
        thinking: Thinking,
        *,
        threads: int,
        opening: Sequence[Message] = (),
    ) -> None:
        self.name, self.params, self.thinking, self.opening = name, params, thinking, tuple(opening)
        self.chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
        cores = 1 if opening else max(1, threads)  # with one core, prompts that begin alike share one prefix cache
        self.engine = Engine(run.path, threads=threads, engine_cores=cores, record_experts=False)

    def predict(self, prompts: Sequence[str]) -> list[Guess]:
        turns = [
            (*self.opening, Message("user", prompt)) if self.opening else text_to_turns(prompt) for prompt in prompts
        ]
        room = self.engine.max_len - 1
        fits = [len(self.chat.prompt(one, self.thinking)) <= room for one in turns]
        asked = [Request(one, self.params, thinking=self.thinking) for one, fit in zip(turns, fits, strict=True) if fit]
        replies = iter(self.engine.generate(asked))
        return [_guess(next(replies)[0]) if fit else Guess("", 0.0) for fit in fits]


def _guess(reply: Completion) -> Guess:
    if reply.error or not reply.logprobs:
        return Guess("", 0.0)
    return Guess(reply.text, math.exp(math.fsum(reply.logprobs) / len(reply.logprobs)), reply.reasoning or "")


def taught_params(run: RunDir, *, calculator: bool) -> tuple[SamplingParams, Thinking]:
    """Return the sampling parameters and the thinking mode of a taught model, from its defaults.json. Without `calculator`, the engine
    writes no results of calculations."""
    task = run.task_defaults()
    calculates = calculator and bool(task.calculator)
    params = SamplingParams(temperature=task.temperature or 0.0, grammar=task.grammar, calculator=calculates)
    return (replace(params, max_tokens=task.max_tokens) if task.max_tokens else params), task.thinking or "auto"
