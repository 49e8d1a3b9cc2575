"""The host key against the vectors of terminal-ssh-http.md §3.2."""

from __future__ import annotations

import asyncssh
import pytest

from agent.ssh.hostkey import _Bits, derive, seed_of

NAMES = seed_of("alice", "dev", "main")


def test_the_bit_stream() -> None:
    assert _Bits(1).take(64) == 0x23DE693FA2DACA1E
    whole, pieces = _Bits(-5), _Bits(-5)
    assert whole.take(5000) == sum(pieces.take(100) << 100 * index for index in range(50))


def test_seeds() -> None:
    assert NAMES == 0x509D1DD0BEE374F1
    assert all(-(1 << 63) <= seed_of(name, "dev", "main") < 1 << 63 for name in "abcdefgh")
    assert _Bits(0).take(64) == _Bits(89482311).take(64) == _Bits((1 << 31) - 1).take(64)
    assert _Bits(-1).take(64) == _Bits((1 << 31) - 2).take(64)


@pytest.mark.spec("terminal-ssh-http", 36)
@pytest.mark.parametrize(
    ("seed", "p", "q", "bits", "fingerprint"),
    [
        (1, 0xFEB5D5AE7DD515DB, 0x9D4FEEAD30DE82AB, 2049, "uVklnwlmJmPc66afcvlKGBg/DMmiXJCOjTxiURhOXao"),
        (1234, 0xF905CB069E75CB67, 0x1185F2EBF27B3ED7, 2050, "ZXIB7i/lm4nQyXcYOu0Fx5VxL3SJJ36/M5LL17IAldo"),
        (NAMES, 0x3B0538401F4EC49D, 0x330B7E1E316386B1, 2049, "rF+q3uQiMaiLgI0R6NS75lUl3SOwTTK/6bSBhVWfpAI"),
    ],
)
def test_keys(seed: int, p: int, q: int, bits: int, fingerprint: str) -> None:
    primes = derive(seed)
    assert (primes.p & 0xFFFFFFFFFFFFFFFF, primes.q & 0xFFFFFFFFFFFFFFFF) == (p, q)
    assert (primes.p * primes.q).bit_length() == bits
    assert asyncssh.import_private_key(primes.pem()).get_fingerprint() == f"SHA256:{fingerprint}"
