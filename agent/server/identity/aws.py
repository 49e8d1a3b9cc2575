"""AWS: an instance identity document and its RSA signature (agent-api.md §5.3). No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from agent.server.identity.instance import Cloud, IdentityError, Instance, decode_base64

MAX_DOCUMENT: Final = 16 * 1024
MAX_SIGNATURE: Final = 1024


class _Document(msgspec.Struct, rename="camel"):
    instance_id: str = ""
    account_id: str | None = None
    region: str | None = None


class AwsVerifier:
    """Knows the certificates of the regions. Which region's key signed is tried out: the document cannot be believed
    before that. Dates of the certificates do not count; AWS signs with keys whose certificates have ended."""

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        """Raises ValueError where a certificate has no RSA key."""
        self._keys: list[rsa.RSAPublicKey] = []
        for certificate in certificates:
            key = certificate.public_key()
            if not isinstance(key, rsa.RSAPublicKey):
                raise ValueError(f"the key of {certificate.subject.rfc4514_string()} is not RSA")
            if key not in self._keys:
                self._keys.append(key)

    def verify(self, document: str, signature: str) -> Instance:
        """The instance that the document is about. `document` is what was signed, byte for byte. Raises
        `IdentityError`. Takes about a millisecond."""
        raw = document.encode()
        if len(raw) > MAX_DOCUMENT:
            raise IdentityError("document too large", f"parse document: it is longer than {MAX_DOCUMENT} bytes")
        try:
            read = msgspec.json.decode(raw, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise IdentityError("malformed document", f"parse document: {error}") from error
        try:
            signed = decode_base64(signature, max_size=MAX_SIGNATURE)
        except ValueError as error:
            raise IdentityError("malformed signature", f"decode signature: {error}") from error
        if not any(_signed_with(key, signed, raw) for key in self._keys):
            raise IdentityError("wrong signature", "crypto/rsa: verification error")
        return Instance(Cloud.AWS, read.instance_id, read.account_id or "", read.region or "")


def _signed_with(key: rsa.RSAPublicKey, signature: bytes, document: bytes) -> bool:
    try:
        key.verify(signature, document, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True
