"""Keys over real sockets: who is let in, whose sessions are, and what revocation ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest
import zmq

from broker import Broker
from fedsea_mq.cli.processes import Child
from fedsea_mq.errors import (
    KeyFileError,
    NotTrusted,
    PeerUnreachable,
    PlaintextRefused,
    ProcessFailed,
    RemoteError,
    SessionNotYours,
)
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Body, Extend, Load, Nothing, Open, Register
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keyring import Keyring, LinkKeys
from fedsea_mq.serving.trunk_sessions import BROKER
from fedsea_mq.settings import Settings
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.requests import Patience, Requests
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode, TrunkNode
from tests.integration.forwarding import forwarding
from tests.integration.keys import KeyedSystem, Keys, keyed
from tests.integration.systems import EXACT, running, until

PROMPT = [1, 2, 3]
SIX = SamplingSettings(max_new_tokens=6, ignore_eos=True)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.of(
        tmp_path / "keys",
        rack=Party.TRUNK,
        anna=Party.CLIENT,
        bert=Party.CLIENT,
        clinic=Party.TRAINER,
    )


@pytest.fixture
async def system(tiny_llama: Path, keys: Keys) -> AsyncIterator[KeyedSystem]:
    async with keyed(tiny_llama, keys, "trunk.direct=tcp://127.0.0.1:*") as system:
        yield system


class Speaker:
    """Frames by hand, with somebody's key."""

    def __init__(self, endpoint: str, keys: LinkKeys | None) -> None:
        self.refusals: list[RemoteError] = []
        self.frames: list[Frame] = []
        self.link = PeerLink(
            endpoint,
            self._receive,
            max_part_bytes=1 << 20,
            keys=keys,
            on_refused=self._refused,
        )
        self._requests = Requests(self.link.send, Patience(resend_s=1, give_up_s=3))

    def _receive(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._requests.receive(frame)

    def _refused(self, error: RemoteError) -> None:
        self.refusals.append(error)
        self._requests.refuse(error)

    async def ask(self, kind: Kind, body: Body, session: bytes = b"", payload: int = 0) -> Frame:
        states = [bytes(payload)] if payload else []
        return await self._requests.ask(kind, body, session=session, payload=states)


@asynccontextmanager
async def speaking(system: KeyedSystem, name: str, endpoint: str) -> AsyncIterator[Speaker]:
    keyring = Keyring.load(system.of(name).security)
    party = Speaker(endpoint, keyring.to_broker(endpoint))
    async with party.link:
        yield party


async def test_with_keys_the_tokens_are_those_without_by_the_broker_and_past_it(
    system: KeyedSystem, tiny_llama: Path
) -> None:
    async with running(tiny_llama) as plain:
        wanted = await plain.client.generate(PROMPT, SIX).complete()
    async with system.client("anna") as anna:
        assert (await anna.generate(PROMPT, SIX).complete()).tokens == wanted.tokens
    async with system.client("bert", direct=True) as bert:
        past = await bert.generate(PROMPT, SIX).complete()
    assert past.tokens == wanted.tokens
    assert past.stats.direct_share == 1
    mine = system.of("clinic")
    async with StatusWatch(mine.broker, mine.security) as watch:
        assert [node.name for node in (await watch.report()).nodes] == [system.trunk.name]


async def test_a_key_that_nobody_trusts_is_told_so_at_once(system: KeyedSystem) -> None:
    async with system.client("stranger", give_up_s=60) as stranger:
        with pytest.raises(NotTrusted, match=str(system.keys.public("stranger"))):
            await stranger.generate(PROMPT, SIX).complete()
    mine = system.of("stranger")
    async with StatusWatch(mine.broker, mine.security) as watch:
        with pytest.raises(NotTrusted):
            await watch.report()


async def test_a_refused_key_comes_in_once_it_is_trusted(system: KeyedSystem) -> None:
    async with system.client("stranger") as stranger:
        with pytest.raises(NotTrusted):
            await stranger.generate(PROMPT, SIX).complete()
        system.keys.trust.add(Party.CLIENT, "new", system.keys.public("stranger"))
        async with asyncio.timeout(10):
            while True:
                try:
                    assert (await stranger.generate(PROMPT, SIX).complete()).tokens
                    break
                except NotTrusted:
                    await asyncio.sleep(0.1)


async def test_who_has_no_key_or_takes_another_for_the_broker_gets_no_answer(
    system: KeyedSystem, caplog: pytest.LogCaptureFixture
) -> None:
    impostor = str(system.keys.folder / "stranger.pub")

    async def left_alone(settings: Settings) -> None:
        async with ClientNode(settings.replace(client={"give_up_s": 3.5})) as client:
            with pytest.raises(PeerUnreachable):
                await client.generate(PROMPT, SIX).complete()

    await asyncio.gather(
        left_alone(system.of("nobody")),
        left_alone(system.of("anna").replace(security={"broker_key": impostor})),
    )
    assert caplog.text.count("no handshake succeeds") == 2
    assert system.trunk.sessions == 0


async def test_a_stolen_session_id_is_of_no_use_to_another_key(system: KeyedSystem) -> None:
    extend = Extend(cached=0, count=1, returned=1)
    async with system.client("anna") as anna, anna.session(64) as session:
        await session.advance([1, 2], lambda _: None)
        (stolen,) = system.trunk._running.sessions.ids
        async with speaking(system, "bert", system.broker.clients) as bert:
            for kind, body, payload in (
                (Kind.EXTEND, extend, 256),
                (Kind.RENEW, Nothing(), 0),
                (Kind.CLOSE, Nothing(), 0),
            ):
                with pytest.raises(SessionNotYours):
                    await bert.ask(kind, body, stolen, payload)
        node = Keyring.load(system.of("bert").security)
        public = system.keys.public("rack").raw
        door = str(system.trunk.direct)
        past = Speaker(door, node.to_node(door, public))
        async with past.link:
            with pytest.raises(SessionNotYours):
                await past.ask(Kind.EXTEND, extend, stolen, 256)
            with pytest.raises(SessionNotYours):
                await past.ask(Kind.RENEW, Nothing(), stolen)
        assert system.trunk.sessions == 1
        await session.advance([3], lambda _: None)


async def test_after_a_restart_of_the_broker_a_session_goes_on_and_is_still_its_keys(
    system: KeyedSystem,
) -> None:
    own = system.keys.settings(system.settings, "broker")
    async with system.client("anna") as anna, anna.session(64) as session:
        await session.advance([1, 2], lambda _: None)
        (stolen,) = system.trunk._running.sessions.ids
        await system.broker.__aexit__()
        async with Broker(own.broker, own.security) as again:
            async with speaking(system, "bert", again.clients) as bert:
                with pytest.raises(SessionNotYours):
                    await bert.ask(Kind.RENEW, Nothing(), stolen)
            await session.advance([3], lambda _: None)
            assert (session.recoveries, system.trunk.sessions) == (0, 1)
        await system.broker.__aenter__()


async def test_each_port_lets_in_its_own_parties_alone(system: KeyedSystem) -> None:
    clients, nodes = system.broker.clients, system.broker.nodes
    for name in ("anna", "clinic"):
        async with speaking(system, name, nodes) as party:
            await until(lambda: bool(party.refusals))
            assert type(party.refusals[0]) is NotTrusted
            assert party.frames == []
    # A node comes in, as it may take its own sessions on to a next stage; and does nothing else.
    opening = Open(system.trunk.fingerprint, 8, WireDtype.FP32)
    async with speaking(system, "rack", clients) as rack:
        for kind, body, session in ((Kind.OPEN, opening, b"n" * 16), (Kind.STATUS, Nothing(), b"")):
            with pytest.raises(NotTrusted, match="client"):
                await rack.ask(kind, body, session)
    async with ClientNode(system.of("clinic")) as clinic:
        with pytest.raises(NotTrusted, match="client"):
            await clinic.generate(PROMPT, SIX).complete()
    load = Load(kv_positions_free=1, kv_positions_total=1, sessions=0, sessions_free=1)
    false = Register("a", "ab" * 32, 1, 1, 64, load, [], Role.AGGREGATOR, "silos")
    async with speaking(system, "rack", nodes) as rack:
        with pytest.raises(NotTrusted, match="aggregator"):
            await rack.ask(Kind.REGISTER, false)


async def one_session_without_end(client: ClientNode) -> None:
    async with client.session(64) as session:
        await session.advance(PROMPT, lambda _: None)
        while True:
            await session.advance([3], lambda _: None)
            session.roll_back(len(PROMPT))


@pytest.mark.parametrize("direct", [False, True])
async def test_a_removed_key_loses_its_session_and_is_not_let_in_again(
    system: KeyedSystem, direct: bool
) -> None:
    async with (
        system.client("anna", direct=direct) as anna,
        system.client("bert", direct=direct) as bert,
    ):
        running_on = asyncio.create_task(bert.generate(PROMPT, SIX).complete())
        talking = asyncio.create_task(one_session_without_end(anna))
        await until(lambda: system.trunk.sessions > 0)
        system.keys.trust.remove(Party.CLIENT, "anna")
        with pytest.raises(NotTrusted):
            await talking
        await until(lambda: system.trunk.sessions == 0)
        assert (await running_on).tokens == (await bert.generate(PROMPT, SIX).complete()).tokens
        with pytest.raises(NotTrusted):  # on the connection that it still has
            await anna.generate(PROMPT, SIX).complete()
    async with system.client("anna") as again:
        with pytest.raises(NotTrusted, match="does not trust"):
            await again.generate(PROMPT, SIX).complete()


async def test_a_removed_node_gets_no_sessions_until_it_is_trusted_again(
    system: KeyedSystem,
) -> None:
    async with system.client("anna", give_up_s=1) as anna:
        system.keys.trust.remove(Party.TRUNK, "rack")
        membership = system.trunk._running.memberships._of[BROKER]
        await until(lambda: not membership.registered.is_set())
        with pytest.raises(RemoteError):
            await anna.generate(PROMPT, SIX).complete()
        system.keys.trust.add(Party.TRUNK, "rack", system.keys.public("rack"))
        await until(membership.registered.is_set)
        assert (await anna.generate(PROMPT, SIX).complete()).tokens


async def test_who_claims_the_address_of_a_client_that_has_gone_gets_nothing_of_its_session(
    tiny_llama: Path, keys: Keys
) -> None:
    """ZeroMQ lets a peer choose the name that a socket knows it by."""
    # Given a client that is gone, and a broker that has not noticed.
    async with keyed(tiny_llama, keys, "broker.timeout_ms=60000") as system:
        stolen = secrets.token_bytes(16)
        async with speaking(system, "anna", system.broker.clients) as anna:
            fingerprint = system.trunk._running.offer.fingerprint
            await anna.ask(Kind.OPEN, Open(fingerprint, 8, WireDtype.FP32), stolen)
        route = system.broker._running._state.routes.get(stolen)
        assert route is not None
        address = route.client
        assert address is not None
        bert = Keyring.load(system.of("bert").security).to_broker(system.broker.clients)
        assert bert is not None
        # When another key asks from its address.
        answer: Frame | None = None
        while answer is None:  # until ZeroMQ has let go of the connection
            with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.set(zmq.LINGER, 0)
                socket.set(zmq.ROUTING_ID, address)
                socket.set(zmq.CURVE_SECRETKEY, bert.own.raw)
                socket.set(zmq.CURVE_PUBLICKEY, bert.own.public.raw)
                socket.set(zmq.CURVE_SERVERKEY, bert.peer.raw)
                socket.connect(system.broker.clients)
                socket.send_multipart(Frame.build(Kind.RENEW, Nothing(), session=stolen).parts())
                for _ in range(50):
                    await asyncio.sleep(0.01)
                    if socket.poll(0):
                        answer = Frame.read(socket.recv_multipart())
                        break
        # Then it is refused, and the session is where it was.
        assert type(answer.refusal()) is SessionNotYours
        async with speaking(system, "anna", system.broker.clients) as again:
            reply = await again.ask(Kind.RENEW, Nothing(), stolen)
            assert reply.envelope.kind is Kind.RENEWED


async def test_a_wiretap_hears_nothing_of_a_session(system: KeyedSystem, tiny_llama: Path) -> None:
    async def heard(settings: Settings, trunk: TrunkNode) -> tuple[bytes, bytes]:
        """What crosses the client's link, and the id of the session that crosses it."""
        async with forwarding(settings.broker.clients) as tap:
            tapped = settings.replace(broker={"clients": tap.endpoint})
            async with ClientNode(tapped) as client, client.session(64) as session:
                await session.advance(PROMPT, lambda _: None)
                (number,) = trunk._running.sessions.ids
            return bytes(tap.heard), number

    sealed, number = await heard(system.of("anna"), system.trunk)
    assert len(sealed) > 64 * 4 * len(PROMPT)  # the states did cross it
    assert number not in sealed
    async with running(tiny_llama) as plain:
        clear, number = await heard(plain.settings, plain.trunks[0])
    assert number in clear


async def test_nothing_listens_or_connects_in_plaintext_off_loopback(
    tiny_llama: Path, keys: Keys
) -> None:
    plain = Settings.load(None, [*EXACT, f"model.path={tiny_llama}"])
    for key in ("clients", "nodes"):
        open_ = plain.replace(broker={key: "tcp://0.0.0.0:*"})
        with pytest.raises(PlaintextRefused):
            Broker(open_.broker)
        daring = open_.replace(security={"insecure_plaintext_off_loopback": True})
        async with Broker(daring.broker, daring.security) as broker:
            assert "0.0.0.0" in f"{broker.clients}{broker.nodes}"
        secured = keys.settings(open_, "broker")
        async with Broker(secured.broker, secured.security) as broker:
            assert "0.0.0.0" in f"{broker.clients}{broker.nodes}"
    away = plain.replace(broker={"clients": "tcp://192.0.2.10:7700", "nodes": "tcp://192.0.2.10:1"})
    for party in (ClientNode(away), TrunkNode(away)):
        with pytest.raises(PlaintextRefused):
            async with party:
                pass
    with pytest.raises(PlaintextRefused):
        StatusWatch(away.broker)


async def test_processes_with_keys_and_what_they_let_be_seen_of_them(
    tiny_llama: Path, keys: Keys, tmp_path: Path
) -> None:
    free = ["broker.clients=tcp://127.0.0.1:*", "broker.nodes=tcp://127.0.0.1:*"]
    plain = Settings.load(None, [*EXACT, *free, f"model.path={tiny_llama}", "log.level=debug"])
    async with running(tiny_llama) as open_:
        wanted = await open_.client.generate(PROMPT, SIX).complete()
    async with AsyncExitStack() as stack:
        children: list[Child] = []

        async def start(module: str, name: str) -> Child:
            child = await Child.start(module, name, keys.settings(plain, name), tmp_path)
            stack.push_async_callback(child.stop)
            children.append(child)
            return child

        ready = await (await start("broker", "broker")).wait_ready()
        plain = plain.replace(broker={"clients": ready["clients"], "nodes": ready["nodes"]})
        await (await start("nodes.trunk", "rack")).wait_ready()
        async with ClientNode(keys.settings(plain, "anna")) as anna:
            assert (await anna.generate(PROMPT, SIX).complete()).tokens == wanted.tokens
        hidden = [
            (keys.folder / f"{name}.key").read_text().partition(":")[2].strip()
            for name in ("broker", "rack")
        ]
        seen = [str(psutil.Process(child.process.pid).cmdline()) for child in children]
        seen += [file.read_text() for file in (*tmp_path.glob("*.log"), *tmp_path.glob("*.yaml"))]
        assert len(seen) == 6
        assert not [secret for secret in hidden if any(secret in text for text in seen)]


async def test_a_process_does_not_start_with_a_secret_that_others_can_read(
    tiny_llama: Path, keys: Keys, tmp_path: Path
) -> None:
    (keys.folder / "broker.key").chmod(0o644)
    plain = Settings.load(None, [*EXACT, f"model.path={tiny_llama}"])
    child = await Child.start("broker", "broker", keys.settings(plain, "broker"), tmp_path)
    with pytest.raises(ProcessFailed, match=r"KeyFileError.*mode 0644, expected 0600"):
        await child.wait_ready()
    with pytest.raises(KeyFileError):
        Keyring.load(keys.settings(plain, "broker").security)
