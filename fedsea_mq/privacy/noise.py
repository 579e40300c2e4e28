"""Clipping and Gaussian noise for the hidden states that leave the head (paper, on security).

The generator is a cryptographic stream keyed from OS entropy, one key a client node that is entered
and one stream a token prefix:

    key      = 32 bytes of OS entropy, never leaves the memory of its client node
    chain_i  = BLAKE2b(chain_{i-1} || token_i),  chain_{-1} = BLAKE2b(key; domain)
    noise_i  = std * BoxMuller(ChaCha20(chain_i))

So a position's noise depends on the key and on the tokens up to it. The same token at the same
position after the same prefix always carries the same noise, in a retry, a regeneration or another
session: there is no second draw to average with. Anything else gets independent noise. `domain`
holds what else the bytes depend on (model, cut, std, clip bound, shape), because the same noise at
two scales, or on a state clipped at two bounds, would cancel out exactly; so does a chain of a head
with an adapter, because the same noise on the states of two adapters would leave their exact
difference. The price: the trunk can tell that two sessions of one client start with the same
tokens, which near-equal states at useful noise scales tell it anyway.

With a shape (`noise_shape`) the noise of a position is std * (BoxMuller(...) @ root).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fedsea_mq.privacy.noise_shape import NoiseShape
from fedsea_mq.privacy.scale import clip_bound, noise_std
from fedsea_mq.settings import NoiseSettings

_KEY_BYTES: Final = 32
_ZERO_NONCE: Final = bytes(16)  # each stream has a key of its own
_WORD_BYTES: Final = 4


def typical_rms(states: torch.Tensor) -> float:
    """Median over positions of the RMS of `[positions, hidden]` states.

    The median, because LLaMA models put a huge state on the first position, which would make the
    noise on all others far larger than the scale says.
    """
    return float(states.float().pow(2).mean(dim=-1).sqrt().median())


def clipped(states: torch.Tensor, bound: float) -> torch.Tensor:
    """`[positions, hidden]` states, the rows longer than `bound` (L2) scaled down to it; fp32.

    Rows within the bound keep every bit.
    """
    states = states.float()
    norms: torch.Tensor = states.norm(dim=-1, keepdim=True)
    return states * (bound / norms.clamp_min(bound))


def clip_gradient(gradient: torch.Tensor, states: torch.Tensor, bound: float) -> torch.Tensor:
    """The loss's gradient by `states` from that by `clipped(states, bound)`: both fp32.

    All are `[positions, hidden]`. For a row h that was clipped, with u = h / |h|:
    (bound / |h|) (g - (g . u) u): what would lengthen a state has no effect.
    """
    states = states.float()
    norms = states.norm(dim=-1, keepdim=True)
    along = states / norms.clamp_min(bound)
    across = gradient - (gradient * along).sum(dim=-1, keepdim=True) * along
    return torch.where(norms > bound, bound / norms * across, gradient)


@dataclass(slots=True)
class NoiseChain:
    """The running digest of one session's tokens; advanced a token at a time, cut by rollback."""

    digests: list[bytes]

    def extend(self, start: int, tokens: Sequence[int]) -> list[bytes]:
        """Digests of `tokens` placed at position `start`; later positions are forgotten."""
        del self.digests[start + 1 :]
        for token in tokens:
            link = blake2b(token.to_bytes(8, "little"), key=self.digests[-1], digest_size=32)
            self.digests.append(link.digest())
        return self.digests[start + 1 :]


class NoiseSource:
    """Clips, and draws the noise of one client. `std` 0 means no noise; clipping stays.

    `clip` is the largest L2 norm of a state, None for any. `entropy` exists for tests; it is
    `os.urandom` otherwise and no seed can be given.
    """

    def __init__(
        self,
        std: float,
        domain: str,
        entropy: Callable[[int], bytes] = os.urandom,
        *,
        clip: float | None = None,
        shape: NoiseShape | None = None,
    ) -> None:
        self.std = std
        self.clip = clip
        self.shape = shape
        digest = None if shape is None else shape.digest
        said = f"{domain}|{std!r}|{clip!r}|{digest}".encode()
        self._root = blake2b(said, key=entropy(_KEY_BYTES), digest_size=32).digest()

    def chain(self, adapter: str = "") -> NoiseChain:
        """The empty chain of a new session.

        `adapter` is the digest of what the head's weights are changed by. It is empty where they
        are not changed: equal states must carry equal noise.
        """
        if not adapter:
            return NoiseChain([self._root])
        return NoiseChain([blake2b(adapter.encode(), key=self._root, digest_size=32).digest()])

    def add(self, states: torch.Tensor, digests: Sequence[bytes]) -> torch.Tensor:
        """Clipped `[positions, hidden]` states plus noise, in fp32; one digest a position."""
        assert len(digests) == states.shape[0]  # fewer would repeat the noise over positions
        states = states.float() if self.clip is None else clipped(states, self.clip)
        if self.std == 0.0:
            return states
        words = states.shape[1] + states.shape[1] % 2
        stream = b"".join(_keystream(digest, words * _WORD_BYTES) for digest in digests)
        unit = _gaussian(stream).reshape(len(digests), words)[:, : states.shape[1]]
        if self.shape is not None:
            unit = unit @ self.shape.root
        return states + self.std * unit.to(states.device)


def noise_source(how: NoiseSettings, head_rms: float, hidden: int, domain: str) -> NoiseSource:
    """What the settings say, for a head whose output has this typical RMS.

    `domain` names model and cut.

    Raises:
        ConfigError: `noise.shape` is not a shape for `hidden`.
    """
    return NoiseSource(
        noise_std(how.mode, how.scale, head_rms),
        domain,
        clip=clip_bound(how.mode, how.clip, head_rms, hidden),
        shape=None if how.shape is None else NoiseShape.load(how.shape, hidden),
    )


def fresh_noise(
    like: torch.Tensor, std: float, entropy: Callable[[int], bytes] = os.urandom
) -> torch.Tensor:
    """Noise of the shape `[positions, hidden]` of `like`, fp32, from a key that is used once.

    For gradients: another step has another gradient of the same text, and one that is sent again
    goes as the bytes that it went as. `entropy` exists for tests.
    """
    words = like.numel() + like.numel() % 2
    unit = _gaussian(_keystream(entropy(_KEY_BYTES), words * _WORD_BYTES)).reshape(-1)
    return std * unit[: like.numel()].reshape(like.shape).to(like.device)


def _keystream(key: bytes, nbytes: int) -> bytes:
    return Cipher(ChaCha20(key, _ZERO_NONCE), mode=None).encryptor().update(bytes(nbytes))


def _gaussian(stream: bytes) -> torch.Tensor:
    """Standard normals in fp32 from uniform 32-bit words, by Box-Muller (tails to 6.7 sigma)."""
    words = torch.frombuffer(bytearray(stream), dtype=torch.int32).to(torch.float64)
    # Signed words to the open interval (0, 1): the logarithm never sees zero.
    uniform = (words + (2**31 + 0.5)) / 2**32
    first, second = uniform.view(-1, 2).unbind(1)
    radius = torch.sqrt(-2.0 * torch.log(first))
    angle = 2.0 * math.pi * second
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1).float()
