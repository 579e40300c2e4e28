"""Calls of tools in what a model says, in the forms that chat templates teach.

Either blocks `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen), or an
answer that is nothing but such an object or a list of them; Llama writes `parameters`. What names
no tool that was offered is text.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

_OPENS: Final = "<tool_call>"
_BLOCK: Final = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function and its arguments, as JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=_new_id)

    def as_json(self) -> dict[str, Any]:
        """As OpenAI's API tells it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class ToolCallReader:
    """Text as it comes: what is no part of a call is let through, the rest waits for the end."""

    def __init__(self, tools: frozenset[str]) -> None:
        self._tools = tools
        self._held = ""
        self._said_any = False

    def push(self, text: str) -> str:
        """The text that is surely no call."""
        self._held += text
        keep = self._may_begin_at()
        said, self._held = self._held[:keep], self._held[keep:]
        self._said_any = self._said_any or bool(said.strip())
        return said

    def _may_begin_at(self) -> int:
        """Where a call begins, or might; the end of the text, if nowhere."""
        begun = self._held.lstrip()
        if not self._said_any and (not begun or begun[0] in "{["):
            return 0
        if (at := self._held.find(_OPENS)) >= 0:
            return at
        for length in range(min(len(_OPENS) - 1, len(self._held)), 0, -1):
            if _OPENS.startswith(self._held[-length:]):
                return len(self._held) - length
        return len(self._held)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """At the end of the text: what is left of it, and the calls."""
        held, self._held = self._held, ""
        if _OPENS in held:
            calls = [self._call(_loaded(found[1])) for found in _BLOCK.finditer(held)]
            rest = _BLOCK.sub("", held).strip()
        else:
            value = _loaded(held.strip())
            calls = [self._call(one) for one in (value if isinstance(value, list) else [value])]
            rest = ""
        # All or nothing: half a list of calls is another list of calls.
        if not calls or None in calls:
            return held, []
        return rest, [call for call in calls if call is not None]

    def _call(self, value: Any) -> ToolCall | None:
        """The call that a JSON value is, if it is one of a tool that was offered."""
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._tools:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):  # JSON in JSON, as some write it
            arguments = _loaded(arguments)
        if not isinstance(arguments, dict):
            return None
        # In ASCII: half a surrogate pair, which a model may write, is no text to send.
        return ToolCall(name, json.dumps(arguments))


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
