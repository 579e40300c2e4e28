"""A member's side of a secure round. One object a round and attempt: its secrets are used once.

| stage | `share` | `hold` | `mask` | `reveal` |
|---|---|---|---|---|
| KEYS | on to SHARES | refused | refused | refused |
| SHARES | the same again | on to MASKED | refused | refused |
| MASKED | the same again | the same again | on to UNMASK | refused |
| UNMASK | the same again | the same again | refused | on to DONE |
| DONE | the same again | the same again | refused | the same again |

"The same again": the same message gets the same answer, any other is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from fedsea_mq.errors import (
    MalformedFrame,
    MasksSpent,
    OutOfTurn,
    RemoteError,
    RevealRefused,
    TooFewClients,
)
from fedsea_mq.model.lora import Adapter
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.secure_aggregation.masking import (
    KEY_BYTES,
    KeyPair,
    add_mask,
    agree,
    box_info,
    mask_info,
    pair_sign,
    seal,
    seed_digest,
    unseal,
)
from fedsea_mq.training.secure_aggregation.messages import (
    Box,
    FromServer,
    KeyList,
    Keys,
    MaskedUpdate,
    MemberKeys,
    Reveal,
    Share,
    ShareList,
    Shares,
    Stage,
    Terms,
    UnmaskRequest,
)
from fedsea_mq.training.secure_aggregation.secret_sharing import SHARE_BYTES, split

A = TypeVar("A")


class SecureClient:
    """Member number `member` (from 1) of a round. `entropy` exists for tests.

    The terms are the server's: whether their threshold and range are acceptable is to be judged
    before.
    """

    def __init__(
        self,
        terms: Terms,
        layout: AdapterLayout,
        member: int,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Draws the round's secrets; `keys` is the first message.

        Raises:
            OutOfTurn: the terms have no such member.
            AdapterError: the terms are of other adapters.
        """
        terms.check(layout)
        if not 1 <= member <= terms.members:
            raise OutOfTurn(f"member {member} of a round of {terms.members}")
        self.terms, self.member, self.stage = terms, member, Stage.KEYS
        self._layout = layout
        self._context, self._entropy = terms.context, entropy
        self._box_keys, self._mask_keys = KeyPair(entropy), KeyPair(entropy)
        self._seed = entropy(KEY_BYTES)
        self.keys = Keys(self._context, self._box_keys.public, self._mask_keys.public)
        self._peers: dict[int, MemberKeys] = {}
        # Of each member in the masks, ourselves too: the share of its mask key, then of its seed.
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._heard: dict[type, FromServer] = {}
        self._shares: Shares | None = None
        self._reveal: Reveal | None = None

    def share(self, listed: KeyList) -> Shares:
        """Answer the key list with shares of our two secrets, sealed for each other member.

        Raises:
            TooFewClients: fewer than the threshold are listed.
            MalformedFrame: not a list of distinct keys that has ours in it.
            OutOfTurn: of another round, or another list than before.
        """
        if self._shares is not None and self._again(listed):
            return self._shares
        self._expect(Stage.KEYS, listed)
        self._peers = self._checked(listed)
        everyone = sorted((self.member, *self._peers))
        of_key = split(self._mask_keys.private, everyone, self.terms.threshold, self._entropy)
        of_seed = split(self._seed, everyone, self.terms.threshold, self._entropy)
        self._held = {self.member: (of_key[self.member], of_seed[self.member])}
        boxes = [
            Box(peer, seal(self._box_key(self.member, peer), of_key[peer] + of_seed[peer]))
            for peer in sorted(self._peers)
        ]
        known_by = seed_digest(self._context, self.member, self._seed)
        self._shares = Shares(self._context, known_by, boxes)
        return self._done(Stage.SHARES, listed, self._shares)

    def hold(self, listed: ShareList) -> None:
        """Open and keep the others' shares; who sent some takes part in the masks.

        Raises:
            TooFewClients: with us, fewer than the threshold sent shares.
            MalformedFrame: a box does not open, or is from no member that was listed.
            OutOfTurn: of another round, or another list than before.
        """
        if self._again(listed):
            return
        self._expect(Stage.SHARES, listed)
        self._enough(1 + len(listed.boxes))
        opened = {}
        for box in listed.boxes:
            if box.member not in self._peers:
                raise MalformedFrame(f"a box from member {box.member}, whose keys are not listed")
            content = unseal(self._box_key(box.member, self.member), box.box)
            opened[box.member] = (content[:SHARE_BYTES], content[SHARE_BYTES:])
        self._held.update(opened)
        self._done(Stage.MASKED, listed, None)

    def mask(self, update: Adapter, weight: int) -> tuple[MaskedUpdate, memoryview]:
        """The update times its weight (the samples), and the weight, masked, as bytes.

        It can be done once: to send the vector again, keep it.

        Raises:
            AdapterError: not of the agreed layout or range; nothing was masked.
            MasksSpent: an update was masked already.
            OutOfTurn: the others' shares are not held yet.
        """
        if self.stage in (Stage.UNMASK, Stage.DONE):
            raise MasksSpent("an update was masked in this round; masks serve once")
        if self.stage is not Stage.MASKED:
            raise OutOfTurn(f"nothing can be masked at stage {self.stage.name}")
        vector = self.terms.fixed_point.encode(self._layout.flatten(update), weight)
        self.stage = Stage.UNMASK
        add_mask(vector, self._seed, 1)
        for peer in self._held.keys() - {self.member}:
            info = mask_info(self._context, self.member, peer)
            key = agree(self._mask_keys.private, self._peers[peer].mask_key, info)
            add_mask(vector, key, pair_sign(self.member, peer))
        return MaskedUpdate(self._context), vector.astype("<u8", copy=False).data.cast("B")

    def reveal(self, request: UnmaskRequest) -> Reveal:
        """Shares of the seeds of survivors and of the mask keys of the lost: of no member both.

        Answered once. Another request afterwards is refused, so that nobody who is a survivor to
        one request can be lost to the next.

        Raises:
            RevealRefused: fewer survivors than the threshold, one who is not in the masks, we
                ourselves lost, or another request than the one answered before.
            OutOfTurn: of another round, or before our update was masked.
        """
        if self._reveal is not None and self._again(request, RevealRefused):
            return self._reveal
        self._expect(Stage.UNMASK, request)
        survivors = set(request.survivors)
        if len(survivors) < self.terms.threshold:
            raise RevealRefused(
                f"{len(survivors)} survivors, the threshold is {self.terms.threshold}"
            )
        if self.member not in survivors or not survivors <= self._held.keys():
            raise RevealRefused("survivors who are not in the masks, or without us")
        lost = self._held.keys() - survivors
        seeds = [Share(member, self._held[member][1]) for member in sorted(survivors)]
        mask_keys = [Share(member, self._held[member][0]) for member in sorted(lost)]
        self._reveal = Reveal(self._context, seeds, mask_keys)
        return self._done(Stage.DONE, request, self._reveal)

    def _box_key(self, sender: int, receiver: int) -> bytes:
        peer = self._peers[receiver if sender == self.member else sender]
        info = box_info(self._context, sender, receiver)
        return agree(self._box_keys.private, peer.box_key, info)

    def _checked(self, listed: KeyList) -> dict[int, MemberKeys]:
        """The other members' keys."""
        self._enough(len(listed.members))
        keys = {one.member: one for one in listed.members}
        ours = keys.pop(self.member, None)
        if ours != MemberKeys(self.member, self.keys.box_key, self.keys.mask_key):
            raise MalformedFrame("a key list without our keys")
        distinct = {key for one in listed.members for key in (one.box_key, one.mask_key)}
        if len(distinct) < 2 * len(listed.members) or max(keys) > self.terms.members:
            raise MalformedFrame("a key list with a key twice, or with a member too many")
        return keys

    def _enough(self, members: int) -> None:
        if members < self.terms.threshold:
            raise TooFewClients(f"{members} members, the threshold is {self.terms.threshold}")

    def _again(self, message: FromServer, refusal: type[RemoteError] = OutOfTurn) -> bool:
        """Whether this is what was answered before; something else in its place is refused."""
        heard = self._heard.get(type(message))
        if heard is not None and heard != message:
            raise refusal(f"another {type(message).__name__} than the one answered before")
        return heard is not None

    def _expect(self, stage: Stage, message: FromServer) -> None:
        if message.context != self._context:
            raise OutOfTurn(f"{type(message).__name__} of another round")
        if self.stage is not stage:
            raise OutOfTurn(f"{type(message).__name__} at stage {self.stage.name}")

    def _done(self, stage: Stage, message: FromServer, answer: A) -> A:
        self.stage = stage
        self._heard[type(message)] = message
        return answer
