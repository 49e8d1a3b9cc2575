"""The server's CPU for one proof of a cloud instance: genuine ones, and forged ones of every kind.

Forged ones must cost less than 50 ms each. All certificates and keys are loaded before.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder

from agent.clock import SystemClock
from agent.server.identity import IdentityError, Verifiers, pkcs7, read_config
from agent.server.identity.fetch import Answer
from agent.testing.metadata import Authority
from agent.testing.metadata.authority import certify, rsa_key

ROUNDS = 20

Proof = Callable[[], Awaitable[object]]


async def measure() -> dict[str, float]:
    authority = Authority()

    async def keys(_: str) -> Answer:
        return Answer(json.dumps(authority.google.key_set()).encode())

    with TemporaryDirectory() as directory:
        file = await asyncio.to_thread(authority.write, Path(directory), "http://localhost/keys")
        verifiers = Verifiers(await asyncio.to_thread(read_config, file), keys, keys, SystemClock())
        await verifiers.check_config()
    return {name: await _cpu(proof) for name, proof in _proofs(authority, verifiers).items()}


def _proofs(authority: Authority, verifiers: Verifiers) -> dict[str, Proof]:
    document = json.dumps({"instanceId": "i-1", "accountId": "1", "region": "r"})
    signature = authority.aws.sign(document.encode())
    attested = authority.azure.sign(b'{"vmId":"vm-1"}')
    message = base64.b64decode(attested)
    altered = base64.b64encode(message.replace(b"vm-1", b"vm-2")).decode()
    now = datetime.now(UTC).timestamp()
    claims = {"exp": now + 60, "aud": "coder", "google": {"compute_engine": {"instance_id": "1"}}}
    token = authority.google.sign(claims)
    head, body, _ = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    deep, crowd = _deep(), _crowd()
    return {
        "AWS, genuine (ms CPU)": lambda: verifiers.aws(document, signature),
        "AWS, altered document (ms CPU)": lambda: verifiers.aws(document + " ", signature),
        "AWS, 10 MB document (ms CPU)": lambda: verifiers.aws(" " * 10_000_000, signature),
        "AWS, 10 MB signature (ms CPU)": lambda: verifiers.aws(document, "A" * 10_000_000),
        "Azure, genuine (ms CPU)": lambda: verifiers.azure(attested),
        "Azure, altered document (ms CPU)": lambda: verifiers.azure(altered),
        "Azure, deep ASN.1 (ms CPU)": lambda: verifiers.azure(deep),
        "Azure, authorities in circles (ms CPU)": lambda: verifiers.azure(crowd),
        "Google, genuine (ms CPU)": lambda: verifiers.google(token),
        "Google, wrong signature (ms CPU)": lambda: verifiers.google(f"{head}.{body}.{'A' * 342}"),
        "Google, alg none (ms CPU)": lambda: verifiers.google(f"{none}.{body}."),
        "Google, 10 MB (ms CPU)": lambda: verifiers.google(f"{head}.{body}." + "A" * 10_000_000),
    }


def _deep() -> str:
    """Sequences within sequences, as many as a message may have bytes for."""
    data = b""
    while len(data) < pkcs7.MAX_SIZE - 4:
        length = len(data)
        octets = b"" if length < 0x80 else length.to_bytes((length.bit_length() + 7) // 8, "big")
        data = b"\x30" + (bytes((0x80 | len(octets),)) + octets if octets else bytes((length,))) + data
    return base64.b64encode(data).decode()


def _crowd() -> str:
    """A signer whose way to a root is looked for among authorities that all have the same name, and lead nowhere."""
    signer, keys = rsa_key(), [rsa_key() for _ in range(3)]
    builder = PKCS7SignatureBuilder().set_data(b'{"vmId":"vm-1"}')
    leaf = certify(signer, "metadata.azure.com", keys[0], "loop")
    builder = builder.add_signer(leaf, signer, hashes.SHA256())
    for number in range(pkcs7.MAX_CERTIFICATES - 1):
        key, issuer = keys[number % 3], keys[(number + 1) % 3]
        builder = builder.add_certificate(certify(key, "loop", issuer, "loop", authority=True))
    return base64.b64encode(builder.sign(Encoding.DER, [PKCS7Options.Binary])).decode()


async def _cpu(proof: Proof) -> float:
    """Milliseconds of this process for one, the best of a few rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        with contextlib.suppress(IdentityError):
            await proof()
        best = min(best, time.process_time() - began)
    return best * 1000
