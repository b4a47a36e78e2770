"""Schemas of the messages and tools in a chat request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rorqual.core.content_parts import AnyPart, Content, content_label
from rorqual.core.errors import suggest_name
from rorqual.core.records import Message, Tool, ToolCall
from rorqual.core.sampling import Grammar
from rorqual.serve.errors import bad_request
from rorqual.serve.structured_output import RequestSchema, Text, grammar_source

MAX_PARTS, MAX_NAME, MAX_CALLS, MAX_TOOLS, MAX_DESCRIPTION = 256, 256, 128, 128, 65_536
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Id = Annotated[Text, Field(min_length=1, max_length=MAX_NAME)]


class CalledFunction(RequestSchema):
    """The function in a tool call.

    `arguments`: a JSON object, serialized as a string. `parsed_arguments`: a field that OpenAI's client adds; ignored.
    """

    name: Name
    arguments: Text
    parsed_arguments: Any = None


class RequestToolCall(RequestSchema):
    """A tool call in an assistant message. `index`: a field of streamed tool calls; ignored."""

    id: Id
    index: Annotated[int, Field(ge=0)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def to_tool_call(self) -> ToolCall:
        """Convert this tool call to the `ToolCall` that chat formats use."""
        return ToolCall(self.id, self.function.name, self.function.arguments)


class ChatMessage(RequestSchema):
    """A message of a conversation.

    `refusal`: the text of an assistant message that has no content. `name` is ignored. Clients may send a response
    message back, with the fields that OpenAI's client adds (`parsed`). Only assistant messages may contain NUL, because
    models may generate NUL.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[AnyPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[RequestToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: Id | None = None
    name: Annotated[Text, Field(max_length=MAX_NAME)] | None = None
    refusal: Text | None = None
    parsed: Any = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    def to_message(self) -> Message:
        """Convert this request message to the `Message` that chat formats use. `check_role_fields` must have accepted the
        message."""
        content: Content = self.content or ""
        if not content_label(content):
            content = self.refusal or ""
        role = "system" if self.role == "developer" else self.role
        calls = tuple(call.to_tool_call() for call in self.tool_calls or ())
        return Message(role, content, self.reasoning_content or None, calls, self.tool_call_id)

    def check_role_fields(self, place: str) -> None:
        """Raise ApiError if the message has a field that the message's role does not allow. `place`: the message's path in
        the request."""
        for name in ("tool_calls", "reasoning_content"):
            if getattr(self, name) and self.role != "assistant":
                problem = f"`{place}.{name}` is set in a message of role '{self.role}'"
                raise bad_request(
                    f"{problem}. Only assistant messages may have this field. Leave it out.", f"{place}.{name}"
                )
        if self.role == "tool" and self.tool_call_id is None:
            problem = f"`{place}.tool_call_id` is missing"
            raise bad_request(f"{problem}. Give the id of the call that this message answers.", f"{place}.tool_call_id")
        if self.role != "tool" and self.tool_call_id is not None:
            problem = f"`{place}.tool_call_id` is set in a message of role '{self.role}'"
            raise bad_request(
                f"{problem}. Only tool messages may have this field. Leave it out.", f"{place}.tool_call_id"
            )
        if self.role != "assistant" and "\0" in content_label(self.content or ""):
            raise bad_request(f"`{place}.content` contains a NUL character. Remove the character.", f"{place}.content")


class FunctionSpec(RequestSchema):
    """The function that a tool describes. `parameters`: JSON schema of the arguments, of type object. `strict`: ignored."""

    name: Name
    description: Annotated[Text, Field(max_length=MAX_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(RequestSchema):
    """A tool in a request: a function that the model may call."""

    type: Literal["function"]
    function: FunctionSpec

    def to_tool(self) -> Tool:
        """Convert this tool of the request to the `Tool` that chat formats use."""
        function = self.function
        return Tool(function.name, function.description or "", function.parameters or {})


class NamedFunction(RequestSchema):
    """The name of the function that the model must call."""

    name: Name


class NamedTool(RequestSchema):
    """A `tool_choice` that requires a call to one function."""

    type: Literal["function"]
    function: NamedFunction


class ToolFields(RequestSchema):
    """The request fields that concern tools. With `tool_choice: none`, the prompt describes no tools, and tool calls in the
    reply are not parsed."""

    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    def offered_tools(self) -> list[Tool]:
        """Return the tools that the model may call."""
        return [] if self.tool_choice == "none" else [spec.to_tool() for spec in self.tools or ()]

    def required_calls_grammar(self) -> Grammar | None:
        """Return the grammar of required tool calls, or None if tool calls are optional.

        With `tool_choice: required`, the reply has one or more tool calls, or exactly one tool call if `parallel_tool_calls`
        is false. A function that `tool_choice` names must be called exactly once. A function without `parameters` takes no
        arguments.
        """
        if self.tool_choice in (None, "none", "auto"):
            return None
        return Grammar("calls", grammar_source(self._allowed_calls_source(), "tools"))

    def calls_or_answer_grammar(self, answer: dict[str, Any]) -> Grammar:
        """Return the grammar of a reply: either tool calls, or JSON that follows the schema `answer`."""
        # This call checks the size of `answer` first. If `answer` is too large, the error then names the schema instead
        # of `tools`.
        grammar_source(answer, "response_format.json_schema.schema")
        return Grammar("calls", grammar_source({**self._allowed_calls_source(), "answer": answer}, "tools"))

    def _allowed_calls_source(self) -> dict[str, Any]:
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else None
        functions = [spec.function for spec in self.tools or () if named in (None, spec.function.name)]
        tools = [
            {"name": function.name, "parameters": NO_PARAMETERS if function.parameters is None else function.parameters}
            for function in functions
        ]
        return {"tools": tools, "many": named is None and self.parallel_tool_calls is not False}

    def check_tools(self) -> None:
        """Raise ApiError if two functions have the same name, or if `tool_choice` requires a function that is not in
        `tools`."""
        names = [spec.function.name for spec in self.tools or ()]
        if duplicate := next((name for name in names if names.count(name) > 1), None):
            raise bad_request(
                f"`tools` contains the function '{duplicate}' twice. Give each function a different name.", "tools"
            )
        if self.tool_choice in (None, "none", "auto"):
            return
        if not names:
            raise bad_request(
                "`tool_choice` requires a call, but `tools` is empty. Give at least one tool.", "tool_choice"
            )
        if isinstance(self.tool_choice, NamedTool) and (name := self.tool_choice.function.name) not in names:
            raise bad_request(
                f"`tool_choice` names '{name}', which is not in `tools`. {suggest_name(name, names)}", "tool_choice"
            )
