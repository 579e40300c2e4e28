"""What of a model's text is a call of a tool, whole and as it comes."""

from __future__ import annotations

import json

import pytest

from nodes.gateway.tool_calls import ToolCallReader

TOOLS = frozenset({"weather", "time"})
PARIS = {"town": "Paris"}


def read(text: str, step: int) -> tuple[str, str, list[tuple[str, dict[str, str]]]]:
    """What was let through at once, what was left at the end, and the calls."""
    reader = ToolCallReader(TOOLS)
    said = "".join(reader.push(text[at : at + step]) for at in range(0, len(text), step))
    rest, calls = reader.finish()
    return said, rest, [(call.name, json.loads(call.arguments)) for call in calls]


CALL = '{"name": "weather", "arguments": {"town": "Paris"}}'
LLAMA = '{"name": "weather", "parameters": {"town": "Paris"}}'
QUOTED = '{"name": "weather", "arguments": "{\\"town\\": \\"Paris\\"}"}'


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "said", "rest", "calls"),
    [
        ("It is warm.", "It is warm.", "", []),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", "", [("weather", PARIS)]),
        (
            f'Let me see. <tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "time"}}</tool_call>',
            "Let me see. ",
            "",
            [("weather", PARIS), ("time", {})],
        ),
        (f"<tool_call>{CALL}", "", "", [("weather", PARIS)]),  # the end token closed it
        (f"<tool_call>{CALL}</tool_call> done", "", "done", [("weather", PARIS)]),
        (LLAMA, "", "", [("weather", PARIS)]),
        (f" [{CALL}, {QUOTED}]", "", "", [("weather", PARIS)] * 2),
        ('{"name": "launch", "arguments": {}}', "", '{"name": "launch", "arguments": {}}', []),
        ('{"answer": 4}', "", '{"answer": 4}', []),
        ("[see above", "", "[see above", []),
        ("a < b, <tool_c> and {x}", "a < b, <tool_c> and {x}", "", []),
        ("<tool_call>nonsense</tool_call>", "", "<tool_call>nonsense</tool_call>", []),
        ("[" * 5000, "", "[" * 5000, []),
        ("", "", "", []),
    ],
)
def test_calls_are_found_and_the_rest_is_text(
    text: str, said: str, rest: str, calls: list[tuple[str, dict[str, str]]], step: int
) -> None:
    assert read(text, step) == (said, rest, calls)


def test_what_might_begin_a_call_is_let_through_at_the_end() -> None:
    assert read("see <tool", 1) == ("see ", "<tool", [])


def test_each_call_has_an_id_of_its_own() -> None:
    reader = ToolCallReader(TOOLS)
    reader.push(f"[{CALL}, {CALL}]")
    first, second = reader.finish()[1]
    assert first.id != second.id


@pytest.mark.parametrize("name", ['{"first": "Ann"}', "[1]", "null", "3"])
def test_an_object_whose_name_is_no_text_is_text(name: str) -> None:
    reader = ToolCallReader(frozenset({"look_up"}))
    text = f'{{"name": {name}, "arguments": {{}}}}'
    assert reader.push(text) == ""
    assert reader.finish() == (text, [])


def test_arguments_with_half_a_surrogate_pair_can_be_sent() -> None:
    reader = ToolCallReader(frozenset({"look_up"}))
    reader.push('{"name": "look_up", "arguments": {"word": "\\ud83d"}}')
    _, (call,) = reader.finish()
    assert call.arguments.encode() == b'{"word": "\\ud83d"}'


def test_a_call_behind_much_space_is_read_at_once() -> None:
    reader = ToolCallReader(frozenset({"look_up"}))
    text = f"<tool_call>x{' ' * 100_000}y"
    reader.push(text)
    assert reader.finish() == (text, [])
