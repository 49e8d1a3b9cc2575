"""The WireGuard device alone, on one core: bulk both ways, handshakes, and what a flood of them costs."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.protocol.wireguard import Device, Peer

PACKET = 1280
BATCH = 64
BATCHES = 150
ROUNDS = 5
HANDSHAKES = 300
FLOOD = 3000
IDLE_PEERS = 1000

_SOURCE, _DESTINATION = bytes(15) + b"\x01", bytes(15) + b"\x02"


def _packets(source: bytes, destination: bytes) -> list[bytes]:
    header = struct.pack(">IHBB", 6 << 28, PACKET - 40, 59, 64) + source + destination
    return [header + os.urandom(PACKET - 40) for _ in range(BATCH)]


def _flat(output: list[tuple[Peer, list[bytes]]]) -> list[bytes]:
    return [datagram for _, datagrams in output for datagram in datagrams]


def _pair() -> tuple[Device, Device]:
    left, right = Device(os.urandom(32)), Device(os.urandom(32))
    left.add_peer(right.public_key, [_DESTINATION])
    right.add_peer(left.public_key, [_SOURCE])
    return left, right


def _shake(left: Device, right: Device, now: float) -> None:
    left.forget_keys(right.public_key)
    wall_ns = time.time_ns() + int(now * 1e9)
    initiation = _flat(left.send(_packets(_SOURCE, _DESTINATION)[:1], now, wall_ns))
    response = _flat(right.receive(initiation, now, wall_ns).output)
    received = left.receive(response, now, wall_ns)
    if not right.receive(_flat(received.output), now, wall_ns).established:
        raise AssertionError("no handshake")


def _best(run: Callable[[], float]) -> float:
    return min(run() for _ in range(ROUNDS))


def bulk() -> tuple[float, float]:
    """Seconds per batch to encrypt and to decrypt."""
    left, right = _pair()
    _shake(left, right, 0.0)
    packets = _packets(_SOURCE, _DESTINATION)
    sealing, opening = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        batches = [left.send(packets, 1.0, 0) for _ in range(BATCHES)]
        sealing.append(time.perf_counter() - started)
        received = [_flat(batch) for batch in batches]
        started = time.perf_counter()
        for datagrams in received:
            right.receive(datagrams, 1.0, 0)
        opening.append(time.perf_counter() - started)
    return min(sealing) / BATCHES, min(opening) / BATCHES


def _cipher() -> float:
    """Seconds per batch of the bare cipher: what no Python around it can beat."""
    encrypt, nonce, packets = ChaCha20Poly1305(os.urandom(32)).encrypt, bytes(12), _packets(_SOURCE, _DESTINATION)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(BATCHES):
            for packet in packets:
                encrypt(nonce, packet, None)
        return time.perf_counter() - started

    return _best(run) / BATCHES


def handshakes() -> float:
    """Seconds per handshake, both sides and the first packet."""
    left, right = _pair()
    started = time.perf_counter()
    for number in range(HANDSHAKES):
        _shake(left, right, number * 10.0)
    return (time.perf_counter() - started) / HANDSHAKES


def flood() -> float:
    """Seconds per initiation of a flood that keeps the device under load."""
    left, right = _pair()
    (initiation,) = _flat(left.send(_packets(_SOURCE, _DESTINATION)[:1], 0.0, time.time_ns()))
    started = time.perf_counter()
    for number in range(FLOOD):
        right.receive([initiation], number * 1e-5, 0, b"flooder")
    return (time.perf_counter() - started) / FLOOD


def idle_peers() -> float:
    """Microseconds to ask 1000 idle peers for their next deadline and to find nothing due."""
    device = Device(os.urandom(32))
    for number in range(IDLE_PEERS):
        other = Device(os.urandom(32))
        device.add_peer(other.public_key, [number.to_bytes(16, "big")], keepalive=25)
    device.handle_timeout(0.0, time.time_ns())
    started = time.perf_counter()
    for _ in range(1000):
        device.next_timeout()
        device.handle_timeout(0.0, 0)
    return (time.perf_counter() - started) * 1e3


async def measure() -> dict[str, float]:
    """MB/s of inner packets of 1280 bytes beside the bare cipher, handshakes per second, and costs in microseconds."""
    seal, open_ = bulk()
    size = PACKET * BATCH / 1e6
    return {
        "encrypt MB/s": size / seal,
        "decrypt MB/s": size / open_,
        "bare cipher MB/s": size / _cipher(),
        "handshakes/s, both sides": 1 / handshakes(),
        "flood, us per initiation": flood() * 1e6,
        "1000 idle peers, us per look": idle_peers(),
    }
