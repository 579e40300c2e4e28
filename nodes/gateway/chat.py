"""Chat completions: what may be asked, and the prompt that it makes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Json, model_validator

from fedsea_mq.model.chat import Message, Tool
from nodes.gateway.request import (
    MAX_TOP_LOGPROBS,
    Fields,
    GenerationRequest,
    NewTokens,
)

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _text(value: Any) -> Any:
    """A message's parts as one text. Pictures and sound have no tokens here."""
    return "\n".join(map(_text_of, value)) if isinstance(value, list) else value


def _text_of(part: Any) -> str:
    match part:
        case {"type": "text", "text": str(text), **others} if not others:
            return text
    raise ValueError("expected a text, or parts of type text")


Content = Annotated[str | None, BeforeValidator(_text)]


class CalledFunction(Fields):
    """The function of a call that the model made before; its arguments come as JSON text."""

    name: ToolName
    arguments: Json[dict[str, Any]]


class MadeCall(Fields):
    """A call that the model made before."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Fields):
    """One message. A call's result says by `tool_call_id` which it is of."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> Message:
        """As chat templates read it: they know no developers."""
        message: Message = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or self.refusal or "",
        }
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return message


class Function(Fields):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    # Arguments held to the schema would need a decoder that we do not have.
    strict: Literal[False] | None = None


class OfferedTool(Fields):
    """A tool. There are no others than functions."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> Tool:
        """As chat templates read it."""
        return self.model_dump(exclude={"function": {"strict"}}, exclude_none=True)


class ResponseFormat(Fields):
    """Text; no other form can be promised."""

    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    tools: list[OfferedTool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto"] = "auto"
    parallel_tool_calls: Literal[True] = True
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _top_with_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        return self

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens are wanted at each place; None for no scores at all."""
        return self.top_logprobs if self.logprobs else None

    @property
    def new_tokens(self) -> int | None:
        """New tokens asked for, if a number was."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is told of."""
        if self.tool_choice == "none":
            return []
        return [tool.for_template() for tool in self.tools]

    @property
    def callable_names(self) -> frozenset[str]:
        """What a call may name."""
        return frozenset(tool["function"]["name"] for tool in self.offered)
