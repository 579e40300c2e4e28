"""The section of a configuration that says which keys are used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedsea_mq.section import Section


class SecuritySection(Section):
    """Without a key nothing is encrypted and nobody is known, which loopback alone is good for."""

    key: Path | None = Field(
        None, description="this process's secret key, as `fedsea keygen` writes it, mode 0600"
    )
    broker_key: Path | None = Field(
        None, description="the broker's public key; for all that connect to it"
    )
    trust: Path | None = Field(
        None,
        description="folder of the keys that may connect here, and of the nodes that sessions are "
        "sealed to; for all that listen, and for clients that seal",
    )
    seal: Literal["off", "on"] = Field(
        "off", description="seal sessions end to end; the same for clients and nodes"
    )
    operator_key: Path | None = Field(
        None, description="the key of who signs nodes' keys, which sessions are then sealed to, too"
    )
    insecure_plaintext_off_loopback: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="without a key, speak over networks too: whoever sees the traffic reads and "
        "changes it, whoever reaches a port is let in",
    )

    @model_validator(mode="after")
    def _keys_go_with_a_key(self) -> Self:
        others = self.broker_key is not None or self.trust is not None
        if self.key is None and (others or self.seal == "on"):
            raise ValueError(
                "security.broker_key, security.trust and security.seal need security.key"
            )
        if self.key is not None and self.insecure_plaintext_off_loopback:
            raise ValueError("with a security.key nothing is plain: insecure_... changes nothing")
        return self


# What is good for loopback.
NO_KEYS: Final = SecuritySection()
