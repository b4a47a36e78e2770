"""Turns of a conversation, and the tools that may be called in it, as a request holds them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rorqual.core.errors import nearest
from rorqual.core.parts import AnyPart, Content, content_label
from rorqual.core.records import Message, Tool, ToolCall
from rorqual.core.sampling import Grammar
from rorqual.serve.errors import refuse
from rorqual.serve.formats import Schema, Text, source_of

MAX_PARTS, MAX_NAME, MAX_CALLS, MAX_TOOLS, MAX_DESCRIPTION = 256, 256, 128, 128, 65_536
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Id = Annotated[Text, Field(min_length=1, max_length=MAX_NAME)]


class CalledFunction(Schema):
    """`arguments`: the text of a JSON object. `parsed_arguments`: what openai's client made of it."""

    name: Name
    arguments: Text
    parsed_arguments: Any = None


class Call(Schema):
    """A call that the assistant made. `index`: its place in a stream."""

    id: Id
    index: Annotated[int, Field(ge=0)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def call(self) -> ToolCall:
        """As the chat formats take it."""
        return ToolCall(self.id, self.function.name, self.function.arguments)


class ChatMessage(Schema):
    """One turn. `name` changes nothing; what our own answers carry beside these, and what openai's client adds to them (`parsed`), may come
    back. `refusal`: what an assistant said instead of a content. A model may write NUL, so an assistant's turn may hold it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[AnyPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[Call], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: Id | None = None
    name: Annotated[Text, Field(max_length=MAX_NAME)] | None = None
    refusal: Text | None = None
    parsed: Any = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    def message(self) -> Message:
        """As the chat formats take it."""
        content: Content = self.content or ""
        if not content_label(content):
            content = self.refusal or ""
        match self.role:
            case "assistant":
                calls = tuple(call.call() for call in self.tool_calls or ())
                return Message("assistant", content, self.reasoning_content or None, calls)
            case "tool":
                return Message("tool", content, tool_call_id=self.tool_call_id)
            case "user":
                return Message("user", content)
            case _:
                return Message("system", content)

    def check(self, place: str) -> None:
        """Refuse what a turn of this role cannot have; `place` names the turn."""
        for name in ("tool_calls", "reasoning_content"):
            if getattr(self, name) and self.role != "assistant":
                what = f"`{place}.{name}` stands in a message of role '{self.role}'"
                raise refuse(f"{what}. Only the assistant's messages have it: leave it out.", f"{place}.{name}")
        if self.role == "tool" and self.tool_call_id is None:
            what = f"`{place}.tool_call_id` is missing"
            raise refuse(f"{what}. Give the id of the call that this message answers.", f"{place}.tool_call_id")
        if self.role != "tool" and self.tool_call_id is not None:
            what = f"`{place}.tool_call_id` stands in a message of role '{self.role}'"
            raise refuse(f"{what}. Only messages of role 'tool' have it: leave it out.", f"{place}.tool_call_id")
        if self.role != "assistant" and "\0" in content_label(self.content or ""):
            raise refuse(f"`{place}.content` holds a NUL character. Give a text without it.", f"{place}.content")


class Function(Schema):
    """`parameters`: the JSON schema of the arguments, an object. `strict` changes nothing."""

    name: Name
    description: Annotated[Text, Field(max_length=MAX_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function

    def tool(self) -> Tool:
        """As the chat formats take it."""
        function = self.function
        return Tool(function.name, function.description or "", function.parameters or {})


class NamedFunction(Schema):
    """The one function that is to be called."""

    name: Name


class NamedTool(Schema):
    """`tool_choice` by name."""

    type: Literal["function"]
    function: NamedFunction


class Tools(Schema):
    """What of a request is about tools. `none`: they are not shown to the model, and no call is read."""

    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    def offered(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else [spec.tool() for spec in self.tools or ()]

    def forced(self) -> Grammar | None:
        """What the answer must match where it must call: OpenAI's `required` is one call or more, of any tool; a name is one call of that.

        A function without `parameters` has none.
        """
        if self.tool_choice in (None, "none", "auto"):
            return None
        return Grammar("calls", source_of(self._calls(), "tools"))

    def called_or(self, answer: dict[str, Any]) -> Grammar:
        """What it must match where it may call, and else is JSON of this schema."""
        source_of(answer, "response_format.json_schema.schema")  # each by itself, so that what is too long is named
        return Grammar("calls", source_of({**self._calls(), "answer": answer}, "tools"))

    def _calls(self) -> dict[str, Any]:
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else None
        functions = [spec.function for spec in self.tools or () if named in (None, spec.function.name)]
        tools = [
            {"name": one.name, "parameters": NO_PARAMETERS if one.parameters is None else one.parameters}
            for one in functions
        ]
        return {"tools": tools, "many": named is None and self.parallel_tool_calls is not False}

    def check_tools(self) -> None:
        """Refuse what only goes together, and a tool that there is not."""
        names = [spec.function.name for spec in self.tools or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise refuse(f"`tools` names the function '{twice}' twice. Give each function a name of its own.", "tools")
        if self.tool_choice in (None, "none", "auto"):
            return
        if not names:
            raise refuse("`tool_choice` asks for a call, and `tools` is empty. Give tools.", "tool_choice")
        if isinstance(self.tool_choice, NamedTool) and (name := self.tool_choice.function.name) not in names:
            raise refuse(
                f"`tool_choice` names '{name}', which is not in `tools`. {nearest(name, names)}", "tool_choice"
            )
