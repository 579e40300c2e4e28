"""Sessions and registrations belong to keys: what another key asks for is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from broker.core import BrokerCore
from broker.limits import Limits
from broker.messages import Send, Side
from broker.state import BrokerTerms
from fedsea_mq.errors import (
    Busy,
    MalformedFrame,
    NodeUnknown,
    NotTrusted,
    SessionNotYours,
    SessionUnknown,
)
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, Open, Register
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.stage import Onward, Stage
from fedsea_mq.protocol.training_messages import Enlist
from fedsea_mq.security.identity import Identity, Party
from tests.unit.broker.placing import (
    EXTEND,
    LLAMA,
    S1,
    S2,
    TERMS,
    accept,
    closes,
    load,
    offer,
    read,
    refused,
    result,
)


def known(name: str, *parties: Party) -> Identity:
    return Identity(name.encode().ljust(16, b"."), frozenset(parties), frozenset({name}))


ANNA, BERT = known("anna", Party.CLIENT), known("bert", Party.CLIENT)
CLINIC = known("clinic", Party.TRAINER)
RACK, OTHER_RACK = known("rack", Party.TRUNK), known("other rack", Party.TRUNK)
AGGREGATOR = known("aggregator", Party.AGGREGATOR)
HERE, THERE = b"here", b"there"


@dataclass
class Keyed:
    """A broker whose peers all have keys; node `RACK` speaks from `node`."""

    now: float = 100.0
    terms: BrokerTerms = TERMS

    def __post_init__(self) -> None:
        self.core = BrokerCore(self.terms, started_at=0.0)

    def client(self, who: Identity, frame: Frame, peer: bytes = HERE) -> list[Send]:
        return self.core.from_client(peer, frame.parts(), self.now, who)

    def node(self, who: Identity, frame: Frame, peer: bytes = b"node") -> list[Send]:
        return self.core.from_node(peer, frame.parts(), self.now, who)

    def register(
        self,
        who: Identity,
        peer: bytes = b"node",
        sessions: tuple[bytes, ...] = (),
        owners: tuple[bytes, ...] = (),
        role: Role = Role.TRUNK,
        run: str | None = None,
        slots: int = 8,
    ) -> list[Send]:
        room = replace(load(), sessions_free=slots)
        offer = Register("n", LLAMA, 1, 1, 64, room, list(sessions), role, run, owners=list(owners))
        return self.node(who, Frame.build(Kind.REGISTER, offer), peer)

    def open(self, who: Identity, session: bytes = S1, peer: bytes = HERE) -> list[Send]:
        body = Open(LLAMA, 10, WireDtype.FP16, client=b"somebody else")
        return self.client(who, Frame.build(Kind.OPEN, body, session=session), peer)

    def enlist(
        self, who: Identity, member: str | None, session: bytes = S1, role: Role = Role.TRUNK
    ) -> list[Send]:
        body = Enlist(role, "silos", LLAMA, "00" * 32, WireDtype.FP32, member)
        return self.client(who, Frame.build(Kind.ENLIST, body, session=session))

    def opened(self, who: Identity, session: bytes = S1) -> None:
        (sent,) = self.open(who, session)
        assert sent.side is Side.NODES
        self.node(RACK, accept(session))


@pytest.fixture
def keyed() -> Keyed:
    keyed = Keyed()
    keyed.register(RACK)
    return keyed


def extend(session: bytes = S1) -> Frame:
    return Frame.build(Kind.EXTEND, EXTEND, session=session, seq=6, payload=[b"states"])


class TestStolenSessions:
    @pytest.mark.parametrize(
        "frame",
        [
            extend(),
            Frame.build(Kind.RENEW, Nothing(), session=S1),
            Frame.build(Kind.CLOSE, Nothing(), session=S1),
            Frame.build(Kind.OPEN, Open(LLAMA, 10, WireDtype.FP16), session=S1),
        ],
        ids=["extend", "renew", "close", "open"],
    )
    def test_whatever_another_key_says_in_a_session_is_refused(
        self, keyed: Keyed, frame: Frame
    ) -> None:
        keyed.opened(ANNA)
        (sent,) = keyed.client(BERT, frame, THERE)
        assert (sent.side, sent.peer) == (Side.CLIENTS, THERE)
        refused(sent, SessionNotYours)
        # Neither is the session gone, nor do its answers go anywhere else.
        (back,) = keyed.node(RACK, result(S1))
        assert (back.side, back.peer) == (Side.CLIENTS, HERE)

    def test_even_from_the_connection_that_its_client_had(self, keyed: Keyed) -> None:
        keyed.opened(ANNA)
        (sent,) = keyed.client(BERT, extend(), HERE)
        refused(sent, SessionNotYours)

    def test_its_own_key_may_speak_from_any_connection(self, keyed: Keyed) -> None:
        keyed.opened(ANNA)
        (sent,) = keyed.client(ANNA, extend(), THERE)
        assert sent.side is Side.NODES
        (back,) = keyed.node(RACK, result(S1))
        assert back.peer == THERE

    def test_a_session_that_waits_for_room_is_its_keys_already(self) -> None:
        keyed = Keyed()
        keyed.register(RACK, slots=0)
        keyed.open(ANNA)
        assert keyed.open(ANNA) == []  # held
        for sent in (
            *keyed.open(BERT),
            *keyed.client(BERT, Frame.build(Kind.CLOSE, Nothing(), session=S1)),
        ):
            refused(sent, SessionNotYours)
        (_, placed) = keyed.register(RACK)
        assert (placed.side, read(placed).envelope.session) == (Side.NODES, S1)
        assert read(placed).body(Open).client == ANNA.id

    def test_after_a_restart_of_the_broker_nodes_say_whose_sessions_are(self, keyed: Keyed) -> None:
        (sent,) = keyed.open(ANNA)
        told = read(sent).body(Open).client
        assert told == ANNA.id
        again = Keyed(now=0.1)
        again.register(RACK, sessions=(S1, S2), owners=(told, BERT.id))
        refused(again.client(BERT, extend())[0], SessionNotYours)
        assert again.client(ANNA, extend())[0].side is Side.NODES
        assert again.client(BERT, extend(S2))[0].side is Side.NODES

    def test_who_took_a_session_id_before_its_node_had_registered_gets_none_of_it(self) -> None:
        keyed = Keyed(now=0.1)
        keyed.register(OTHER_RACK, b"other")
        keyed.open(BERT, peer=THERE)
        keyed.core.undelivered(Side.NODES, b"other")
        keyed.register(RACK, sessions=(S1,), owners=(ANNA.id,))
        assert keyed.node(RACK, result(S1)) == []
        refused(keyed.client(BERT, extend(), THERE)[0], SessionNotYours)

    def test_a_node_says_whose_all_of_its_sessions_are_or_is_not_registered(self) -> None:
        keyed = Keyed()
        (sent,) = keyed.register(RACK, sessions=(S1, S2), owners=(ANNA.id,))
        refused(sent, MalformedFrame)
        refused(keyed.node(RACK, Frame.build(Kind.HEARTBEAT, load()))[0], NodeUnknown)

    def test_sessions_whose_owner_a_node_does_not_say_are_nobodys(self) -> None:
        keyed = Keyed()
        keyed.register(RACK, sessions=(S1,))
        refused(keyed.client(ANNA, extend())[0], SessionNotYours)


class TestRoles:
    def test_only_a_client_opens_sessions(self, keyed: Keyed) -> None:
        for who in (RACK, CLINIC, AGGREGATOR, Identity(ANNA.id, frozenset())):
            (sent,) = keyed.open(who)
            refused(sent, NotTrusted)
        assert keyed.open(ANNA)[0].side is Side.NODES

    def test_members_enlist_as_trainers_and_the_aggregator_as_itself(self, keyed: Keyed) -> None:
        keyed.register(RACK, run="silos")
        for who, member in (
            (ANNA, "anna"),
            (AGGREGATOR, "aggregator"),
            (CLINIC, None),
            (ANNA, None),
            (RACK, None),
        ):
            refused(keyed.enlist(who, member)[0], NotTrusted)
        assert keyed.enlist(CLINIC, "clinic")[0].side is Side.NODES
        assert keyed.enlist(AGGREGATOR, None, S2)[0].side is Side.NODES

    def test_a_member_is_called_as_its_key_is(self, keyed: Keyed) -> None:
        keyed.register(RACK, run="silos")
        for name in ("silo-1", "clinic-2", "clinic.2.3", "north.clinic"):
            refused(keyed.enlist(CLINIC, name)[0], NotTrusted)
        assert keyed.enlist(CLINIC, "clinic.2")[0].side is Side.NODES

    def test_a_node_registers_as_what_its_key_is_trusted_to_be(self, keyed: Keyed) -> None:
        for who in (ANNA, CLINIC, AGGREGATOR):
            refused(keyed.register(who, b"x")[0], NotTrusted)
        for who in (ANNA, RACK):
            refused(keyed.register(who, b"x", role=Role.AGGREGATOR, run="silos")[0], NotTrusted)
        (sent,) = keyed.register(AGGREGATOR, b"x", role=Role.AGGREGATOR, run="silos")
        assert read(sent).envelope.kind is Kind.REGISTERED

    def test_a_key_that_is_nothing_gets_no_report_either(self, keyed: Keyed) -> None:
        status = Frame.build(Kind.STATUS, Nothing())
        for who in (RACK, Identity(ANNA.id, frozenset())):
            refused(keyed.client(who, status)[0], NotTrusted)
        for who in (ANNA, CLINIC, AGGREGATOR):
            assert read(keyed.client(who, status)[0]).envelope.kind is Kind.STATUS_REPORT


class TestNodes:
    def test_another_key_cannot_speak_as_a_node_from_its_address(self, keyed: Keyed) -> None:
        keyed.opened(ANNA)
        for frame in (result(S1), Frame.build(Kind.LEAVE, Nothing())):
            (sent,) = keyed.node(OTHER_RACK, frame)
            assert sent.side is Side.NODES
            refused(sent, NotTrusted)
        assert keyed.client(ANNA, extend())[0].side is Side.NODES

    def test_a_node_cannot_claim_another_keys_sessions(self, keyed: Keyed) -> None:
        keyed.opened(ANNA)
        keyed.register(OTHER_RACK, b"other", sessions=(S1,), owners=(BERT.id,))
        (sent,) = keyed.client(ANNA, extend())
        assert sent.peer == b"node"

    def test_a_node_that_comes_back_from_another_connection_has_its_sessions(
        self, keyed: Keyed
    ) -> None:
        keyed.opened(ANNA)
        keyed.register(RACK, b"again", sessions=(S1,), owners=(ANNA.id,))
        (sent,) = keyed.client(ANNA, extend())
        assert sent.peer == b"again"
        (back,) = keyed.node(RACK, result(S1), b"again")
        assert back.peer == HERE


class TestRevocation:
    def test_a_clients_sessions_end_on_both_sides(self, keyed: Keyed) -> None:
        keyed.opened(ANNA, S1)
        keyed.opened(BERT, S2)
        at_node, at_client = keyed.core.revoked({ANNA.id})
        assert closes(at_node, b"node", S1)
        assert (at_client.side, at_client.peer) == (Side.CLIENTS, HERE)
        refused(at_client, NotTrusted)
        assert keyed.client(BERT, extend(S2))[0].side is Side.NODES
        refused(keyed.client(ANNA, extend(S1))[0], SessionUnknown)
        # What is asked with a key that is nothing any more is answered, so that nobody asks on.
        (sent,) = keyed.client(Identity(ANNA.id, frozenset()), extend(S2))
        refused(sent, NotTrusted)
        assert (read(sent).envelope.session, read(sent).envelope.seq) == (S2, 6)

    def test_a_waiting_request_is_not_served_any_more(self) -> None:
        keyed = Keyed()
        keyed.register(RACK, slots=0)
        keyed.open(ANNA)
        keyed.open(ANNA)
        assert keyed.core.revoked({ANNA.id}) == []
        (sent,) = keyed.register(RACK)
        assert read(sent).envelope.kind is Kind.REGISTERED

    def test_a_node_is_as_good_as_dead(self, keyed: Keyed) -> None:
        keyed.opened(ANNA)
        (told,) = keyed.core.revoked({RACK.id})
        assert (told.side, told.peer) == (Side.CLIENTS, HERE)
        assert read(told).envelope.kind is Kind.CLOSE
        refused(keyed.node(Identity(RACK.id, frozenset()), result(S1))[0], NotTrusted)


class TestStages:
    """`RACK` has the first blocks and a session of Anna's, `OTHER_RACK` the others."""

    @pytest.fixture
    def chain(self) -> Keyed:
        keyed = Keyed()
        for who, peer, stage in ((RACK, b"node", (1, 3)), (OTHER_RACK, b"other", (3, 5))):
            body = offer("n", stage=Stage(*stage, 1, 5))
            keyed.node(who, Frame.build(Kind.REGISTER, body), peer)
        keyed.opened(ANNA)
        return keyed

    @staticmethod
    def onward(session: bytes) -> Frame:
        asked = Open(LLAMA, 10, WireDtype.FP16, onward=Onward(3, session))
        return Frame.build(Kind.OPEN, asked, session=S2)

    def test_its_node_alone_takes_a_session_on(self, chain: Keyed) -> None:
        for who, error in (
            (OTHER_RACK, SessionNotYours),
            (ANNA, NotTrusted),
            (CLINIC, NotTrusted),
            (AGGREGATOR, NotTrusted),
        ):
            refused(chain.client(who, self.onward(S1))[0], error)
        (sent,) = chain.client(RACK, self.onward(S1))
        assert (sent.side, sent.peer) == (Side.NODES, b"other")
        asked = read(sent).body(Open)
        assert (asked.client, asked.served) == (RACK.id, ANNA.id)

    def test_what_it_goes_on_in_is_the_nodes_and_nobody_elses(self, chain: Keyed) -> None:
        chain.client(RACK, self.onward(S1), THERE)
        chain.node(OTHER_RACK, accept(S2), b"other")
        for who in (ANNA, OTHER_RACK):
            refused(chain.client(who, extend(S2))[0], SessionNotYours)
        assert chain.client(RACK, extend(S2), THERE)[0].peer == b"other"

    def test_after_a_restart_of_the_broker_clients_are_metered_and_stages_are_not(self) -> None:
        keyed = Keyed(terms=replace(TERMS, limits=Limits(frames_per_s=1)))
        keyed.register(RACK, b"node", (S1,), (ANNA.id,))
        keyed.register(OTHER_RACK, b"other", (S2,), (RACK.id,))
        said = [keyed.client(RACK, extend(S2))[0] for _ in range(9)]
        assert {one.peer for one in said} == {b"other"}
        *_, last = [keyed.client(ANNA, extend(S1))[0] for _ in range(9)]
        refused(last, Busy)

    def test_a_key_that_is_a_clients_too_is_metered_as_one(self) -> None:
        keyed = Keyed(terms=replace(TERMS, limits=Limits(frames_per_s=1)))
        both = replace(RACK, parties=RACK.parties | ANNA.parties)
        keyed.register(OTHER_RACK, b"other", (S2,), (both.id,))
        *_, last = [keyed.client(both, extend(S2))[0] for _ in range(9)]
        refused(last, Busy)

    def test_a_node_opens_nothing_else(self, chain: Keyed) -> None:
        refused(chain.open(RACK, S2)[0], NotTrusted)
        refused(chain.enlist(RACK, "silo-1", S2)[0], NotTrusted)
        refused(chain.enlist(RACK, None, S2)[0], NotTrusted)
        refused(chain.client(RACK, extend())[0], SessionNotYours)
