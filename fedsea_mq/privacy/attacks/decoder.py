"""A learned decoder: what a client that works with the trunk can teach it (paper, security).

The colluding client sends texts of its own, and tells the trunk which. The decoder sees all of a
sequence, later positions too, and is asked for the token of each position. As the paper published
its attack, it was asked for the next token, from positions before it only, which understates what
can be read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen

# At most, and so many a text.
_STEPS: Final = 160
_STEPS_A_TEXT: Final = 5
_BATCH: Final = 8
_RATE: Final = 1e-3
_HEADS: Final = 4
_LAYERS: Final = 2
_PADDING: Final = -100


class LearnedDecoder:
    """Transformer blocks and an lm_head, trained on pairs of states and tokens."""

    name: ClassVar[str] = "learned decoder"
    knowledge: ClassVar[Knowledge] = Knowledge.SHADOW

    def fit(self, known: Known) -> None:
        """Train on the shadow text, with fresh noise each time it is sent."""
        clean = [known.model.states(tokens) for tokens in known.shadow]
        self._scale = torch.cat(clean).square().mean().sqrt() + known.sigma
        # Its own generator: what is drawn here hides nothing.
        self._drawn = torch.Generator().manual_seed(0)
        # It cannot learn to guess what its texts do not have.
        self._tokens = sorted({token for tokens in known.shadow for token in tokens})
        numbers = {token: number for number, token in enumerate(self._tokens)}
        shadow = [[numbers[token] for token in tokens] for tokens in known.shadow]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._decoder = _Decoder(clean[0].shape[1], len(self._tokens))
        self._train(clean, shadow, known.sigma)

    def _train(
        self, clean: Sequence[torch.Tensor], shadow: Sequence[list[int]], sigma: float
    ) -> None:
        picked = random.Random(0)  # noqa: S311 - an order to learn in
        optimiser = torch.optim.AdamW(self._decoder.parameters(), lr=_RATE)
        steps = min(_STEPS, _STEPS_A_TEXT * len(clean))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3 * _RATE, total_steps=steps)
        for _ in range(steps):
            batch = picked.choices(range(len(clean)), k=_BATCH)
            states = [self._noised(clean[number].cpu(), sigma) for number in batch]
            tokens = [torch.tensor(shadow[number]) for number in batch]
            wanted = pad_sequence(tokens, batch_first=True, padding_value=_PADDING)
            guessed = self._decoder(pad_sequence(states, batch_first=True), wanted == _PADDING)
            loss = cross_entropy(guessed.flatten(0, 1), wanted.flatten(), ignore_index=_PADDING)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        self._decoder.eval()

    def _noised(self, states: torch.Tensor, sigma: float) -> torch.Tensor:
        noise = torch.randn(states.shape, generator=self._drawn)
        return (states + sigma * noise) / self._scale

    @torch.inference_mode()
    def recover(self, seen: Seen) -> list[int]:
        """See `Attack.recover`."""
        states = (seen.received.cpu() / self._scale)[None]
        padding = torch.zeros(states.shape[:2], dtype=torch.bool)
        return [self._tokens[n] for n in self._decoder(states, padding)[0].argmax(dim=-1).tolist()]


class _Decoder(nn.Module):
    def __init__(self, hidden: int, vocab: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            hidden, _HEADS, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        self.lm_head = nn.Linear(hidden, vocab)

    def forward(self, states: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """`[batch, positions, hidden]` to logits `[batch, positions, vocab]`."""
        logits: torch.Tensor = self.lm_head(self.blocks(states, src_key_padding_mask=padding))
        return logits
