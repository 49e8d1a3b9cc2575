"""The handshake Noise_IKpsk2 as WireGuard uses it, without its mac fields (tailnet.md §7.1, §7.3).

The initiator makes a message with `create_initiation` and finishes with `open_response`. The responder reads with
`open_initiation`, looks the static key up among its peers, reads the timestamp, and answers with `create_response`.
Nothing here keeps state between handshakes; ephemeral keys, indices and timestamps are handed in.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.protocol.wireguard.messages import INITIATION, INITIATION_HEADER, RESPONSE, RESPONSE_HEADER

_ZERO_NONCE = bytes(12)
_NO_PRESHARED_KEY = bytes(32)
_TAI64_EPOCH = 0x400000000000000A
_STEP_NS = 1 << 24
"""A timestamp tells times apart by this much: the low 24 bits of its nanoseconds are cleared, not to be a clock."""


class HandshakeError(Exception):
    """A handshake message is forged, damaged, or made with a key of low order."""


def hash_parts(*parts: bytes) -> bytes:
    """HASH of the parts joined: BLAKE2s-256."""
    return blake2s(b"".join(parts)).digest()


def _kdf1(key: bytes, material: bytes) -> bytes:
    return hmac.digest(hmac.digest(key, material, "blake2s"), b"\x01", "blake2s")


def _kdf2(key: bytes, material: bytes) -> tuple[bytes, bytes]:
    base = hmac.digest(key, material, "blake2s")
    first = hmac.digest(base, b"\x01", "blake2s")
    return first, hmac.digest(base, first + b"\x02", "blake2s")


def _kdf3(key: bytes, material: bytes) -> tuple[bytes, bytes, bytes]:
    base = hmac.digest(key, material, "blake2s")
    first = hmac.digest(base, b"\x01", "blake2s")
    second = hmac.digest(base, first + b"\x02", "blake2s")
    return first, second, hmac.digest(base, second + b"\x03", "blake2s")


_CONSTRUCTION = hash_parts(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
_IDENTIFIED = hash_parts(_CONSTRUCTION, b"WireGuard v1 zx2c4 Jason@zx2c4.com")


def timestamp(wall_ns: int) -> bytes:
    """TAI64N of nanoseconds since 1970, coarse to 2^24 ns."""
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return (_TAI64_EPOCH + seconds).to_bytes(8, "big") + (nanoseconds & ~(_STEP_NS - 1)).to_bytes(4, "big")


def next_step(wall_ns: int) -> int:
    """A later time whose timestamp is greater than that of `wall_ns`."""
    return wall_ns + _STEP_NS


def _shared(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise HandshakeError(f"the public key {public.hex()} is of low order or no key") from error


def _seal(key: bytes, plaintext: bytes, ad: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, plaintext, ad)


def _open(key: bytes, sealed: bytes, ad: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, sealed, ad)
    except InvalidTag as error:
        raise HandshakeError("a sealed field of a handshake message does not open") from error


class Identity:
    """One's own static key, with what every handshake derives from it."""

    __slots__ = ("_private", "_public", "initial_hash")

    def __init__(self, private_key: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private_key)
        self._public = self._private.public_key().public_bytes_raw()
        self.initial_hash = hash_parts(_IDENTIFIED, self._public)

    @property
    def private(self) -> X25519PrivateKey:
        return self._private

    @property
    def public(self) -> bytes:
        return self._public


class Remote:
    """A peer's static key, with what every handshake derives from it. `HandshakeError` for a key of low order."""

    __slots__ = ("initial_hash", "public", "shared")

    def __init__(self, identity: Identity, public: bytes) -> None:
        self.public = public
        self.shared = _shared(identity.private, public)
        self.initial_hash = hash_parts(_IDENTIFIED, public)


@dataclass(frozen=True, slots=True, repr=False)
class SessionKeys:
    """What a handshake gives: a key for each direction, and the index that the peer chose."""

    send: bytes
    receive: bytes
    remote_index: int


@dataclass(frozen=True, slots=True, repr=False)
class Initiated:
    """The initiator's state between its message and the response."""

    identity: Identity
    ephemeral: X25519PrivateKey
    chaining_key: bytes
    hash: bytes


def create_initiation(
    identity: Identity, remote: Remote, index: int, ephemeral_private: bytes, stamp: bytes
) -> tuple[bytes, Initiated]:
    """The first 116 bytes of an initiation, and what is needed to read its response."""
    ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_private)
    public = ephemeral.public_key().public_bytes_raw()
    chaining_key = _kdf1(_CONSTRUCTION, public)
    digest = hash_parts(remote.initial_hash, public)
    chaining_key, key = _kdf2(chaining_key, _shared(ephemeral, remote.public))
    sealed_static = _seal(key, identity.public, digest)
    digest = hash_parts(digest, sealed_static)
    chaining_key, key = _kdf2(chaining_key, remote.shared)
    sealed_stamp = _seal(key, stamp, digest)
    digest = hash_parts(digest, sealed_stamp)
    message = b"".join((INITIATION_HEADER.pack(INITIATION, index), public, sealed_static, sealed_stamp))
    return message, Initiated(identity, ephemeral, chaining_key, digest)


@dataclass(frozen=True, slots=True, repr=False)
class OpenedInitiation:
    """An initiation whose static key was read. Whether its sender has that key is proved by `timestamp` only."""

    static_public: bytes
    sender_index: int
    ephemeral_public: bytes
    chaining_key: bytes
    hash: bytes
    sealed_stamp: bytes

    def authenticate(self, remote: Remote) -> tuple[bytes, Initiation]:
        """The timestamp (12 bytes), and the state to answer from. Raises `HandshakeError`."""
        chaining_key, key = _kdf2(self.chaining_key, remote.shared)
        stamp = _open(key, self.sealed_stamp, self.hash)
        digest = hash_parts(self.hash, self.sealed_stamp)
        return stamp, Initiation(remote, self.sender_index, self.ephemeral_public, chaining_key, digest)


@dataclass(frozen=True, slots=True, repr=False)
class Initiation:
    """An authenticated initiation of a peer."""

    remote: Remote
    sender_index: int
    ephemeral_public: bytes
    chaining_key: bytes
    hash: bytes


def open_initiation(identity: Identity, message: bytes) -> OpenedInitiation:
    """Reads the sender's static key from an initiation of the right size. Raises `HandshakeError`."""
    index = INITIATION_HEADER.unpack_from(message)[1]
    ephemeral_public, sealed_static = message[8:40], message[40:88]
    chaining_key = _kdf1(_CONSTRUCTION, ephemeral_public)
    digest = hash_parts(identity.initial_hash, ephemeral_public)
    chaining_key, key = _kdf2(chaining_key, _shared(identity.private, ephemeral_public))
    static_public = _open(key, sealed_static, digest)
    digest = hash_parts(digest, sealed_static)
    return OpenedInitiation(static_public, index, ephemeral_public, chaining_key, digest, message[88:116])


def create_response(initiation: Initiation, index: int, ephemeral_private: bytes) -> tuple[bytes, SessionKeys]:
    """The first 60 bytes of the response, and the session's keys. Raises `HandshakeError`."""
    ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_private)
    public = ephemeral.public_key().public_bytes_raw()
    digest = hash_parts(initiation.hash, public)
    chaining_key = _kdf1(initiation.chaining_key, public)
    chaining_key = _kdf1(chaining_key, _shared(ephemeral, initiation.ephemeral_public))
    chaining_key = _kdf1(chaining_key, _shared(ephemeral, initiation.remote.public))
    chaining_key, tau, key = _kdf3(chaining_key, _NO_PRESHARED_KEY)
    sealed = _seal(key, b"", hash_parts(digest, tau))
    receive, send = _kdf2(chaining_key, b"")
    header = RESPONSE_HEADER.pack(RESPONSE, index, initiation.sender_index)
    return header + public + sealed, SessionKeys(send, receive, initiation.sender_index)


def open_response(initiated: Initiated, message: bytes) -> SessionKeys:
    """The session's keys from a response of the right size to this initiation. Raises `HandshakeError`."""
    index = RESPONSE_HEADER.unpack_from(message)[1]
    public = message[12:44]
    digest = hash_parts(initiated.hash, public)
    chaining_key = _kdf1(initiated.chaining_key, public)
    chaining_key = _kdf1(chaining_key, _shared(initiated.ephemeral, public))
    chaining_key = _kdf1(chaining_key, _shared(initiated.identity.private, public))
    chaining_key, tau, key = _kdf3(chaining_key, _NO_PRESHARED_KEY)
    _open(key, message[44:60], hash_parts(digest, tau))
    send, receive = _kdf2(chaining_key, b"")
    return SessionKeys(send, receive, index)
