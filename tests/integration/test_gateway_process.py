"""The gateway as a process: TLS, what it logs, and how it ends; and what it says if it cannot."""

from __future__ import annotations

import asyncio
import ssl
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import nodes.gateway
from fedsea_mq.cli.processes import Child
from fedsea_mq.errors import ConfigError
from tests.integration.gateways import ANSWER, ASKED, SAID
from tests.integration.systems import running, until

TRACE = "0af7651916cd43dd8448eb211c80319c"


def certificate(folder: Path) -> dict[str, str]:
    """Settings of a certificate for loopback, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    files = {"tls_certificate": folder / "cert.pem", "tls_key": folder / "key.pem"}
    files["tls_certificate"].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    files["tls_key"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return {name: str(file) for name, file in files.items()}


async def test_it_serves_over_tls_logs_no_prompt_and_ends_when_asked(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    async with running("embedded", "log.level=debug") as system:
        settings = system.settings.replace(
            gateway={"port": 0, "drain_s": 20, **tls}, metrics={"port": 0}
        )
        process = await Child.start("nodes.gateway", "gateway", settings, tmp_path)
        try:
            ready = await process.wait_ready()
            assert ready["url"].startswith("https://127.0.0.1:")
            assert ready["models"] == ["embedded"]
            trusted = ssl.create_default_context(cafile=tls["tls_certificate"])
            async with httpx.AsyncClient(base_url=ready["url"], verify=trusted) as http:
                asked = {"model": "embedded", "messages": ASKED, "temperature": 0}
                traced = {"traceparent": f"00-{TRACE}-{'1' * 16}-01"}
                said = await http.post("/v1/chat/completions", json=asked, headers=traced)
                assert said.json()["choices"][0]["message"]["content"] == ANSWER
                shown = (await http.get(ready["metrics"])).text
                assert "fedsea_ttft_seconds_count" in shown
                # What runs when it is told to end is answered to the end.
                long = {**asked, "messages": SAID, "max_tokens": 200, "ignore_eos": True}
                running_on = asyncio.create_task(http.post("/v1/chat/completions", json=long))
                await until(lambda: system.trunks[0].sessions == 1)
                process.process.terminate()
                whole = (await running_on).json()
            assert whole["usage"]["completion_tokens"] == 200
            assert await process.process.wait() == 0
        finally:
            await process.stop()
    log = (tmp_path / "gateway.log").read_text()
    assert "answered" in log
    assert TRACE in log
    assert "recovered" in log  # it warned
    assert "Kewyn" not in log


def test_without_its_packages_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for module in ("node", "server"):
        monkeypatch.delitem(sys.modules, f"nodes.gateway.{module}", raising=False)
    with pytest.raises(ConfigError, match="needs uvicorn: install fedsea_mq with the extra"):
        _ = nodes.gateway.GatewayNode
