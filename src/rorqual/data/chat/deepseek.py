"""DeepSeek's chat format, as V3.1 has it: one model that thinks, or answers at once, by the first token of its reply.

    <bos>{system}<｜User｜>{user}<｜Assistant｜><think>{reasoning}</think>{content}<eos>
    <bos>{system}<｜User｜>{user}<｜Assistant｜></think>{content}<eos>

Source: the chat template of DeepSeek-V3.1. As there, system messages are joined by a blank line at the front, and the
reasoning of earlier turns is dropped: they read `</think>{content}<eos>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat.base import ChatFormat, Rendered, check_turns

ROLES = ("system", "user", "assistant")


class DeepSeekChat(ChatFormat):
    """DeepSeek-V3.1's format. Tool turns are not written yet, and refused."""

    name = "deepseek"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos,)

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto") -> list[int]:
        """`auto` ends at `<｜Assistant｜>`: the model chooses. `on` adds `<think>`, `off` adds `</think>`."""
        check_turns(messages, ROLES)
        if messages[-1].role == "assistant":
            raise DataError("the last turn is the assistant's own", where="messages", remedy="End with a user turn.")
        return [*self._conversation(messages).ids, self.tokenizer.assistant, *self._choice(thinking)]

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
    ) -> Rendered:
        """See `ChatFormat.render`.

        The mask covers the assistant's own tokens: the choice `<think>` or `</think>`, reasoning, `</think>`, content and
        `<eos>`. An earlier turn that reasoned is context only: without its reasoning it is not what the assistant wrote,
        and training on it would teach to answer at once. `samples` trains such turns where they are last.
        """
        check_turns(messages, ROLES)
        last = messages[-1]
        if last.role != "assistant":
            if continue_:
                raise DataError("no assistant turn to continue", where="messages", remedy="End with an assistant turn.")
            return self._conversation(messages, train_from)
        if (thinking == "on" and last.reasoning is None) or (thinking == "off" and last.reasoning is not None):
            fault = "has no reasoning" if thinking == "on" else "has reasoning"
            raise DataError(f"the last turn {fault} with thinking={thinking}", where="messages", remedy="Use 'auto'.")
        given = [self.tokenizer.assistant, *self._choice(thinking)]
        reply = self._reply(last, closed=not continue_)[len(given) - 1 :]
        history = self._conversation(messages[:-1], train_from)
        trained = train_from < len(messages)
        return Rendered([*history.ids, *given, *reply], [*history.mask, *[False] * len(given), *[trained] * len(reply)])

    def parse(self, ids: Iterable[int], thinking: Thinking = "auto") -> Message:
        """The message in a reply. Everything after the first `<eos>` is ignored.

        - `<think>` first (or thinking `on`): what follows up to `</think>` is reasoning, the rest content. Cut off before
          `</think>`, all of it is reasoning and the content is empty.
        - `</think>` first (or thinking `off`): all is content, and the reasoning None.
        - neither first: with a `</think>` later, what stands before it is reasoning; without one, all is content.

        Any further special token was written by the model where it means nothing: it stays visible, by name.
        """
        think, end = self.tokenizer.think, self.tokenizer.end_think
        reply: list[int] = self._choice(thinking)
        for id_ in ids:
            if id_ == self.tokenizer.eos:
                break
            reply.append(id_)
        first = reply[0] if reply else None
        if first == end:
            return Message("assistant", self._text(reply[1:]))
        if first != think and end not in reply:
            return Message("assistant", self._text(reply))
        body = reply[1:] if first == think else reply
        cut = body.index(end) if end in body else len(body)
        return Message("assistant", self._text(body[cut + 1 :]), reasoning=self._text(body[:cut]))

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, specials=True)

    def _choice(self, thinking: Thinking) -> list[int]:
        return {"auto": [], "on": [self.tokenizer.think], "off": [self.tokenizer.end_think]}[thinking]

    def _reply(self, message: Message, *, closed: bool = True) -> list[int]:
        """A turn from the choice token to the end-of-turn token; open, it lacks what has not been written yet."""
        tokenizer = self.tokenizer
        thought = [] if message.reasoning is None else [tokenizer.think, *tokenizer.encode(message.reasoning)]
        if not closed and message.reasoning is not None and not message.content:
            return thought  # still thinking
        end = [tokenizer.eos] if closed else []
        return [*thought, tokenizer.end_think, *tokenizer.encode(message.content), *end]

    def _conversation(self, messages: Sequence[Message], train_from: int = 0) -> Rendered:
        """Finished turns, as they read to what comes after them."""
        tokenizer = self.tokenizer
        system = "\n\n".join(message.content for message in messages if message.role == "system")
        ids = [tokenizer.bos, *tokenizer.encode(system)]
        mask = [False] * len(ids)
        for number, message in enumerate(messages):
            if message.role == "user":
                turn = [tokenizer.user, *tokenizer.encode(message.content)]
                trained = [False] * len(turn)
            elif message.role == "assistant":
                reply = self._reply(Message("assistant", message.content))
                turn = [tokenizer.assistant, *reply]
                trained = [False, *[message.reasoning is None and number >= train_from] * len(reply)]
            else:
                continue
            ids += turn
            mask += trained
        return Rendered(ids, mask)
