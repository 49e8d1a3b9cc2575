"""PKCS#7 SignedData (RFC 2315 §9, RFC 5652 §5) with one signer, as Azure makes it. No I/O.

Only SHA-2 with RSA (PKCS#1 v1.5) or ECDSA is accepted: Azure uses nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from agent.server.identity import certificate, der
from agent.server.identity.der import DerError, Reader, tagged

MAX_SIZE: Final = 48 * 1024
MAX_CERTIFICATES: Final = 10

_DATA: Final = bytes.fromhex("2a864886f70d010701")
_SIGNED_DATA: Final = bytes.fromhex("2a864886f70d010702")
_CONTENT_TYPE: Final = bytes.fromhex("2a864886f70d010903")
_MESSAGE_DIGEST: Final = bytes.fromhex("2a864886f70d010904")
_RSA: Final = bytes.fromhex("2a864886f70d010101")
_EC: Final = bytes.fromhex("2a8648ce3d0201")

_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_RSA_WITH: Final[Mapping[bytes, _Hash]] = {
    bytes.fromhex("2a864886f70d01010b"): hashes.SHA256(),
    bytes.fromhex("2a864886f70d01010c"): hashes.SHA384(),
    bytes.fromhex("2a864886f70d01010d"): hashes.SHA512(),
}
_ECDSA_WITH: Final[Mapping[bytes, _Hash]] = {
    bytes.fromhex("2a8648ce3d040302"): hashes.SHA256(),
    bytes.fromhex("2a8648ce3d040303"): hashes.SHA384(),
    bytes.fromhex("2a8648ce3d040304"): hashes.SHA512(),
}
# Azure names the whole signature algorithm where only the digest is asked for.
_DIGESTS: Final[Mapping[bytes, _Hash]] = {
    bytes.fromhex("608648016503040201"): hashes.SHA256(),
    bytes.fromhex("608648016503040202"): hashes.SHA384(),
    bytes.fromhex("608648016503040203"): hashes.SHA512(),
    **_RSA_WITH,
    **_ECDSA_WITH,
}


class Pkcs7Error(ValueError):
    """It is not what is accepted here; the text says why."""


class ContentSignatureError(Exception):
    """The signer did not sign this content."""


@dataclass(frozen=True, slots=True)
class SignedData:
    """`signer` is the certificate that the only signer names; `certificates` are all that came along, as DER."""

    content: bytes
    certificates: tuple[bytes, ...]
    signer: x509.Certificate
    _digest: _Hash
    _algorithm: bytes
    _signed: bytes
    _signature: bytes

    def verify(self) -> None:
        """Raises `ContentSignatureError` unless the signer's key made the signature."""
        try:
            key = self.signer.public_key()
        except Exception as error:  # UnsupportedAlgorithm, ValueError and others, by the kind of the key
            raise ContentSignatureError("the signer's key is of no known kind") from error
        try:
            if isinstance(key, rsa.RSAPublicKey) and self._of_kind(_RSA, _RSA_WITH):
                key.verify(self._signature, self._signed, padding.PKCS1v15(), self._digest)
            elif isinstance(key, ec.EllipticCurvePublicKey) and self._of_kind(_EC, _ECDSA_WITH):
                key.verify(self._signature, self._signed, ec.ECDSA(self._digest))
            else:
                raise ContentSignatureError("the signature algorithm is not accepted, or not that of the signer's key")
        except InvalidSignature as error:
            raise ContentSignatureError("the content was not signed with the signer's key") from error

    def _of_kind(self, plain: bytes, combined: Mapping[bytes, _Hash]) -> bool:
        named = combined.get(self._algorithm)
        return self._algorithm == plain or (named is not None and named.name == self._digest.name)


def parse(data: bytes) -> SignedData:
    """The structure of a message, whose signature is not verified yet. Raises `Pkcs7Error`."""
    if len(data) > MAX_SIZE:
        raise Pkcs7Error(f"it is longer than {MAX_SIZE} bytes")
    try:
        return _parse(data)
    except DerError as error:
        raise Pkcs7Error(f"it is not the DER of a signed message: {error}") from error


def _parse(data: bytes) -> SignedData:
    outer = Reader(data)
    info = outer.enter(der.SEQUENCE)
    outer.end()
    if info.read(der.OBJECT_IDENTIFIER) != _SIGNED_DATA:
        raise Pkcs7Error("its content type is not SignedData")
    explicit = info.enter(tagged(0))
    info.end()
    signed = explicit.enter(der.SEQUENCE)
    explicit.end()
    if signed.integer() not in (1, 3):
        raise Pkcs7Error("its version is not known")
    signed.read(der.SET)  # the digest algorithms, for readers that work in one pass
    content = _content(signed.enter(der.SEQUENCE))
    certificates = _certificates(Reader(signed.optional(tagged(0)) or b""))
    signed.optional(tagged(1))  # revocation lists
    signers = signed.enter(der.SET)
    signed.end()
    if signers.next_tag is None:
        raise Pkcs7Error("it has no signer")
    signer = signers.enter(der.SEQUENCE)
    if signers.next_tag is not None:
        raise Pkcs7Error("it has more than one signer")
    return _signed_by(signer, content, certificates)


def _content(info: Reader) -> bytes:
    if info.read(der.OBJECT_IDENTIFIER) != _DATA:
        raise Pkcs7Error("what is signed is not plain data")
    if info.next_tag is None:
        raise Pkcs7Error("what is signed is not in it")
    explicit = info.enter(tagged(0))
    info.end()
    content = explicit.read(der.OCTET_STRING)
    explicit.end()
    return content


def _certificates(certificates: Reader) -> tuple[bytes, ...]:
    found = []
    while certificates.next_tag is not None:
        found.append(certificates.read_whole(der.SEQUENCE))
        if len(found) > MAX_CERTIFICATES:
            raise Pkcs7Error(f"it has more than {MAX_CERTIFICATES} certificates")
    return tuple(found)


def _signed_by(info: Reader, content: bytes, certificates: tuple[bytes, ...]) -> SignedData:
    if info.integer() != 1:
        raise Pkcs7Error("the signer is not named by issuer and serial number")
    name = info.enter(der.SEQUENCE)
    issuer, serial = name.read_whole(der.SEQUENCE), name.integer()
    name.end()
    digest = _DIGESTS.get(_algorithm(info))
    if digest is None:
        raise Pkcs7Error("its digest algorithm is not accepted")
    attributes = info.optional(tagged(0))
    algorithm, signature = _algorithm(info), info.read(der.OCTET_STRING)
    info.optional(tagged(1))  # attributes that nobody signed
    info.end()
    signed = content
    if attributes is not None:
        _check_attributes(Reader(attributes), content, digest)
        signed = _as_set(attributes)
    return SignedData(content, certificates, _find(certificates, issuer, serial), digest, algorithm, signed, signature)


def _algorithm(reader: Reader) -> bytes:
    """The algorithm; its parameters say nothing for those that are accepted."""
    return reader.enter(der.SEQUENCE).read(der.OBJECT_IDENTIFIER)


def _check_attributes(attributes: Reader, content: bytes, digest: _Hash) -> None:
    """Signed attributes stand for the content only where they have its digest (RFC 5652 §5.3)."""
    found: dict[bytes, bytes] = {}
    while attributes.next_tag is not None:
        attribute = attributes.enter(der.SEQUENCE)
        kind = attribute.read(der.OBJECT_IDENTIFIER)
        if kind in found:
            raise Pkcs7Error("a signed attribute is there twice")
        found[kind] = attribute.read(der.SET)
        attribute.end()
    if found.get(_CONTENT_TYPE) != _value(der.OBJECT_IDENTIFIER, _DATA):
        raise Pkcs7Error("the signed attributes are not those of plain data")
    computed = hashlib.new(digest.name, content).digest()
    if not hmac.compare_digest(found.get(_MESSAGE_DIGEST, b""), _value(der.OCTET_STRING, computed)):
        raise Pkcs7Error("the content was altered: it does not have the digest that was signed")


def _value(tag: int, content: bytes) -> bytes:
    assert len(content) < 0x80
    return bytes((tag, len(content))) + content


def _as_set(attributes: bytes) -> bytes:
    """What is signed is the attributes with the tag SET, not with the one that they are sent with (RFC 5652 §5.4)."""
    length = len(attributes)
    if length < 0x80:
        return bytes((der.SET, length)) + attributes
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((der.SET, 0x80 | len(octets))) + octets + attributes


def _find(certificates: tuple[bytes, ...], issuer: bytes, serial: int) -> x509.Certificate:
    """The one certificate of this issuer with this number: parsed only where the raw bytes agree."""
    matching = [data for data in certificates if certificate.issuer_and_serial(data) == (issuer, serial)]
    if len(matching) != 1:
        raise Pkcs7Error("the signer's certificate is not in it, or is there twice")
    try:
        return certificate.load(matching[0])
    except ValueError as error:
        raise Pkcs7Error("the signer's certificate cannot be read") from error
