"""Chat messages to token ids, by the template beside the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fedsea_mq.errors import InvalidPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Tool = dict[str, Any]


def check_chats(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InvalidPrompt` without a chat template."""
    if tokenizer.chat_template is None:
        raise InvalidPrompt("the model has no chat template: it continues texts only")


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    opens_answer: bool = True,
) -> list[int]:
    """Token ids of a chat, up to where the answer begins if it `opens_answer`.

    `tools` are functions that the answer may call, each as its JSON schema. What looks like a token
    of the template within a message's text is text like any other; in a key of JSON it is refused.

    Raises `InvalidPrompt` without a template, or if it refuses the messages or knows no tools.
    """
    check_chats(tokenizer)
    _check_keys(tokenizer, [*messages, *tools])
    if tools and "tools" not in str(tokenizer.chat_template):
        raise InvalidPrompt("the model's chat template takes no tools")
    try:
        ids = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            add_generation_prompt=opens_answer,
            tokenize=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
    except Exception as error:  # templates raise whatever they like
        raise InvalidPrompt("the chat template refuses these messages") from error
    return list(ids)


def _check_keys(tokenizer: PreTrainedTokenizerBase, told: Sequence[Message | Tool]) -> None:
    """Keys stay as they are where values are made plain text, so a key could forge a token."""
    control = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for key in _keys(told):
        if any(token in key for token in control if not token.isspace()):
            raise InvalidPrompt("a key of tools or arguments holds a token of the chat template")


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _keys(inner)
