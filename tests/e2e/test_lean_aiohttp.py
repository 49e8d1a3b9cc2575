"""An agent's process trusts whom every other program trusts, though it loads the authorities late."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import ssl
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CLIENT = """
import asyncio, sys
import agent.cli.agent
import aiohttp, aiohttp.connector, ssl
context = aiohttp.connector._SSL_CONTEXT_VERIFIED
before = context.cert_store_stats()["x509"], type(context) is ssl.SSLContext
async def main():
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(sys.argv[1]) as response:
                print(response.status)
try:
    asyncio.run(main())
except aiohttp.ClientConnectorCertificateError:
    print("not trusted")
print(before, context.cert_store_stats()["x509"] > 0, type(context) is ssl.SSLContext)
"""


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "authority.pem").write_bytes(certificate.public_bytes(pem))
    (tmp_path / "server.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/", answer)
    server = TestServer(app, host="127.0.0.1", scheme="https")
    await server.start_server(ssl=context)
    yield str(server.make_url("/"))
    await server.close()


@pytest.mark.parametrize(
    ("trusted", "printed"),
    [(True, ["200", "200", "(0, False) True True"]), (False, ["not trusted", "(0, False) False True"])],
)
async def test_who_is_trusted(url: str, tmp_path: Path, trusted: bool, printed: list[str]) -> None:
    (tmp_path / "nobody.pem").write_text("")
    file = tmp_path / ("authority.pem" if trusted else "nobody.pem")
    environment = {**os.environ, "SSL_CERT_FILE": str(file), "SSL_CERT_DIR": str(tmp_path / "none")}
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, url, env=environment, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(client.communicate(), 20)
    assert output.decode().splitlines() == printed
