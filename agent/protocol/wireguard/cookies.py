"""The two mac fields of handshake messages, and cookies against floods (tailnet.md §7.3 step 5 and 9, §7.8).

mac1 proves that the sender knows the receiver's public key. A receiver under load answers with a cookie, which is a MAC
of the sender's address; mac2, made with it, proves that the sender can be reached at its address.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import blake2s

from agent.protocol.wireguard.messages import (
    COOKIE_HEADER,
    COOKIE_NONCE_SIZE,
    COOKIE_REPLY,
    INITIATION_HEADER,
    KEY_SIZE,
    MAC_SIZE,
    MACS_SIZE,
)

COOKIE_LIFETIME = 120.0
"""Seconds that a secret, and a cookie received, is used."""

_NO_MAC2 = bytes(MAC_SIZE)


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=MAC_SIZE).digest()


def _labelled(label: bytes, public_key: bytes) -> bytes:
    return blake2s(label + public_key).digest()


class Stamper:
    """Signs what is sent to one peer, and keeps the cookie that the peer asked us to use."""

    __slots__ = ("_cookie", "_cookie_from", "_mac1_key", "_public_key", "_sent_mac1")

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        self._mac1_key = _labelled(b"mac1----", public_key)
        self._sent_mac1 = b""
        self._cookie = b""
        self._cookie_from = 0.0

    def stamp(self, body: bytes, now: float) -> bytes:
        """The whole message: body, mac1, mac2."""
        mac1 = self._sent_mac1 = _mac(self._mac1_key, body)
        message = body + mac1
        if self.has_cookie(now):
            return message + _mac(self._cookie, message)
        self._cookie = b""
        return message + _NO_MAC2

    def has_cookie(self, now: float) -> bool:
        """Whether the next message carries mac2."""
        return bool(self._cookie) and now - self._cookie_from < COOKIE_LIFETIME

    def take_cookie(self, message: bytes, now: float) -> bool:
        """Keeps the cookie in a cookie reply; False when it does not answer the last message that we sent."""
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt  # rarely needed: only under load
        from nacl.exceptions import CryptoError

        if not self._sent_mac1:
            return False
        nonce, sealed = message[8 : 8 + COOKIE_NONCE_SIZE], message[8 + COOKIE_NONCE_SIZE :]
        key = _labelled(b"cookie--", self._public_key)
        try:
            cookie = crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, self._sent_mac1, nonce, key)
        except CryptoError:
            return False
        self._cookie, self._cookie_from = bytes(cookie), now
        self._sent_mac1 = b""  # one reply per message: replays cost nothing
        return True


class Checker:
    """Checks what is sent to us, and issues cookies."""

    __slots__ = ("_cookie_key", "_mac1_key", "_random", "_secret", "_secret_until")

    def __init__(self, public_key: bytes, random: Callable[[int], bytes]) -> None:
        self._mac1_key = _labelled(b"mac1----", public_key)
        self._cookie_key = _labelled(b"cookie--", public_key)
        self._random = random
        self._secret = b""
        self._secret_until = 0.0

    def mac1_is_valid(self, message: bytes) -> bool:
        """Whether the sender knows our public key."""
        body, mac1 = message[:-MACS_SIZE], message[-MACS_SIZE:-MAC_SIZE]
        return hmac.compare_digest(_mac(self._mac1_key, body), mac1)

    def mac2_is_valid(self, message: bytes, source: bytes, now: float) -> bool:
        """Whether the sender received a cookie of ours at `source`."""
        mac2 = message[-MAC_SIZE:]
        if mac2 == _NO_MAC2:
            return False
        return hmac.compare_digest(_mac(self._cookie(source, now), message[:-MAC_SIZE]), mac2)

    def reply(self, message: bytes, source: bytes, now: float) -> bytes:
        """The cookie reply (64 bytes) to an initiation or response with a valid mac1."""
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt  # rarely needed: only under load

        sender_index = INITIATION_HEADER.unpack_from(message)[1]
        nonce = self._random(COOKIE_NONCE_SIZE)
        mac1 = message[-MACS_SIZE:-MAC_SIZE]
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(self._cookie(source, now), mac1, nonce, self._cookie_key)
        return COOKIE_HEADER.pack(COOKIE_REPLY, sender_index) + nonce + sealed

    def _cookie(self, source: bytes, now: float) -> bytes:
        if not self._secret or now >= self._secret_until:
            self._secret = self._random(KEY_SIZE)
            self._secret_until = now + COOKIE_LIFETIME
        return _mac(self._secret, source)
