"""Disco: packets of strangers, and of two peers that may say anything, to a node that looks for direct paths."""

from __future__ import annotations

from collections.abc import Iterator

from nacl.bindings import crypto_box_afternm

from agent.protocol import disco, keys
from agent.tailnet.paths import MAX_ENDPOINTS, MAX_OUTSTANDING, Paths
from fuzz_parts import Input

OWN = bytes(range(1, 33))
PRIVATE = [bytes((number,)) * 32 for number in (40, 80)]
NODES = [b"node one".ljust(32, b"\0"), b"node two".ljust(32, b"\0")]
PUBLIC = [keys.public_key(private) for private in PRIVATE]
BOXES = [keys.box_key(private, keys.public_key(OWN)) for private in PRIVATE]


def seeds() -> Iterator[bytes]:
    for who in range(2):
        for message in (
            disco.Ping(bytes(12), NODES[who]),
            disco.Pong(bytes(12), disco.derp_source(1)),
            disco.CallMeMaybe(((bytes(16), 1), (bytes(10) + b"\xff\xff" + bytes(4), 2))),
        ):
            plain = disco.encode(message)
            yield bytes((0, who, 1, 5, len(plain))) + plain + bytes((3, 1, 2, 0, 10, 3, 1))
        yield bytes((1, who, 1, 70)) + disco.MAGIC + bytes(64)


def target(data: bytes) -> None:
    given = Input(data)
    count = 0

    def random(size: int) -> bytes:
        nonlocal count
        count += 1
        return count.to_bytes(size, "big")

    paths = Paths(OWN, bytes(32), random=random)
    paths.set_own_endpoints([(bytes(16), 1)])
    for node, public in zip(NODES, PUBLIC, strict=True):
        paths.set_peer(node, public, 7, [])
    now = 1000.0
    while given:
        form, who = given.number() % 6, given.number() % 2
        endpoint = (given.number().to_bytes(16, "big"), given.number())
        if form < 2:
            text = given.text()
            if form == 0:
                text = disco.MAGIC + PUBLIC[who] + bytes(24) + crypto_box_afternm(text, bytes(24), BOXES[who])
            if not disco.is_disco(text):
                continue
            relayed = endpoint[1] % 2 == 0
            outcome = paths.receive(text, now, None if relayed else endpoint, 7, NODES[who] if relayed else b"")
            assert len(outcome.send) <= 2 * MAX_ENDPOINTS
        elif form == 2:
            _, sends = paths.route(NODES[who], now)
            assert len(sends) <= 2 * MAX_ENDPOINTS + 1
        elif form == 3:
            paths.ping(NODES[who], now)
        elif form == 4:
            paths.set_direct(given.number() % 4 != 0)
        else:
            now += given.number(2) / 100
            due = paths.next_timeout()
            if due is not None and due <= now:
                paths.handle_timeout(now)
                later = paths.next_timeout()
                assert later is None or later > now
        assert len(paths._bound) <= 2 * MAX_ENDPOINTS
        assert len(paths._outstanding) <= MAX_OUTSTANDING
        assert all(len(peer.candidates) <= 2 * MAX_ENDPOINTS for peer in paths._peers.values())
