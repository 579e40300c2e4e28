"""A secure round in one process: messages go as bytes, and members are lost where a test says."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

import torch

from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.averaging import WeightedMean
from fedsea_mq.training.secure_aggregation.client import SecureClient
from fedsea_mq.training.secure_aggregation.messages import (
    KeyList,
    MemberKeys,
    Message,
    Stage,
    Terms,
    decode_message,
    encode_message,
)
from fedsea_mq.training.secure_aggregation.server import SecureServer
from tests.unit.training.adapters import SHAPES, adapters

LAYOUT = AdapterLayout.of(SHAPES)
Update = tuple[dict[str, torch.Tensor], int]


def terms(
    members: int = 5, threshold: int = 3, layout: AdapterLayout = LAYOUT, **fields: Any
) -> Terms:
    given = {
        "round": 4,
        "attempt": 0,
        "nonce": bytes(16),
        "members": members,
        "threshold": threshold,
        "layout": layout.digest,
        "elements": layout.elements,
        "max_weight": 1000,
        "max_abs": 8.0,
    }
    return Terms(**{**given, **fields})


def entropy(seed: int) -> Callable[[int], bytes]:
    """Repeatable bytes, so that a statistic does not fail one run in a thousand."""
    return random.Random(seed).randbytes


def over_the_wire(message: Message) -> Any:
    return decode_message(type(message), encode_message(message))


def updates(members: int, scale: float = 1.0) -> dict[int, Update]:
    return {
        member: (adapters(member, scale), 1 + 37 * member % 1000)
        for member in range(1, members + 1)
    }


class SecureRound:
    """Server and members of one round, taken from stage to stage."""

    def __init__(self, of: Terms, layout: AdapterLayout = LAYOUT, seed: int = 0) -> None:
        self.server = SecureServer(of, layout)
        self.members = {
            member: SecureClient(of, layout, member, entropy(1000 * seed + member))
            for member in range(1, of.members + 1)
        }
        self.vectors: dict[int, bytes] = {}
        self.told: dict[int, Any] = {}

    def _advance(self) -> None:
        self.told = {member: over_the_wire(m) for member, m in self.server.advance().items()}

    def keys(self, lost: Collection[int] = ()) -> None:
        for member, client in self.members.items():
            if member not in lost:
                self.server.receive(member, over_the_wire(client.keys))
        self._advance()

    def shares(self, lost: Collection[int] = ()) -> None:
        for member in self.told.keys() - {*lost}:
            answer = self.members[member].share(self.told[member])
            self.server.receive(member, over_the_wire(answer))
        self._advance()

    def masked(self, given: dict[int, Update], lost: Collection[int] = ()) -> None:
        for member in self.told.keys() - {*lost}:
            client = self.members[member]
            client.hold(self.told[member])
            message, vector = client.mask(*given[member])
            self.vectors[member] = bytes(vector)
            self.server.receive(member, over_the_wire(message), vector)
        self._advance()

    def unmask(self, lost: Collection[int] = ()) -> None:
        for member in self.told.keys() - {*lost}:
            answer = self.members[member].reveal(self.told[member])
            self.server.receive(member, over_the_wire(answer))
        self._advance()


def plain_mean(given: dict[int, Update], of: Collection[int]) -> WeightedMean:
    mean = WeightedMean(LAYOUT)
    for member in of:
        mean.add(*given[member])
    return mean


def until(stage: Stage, lost_before_masking: Collection[int] = ()) -> SecureRound:
    """A round of five, threshold three, that waits at a stage."""
    one = SecureRound(terms())
    steps = {
        Stage.SHARES: one.keys,
        Stage.MASKED: one.shares,
        Stage.UNMASK: lambda: one.masked(updates(5), lost_before_masking),
        Stage.DONE: one.unmask,
    }
    for reached, step in steps.items():
        if one.server.stage is stage:
            break
        step()
        assert one.server.stage is reached
    return one


def key_list(one: SecureRound) -> KeyList:
    """The list that the members of a round were sent."""
    listed = [
        MemberKeys(member, client.keys.box_key, client.keys.mask_key)
        for member, client in one.members.items()
    ]
    return KeyList(one.server.terms.context, listed)
