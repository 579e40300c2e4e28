"""The aggregator's side of a secure round: it passes keys and boxes on, and adds masked vectors up.

It holds one sum, not the vectors. Who speaks is known from the connection, never from a message.
Whoever drives it says when a stage is over: when nobody is waited for any more, or at a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import torch

from fedsea_mq.errors import MalformedFrame, OutOfTurn, ShareMismatch, TooFewClients
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.secure_aggregation.masking import (
    add_mask,
    agree,
    mask_info,
    pair_sign,
    public_of,
    seed_digest,
)
from fedsea_mq.training.secure_aggregation.messages import (
    Box,
    FromMember,
    FromServer,
    KeyList,
    Keys,
    MaskedUpdate,
    MemberKeys,
    Reveal,
    ShareList,
    Shares,
    Stage,
    Terms,
    UnmaskRequest,
    encode_message,
)
from fedsea_mq.training.secure_aggregation.secret_sharing import combine

_NEXT: Final = {
    Stage.KEYS: Stage.SHARES,
    Stage.SHARES: Stage.MASKED,
    Stage.MASKED: Stage.UNMASK,
    Stage.UNMASK: Stage.DONE,
}
_SAID_AT: Final[dict[type[FromMember], Stage]] = {
    Keys: Stage.KEYS,
    Shares: Stage.SHARES,
    MaskedUpdate: Stage.MASKED,
    Reveal: Stage.UNMASK,
}


Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class SecureMean:
    """The weighted mean of the survivors' updates, in fp64, and their total weight."""

    update: dict[str, torch.Tensor]
    weight: int
    survivors: tuple[int, ...]


class SecureServer:
    """One round and attempt. `receive` what members say; `advance` at the end of each stage."""

    def __init__(self, terms: Terms, layout: AdapterLayout) -> None:
        """Raises `AdapterError` if the terms are of other adapters."""
        terms.check(layout)
        self.terms, self.stage, self._layout = terms, Stage.KEYS, layout
        self._context = terms.context
        # Who may speak at the present stage, and who has; then what was said at each stage.
        self._expected = frozenset(range(1, terms.members + 1))
        self._answered: set[int] = set()
        self._digests: dict[tuple[Stage, int], bytes] = {}
        self._keys: dict[int, Keys] = {}
        self._seed_digests: dict[int, bytes] = {}
        self._boxes: dict[int, dict[int, bytes]] = {}  # by sender, then receiver
        self._masked: tuple[int, ...] = ()
        # By revealer, then owner: a share of a survivor's seed or of a lost member's key.
        self._revealed: dict[int, dict[int, bytes]] = {}
        self._total = np.zeros(terms.elements + 1, np.uint64)

    @property
    def waiting_for(self) -> frozenset[int]:
        """Members that have still to answer at this stage."""
        return self._expected - self._answered

    @property
    def can_advance(self) -> bool:
        """Whether enough have answered. To unmask, more than enough is no better."""
        return len(self._answered) >= self.terms.threshold

    def receive(self, member: int, message: FromMember, vector: Buffer = b"") -> None:
        """Take what a member says; `vector` is the bytes that come with a `MaskedUpdate`.

        What was taken before is ignored when it comes again.

        Raises:
            OutOfTurn: of another round or stage, from somebody who is lost or never was a member,
                or a second message with other content.
            MalformedFrame: not about the members that it must be about, or not the vector's length.
        """
        stage, name = _SAID_AT[type(message)], type(message).__name__
        digest = blake2b(encode_message(message), digest_size=16)
        digest.update(vector)
        taken = self._digests.get((stage, member))
        if taken == digest.digest():
            return
        if message.context != self._context:
            raise OutOfTurn(f"{name} of another round")
        if stage is not self.stage or member not in self._expected:
            raise OutOfTurn(f"{name} of member {member} at stage {self.stage.name}")
        if taken is not None:
            raise OutOfTurn(f"a second {name} of member {member}, with other content")
        self._take(member, message, vector)
        self._answered.add(member)
        self._digests[stage, member] = digest.digest()

    def _take(self, member: int, message: FromMember, vector: Buffer) -> None:
        if isinstance(message, Keys):
            taken = {key for keys in self._keys.values() for key in (keys.box_key, keys.mask_key)}
            if len(taken | {message.box_key, message.mask_key}) < len(taken) + 2:
                raise MalformedFrame("public keys that are somebody's already")
            self._keys[member] = message
        elif isinstance(message, Shares):
            if [box.member for box in message.boxes] != sorted(self._expected - {member}):
                raise MalformedFrame("boxes not for each other member")
            self._boxes[member] = {box.member: box.box for box in message.boxes}
            self._seed_digests[member] = message.seed_digest
        elif isinstance(message, Reveal):
            seeds = tuple(share.member for share in message.seeds)
            lost = [share.member for share in message.mask_keys]
            if seeds != self._masked or lost != self._lost:
                raise MalformedFrame("shares not of each member's one secret")
            shares = (*message.seeds, *message.mask_keys)
            self._revealed[member] = {share.member: share.share for share in shares}
        else:
            if len(vector) != self.terms.vector_bytes:
                raise MalformedFrame(
                    f"vector of {len(vector)} bytes, expected {self.terms.vector_bytes}"
                )
            self._total += np.frombuffer(vector, "<u8")

    def advance(self) -> dict[int, FromServer]:
        """Close this stage: what each remaining member is to be told. Others are lost.

        Raises:
            TooFewClients: fewer than the threshold have answered. The stage stays open.
            OutOfTurn: the round is over.
        """
        if self.stage is Stage.DONE:
            raise OutOfTurn("the round is over")
        if not self.can_advance:
            raise TooFewClients(
                f"{len(self._answered)} members at stage {self.stage.name}, "
                f"the threshold is {self.terms.threshold}"
            )
        members = sorted(self._answered)
        if self.stage is Stage.MASKED:
            self._masked = tuple(members)
        told = self._told(members)
        self.stage, self._expected, self._answered = _NEXT[self.stage], frozenset(members), set()
        return told

    def _told(self, members: list[int]) -> dict[int, FromServer]:
        if self.stage is Stage.KEYS:
            listed = [MemberKeys(m, self._keys[m].box_key, self._keys[m].mask_key) for m in members]
            return dict.fromkeys(members, KeyList(self._context, listed))
        if self.stage is Stage.SHARES:
            return {
                receiver: ShareList(
                    self._context,
                    [Box(m, self._boxes[m][receiver]) for m in members if m != receiver],
                )
                for receiver in members
            }
        if self.stage is Stage.MASKED:
            return dict.fromkeys(members, UnmaskRequest(self._context, members))
        return {}

    def mean(self) -> SecureMean:
        """The result, once the last stage is over. The sum is unmasked here.

        Raises:
            ShareMismatch: what was revealed does not give the secrets that were announced.
            UpdateRefused: the sum is none of updates in range.
            OutOfTurn: the round is not over.
        """
        if self.stage is not Stage.DONE:
            raise OutOfTurn(f"no mean at stage {self.stage.name}")
        total = self._total.copy()
        for member in self._masked:
            add_mask(total, self._seed_of(member), -1)
        for member in self._lost:
            self._unmask_lost(total, member)
        mean, weight = self.terms.fixed_point.decode(total, len(self._masked))
        return SecureMean(self._layout.unflatten(mean), weight, self._masked)

    @property
    def _lost(self) -> list[int]:
        """Members who are in the others' masks and whose vectors did not arrive."""
        return sorted(self._boxes.keys() - {*self._masked})

    def _seed_of(self, member: int) -> bytes:
        seed = self._rebuilt(member)
        if seed_digest(self._context, member, seed) != self._seed_digests[member]:
            raise ShareMismatch(f"the rebuilt seed of member {member} is not the announced one")
        return seed

    def _unmask_lost(self, total: np.ndarray, lost: int) -> None:
        """Take away what the survivors' masks with a lost member left in the sum."""
        private = self._rebuilt(lost)
        if public_of(private) != self._keys[lost].mask_key:
            raise ShareMismatch(f"the rebuilt key of member {lost} is not the announced one")
        for survivor in self._masked:
            info = mask_info(self._context, lost, survivor)
            key = agree(private, self._keys[survivor].mask_key, info)
            add_mask(total, key, -pair_sign(survivor, lost))

    def _rebuilt(self, member: int) -> bytes:
        """A member's one secret that was revealed, from as many shares as it takes."""
        revealers = sorted(self._revealed)[: self.terms.threshold]
        return combine({revealer: self._revealed[revealer][member] for revealer in revealers})
