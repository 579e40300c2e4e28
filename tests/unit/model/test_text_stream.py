"""Text as it comes: whole characters, and never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedsea_mq.model.text_stream import TextStream


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: every character above ASCII spans tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


BYTES = byte_tokenizer()


def ids(text: str) -> list[int]:
    return list(BYTES.backend_tokenizer.encode(text).ids)


def pushed(
    text: str, stop: Sequence[str] = (), *, strip_start: bool = False
) -> tuple[list[str], TextStream]:
    """What each token shows, until a stop string."""
    stream = TextStream(BYTES, stop, strip_start=strip_start)
    shown = []
    for token in ids(text):
        shown.append(stream.push(token))
        if stream.stopped:
            break
    return shown, stream


def test_plain_text_is_shown_token_by_token() -> None:
    shown, stream = pushed("fox den")
    assert shown == ["f", "o", "x", " ", "d", "e", "n"]
    assert stream.flush() == ""


@pytest.mark.parametrize("character", ["é", "漢", "🦊"])
def test_a_character_is_shown_once_it_is_whole(character: str) -> None:
    shown, _ = pushed(f"a{character}b")
    size = len(character.encode())
    assert shown == ["a", *[""] * (size - 1), character, "b"]


def test_an_incomplete_character_is_never_shown() -> None:
    stream = TextStream(BYTES)
    shown = [stream.push(token) for token in ids("a🦊")[:-1]]
    assert "".join(shown) + stream.flush() == "a"


def test_a_stop_string_over_token_borders_ends_the_text_before_it() -> None:
    shown, stream = pushed("yes.\nUser: what", stop=["\nUser:"])
    assert "".join(shown) == "yes."
    assert stream.stopped
    assert stream.flush() == ""


def test_what_might_begin_a_stop_string_is_held_until_it_does_not() -> None:
    shown, stream = pushed("a</b>", stop=["</s>"])
    assert shown == ["a", "", "", "</b", ">"]
    assert not stream.stopped


def test_what_is_still_held_at_the_end_is_shown() -> None:
    shown, stream = pushed("a</", stop=["</s>"])
    assert "".join(shown) == "a"
    assert stream.flush() == "</"


def test_the_first_of_several_stop_strings_counts() -> None:
    shown, stream = pushed("one two three", stop=["three", "two", "wo t"])
    assert "".join(shown) == "one "
    assert stream.stopped


def test_a_stop_string_that_overlaps_itself_is_found() -> None:
    shown, stream = pushed("aaab", stop=["aab"])
    assert "".join(shown) == "a"
    assert stream.stopped


def test_white_space_before_the_first_word_is_stripped_and_no_other() -> None:
    shown, _ = pushed("  \n a b ", strip_start=True)
    assert "".join(shown) == "a b "


def test_special_tokens_are_no_text() -> None:
    stream = TextStream(BYTES)
    assert stream.push(BYTES.convert_tokens_to_ids("<end>")) == ""


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.text("ab🦊é ", max_size=12), st.lists(st.text("ab🦊", min_size=1, max_size=4), max_size=3)
)
def test_what_is_shown_is_the_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    shown, stream = pushed(text, stop)
    seen = "".join(shown) + ("" if stream.stopped else stream.flush())
    found = any(s in text for s in stop)
    assert stream.stopped == found
    assert text.startswith(seen)
    if found:
        assert not any(s in seen for s in stop)
        assert any(text[len(seen) :].startswith(s) for s in stop)
    else:
        assert seen == text
