"""How much of a text an attack recovered, over several victims."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from fedsea_mq.errors import ConfigError
from fedsea_mq.tasks.metrics import Rouge

# A token that is more than one in so many of the shadow text's is no content.
_COMMON: Final = 200
_RESAMPLED: Final = 1000


@dataclass(frozen=True, slots=True)
class Guessed:
    """A victim's tokens, what was guessed for each, and the words in it that were secret."""

    tokens: Sequence[int]
    guess: Sequence[int]
    prompt: int
    secrets: Sequence[str]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Shares from 0 to 1. The prompt is meant, but where the answer is named.

    `ci` is the 95 % interval of `token_recovery` by a bootstrap over victims. Content tokens are
    those that are rare in text of the kind; a secret is recovered if its words stand in the guess.
    """

    token_recovery: float
    ci: tuple[float, float]
    content_recovery: float
    answer_recovery: float | None
    rouge_l: float
    bleu: float
    exact_prompts: float
    secrets: float

    def as_json(self) -> dict[str, Any]:
        """Rounded for people."""
        told = {name: value for name, value in asdict(self).items() if name != "ci"}
        rounded = {name: None if v is None else round(v, 4) for name, v in told.items()}
        return {**rounded, "ci": [round(bound, 4) for bound in self.ci]}


class Judge:
    """Compares guesses with what was said.

    `shadow` are texts of the kind, which say what is common. Raises `ConfigError` without the
    library that BLEU is from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, shadow: Iterable[Sequence[int]]) -> None:
        self._tokenizer = tokenizer
        self._counts = Counter(token for tokens in shadow for token in tokens)
        self._total = self._counts.total()
        self._rouge = Rouge("rougeL")
        try:
            from sacrebleu import corpus_bleu
        except ImportError as error:
            raise ConfigError(
                "an audit needs sacrebleu: install fedsea_mq with the extra audit"
            ) from error
        self._corpus_bleu = corpus_bleu

    def is_content(self, token: int) -> bool:
        """Whether a token is rare enough to say something."""
        return self._counts[token] * _COMMON < self._total

    def random_baseline(self, victims: Sequence[Guessed]) -> float:
        """The share that is right if tokens are drawn as often as the shadow text has them."""
        prompts = (token for one in victims for token in one.tokens[: one.prompt])
        return fmean(self._counts[token] / self._total for token in prompts)

    def judge(self, victims: Sequence[Guessed]) -> Recovery:
        """Over all victims together."""
        texts = [
            (self._text(one.tokens[: one.prompt]), self._text(_prompt(one))) for one in victims
        ]
        return Recovery(
            token_recovery=share([_hits(one, slice(0, one.prompt)) for one in victims]),
            ci=bootstrap([_hits(one, slice(0, one.prompt)) for one in victims]),
            content_recovery=share([self._content(one) for one in victims]),
            answer_recovery=_answers(victims),
            rouge_l=fmean(self._rouge(guess, true)["rougeL"] for true, guess in texts),
            bleu=self._bleu(texts),
            exact_prompts=fmean(
                list(_prompt(one)) == list(one.tokens[: one.prompt]) for one in victims
            ),
            secrets=share([self._secrets(one) for one in victims]),
        )

    def _bleu(self, texts: Sequence[tuple[str, str]]) -> float:
        trues, guesses = zip(*texts, strict=True)
        return float(self._corpus_bleu(list(guesses), [list(trues)]).score) / 100

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _content(self, one: Guessed) -> list[bool]:
        pairs = zip(one.tokens[: one.prompt], _prompt(one), strict=True)
        return [token == guess for token, guess in pairs if self.is_content(token)]

    def _secrets(self, one: Guessed) -> list[bool]:
        text = self._text(_prompt(one))
        return [secret in text for secret in one.secrets]


def _prompt(one: Guessed) -> Sequence[int]:
    return one.guess[: one.prompt]


def _hits(one: Guessed, part: slice) -> list[bool]:
    pairs = zip(one.tokens[part], one.guess[part], strict=True)
    return [token == guess for token, guess in pairs]


def _answers(victims: Sequence[Guessed]) -> float | None:
    """Of the tokens after the prompts, if there are any."""
    hits = [_hits(one, slice(one.prompt, None)) for one in victims]
    return share(hits) if any(hits) else None


def share(hits: Sequence[Sequence[bool]]) -> float:
    """Of all hits and misses, over all texts; 0 of none."""
    every = [hit for one in hits for hit in one]
    return fmean(every) if every else 0.0


def bootstrap(hits: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """The 95 % interval of `share`.

    Whole texts are drawn again: the positions of one are not independent.
    """
    drawn: Callable[..., list[Sequence[bool]]] = random.Random(0).choices  # noqa: S311
    shares = sorted(share(drawn(hits, k=len(hits))) for _ in range(_RESAMPLED))
    return shares[_RESAMPLED // 40], shares[-_RESAMPLED // 40 - 1]
