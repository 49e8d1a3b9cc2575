"""The host key that follows from the names of a workspace, so that a rebuilt one is no stranger (terminal-ssh-http.md
§3.2).

Whoever knows the names can make the key: it proves nothing, and nothing relies on it. The tailnet, which carries every
connection, is what authenticates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

_MODULUS: Final = (1 << 31) - 1
_TABLE: Final = bytes.fromhex(
    "ee240ee95fc1bd343435e75cae0454e9086b25a589f6d7bb913631ee0e65b4ae5bf5adb96fd74962e7be77ea"
    "8de1f0a4409c557f712ed248ccc5f7b94d48d22d7f7d69d81057b88ab32fa034"
)
_LENGTH: Final = 607
_TAP: Final = 273
_PRIME_BITS: Final = 1024
_EXPONENT: Final = 65537
_SIEVED: Final = 20_000
"""Candidates are divided by the primes below this first; the optimum is flat."""
_ROUNDS: Final = 8
"""Miller-Rabin rounds: a composite passes with a probability below 2^-16 for the worst number, and far below 2^-100
for one that nobody chose."""


@dataclass(frozen=True, slots=True)
class RsaPrimes:
    """What an RSA key is made of."""

    p: int
    q: int
    e: int = _EXPONENT

    def pem(self) -> bytes:
        """The private key in PKCS #1. Takes some milliseconds."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        p, q = max(self.p, self.q), min(self.p, self.q)
        d = pow(self.e, -1, (p - 1) * (q - 1))
        numbers = rsa.RSAPrivateNumbers(
            p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(self.e, p * q)
        )
        key = numbers.private_key(unsafe_skip_rsa_key_validation=True)  # it would test again what was just tested
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )


def seed_of(owner: str, workspace: str, agent: str) -> int:
    """FNV-1a over the names, as a signed number of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in "\0".join((owner, workspace, agent)).encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def derive(seed: int) -> RsaPrimes:
    """The key of a seed. Takes about a second of pure computation: call it in a thread."""
    bits = _Bits(seed)
    p = _next_prime(bits)
    while (q := _next_prime(bits)) == p:
        pass
    return RsaPrimes(p, q)


class _Bits:
    """Steps 2 and 3: a shift register of 607 bits. `take` gives them lowest first."""

    def __init__(self, seed: int) -> None:
        x = seed % _MODULUS or 89482311
        for _ in range(20):
            x = _step(x)
        register = []
        for index in range(_LENGTH):
            x = _step(_step(_step(x)))
            register.append(x & 1 ^ _TABLE[index // 8] >> index % 8 & 1)
        # The oldest bit is the lowest: y[-606] ... y[0].
        self._register = sum(register[(334 - j) % _LENGTH] << j + 606 for j in range(-606, 1))
        self._ready = 0
        self._count = 0

    def take(self, count: int) -> int:
        """The next bits of the stream, the first one lowest."""
        while self._count < count:
            # y[k] = y[k-607] ^ y[k-273]: as many at once as do not depend on each other.
            fresh = (self._register ^ self._register >> _LENGTH - _TAP) & (1 << _TAP) - 1
            self._register = self._register >> _TAP | fresh << _LENGTH - _TAP
            self._ready |= fresh << self._count
            self._count += _TAP
        taken = self._ready & (1 << count) - 1
        self._ready >>= count
        self._count -= count
        return taken


def _step(x: int) -> int:
    return 48271 * x % _MODULUS


def _next_prime(bits: _Bits) -> int:
    while True:
        candidate = 1 << _PRIME_BITS | bits.take(_PRIME_BITS)
        if (
            candidate & 1
            and math.gcd(candidate, _small_primes()) == 1
            and candidate % _EXPONENT != 1
            and _is_prime(candidate)
        ):
            return candidate


def _is_prime(candidate: int) -> bool:
    """Miller-Rabin for a large odd number."""
    odd = candidate - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    return all(_passes(candidate, base, odd, twos) for base in _first_primes(_ROUNDS))


def _passes(candidate: int, base: int, odd: int, twos: int) -> bool:
    x = pow(base, odd, candidate)
    if x in (1, candidate - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % candidate
        if x == candidate - 1:
            return True
    return False


def _first_primes(count: int) -> Iterator[int]:
    number, found = 2, 0
    while found < count:
        if all(number % divisor for divisor in range(2, number)):
            yield number
            found += 1
        number += 1


@cache
def _small_primes() -> int:
    """The product of the odd primes that are sieved."""
    sieve = bytearray([1]) * _SIEVED
    for number in range(3, math.isqrt(_SIEVED) + 1, 2):
        if sieve[number]:
            sieve[number * number :: 2 * number] = bytes(len(range(number * number, _SIEVED, 2 * number)))
    return math.prod(number for number in range(3, _SIEVED, 2) if sieve[number])
