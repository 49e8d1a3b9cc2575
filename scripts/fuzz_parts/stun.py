"""STUN: what a server answers, and what a server is asked."""

from __future__ import annotations

from collections.abc import Iterator

from agent.protocol import stun

TXID = bytes(range(12))


def seeds() -> Iterator[bytes]:
    yield stun.request(TXID)
    yield stun.response(TXID, (bytes(10) + b"\xff\xff\x7f\0\0\1", 4242))
    yield stun.response(TXID, (bytes.fromhex("20010db8") + bytes(12), 4242))


def target(data: bytes) -> None:
    stun.is_stun(data)
    txid = stun.parse_request(data)
    assert txid is None or len(txid) == stun.TXID_SIZE
    response = stun.parse_response(data)
    if response is not None:
        address, port = response.endpoint
        assert len(address) == 16
        assert 0 <= port < 65536
        assert stun.parse_response(stun.response(response.txid, response.endpoint)) == response
