"""The command's own attacks: those that take no time, on a system in processes."""

from __future__ import annotations

import pytest

from fedsea_mq.cli.chaos.attacks import catalogue
from fedsea_mq.cli.chaos.attacks.besieged import Besieged
from fedsea_mq.cli.chaos.attacks.catalogue import Succeeded
from fedsea_mq.cli.chaos.attacks.meddling import MeddlingBroker, tampered_ciphertext
from fedsea_mq.cli.chaos.live.ordeal import DEFAULTS
from fedsea_mq.settings import Settings


async def test_each_is_refused_by_its_own_error_and_harms_nobody() -> None:
    settings = Settings.load(None, ["broker.max_part_mb=1"], DEFAULTS)
    async with Besieged(settings) as siege:
        siege.watch()
        assert await catalogue.wrong_key(siege, 0) == "refused: NotTrusted"
        assert "NotTrusted" in await catalogue.revoked_key(siege, 0)
        assert await catalogue.stolen_session(siege, 0) == "refused: SessionNotYours"
        assert "PositionConflict" in await catalogue.replayed_frame(siege, 0)
        assert "cut off" in await catalogue.oversize(siege, 0)
        assert await catalogue.decompression_bomb(siege, 0) == "refused: LimitExceeded"
        assert await catalogue.depth_bomb(siege, 0) == "refused: MalformedFrame"
        assert "mutated" in await catalogue.garbage(siege, 0.2)
        assert siege.token_p95_s < 10
    assert siege.ledger.wrong_tokens == siege.ledger.lost_tokens == 0
    assert not siege.ledger.errors


async def test_what_the_broker_changes_is_noticed() -> None:
    settings = Settings.load(None, [], DEFAULTS)
    assert "the same tokens" in await tampered_ciphertext(settings)


async def test_an_attack_that_works_would_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is sealed, what the broker changes changes what comes out."""
    monkeypatch.setattr(
        "fedsea_mq.cli.chaos.attacks.meddling._sealed",
        lambda settings, _: settings.replace(
            broker={"clients": "tcp://127.0.0.1:*", "nodes": "tcp://127.0.0.1:*"}
        ),
    )
    monkeypatch.setattr(MeddlingBroker, "_meddled", _raised)
    with pytest.raises(Succeeded):
        await tampered_ciphertext(Settings.load(None, [], DEFAULTS))


def _raised(self: MeddlingBroker, parts: list[bytes]) -> list[bytes]:
    """The highest byte of each state flipped: the sign and exponent of many."""
    if self.meddles and len(parts) > 2:
        self.changed += 1
        return [*parts[:2], bytes(b ^ 0x40 if i % 4 == 3 else b for i, b in enumerate(parts[2]))]
    return parts
