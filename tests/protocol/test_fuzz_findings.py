"""Input that once broke a parser, found by `scripts/fuzz` or by looking for more of what it finds."""

from __future__ import annotations

import json

import pytest
from nacl.bindings import crypto_box_afternm

from agent.protocol import derp, keys
from agent.protocol.derp import ClientSession, Kind, ServerSession


@pytest.mark.parametrize("rate", [10**400, -(10**400), 1 << 63])
@pytest.mark.parametrize("burst", [10**400, -(10**400), 0])
def test_a_relay_that_asks_for_a_rate_beyond_all_numbers(rate: int, burst: int) -> None:
    """Such a rate made every later packet raise OverflowError."""
    client, server = ClientSession(keys.generate(), home=False), ServerSession(private := keys.generate())
    client.receive(b"".join(server.data_to_send()))
    server.receive(b"".join(client.data_to_send()))
    box = keys.box_key(private, server.client_key)
    info = json.dumps({"TokenBucketBytesPerSecond": rate, "TokenBucketBytesBurst": burst}).encode()
    client.receive(derp.frame(Kind.SERVER_INFO, bytes(24) + crypto_box_afternm(info, bytes(24), box)))
    assert client.logged_in
    for now in (1.0, 2.0, 3.0):
        assert client.packet(bytes(32), b"x", now)


@pytest.mark.parametrize("burst", [10**400, -(10**400)])
def test_a_relay_that_asks_for_a_burst_beyond_all_numbers(burst: int) -> None:
    client, server = ClientSession(keys.generate(), home=False), ServerSession(private := keys.generate())
    client.receive(b"".join(server.data_to_send()))
    server.receive(b"".join(client.data_to_send()))
    box = keys.box_key(private, server.client_key)
    info = json.dumps({"TokenBucketBytesPerSecond": 1000, "TokenBucketBytesBurst": burst}).encode()
    client.receive(derp.frame(Kind.SERVER_INFO, bytes(24) + crypto_box_afternm(info, bytes(24), box)))
    sent = [client.packet(bytes(32), b"x", now) for now in (1.0, 2.0, 3.0)]
    assert all(sent) == (burst > 0)
