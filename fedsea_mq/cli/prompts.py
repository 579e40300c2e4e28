"""Prompts for verification, from a file or from the project's own tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fedsea_mq.errors import CheckpointError, ConfigError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.tasks.dialogues import Kind, dialogues

_SEED = 11


def prompt_tokens(
    checkpoint: Checkpoint, file: Path | None, count: int, max_tokens: int
) -> list[list[int]]:
    """`count` prompts as token ids, cut to `max_tokens`.

    From `file` (JSON lines, see `read_texts`), else from held-out worlds; for a model without a
    tokenizer, seeded random ids of growing length.
    """
    try:
        tokenizer = checkpoint.tokenizer
    except CheckpointError:
        return _random_ids(int(checkpoint.config.vocab_size), count, max_tokens)
    texts = read_texts(file, count) if file is not None else _own_texts(count)
    return [list(tokenizer(text)["input_ids"])[:max_tokens] for text in texts]


def read_texts(file: Path, count: int) -> list[str]:
    """The first `count` texts of a JSON-lines file: `prompt`, `text` or MultiRC's passages.

    Raises:
        ConfigError: names the file and the line that holds none.
    """
    texts: list[str] = []
    try:
        with file.open() as lines:
            for number, line in enumerate(lines, 1):
                if len(texts) == count:
                    break
                texts.append(_text(json.loads(line), file, number))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON lines") from error
    if not texts:
        raise ConfigError(f"{file}: no prompts")
    return texts


def _text(record: Any, file: Path, number: int) -> str:
    fields = record if isinstance(record, dict) else {}
    passage = fields.get("passage")
    inner = passage.get("text") if isinstance(passage, dict) else passage
    text = fields.get("prompt") or fields.get("text") or inner
    if not isinstance(text, str):
        raise ConfigError(f"{file}:{number}: expected prompt, text or passage.text, found none")
    return text


def _own_texts(count: int) -> list[str]:
    told = [
        dialogue.prompt(0).text
        for kind in (Kind.UNDERSTANDING, Kind.SUMMARY, Kind.CONVERSATION)
        for dialogue in dialogues(kind, _SEED, -(-count // 3))
    ]
    return told[:count]


def _random_ids(vocab: int, count: int, max_tokens: int) -> list[list[int]]:
    rng = random.Random(_SEED)  # noqa: S311 - test prompts, not secrets
    lengths = [min(max_tokens, 1 + 13 * number) for number in range(count)]
    return [[rng.randrange(vocab) for _ in range(length)] for length in lengths]
