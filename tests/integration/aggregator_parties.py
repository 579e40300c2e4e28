"""The other parties of a run as an aggregator sees them: scripted, over real sockets.

The trunk trains nothing: it says that it has begun and ended rounds, and writes down what it was
told. A member's training is a vector that follows from its name, the round and the adapters.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from fedsea_mq.errors import (
    Busy,
    RemoteError,
    RunUnknown,
    SessionLost,
    SessionUnknown,
)
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Body, Load, Nothing, Register
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.training_messages import (
    Ask,
    BeginRound,
    Duty,
    EndRound,
    Enlist,
    Fate,
    RoundState,
    Secure,
    Task,
    Update,
    Updated,
)
from fedsea_mq.serving.background import Background
from fedsea_mq.settings import Settings
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.secure_aggregation.client import SecureClient
from fedsea_mq.training.secure_aggregation.messages import (
    KeyList,
    Message,
    Reveal,
    ShareList,
    Terms,
    UnmaskRequest,
    decode_message,
    encode_message,
)
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.requests import Patience, Requests
from nodes.membership import Membership

_PASSING = (RunUnknown, Busy, SessionLost, SessionUnknown)


def fingerprint(settings: Settings) -> str:
    model = settings.model
    return Checkpoint.open(model.path).fingerprint(Cut(model.head_blocks, model.tail_blocks))


class ScriptedTrunk:
    """Registers as the run's trunk, and says to the aggregator what a trunk would say."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.told: list[BeginRound | EndRound] = []
        self.sessions: set[bytes] = set()
        self.refuses: dict[Kind, RemoteError] = {}
        self._link = PeerLink(settings.broker.nodes, self._receive, max_part_bytes=1 << 20)
        self.membership = Membership(self._link.send, self._offer, self._load)

    def _load(self) -> Load:
        return Load(
            kv_positions_free=0, kv_positions_total=0, sessions=len(self.sessions), sessions_free=0
        )

    def _offer(self) -> Register:
        model = self._settings.model
        return Register(
            name="trunk",
            fingerprint=fingerprint(self._settings),
            head_blocks=model.head_blocks,
            tail_blocks=model.tail_blocks,
            hidden=64,
            load=self._load(),
            sessions=list(self.sessions),
            run=self._settings.training.run,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedTrunk]:
        async with self._link, Background() as background:
            background.start(self.membership.run(), "scripted trunk")
            await self.membership.registered.wait()
            yield self
            self.membership.leave()

    def _receive(self, frame: Frame) -> None:
        kind, session = frame.envelope.kind, frame.envelope.session
        if not session:
            self.membership.receive(frame)
        elif kind in self.refuses:
            error = self.refuses.pop(kind)
            self._link.send(Frame.error(error, frame.envelope).parts())
        elif kind is Kind.ENLIST:
            asked = frame.body(Enlist)
            assert (asked.role, asked.member) == (Role.TRUNK, None)
            assert asked.agreed == self._settings.agreed
            self.sessions.add(session)
            self._reply(frame, Kind.ACCEPT, Accept("trunk", 64, 1000))
        elif kind is Kind.RENEW:
            self._reply(frame, Kind.RENEWED, Nothing())
        elif kind is Kind.BEGIN_ROUND:
            begin = frame.body(BeginRound)
            self.told.append(begin)
            self._reply(frame, Kind.ROUND_STATE, RoundState(begin.round, begin.attempt))
        elif kind is Kind.END_ROUND:
            end = frame.body(EndRound)
            self.told.append(end)
            self._reply(frame, Kind.ROUND_STATE, RoundState(end.round + 1, end.attempt))

    def _reply(self, frame: Frame, kind: Kind, body: Body) -> None:
        session, seq = frame.envelope.session, frame.envelope.seq
        self._link.send(Frame.build(kind, body, session=session, seq=seq).parts())


def trained(name: str, number: int, adapters: np.ndarray) -> np.ndarray:
    """What a member's local steps add: the same again for the same round and adapters."""
    said = sha256(f"{name}/{number}".encode() + adapters.tobytes()).digest()
    drawn = np.random.default_rng(list(said))
    return (0.01 * drawn.standard_normal(len(adapters))).astype(np.float32)


@dataclass
class ScriptedMember:
    """A client of the run, over and over: asks, trains, hands in; enlists again when it must."""

    settings: Settings
    layout: AdapterLayout
    name: str
    weight: int = 10
    train: Callable[[str, int, np.ndarray], np.ndarray] = trained
    falls_silent: bool = False
    errors: list[RemoteError] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    final: np.ndarray | None = None
    duty: Duty | None = None
    update: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    _id: bytes = b""

    async def run(self) -> None:
        """Until the run is over."""
        client = self.settings.client
        link = PeerLink(self.settings.broker.clients, self._receive, max_part_bytes=1 << 24)
        patience = Patience(client.request_timeout_s, client.give_up_s)
        self._requests = Requests(link.send, patience)
        async with link:
            while self.duty not in (Duty.FINISH, Duty.GIVE_UP):
                with suppress(*_PASSING):
                    await self._enlist()
                    await self._take_part()
                await asyncio.sleep(0.02)

    def _receive(self, frame: Frame) -> None:
        self._requests.receive(frame)

    async def _enlist(self) -> None:
        self._id = secrets.token_bytes(SESSION_BYTES)
        enlist = Enlist(
            role=Role.AGGREGATOR,
            run=self.settings.training.run or "",
            fingerprint=fingerprint(self.settings),
            agreed=self.settings.agreed,
            dtype=WireDtype.FP32,
            member=self.name,
        )
        await self._ask(Kind.ENLIST, enlist)

    async def _ask(self, kind: Kind, body: Body, *payload: bytes) -> Frame:
        return await self._requests.ask(kind, body, session=self._id, payload=payload)

    async def _take_part(self) -> None:
        while self.duty not in (Duty.FINISH, Duty.GIVE_UP):
            reply = await self._ask(Kind.ASK, Ask(self.weight))
            task = reply.body(Task)
            self.duty = task.duty
            try:
                await self._do(task, list(reply.payload))
            except _PASSING:
                raise
            except RemoteError as error:
                self.errors.append(error)

    async def _do(self, task: Task, payload: list[bytes]) -> None:
        match task.duty:
            case Duty.TRAIN:
                await self._train(task, np.frombuffer(b"".join(payload), "<f4"))
            case Duty.MASK if self.falls_silent:
                await asyncio.Event().wait()
            case Duty.MASK:
                terms = decode_message(Terms, payload[0])
                await self._mask(SecureClient(terms, self.layout, task.number), task.attempt)
            case Duty.FINISH:
                self.final = np.frombuffer(b"".join(payload), "<f4")

    async def _train(self, task: Task, adapters: np.ndarray) -> None:
        self.update = self.train(self.name, task.round, adapters)
        secure = self.settings.federation.secure
        update = Update(task.attempt, 0 if secure else self.weight, 1.0)
        payload = [] if secure or not len(adapters) else [self.update.tobytes()]
        reply = await self._ask(Kind.UPDATE, update, *payload)
        if reply.body(Updated).fate is Fate.COUNTED:
            self.rounds.append(task.round)

    async def _mask(self, client: SecureClient, attempt: bytes) -> None:
        listed = await self._says(attempt, client.keys)
        shares = client.share(decode_message(KeyList, listed))
        client.hold(decode_message(ShareList, await self._says(attempt, shares)))
        message, vector = client.mask(self.layout.unflatten(self.update), self.weight)
        told = await self._says(attempt, message, bytes(vector))
        reveal = client.reveal(decode_message(UnmaskRequest, told))
        await self._says(attempt, reveal)

    async def _says(self, attempt: bytes, message: Message, *vector: bytes) -> bytes:
        record = encode_message(message)
        while True:
            reply = await self._ask(Kind.SECURE, Secure(attempt), record, *vector)
            told = b"".join(reply.payload)
            if told or isinstance(message, Reveal):
                return told
