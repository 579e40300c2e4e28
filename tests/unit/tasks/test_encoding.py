"""The boundary between prompt and answer, for byte-level BPE, sentencepiece and chats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fedsea_mq.errors import ContextOverflow, InvalidPrompt
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.tasks.encoding import IGNORED, Encoder
from fedsea_mq.tasks.task import Example, Prompt

TEXTS = [
    "the red fox said yes and the grey owl said no: yes, no, maybe so",
    "is it a fox? yes. is it an owl? no. the answer is maybe",
] * 20


def trained(tokenizer: Tokenizer, **settings: object) -> PreTrainedTokenizerBase:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **settings
    )


def byte_level() -> PreTrainedTokenizerBase:
    """As GPT's, Llama 3's and Qwen's: the space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer)


def metaspace() -> PreTrainedTokenizerBase:
    """As sentencepiece's newer form: a mark before each word, and before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return trained(tokenizer)


def llama_2() -> PreTrainedTokenizerBase:
    """As Llama 2's file: pieces of single words, and a normaliser that sets the marks."""
    return marked_by_normaliser(metaspace())


def over_spaces() -> PreTrainedTokenizerBase:
    """With pieces that reach over several words, as no published model has."""
    return trained(marked_by_normaliser(Tokenizer(models.BPE())))


def marked_by_normaliser(tokenizer: Any) -> Any:
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    inner.normalizer = normalizers.Sequence(marks)
    inner.pre_tokenizer = None
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    return tokenizer


KINDS = [byte_level, metaspace, llama_2]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("answer", ["yes", "no", "the red fox", "maybe so"])
def test_an_answer_has_the_tokens_that_it_has_in_the_middle_of_a_text(
    make: Callable[[], PreTrainedTokenizerBase], answer: str
) -> None:
    tokenizer = make()
    encoder = Encoder(tokenizer, 700)
    example = Example(Prompt("is it a fox?"), answer, ("yes", answer))
    encoded = encoder.training(example)
    assert list(encoded.ids) == tokenizer(f"is it a fox? {answer}")["input_ids"]
    assert tokenizer.decode(encoded.ids) == f"is it a fox? {answer}"
    # As if a text began with it, it would have another first token, or two marks.
    alone = tokenizer(answer)["input_ids"]
    spaced = tokenizer(f" {answer}")["input_ids"]
    assert list(encoded.answer) == (spaced if make is byte_level else alone)


def test_a_tokenizer_that_joins_words_is_refused() -> None:
    tokenizer = over_spaces()
    prompt = tokenizer("is it a fox?")["input_ids"]
    assert tokenizer("is it a fox? yes")["input_ids"][: len(prompt)] != prompt
    with pytest.raises(InvalidPrompt, match="joins an answer"):
        Encoder(tokenizer, 700).training(Example(Prompt("is it a fox?"), "yes"))


@pytest.mark.parametrize("make", KINDS)
def test_only_an_answer_that_is_said_freely_has_an_end(
    make: Callable[[], PreTrainedTokenizerBase],
) -> None:
    tokenizer = make()
    encoder = Encoder(tokenizer, 700)
    chosen = encoder.training(Example(Prompt("is it?"), "yes", ("yes", "no")))
    free = encoder.training(Example(Prompt("is it?"), "yes"))
    assert free.answer == (*chosen.answer, tokenizer.eos_token_id)
    assert free.labels == (*(IGNORED,) * len(free.prompt), *free.answer)
    assert len(free.labels) == len(free.ids)


def test_white_space_at_the_end_of_a_prompt_is_the_boundarys() -> None:
    encoder = Encoder(byte_level(), 700)
    answers = [
        encoder.training(Example(Prompt(text), "yes")).ids
        for text in ("is it a fox?", "is it a fox? ", "is it a fox?\n")
    ]
    assert answers[0] == answers[1] == answers[2]


def embedded() -> PreTrainedTokenizerBase:
    return Checkpoint.open("embedded").tokenizer


def test_a_chats_answer_has_the_templates_tokens_its_end_included() -> None:
    tokenizer = embedded()
    prompt = Prompt(before="Who is it?", chat=True, then=("Marina", "What does she keep?"))
    example = Example(prompt, "a red fox")
    encoded = Encoder(tokenizer, 700).training(example)
    messages = [*prompt.messages(), {"role": "assistant", "content": "a red fox"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert list(encoded.ids) == whole
    assert tokenizer.decode(encoded.answer) == " a red fox<|end|>"


def test_what_a_template_puts_after_the_end_is_not_learned() -> None:
    tokenizer = embedded()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoded = Encoder(tokenizer, 700).training(Example(Prompt("Who?", chat=True), "a fox"))
    assert tokenizer.decode(encoded.answer) == " a fox<|end|>"


def test_a_template_that_hides_the_boundary_is_refused() -> None:
    tokenizer = embedded()
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    with pytest.raises(InvalidPrompt, match="joins an answer"):
        Encoder(tokenizer, 700).training(Example(Prompt("Who?", chat=True), "a fox"))


def test_what_cannot_be_encoded_is_refused() -> None:
    encoder = Encoder(byte_level(), 8)
    with pytest.raises(ContextOverflow, match="without the passage"):
        encoder.prompt(Prompt("a fox", before="the red fox " * 9))
    with pytest.raises(InvalidPrompt, match="empty"):
        encoder.prompt(Prompt(" "))
    with pytest.raises(InvalidPrompt, match="chat template"):
        encoder.prompt(Prompt("a fox", chat=True))
    with pytest.raises(InvalidPrompt, match="right answer"):
        encoder.training(Example(Prompt("a fox"), None))


TOKENIZER = embedded()
WORDS = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8), min_size=1, max_size=40
)


@settings(deadline=None)
@given(words=WORDS, most=st.integers(12, 60), chat=st.booleans())
def test_a_long_passage_loses_its_beginning_and_nothing_else(
    words: list[str], most: int, chat: bool
) -> None:
    passage = " ".join(words)
    prompt = Prompt(passage, before=">", after="<", chat=chat)
    encoder = Encoder(TOKENIZER, most)
    found = encoder.prompt(prompt)
    assert len(found) <= most
    whole = Encoder(TOKENIZER, 1 << 20).prompt(prompt)
    if len(whole) <= most:
        assert found == whole
        return
    text = TOKENIZER.decode(found)
    opening, closing = ("<|bos|><|user|> >", "<<|end|><|assistant|>") if chat else (">", "<")
    assert text.startswith(opening)
    assert text.endswith(closing)
    assert passage.endswith(text.removeprefix(opening).removesuffix(closing))


def test_a_cut_falls_between_words_where_there_are_words() -> None:
    tokenizer = embedded()
    passage = " ".join(f"supercalifragilistic{number}" for number in range(40))
    text = tokenizer.decode(Encoder(tokenizer, 60).prompt(Prompt(passage)))
    assert text
    assert all(word in passage.split() for word in text.split())
    unspaced = "x" * 400
    assert 0 < len(Encoder(tokenizer, 60).prompt(Prompt(unspaced))) <= 60
