"""JSON Web Tokens (RFC 7515, 7518, 7519) signed with RS256 or ES256, and the key sets they are checked against
(RFC 7517). No I/O. No other algorithm exists here: neither `none` nor the ones with a shared secret."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

MAX_SIZE: Final = 16 * 1024
MAX_KEYS: Final = 64
RSA_BITS: Final = range(2048, 8193)
MAX_EXPONENT: Final = 2**32
ALGORITHMS: Final = frozenset({"RS256", "ES256"})

Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class JwtError(ValueError):
    """The token is not one that can be believed; the text says why, and has nothing of the token in it."""


class KeySetError(ValueError):
    """A key set cannot be read."""


class _Header(msgspec.Struct):
    alg: str = ""
    kid: str = ""
    crit: Any = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Token:
    """A token that is well-formed; `claims` are not to be believed before `verify`."""

    algorithm: str
    key_id: str
    claims: Mapping[str, Any]
    _signed: bytes
    _signature: bytes

    def verify(self, key: Key) -> None:
        """Raises `JwtError` unless this key signed the token with the algorithm that the token names."""
        try:
            if self.algorithm == "RS256" and isinstance(key, rsa.RSAPublicKey):
                key.verify(self._signature, self._signed, padding.PKCS1v15(), hashes.SHA256())
            elif self.algorithm == "ES256" and isinstance(key, ec.EllipticCurvePublicKey):
                if len(self._signature) != 64:
                    raise JwtError("the signature does not have 64 bytes")
                r, s = (int.from_bytes(half, "big") for half in (self._signature[:32], self._signature[32:]))
                key.verify(encode_dss_signature(r, s), self._signed, ec.ECDSA(hashes.SHA256()))
            else:
                raise JwtError(f"the key is none for {self.algorithm}")
        except InvalidSignature as error:
            raise JwtError("the signature is wrong") from error


def parse(text: str) -> Token:
    """Raises `JwtError`."""
    if len(text) > MAX_SIZE:
        raise JwtError(f"it is longer than {MAX_SIZE} bytes")
    segments = text.split(".")
    if len(segments) != 3:
        raise JwtError("it does not have three segments")
    header = _json(segments[0], "header", _Header)
    if header.alg not in ALGORITHMS:
        raise JwtError("its algorithm is neither RS256 nor ES256")
    if header.crit is not msgspec.UNSET:
        raise JwtError("it asks for extensions that are not known")
    claims = _json(segments[1], "claims", dict[str, Any])
    signed = f"{segments[0]}.{segments[1]}".encode()
    return Token(header.alg, header.kid, claims, signed, _decode(segments[2], "signature"))


def parse_key_set(data: bytes) -> dict[str, Key]:
    """The keys by their id, at least one; those of other kinds and for other uses are left out. Raises
    `KeySetError`."""
    try:
        listed = msgspec.json.decode(data, type=dict[str, Any]).get("keys")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KeySetError("it is no JSON object") from error
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise KeySetError(f"it has no list of at most {MAX_KEYS} keys")
    keys = {}
    for item in listed:
        if isinstance(item, dict) and isinstance(item.get("kid"), str) and item.get("use", "sig") == "sig":
            try:
                key = _key(item)
            except (ValueError, TypeError):
                continue
            if key is not None:
                keys[item["kid"]] = key
    if not keys:
        raise KeySetError("it has no key that can be used")
    return keys


def _key(item: Mapping[str, Any]) -> Key | None:
    match item.get("kty"):
        case "RSA":
            modulus, exponent = _integer(item.get("n")), _integer(item.get("e"))
            if modulus.bit_length() not in RSA_BITS or not 2 < exponent < MAX_EXPONENT:
                return None
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        case "EC" if item.get("crv") == "P-256":
            return ec.EllipticCurvePublicNumbers(
                _integer(item.get("x")), _integer(item.get("y")), ec.SECP256R1()
            ).public_key()
    return None


def _integer(text: object) -> int:
    return int.from_bytes(_decode(str(text), "number"), "big")


def _json(segment: str, what: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(_decode(segment, what), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JwtError(f"the {what} cannot be read") from error


def _decode(segment: str, what: str) -> bytes:
    """base64url without padding, in its only form (RFC 7515 §2)."""
    if _SEGMENT.fullmatch(segment) is None:
        raise JwtError(f"the {what} is not base64url")
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except (binascii.Error, ValueError) as error:
        raise JwtError(f"the {what} is not base64url") from error
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != segment:
        raise JwtError(f"the {what} is not canonical base64url")
    return data
