"""The test whether a stop string ends a sequence."""

from __future__ import annotations

from rorqual.core.records import Thinking
from rorqual.core.sampling import SamplingParams
from rorqual.data.chat import ChatFormat


class StopStringTest:
    """A function of all token ids of one sequence, called after each new token: whether the answer contains a stop string.

    A stop string that ends within the first `min_tokens` tokens of the reply is ignored, as are stop strings in the reasoning. Each
    token is parsed once.
    """

    def __init__(self, chat: ChatFormat, params: SamplingParams, thinking: Thinking, prompt_length: int) -> None:
        self._stops, self._min_tokens, self._start = params.stop, params.min_tokens, prompt_length
        self._tokenizer, self._reader = chat.tokenizer, chat.reader(thinking)
        # Number of tokens to search: a character has at most 4 bytes, and a token has at least 1 byte.
        self._window = 4 * max(map(len, params.stop)) + 16
        self._text, self._read, self._ignored = "", 0, 0

    def __call__(self, ids: list[int]) -> bool:
        if len(ids) - self._start < self._min_tokens:
            return False
        if self._read < self._min_tokens:
            self._ignored = len(self._answer(ids[: self._start + self._min_tokens]))
        # Keep special tokens, as the reader does: a stop string may contain their text.
        tail = self._tokenizer.decode(ids[max(self._start, len(ids) - self._window) :], specials=True)
        if not any(stop in tail for stop in self._stops):
            return False
        text = self._answer(ids)
        return any(text.find(stop, max(0, self._ignored - len(stop) + 1)) >= 0 for stop in self._stops)

    def _answer(self, ids: list[int]) -> str:
        """Read the new tokens of `ids`, and return the answer of a reply that ends here."""
        self._text += self._reader.feed(*ids[self._start + self._read :]).content
        self._read = len(ids) - self._start
        return self._text + self._reader.content_at_end()
