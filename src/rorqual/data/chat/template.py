"""Chat templates of unknown model families. Models with such a template can chat, but cannot be trained.

A loss mask selects the tokens that the assistant wrote, but a template's output does not show which tokens the assistant wrote.
`TemplateChat.render` therefore raises an error. To train a model family, add a chat format for the family in this folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rorqual.core.errors import DataError
from rorqual.core.records import Message, Thinking, Tool
from rorqual.data.chat.calls import (
    DEEPSEEK,
    DEEPSEEK_FRAME,
    FENCED_FRAME,
    HERMES,
    HERMES_FRAME,
    WHITE,
    ToolCallSyntax,
    ToolCallTemplate,
)
from rorqual.data.chat.chat_format import ChatFormat, RenderedConversation
from rorqual.data.chat.prompt_template import PromptTemplate, message_rows, thinking_variables, tool_rows
from rorqual.data.chat.reply import Begins, ReplyRules, StripChars
from rorqual.data.chat.special_tokens import NAME_OF
from rorqual.data.chat.tools import check_tools, group_into_turns, has_tools
from rorqual.data.tokenizer import SpecialToken, Tokenizer


class TemplateChat(ChatFormat):
    """A chat format that renders prompts with a jinja2 chat template.

    `where` names the template in errors, and `stop` lists the names of the end tokens. A test prompt is rendered to detect
    whether the template opens thinking. If the template opens thinking, replies begin inside the reasoning.
    """

    name = "template"
    template: str
    tags_as_text = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str,
        *,
        where: str = "chat template",
        bos: str = SpecialToken.BOS,
        stop: Sequence[str] = (SpecialToken.EOS,),
    ) -> None:
        super().__init__(tokenizer)
        self._opens: dict[Thinking, bool] = {}
        self.where, self.template = where, template
        self._tokens = {"bos_token": str(bos), "eos_token": str(stop[0]) if stop else ""}
        self.stop_ids = tuple(tokenizer.special_id(name) for name in stop)
        self.pad = self.stop_ids[0] if stop else 0  # never used, because templates are not used for training
        self.bos = tokenizer.special_id(bos) if bos else None
        self.thinks = re.search(r"\b(enable_)?thinking\b", template) is not None
        self.call_form, self.call_frame = _call_syntax(template)
        self._prompts = PromptTemplate(tokenizer, template, where)

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: Thinking = "auto",
        continue_: bool = False,
        train_from: int = 0,
        tools: Sequence[Tool] = (),
    ) -> RenderedConversation:
        """Raise a DataError, because a template gives no loss mask."""
        raise DataError(
            "a chat template does not show which tokens the assistant wrote, so there is no loss mask for training",
            where=self.where,
            remedy="Train with a known chat format (chat=deepseek), or add a format in rorqual/data/chat/.",
        )

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        """Return the message without white space around reasoning and content.

        If the message has no reasoning, the content is unchanged.
        """
        reasoning = None if message.reasoning is None else message.reasoning.strip()
        return Message("assistant", message.text if reasoning is None else message.text.strip(), reasoning)

    def prompt(self, messages: Sequence[Message], thinking: Thinking = "auto", tools: Sequence[Tool] = ()) -> list[int]:
        """Render the template and encode its output. Message text is encoded as plain text, even if the text spells a special
        token."""
        self.check_parts(messages)
        if tools or has_tools(messages):
            self._check_tools(messages, tools)
        rows = message_rows(messages, as_text=self.call_form is DEEPSEEK)
        settings = {"add_generation_prompt": True, **self._tokens, **thinking_variables(thinking)}
        [ids] = self._prompts.segments({"messages": rows, "tools": tool_rows(tools) or None}, settings)
        return ids

    def reply_rules(self, thinking: Thinking) -> ReplyRules:
        """Return rules that parse the text before the first `</think>` as reasoning.

        If the template and the tokenizer both lack a `</think>` tag, a reply has reasoning only if it begins with
        `<think>`. Without this tag, a reply that does not begin with `<think>` is streamed without buffering. If the prompt
        opened thinking and the reply has no `</think>`, the whole reply is reasoning and the content is empty.
        """
        known = SpecialToken.END_THINK in self.template or SpecialToken.END_THINK in self.tokenizer.special_names
        begins: Begins = "thought" if self._opens_thinking(thinking) else "late" if known else "mark"
        return ReplyRules(begins, WHITE, StripChars(WHITE, WHITE), indented=True, empty="kept")

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        if not self.takes_tools:
            raise DataError(
                "the chat template does not support tools in a known syntax",
                where=self.where,
                remedy="Remove the tools, or use a model of a family that was trained with tools.",
            )
        check_tools(tools)
        group_into_turns(messages)

    def _opens_thinking(self, thinking: Thinking) -> bool:
        if thinking not in self._opens:
            prompt = self.tokenizer.decode(self.prompt([Message("user", "?")], thinking), specials=True)
            self._opens[thinking] = prompt.rstrip().endswith(SpecialToken.THINK)
        return self._opens[thinking]


def _call_syntax(template: str) -> tuple[ToolCallSyntax | None, ToolCallTemplate | None]:
    """Return the call syntax whose begin token occurs in `template`, and the call template for writing a reply with calls.
    Syntax and call template are None if `template` has no begin token or does not mention `tools`. If the template contains a
    code fence, calls in DeepSeek's syntax have a code fence around their arguments.
    """
    if re.search(r"\btools\b", template):
        if NAME_OF[HERMES.begin] in template:
            return HERMES, HERMES_FRAME
        if NAME_OF[DEEPSEEK.begin] in template:
            return DEEPSEEK, FENCED_FRAME if "```json" in template else DEEPSEEK_FRAME
    return None, None
