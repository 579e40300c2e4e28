"""The section of a configuration that says where the gateway listens, to whom, and how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from fedsea_mq.section import Seconds, Section

Flag = Annotated[bool, Field(strict=True)]


class GatewaySettings(Section):
    """An HTTP server beside a client node; everything that may see text stays in its process."""

    host: str = Field("127.0.0.1", description="listens here")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(8000, description="0 for a free one")
    api_keys: Path | None = Field(
        None, description="file of mode 0600, a key a line, one of which every request must bring"
    )
    tls_certificate: Path | None = Field(None, description="PEM file; with it, HTTPS only")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's secret key")
    insecure_no_keys_off_loopback: Flag = Field(
        False,
        description="without API keys, listen on networks too: whoever reaches the port asks "
        "with this client's keys, and may test guesses at what others of its users wrote",
    )
    insecure_plaintext_off_loopback: Flag = Field(
        False,
        description="without TLS, listen on networks too: whoever sees the traffic reads prompts, "
        "answers and API keys",
    )
    max_requests: Annotated[int, Field(ge=1, le=16_384)] = Field(
        64, description="answered at a time; further ones are told so, with status 429"
    )
    max_connections: Annotated[int, Field(ge=1, le=60_000)] = Field(
        1024,
        description="open at a time; a further request ends the longest idle, or is told so, with "
        "status 503, or shut",
    )
    max_body_kb: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024, description="largest request, in KiB"
    )
    max_choices: Annotated[int, Field(ge=1, le=1024)] = Field(
        16, description="answers of one request: its prompts times its `n`"
    )
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        4096, description="new tokens that a request may ask for, each answer"
    )
    default_max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        512,
        description="new tokens of a chat that asks for no number, at most; the trunk reserves "
        "memory for all of them",
    )
    stalled_s: Seconds = Field(
        60.0, description="who takes longer to send a request, or to take an answer, is let go"
    )
    drain_s: Seconds = Field(
        20.0, description="on SIGTERM, how long running answers may take to end"
    )

    @property
    def host_in_url(self) -> str:
        """As hosts stand in URLs: IPv6 in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.default_max_tokens > self.max_tokens:
            raise ValueError("default_max_tokens must be at most max_tokens")
        return self
